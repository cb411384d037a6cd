//! What delays mean to people.

/// Interarrival jitter, RFC 3550 §6.4.1, over transit times in any unit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jitter {
    value: f64,
    last: Option<f64>,
    sum: f64,
    arrivals: u64,
}

impl Jitter {
    pub fn arrival(&mut self, transit: f64) {
        if let Some(last) = self.last.replace(transit) {
            self.value += ((transit - last).abs() - self.value) / 16.0;
            self.sum += self.value;
            self.arrivals += 1;
        }
    }

    /// The estimator's value after the last arrival.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The mean of the estimator's values: `value` alone remembers some sixteen packets.
    pub fn mean(&self) -> f64 {
        if self.arrivals == 0 { 0.0 } else { self.sum / self.arrivals as f64 }
    }
}

/// The transmission rating of the E-model (ITU-T G.107, short form) for G.711 with concealment and random loss.
/// `delay_ms` is one-way, from mouth to ear; `loss` is 0 to 1.
fn rating(delay_ms: f64, loss: f64) -> f64 {
    const IE: f64 = 0.0;
    const BPL: f64 = 25.1;
    const BURST_R: f64 = 1.0;
    let late = if delay_ms > 177.3 { 0.11 * (delay_ms - 177.3) } else { 0.0 };
    let percent = loss * 100.0;
    93.2 - (0.024 * delay_ms + late) - (IE + (95.0 - IE) * percent / (percent / BURST_R + BPL))
}

/// ITU-T G.107 annex B.
fn mos(r: f64) -> f64 {
    1.0 + 0.035 * r + 7e-6 * r * (r - 60.0) * (100.0 - r)
}

/// The mean opinion score that the E-model estimates, 1 to 4.5.
pub fn e_model_mos(delay_ms: f64, loss: f64) -> f64 {
    match rating(delay_ms, loss) {
        r if r <= 0.0 => 1.0,
        r if r >= 100.0 => 4.5,
        r => mos(r),
    }
}

/// The score that Genesys Cloud shows supervisors, 1 to about 4.9, from the round trip, the jitter and the loss (0 to 1).
pub fn genesys_mos(round_trip_ms: f64, jitter_ms: f64, loss: f64) -> f64 {
    let effective = round_trip_ms / 2.0 + 2.0 * jitter_ms + 10.0;
    let delay = if effective < 160.0 { effective / 40.0 } else { (effective - 120.0) / 10.0 };
    let r = 93.2 - delay - 2.5 * loss * 100.0;
    if r < 0.0 { 1.0 } else { mos(r) * 5.0 / 4.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_e_models_vectors() {
        let vectors = [
            (0.0, 0.0, 93.2, 4.4093),
            (150.0, 0.0, 89.6, 4.3291),
            (150.0, 0.01, 85.960, 4.2279),
            (200.0, 0.01, 82.263, 4.1066),
            (300.0, 0.03, 62.361, 3.2214),
        ];
        for (delay, loss, r, score) in vectors {
            assert!((rating(delay, loss) - r).abs() < 1e-3, "{delay} {loss}: {}", rating(delay, loss));
            assert!((e_model_mos(delay, loss) - score).abs() < 1e-4, "{delay} {loss}");
        }
        assert_eq!(e_model_mos(10_000.0, 0.0), 1.0);
    }

    #[test]
    fn genesys_vectors() {
        let vectors = [
            (0.0, 0.0, 0.0, 4.8938),
            (40.0, 2.0, 0.0, 4.8803),
            (100.0, 5.0, 0.0, 4.8588),
            (150.0, 30.0, 0.01, 4.7344),
            (400.0, 50.0, 0.05, 3.5418),
        ];
        for (round_trip, jitter, loss, score) in vectors {
            let found = genesys_mos(round_trip, jitter, loss);
            assert!((found - score).abs() < 1e-4, "{round_trip} {jitter} {loss}: {found}");
        }
        assert_eq!(genesys_mos(5000.0, 0.0, 0.0), 1.0);
    }

    #[test]
    fn a_steady_stream_has_no_jitter_and_one_late_packet_counts_twice() {
        let mut jitter = Jitter::default();
        let values = [10.0, 10.0, 26.0, 10.0].map(|transit| {
            jitter.arrival(transit);
            jitter.value()
        });
        assert_eq!(values, [0.0, 0.0, 1.0, 1.0 + 15.0 / 16.0]);
        assert_eq!(jitter.mean(), (0.0 + 1.0 + 1.9375) / 3.0);
    }
}

use std::collections::{BTreeMap, BTreeSet};

use hdrhistogram::Histogram;

use super::{Heard, Jitter, Sample, e_model_mos, genesys_mos};

/// Delays in nanoseconds.
#[derive(Clone, Debug)]
pub struct Delays {
    /// From when a packet was due to its return.
    pub round_trip: Histogram<u64>,
    /// One-way, there and back together; only where both ends have one clock.
    pub one_way: Histogram<u64>,
    /// One-way, there alone.
    pub there: Histogram<u64>,
    /// By how much packets were sent after they were due: part of the delay, and the bench's own doing.
    pub late: Histogram<u64>,
}

/// What some calls sounded like.
#[derive(Clone, Debug)]
pub struct Quality {
    pub delays: Delays,
    pub sent: u64,
    /// Sent and never come back, 0 to 1.
    pub loss: f64,
    /// Packets of a call that came back after a later one.
    pub reordered: u64,
    /// RFC 3550 §6.4.1 of the one-way delay, the worse direction, in milliseconds: the mean over calls and packets.
    pub jitter_ms: f64,
    /// By the E-model, with the one-way p99 as delay: a playout buffer waits for about that.
    pub mos: f64,
    /// By Genesys's formula, with the median round trip.
    pub genesys_mos: f64,
}

impl Default for Delays {
    #[expect(clippy::expect_used, reason = "three significant digits are in the range that is allowed")]
    fn default() -> Self {
        let new = || Histogram::new(3).expect("0 to 5 digits are allowed");
        Self { round_trip: new(), one_way: new(), there: new(), late: new() }
    }
}

impl Quality {
    /// Judges what was heard. `offset_ns`: how much the far end's clock is ahead.
    pub fn new(heard: &Heard, offset_ns: i64) -> Self {
        let mut delays = Delays::default();
        for late in &heard.late {
            // A histogram that grows by itself takes any delay.
            let _ = delays.late.record(*late);
        }
        let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
        let (mut reordered, mut came) = (0, 0);
        for sample in &heard.samples {
            let call = calls.entry(sample.call).or_default();
            if !call.seen.insert(sample.number) {
                continue;
            }
            came += 1;
            if call.highest.is_some_and(|highest| sample.number < highest) {
                reordered += 1;
            }
            call.highest = call.highest.max(Some(sample.number));
            let (there, back) = one_way(sample, offset_ns);
            call.there.arrival(there as f64);
            call.back.arrival(back as f64);
            let _ = delays.round_trip.record(sample.back.saturating_sub(sample.due));
            let _ = delays.there.record(u64::try_from(there).unwrap_or(0));
            for delay in [there, back] {
                let _ = delays.one_way.record(u64::try_from(delay).unwrap_or(0));
            }
        }
        let mean = |of: fn(&Call) -> f64| {
            let sum: f64 = calls.values().map(of).sum();
            if calls.is_empty() { 0.0 } else { sum / calls.len() as f64 / 1e6 }
        };
        let jitter_ms = mean(|call| call.there.mean()).max(mean(|call| call.back.mean()));
        let loss =
            if heard.sent == 0 { 0.0 } else { heard.sent.saturating_sub(came) as f64 / heard.sent as f64 };
        let milliseconds = |ns: u64| ns as f64 / 1e6;
        let mos = e_model_mos(milliseconds(delays.one_way.value_at_quantile(0.99)), loss);
        let genesys_mos =
            genesys_mos(milliseconds(delays.round_trip.value_at_quantile(0.5)), jitter_ms, loss);
        Self { delays, sent: heard.sent, loss, reordered, jitter_ms, mos, genesys_mos }
    }

    /// The quantile of round trips of all that was sent, in nanoseconds: what never came back is slower than all that did. If it is one of
    /// those, the slowest that did come back.
    pub fn round_trip(&self, part: f64) -> u64 {
        let came = &self.delays.round_trip;
        let wanted = (self.sent.max(came.len()) as f64 * part).ceil();
        // In the middle of what that packet is a part of, so that rounding does not make it another.
        came.value_at_quantile(((wanted - 0.5) / came.len().max(1) as f64).clamp(0.0, 1.0))
    }
}

/// How much the far end's clock is ahead of ours, and by how much that may be wrong either way, in nanoseconds: from the packet with the
/// shortest round trip, taken as if both ways had been as long (RFC 5905 §8). `None` if nothing came back.
pub fn clock_offset(samples: &[Sample]) -> Option<(i64, u64)> {
    let best = samples.iter().min_by_key(|sample| sample.back.saturating_sub(sample.due))?;
    let round_trip = best.back.saturating_sub(best.due);
    let middle = best.due + round_trip / 2;
    Some((best.far as i64 - middle as i64, round_trip / 2))
}

#[derive(Debug, Default)]
struct Call {
    there: Jitter,
    back: Jitter,
    highest: Option<u32>,
    seen: BTreeSet<u32>,
}

fn one_way(sample: &Sample, offset_ns: i64) -> (i64, i64) {
    let far = sample.far as i64 - offset_ns;
    (far - sample.due as i64, sample.back as i64 - far)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(number: u32, there: u64, back: u64) -> Sample {
        let due = 1_000_000_000 + u64::from(number) * 20_000_000;
        Sample { call: 0, number, due, far: due + there, back: due + there + back }
    }

    #[test]
    fn loss_reordering_and_duplicates_are_counted() {
        let samples = [0, 2, 1, 1, 4].map(|number| sample(number, 1000, 2000)).to_vec();
        let quality = Quality::new(&Heard { sent: 5, samples, ..Heard::default() }, 0);
        assert_eq!((quality.reordered, quality.loss), (1, 0.2));
        assert_eq!(quality.delays.round_trip.len(), 4);
        assert_eq!(quality.delays.one_way.len(), 8);
        assert_eq!(quality.delays.one_way.min(), 1000);
        assert_eq!(quality.jitter_ms, 0.0);
    }

    #[test]
    fn jitter_is_of_the_worse_direction() {
        let samples =
            (0..100).map(|number| sample(number, 1000, 1000 + u64::from(number % 2) * 160_000)).collect();
        let quality = Quality::new(&Heard { sent: 100, samples, ..Heard::default() }, 0);
        assert!((0.1..0.16).contains(&quality.jitter_ms), "{}", quality.jitter_ms);
    }

    #[test]
    fn a_foreign_clock_is_told_from_delay() {
        let ahead = 5_000_000_000_u64;
        let samples: Vec<Sample> = (0..3)
            .map(|number| sample(number, 1000 * u64::from(number + 1), 1000))
            .map(|sample| Sample { far: sample.far + ahead, ..sample })
            .collect();
        let (offset, error) = clock_offset(&samples).unwrap();
        assert_eq!((offset, error), (ahead as i64, 1000));
        let quality = Quality::new(&Heard { sent: 3, samples, ..Heard::default() }, offset);
        assert!((3000..3010).contains(&quality.delays.one_way.max()), "to three digits");
        assert_eq!(clock_offset(&[]), None);
    }

    #[test]
    fn what_never_came_back_is_slower_than_what_did() {
        let sample = |number: u32| Sample { call: 0, number, due: 0, far: 0, back: u64::from(number) };
        let quality = |sent| {
            Quality::new(&Heard { sent, samples: (1..=99).map(sample).collect(), ..Heard::default() }, 0)
        };
        assert_eq!([0.01, 0.5, 0.99, 1.0].map(|part| quality(99).round_trip(part)), [1, 50, 99, 99]);
        assert_eq!([0.5, 0.8, 0.99].map(|part| quality(110).round_trip(part)), [55, 88, 99]);
    }

    #[test]
    fn silence_is_loss() {
        let quality = Quality::new(&Heard { sent: 10, ..Heard::default() }, 0);
        assert_eq!((quality.loss, quality.reordered), (1.0, 0));
        assert!(quality.mos < 2.0);
    }
}

use dataplane::rtp::{RtpReport, RtpStream};
use proptest::prelude::*;

use crate::stream::{Arrival, MILLISECOND, SSRC, clock_rate, network, rtp, see, told, travel};

/// RFC 3550 A.1 as it stands there: `source` and `update_seq`.
#[derive(Debug)]
struct Source {
    max_seq: u16,
    cycles: u32,
    base_seq: u32,
    bad_seq: u32,
    probation: u32,
    received: u32,
}

const RTP_SEQ_MOD: u32 = 1 << 16;

impl Source {
    fn new(seq: u16) -> Self {
        let mut source = Self { max_seq: 0, cycles: 0, base_seq: 0, bad_seq: 0, probation: 0, received: 0 };
        source.init_seq(seq);
        source.max_seq = seq.wrapping_sub(1);
        source.probation = 2;
        source
    }

    fn init_seq(&mut self, seq: u16) {
        self.base_seq = seq.into();
        self.max_seq = seq;
        self.bad_seq = RTP_SEQ_MOD + 1;
        self.cycles = 0;
        self.received = 0;
    }

    fn update_seq(&mut self, seq: u16) {
        let udelta = u32::from(seq.wrapping_sub(self.max_seq));
        if self.probation > 0 {
            if seq == self.max_seq.wrapping_add(1) {
                self.probation -= 1;
                self.max_seq = seq;
                if self.probation == 0 {
                    self.init_seq(seq);
                    self.received += 1;
                }
            } else {
                self.probation = 1;
                self.max_seq = seq;
            }
            return;
        }
        if udelta < 3000 {
            if seq < self.max_seq {
                self.cycles += RTP_SEQ_MOD;
            }
            self.max_seq = seq;
        } else if udelta <= RTP_SEQ_MOD - 100 {
            if u32::from(seq) == self.bad_seq {
                self.init_seq(seq);
            } else {
                self.bad_seq = (u32::from(seq) + 1) & (RTP_SEQ_MOD - 1);
                return;
            }
        }
        self.received += 1;
    }

    /// A.3, at least 0.
    fn lost(&self) -> u32 {
        let extended_max = self.cycles + u32::from(self.max_seq);
        (extended_max - self.base_seq + 1).saturating_sub(self.received)
    }
}

/// RFC 3550 §6.4.1 in seconds.
#[derive(Default)]
struct Jitter {
    last: Option<f64>,
    value: f64,
}

impl Jitter {
    /// The difference between two transits, modulo the timestamp's wrap.
    fn arrival(&mut self, at: u64, timestamp: u32, rate: u32) {
        let wrap = f64::from(u32::MAX) + 1.0;
        let transit = at as f64 / 1e9 * f64::from(rate) - f64::from(timestamp);
        if let Some(last) = self.last.replace(transit) {
            let mut difference = (transit - last).rem_euclid(wrap);
            if difference > wrap / 2.0 {
                difference -= wrap;
            }
            self.value += (difference.abs() / f64::from(rate) - self.value) / 16.0;
        }
    }
}

fn timestamp_of(arrival: &Arrival) -> u32 {
    u32::from_be_bytes(*arrival.payload[4..].first_chunk().unwrap())
}

fn numbers() -> impl Strategy<Value = Vec<u16>> {
    let step = prop_oneof![
        30 => Just(1_u16),
        3 => 0..4_u16,
        2 => 65_400..=65_535_u16,
        2 => 2_990..3_010_u16,
        1 => any::<u16>(),
    ];
    (any::<u16>(), prop::collection::vec(step, 2..400)).prop_map(|(first, steps)| {
        let next = |number: &mut u16, step: u16| {
            *number = number.wrapping_add(step);
            Some(*number)
        };
        steps.into_iter().scan(first, next).collect()
    })
}

proptest! {
    /// RFC 3550 leaves the first of the two packets out of the count with which a stream begins; it is both expected and received here.
    #[test]
    fn sequence_numbers_are_counted_as_in_a_1(numbers in numbers()) {
        let mut reference = Source::new(numbers[0]);
        let mut stream = RtpStream::default();
        for (place, &number) in numbers.iter().enumerate() {
            reference.update_seq(number);
            see(&mut stream, &Arrival { payload: rtp(SSRC, number, 0), at: place as u64, tos: 0 });
            let counted = stream.report().map(|RtpReport { packets, lost, strays, .. }| {
                assert!((packets + strays) as usize <= place + 1);
                (packets, lost)
            });
            let expected = (reference.probation == 0).then(|| (reference.received, reference.lost()));
            let with_first = expected.map(|(received, lost)| (received + 1, lost));
            prop_assert_eq!(counted, with_first, "after packet {}, {:?}", place, reference);
        }
    }

    #[test]
    fn jitter_is_that_of_a_8(
        rate in clock_rate(),
        first in any::<u16>(),
        fates in (0..30 * MILLISECOND)
            .prop_flat_map(|jitter| prop::collection::vec(network(jitter), 200..400)),
    ) {
        let mut stream = RtpStream::default();
        let mut reference = Jitter::default();
        for arrival in travel(rate, first, &fates) {
            let measured = stream.report().is_some_and(|report| report.clock_rate.is_some());
            see(&mut stream, &arrival);
            reference.arrival(arrival.at, timestamp_of(&arrival), rate);
            if !measured {
                reference.value = 0.0;
            }
            let Some(report) = stream.report() else { continue };
            prop_assert!(report.clock_rate.is_none_or(|found| found == rate));
            let Some(jitter) = report.jitter else { continue };
            let off = (jitter.as_secs_f64() - reference.value).abs();
            prop_assert!(off * f64::from(rate) <= 1.1, "{jitter:?}, not {} s", reference.value);
        }
        prop_assert!(told(&stream).clock_rate.is_some());
    }
}

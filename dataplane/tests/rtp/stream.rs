use dataplane::rtp::{HEAD, RtpReport, RtpStream};
use proptest::prelude::*;

pub const MILLISECOND: u64 = 1_000_000;
pub const FRAME: u64 = 20 * MILLISECOND;
pub const SSRC: u32 = 0x6c61_6221;
pub const OTHER: u32 = 0x0bad_cafe;
pub const EF: u8 = 0xb8;

/// A UDP payload as it arrives.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub payload: Vec<u8>,
    /// Nanoseconds.
    pub at: u64,
    pub tos: u8,
}

pub fn rtp(ssrc: u32, sequence: u16, timestamp: u32) -> Vec<u8> {
    let mut payload = vec![0x80, 111];
    payload.extend(sequence.to_be_bytes());
    payload.extend(timestamp.to_be_bytes());
    payload.extend(ssrc.to_be_bytes());
    payload.extend([0xd5; 20]);
    payload
}

/// RFC 8656 §12.4.
pub fn channel_data(data: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x40, 1];
    payload.extend((data.len() as u16).to_be_bytes());
    payload.extend(data);
    payload
}

/// A frame each 20 ms, from its number on, at its time.
pub fn frames(ssrc: u32, rate: u32, from: u32, count: u32) -> impl Iterator<Item = Arrival> {
    (from..from + count).map(move |number| Arrival {
        payload: rtp(ssrc, number as u16, number * (rate / 50)),
        at: u64::from(number) * FRAME,
        tos: EF,
    })
}

pub fn see(stream: &mut RtpStream, arrival: &Arrival) {
    let Arrival { payload, at, tos } = arrival;
    stream.seen(&payload[..payload.len().min(HEAD)], payload.len(), *at, *tos);
}

pub fn see_all(arrivals: impl IntoIterator<Item = Arrival>) -> RtpStream {
    let mut stream = RtpStream::default();
    arrivals.into_iter().for_each(|arrival| see(&mut stream, &arrival));
    stream
}

pub fn told(stream: &RtpStream) -> RtpReport {
    stream.report().expect("a stream")
}

/// What happens to one frame, on the way or at the sender. Times in nanoseconds.
#[derive(Clone, Debug)]
pub enum Fate {
    Arrives {
        late: u64,
    },
    Lost,
    Twice {
        late: u64,
    },
    /// In TURN ChannelData.
    Relayed {
        late: u64,
    },
    /// The sender goes on with another sequence number.
    Jump(u16),
    /// The sender goes on with another timestamp.
    Break(u32),
    /// The sender is silent for so many milliseconds; its timestamp goes on.
    Silence(u16),
    /// The sender goes on under another SSRC.
    Renamed(u8),
    /// In its place comes another sender's packet.
    Stray(u8, u16),
    /// In its place come other bytes.
    Noise(Vec<u8>),
}

/// What becomes of a sender's 20 ms frames at a clock rate, in the order in which they arrive.
pub fn travel(rate: u32, first: u16, fates: &[Fate]) -> Vec<Arrival> {
    let (mut sequence, mut timestamp, mut now, mut ssrc) = (first, u32::MAX - 5000, 77 * FRAME, SSRC);
    let mut arrivals = Vec::new();
    for fate in fates {
        let frame = rtp(ssrc, sequence, timestamp);
        let mut arrive =
            |payload, late: u64| arrivals.push(Arrival { payload, at: now + late, tos: sequence as u8 });
        match fate {
            Fate::Arrives { late } => arrive(frame, *late),
            Fate::Lost => {}
            Fate::Twice { late } => {
                arrive(frame.clone(), *late);
                arrive(frame, late + MILLISECOND);
            }
            Fate::Relayed { late } => arrive(channel_data(&frame), *late),
            Fate::Jump(by) => sequence = sequence.wrapping_add(*by),
            Fate::Break(by) => timestamp = timestamp.wrapping_add(*by),
            Fate::Silence(milliseconds) => {
                now += u64::from(*milliseconds) * MILLISECOND;
                timestamp = timestamp.wrapping_add(u32::from(*milliseconds) * (rate / 1000));
            }
            Fate::Renamed(to) => ssrc = SSRC + u32::from(*to),
            Fate::Stray(by, sequence) => arrive(rtp(OTHER + u32::from(*by), *sequence, 0), 0),
            Fate::Noise(bytes) => arrive(bytes.clone(), 0),
        }
        sequence = sequence.wrapping_add(1);
        timestamp = timestamp.wrapping_add(rate / 50);
        now += FRAME;
    }
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

/// Lateness, loss, reordering and duplicates of a stream that goes on.
pub fn network(jitter: u64) -> impl Strategy<Value = Fate> {
    prop_oneof![
        20 => (0..=jitter).prop_map(|late| Fate::Arrives { late }),
        1 => Just(Fate::Lost),
        1 => (FRAME..3 * FRAME).prop_map(|late| Fate::Arrives { late }),
        1 => (0..=jitter).prop_map(|late| Fate::Twice { late }),
    ]
}

/// Everything that may happen.
pub fn anything() -> impl Strategy<Value = Fate> {
    let late = 0..100 * MILLISECOND;
    prop_oneof![
        40 => network(30 * MILLISECOND),
        10 => late.prop_map(|late| Fate::Relayed { late }),
        1 => prop_oneof![any::<u16>(), 2990..3010_u16, 65_430..65_440_u16].prop_map(Fate::Jump),
        1 => any::<u32>().prop_map(Fate::Break),
        1 => any::<u16>().prop_map(Fate::Silence),
        1 => (0..3_u8).prop_map(Fate::Renamed),
        2 => (0..2_u8, 0..4_u16).prop_map(|(by, sequence)| Fate::Stray(by, sequence)),
        2 => prop::collection::vec(any::<u8>(), 0..24).prop_map(Fate::Noise),
        2 => (0x80..0xc0_u8, prop::collection::vec(any::<u8>(), 0..40)).prop_map(headed),
        2 => (0x40..0x50_u8, prop::collection::vec(any::<u8>(), 0..40)).prop_map(headed),
    ]
}

fn headed((first, mut rest): (u8, Vec<u8>)) -> Fate {
    rest.insert(0, first);
    Fate::Noise(rest)
}

pub fn clock_rate() -> impl Strategy<Value = u32> {
    prop_oneof![Just(8_000), Just(16_000), Just(48_000), Just(90_000)]
}

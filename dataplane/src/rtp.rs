//! What the packets of an RTP stream tell about the way they took: loss, jitter and marking. `bpf/rtp.h` is the same in C, so that the kernel
//! and the pump count alike, in the same layout and to the bit.

use std::mem::offset_of;
use std::time::Duration;

use packet::{Dscp, Tos};

/// How much of a payload [`RtpStream::seen`] looks at: a ChannelData header and the RTP header in it.
pub const HEAD: usize = 16;

/// RFC 3550 A.1: a packet that is this far ahead or behind belongs to another beginning.
const MAX_DROPOUT: u16 = 3000;
const MAX_MISORDER: u16 = 100;
/// The kept stream must have been silent this long (nanoseconds) before another SSRC takes its place.
const SILENCE: i64 = 200_000_000;

/// So many strays of others end a candidacy.
const PATIENCE: u8 = 16;

/// In Hertz, by [`RtpStream::clock`]; 0 is not known.
const CLOCKS: [u32; 5] = [0, 8_000, 16_000, 48_000, 90_000];
/// Units per nanosecond, times 2⁴⁰.
const UNITS: [u64; 5] = [0, 8_796_093, 17_592_186, 52_776_558, 98_956_046];
/// Nanoseconds over which steps of the timestamp are held against the clock.
const WINDOW: i64 = 1 << 30;
/// Longer gaps (2³⁶ ns, 69 s) are not measured; units of shorter ones fit into 64 bits.
const LONGEST: u32 = 36;
/// So many windows in a row must speak against a clock rate before it is given up.
const DOUBTS: u8 = 3;
/// Seconds. A packet that is this much off its time tells of a break or of another timestamp, not of jitter.
const BREAK: u32 = 4;

/// One direction of a flow. It keeps one stream, that of the SSRC heard first; another SSRC takes over with two packets in sequence once that
/// one is silent, and begins anew. Until then its packets are strays, as are those that two streams side by side in a flow cost each other:
/// the one kept is measured right. All-zero is a direction without RTP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtpStream {
    last_arrival: u64,
    /// Where the window began.
    window_arrival: u64,
    last_timestamp: u32,
    window_timestamp: u32,
    ssrc: u32,
    /// RFC 3550 A.1: the highest sequence number, extended by its wraps, and the first.
    highest: u32,
    base: u32,
    /// 0: there is no stream yet.
    received: u32,
    strays: u32,
    /// RFC 3550 A.8: in timestamp units, times 16.
    jitter: u32,
    /// Who may begin anew, and the sequence number with which it would, plus 2¹⁶; 0: nobody.
    candidate_ssrc: u32,
    candidate_next: u32,
    /// Index into [`CLOCKS`].
    clock: u8,
    doubts: u8,
    tos: u8,
    /// Strays of others since the candidate's last packet.
    passed_over: u8,
    /// 1: others have counted before; what came between is neither expected nor lost.
    resumed: u8,
    reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<RtpStream>() == 64);
    assert!(offset_of!(RtpStream, last_timestamp) == 16);
    assert!(offset_of!(RtpStream, jitter) == 44);
    assert!(offset_of!(RtpStream, clock) == 56);
};

/// What one stream's packets told so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtpReport {
    pub ssrc: u32,
    /// Received since the stream began, duplicates included.
    pub packets: u32,
    /// RFC 3550 A.3: expected less received; at least 0. Reordered packets are not lost; a duplicate makes up for a lost one.
    pub lost: u32,
    /// RTP packets of the flow that belong to no stream kept: of another SSRC, or far out of sequence.
    pub strays: u32,
    /// RFC 3550 §6.4.1 interarrival jitter; `None` while the clock rate is not known.
    pub jitter: Option<Duration>,
    /// Hertz, inferred from the timestamps: 8, 16, 48 or 90 kHz; `None`: not yet known, or none of these.
    pub clock_rate: Option<u32>,
    /// Of the last packet, as it arrived.
    pub dscp: Dscp,
}

impl RtpStream {
    /// Takes note of one UDP payload of `payload_len` bytes, of which `head` is at least the first [`HEAD`], or all. What is no RTP, by
    /// itself or in TURN ChannelData, is passed over. `arrival` is in nanoseconds since any one moment; `tos` is as received.
    pub fn seen(&mut self, head: &[u8], payload_len: usize, arrival: u64, tos: u8) {
        let Some(header) = Header::read(head, payload_len) else { return };
        let known = self.received > 0 && header.ssrc == self.ssrc;
        let ahead = header.sequence.wrapping_sub(self.highest as u16);
        if known && ahead < MAX_DROPOUT {
            if self.resumed > 0 && ahead > 0 {
                self.base = self.base.wrapping_add(u32::from(ahead) - 1);
                self.resumed = 0;
            }
            self.highest = self.highest.wrapping_add(ahead.into());
            self.measure(&header, arrival);
        } else if known && ahead > MAX_MISORDER.wrapping_neg() {
            self.measure(&header, arrival);
        } else if self.expects(&header) && (known || self.is_silent(arrival)) {
            self.begin(&header, arrival);
        } else {
            self.set_aside(&header);
            return;
        }
        self.tos = tos;
    }

    /// `None` before there are two packets in sequence.
    pub fn report(&self) -> Option<RtpReport> {
        if self.received == 0 {
            return None;
        }
        let expected = self.highest.wrapping_sub(self.base).wrapping_add(1);
        let clock_rate = CLOCKS.get(usize::from(self.clock)).copied().filter(|rate| *rate > 0);
        let jitter =
            |rate: u32| Duration::from_nanos(u64::from(self.jitter) * 1_000_000_000 / (16 * u64::from(rate)));
        Some(RtpReport {
            ssrc: self.ssrc,
            packets: self.received,
            lost: expected.saturating_sub(self.received),
            strays: self.strays,
            jitter: clock_rate.map(jitter),
            clock_rate,
            dscp: Tos(self.tos).dscp(),
        })
    }

    /// For another to count on. What passed between the two is not told as lost.
    pub fn handed_over(self) -> Self {
        Self { resumed: 1, ..self }
    }

    fn expects(&self, header: &Header) -> bool {
        self.candidate_ssrc == header.ssrc && self.candidate_next == 1 << 16 | u32::from(header.sequence)
    }

    fn is_silent(&self, arrival: u64) -> bool {
        self.received == 0 || arrival.wrapping_sub(self.last_arrival) as i64 >= SILENCE
    }

    /// Another candidate's packets in between do not end a candidacy, or two streams that begin together would never begin.
    fn set_aside(&mut self, header: &Header) {
        self.strays = self.strays.wrapping_add(1);
        if header.ssrc != self.candidate_ssrc && self.candidate_next > 0 && self.passed_over < PATIENCE {
            self.passed_over += 1;
            return;
        }
        self.candidate_ssrc = header.ssrc;
        self.candidate_next = 1 << 16 | u32::from(header.sequence.wrapping_add(1));
        self.passed_over = 0;
    }

    /// The packet before, counted as a stray then, is the stream's first.
    fn begin(&mut self, header: &Header, arrival: u64) {
        let base = u32::from(header.sequence.wrapping_sub(1));
        *self = Self {
            last_arrival: arrival,
            window_arrival: arrival,
            last_timestamp: header.timestamp,
            window_timestamp: header.timestamp,
            ssrc: header.ssrc,
            highest: base + 1,
            base,
            received: 2,
            strays: self.strays.wrapping_sub(1),
            ..Self::default()
        };
    }

    fn measure(&mut self, header: &Header, arrival: u64) {
        let gap = arrival.wrapping_sub(self.last_arrival);
        let step = header.timestamp.wrapping_sub(self.last_timestamp) as i32;
        self.received = self.received.wrapping_add(1);
        self.last_arrival = arrival;
        self.last_timestamp = header.timestamp;
        if self.clock > 0 && gap >> LONGEST == 0 {
            // RFC 3550 A.8.
            let deviation = (units(self.clock, gap) as i64 - i64::from(step)).unsigned_abs();
            if deviation < u64::from(BREAK * rate(self.clock)) {
                let jitter = self.jitter;
                self.jitter = jitter.wrapping_add(deviation as u32).wrapping_sub((jitter + 8) >> 4);
            }
        }
        self.hold_clock(header.timestamp, arrival);
    }

    /// At the end of a window: finds the clock by which the timestamp went on.
    fn hold_clock(&mut self, timestamp: u32, arrival: u64) {
        let elapsed = arrival.wrapping_sub(self.window_arrival);
        if (elapsed as i64) < WINDOW {
            return;
        }
        let step = timestamp.wrapping_sub(self.window_timestamp).into();
        self.window_arrival = arrival;
        self.window_timestamp = timestamp;
        let mut found = 0;
        if elapsed >> LONGEST == 0 {
            for clock in 1..CLOCKS.len() as u8 {
                let expected = units(clock, elapsed);
                // 44.1 kHz is 1/12 off 48, 96 kHz 1/15 off 90.
                if expected.abs_diff(step) <= expected / 16 {
                    found = clock;
                }
            }
        }
        if found == self.clock {
            self.doubts = 0;
            return;
        }
        self.doubts += 1;
        if self.clock == 0 || self.doubts == DOUBTS {
            self.clock = found;
            self.doubts = 0;
            self.jitter = 0;
        }
    }
}

fn rate(clock: u8) -> u32 {
    CLOCKS.get(usize::from(clock)).copied().unwrap_or(0)
}

/// To the nearest one.
fn units(clock: u8, nanoseconds: u64) -> u64 {
    let per_nanosecond = UNITS.get(usize::from(clock)).copied().unwrap_or(0);
    nanoseconds.wrapping_mul(per_nanosecond).wrapping_add(1 << 39) >> 40
}

struct Header {
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
}

impl Header {
    fn read(head: &[u8], payload_len: usize) -> Option<Self> {
        let (head, len) = match head.first()? {
            // RFC 8656 §12.4: ChannelData.
            64..=79 => {
                let (&[_, _, high, low], data) = head.split_first_chunk()?;
                let len = usize::from(u16::from_be_bytes([high, low]));
                (len + 4 <= payload_len).then_some((data, len))?
            }
            _ => (head, payload_len),
        };
        // RFC 3550 §5.1.
        let &[first, second, q0, q1, t0, t1, t2, t3, s0, s1, s2, s3] = head.first_chunk()?;
        // RFC 7983 §7: 128–191 are RTP and RTCP; RFC 5761 §4: these payload types are RTCP's.
        if first >> 6 != 2 || matches!(second & 0x7f, 64..=95) || len < 12 + 4 * usize::from(first & 0x0f) {
            return None;
        }
        Some(Self {
            sequence: u16::from_be_bytes([q0, q1]),
            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: u32::from_be_bytes([s0, s1, s2, s3]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(stream: &mut RtpStream, numbers: std::ops::Range<u16>) {
        for number in numbers {
            let mut head = [0x80, 111, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            head[2..4].copy_from_slice(&number.to_be_bytes());
            head[4..8].copy_from_slice(&(u32::from(number) * 960).to_be_bytes());
            stream.seen(&head, 172, u64::from(number) * 20_000_000, 0xb8);
        }
    }

    #[test]
    fn a_stream_that_is_handed_over_is_one_stream() {
        let mut whole = RtpStream::default();
        see(&mut whole, 0..200);
        let mut first = RtpStream::default();
        see(&mut first, 0..100);
        let mut second = first.handed_over();
        see(&mut second, 100..200);
        assert_eq!(second.report(), whole.report());
        assert_eq!(second, whole);
    }

    #[test]
    fn what_nobody_counted_in_between_is_not_lost() {
        let mut stream = RtpStream::default();
        see(&mut stream, 0..100);
        stream = stream.handed_over();
        see(&mut stream, 103..150);
        see(&mut stream, 151..200);
        let report = stream.report().unwrap();
        assert_eq!((report.packets, report.lost), (196, 1));
    }
}

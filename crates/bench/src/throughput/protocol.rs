//! What client and far end say to each other over TCP, in network byte order:
//!
//! ```text
//! request  "BRB1"  kind u8  0  payload u16  warm-up u32 ms  duration u32 ms  rate u64 bit/s (0: as fast as it goes)
//! port     u16, for UDP: where the far end sends from or receives on
//! count    bytes u64  packets u64  window u64 ns  total bytes u64
//! ```

use std::io::{self, Read, Write};
use std::time::Duration;

const MAGIC: &[u8; 4] = b"BRB1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The far end receives.
    TcpSink = 1,
    /// The far end sends.
    TcpSource = 2,
    UdpSink = 3,
    UdpSource = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub kind: Kind,
    /// Of a datagram, in bytes.
    pub payload: u16,
    /// What arrives in this time after the first byte is not counted.
    pub warm_up: Duration,
    /// The time that is counted, after the warm-up.
    pub duration: Duration,
    /// In bit/s of payload.
    pub rate: Option<u64>,
}

/// What a receiver counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Of payload, within the window.
    pub bytes: u64,
    /// Datagrams within the window; 0 for TCP.
    pub packets: u64,
    pub window: Duration,
    /// Of payload, with warm-up and what came after the window.
    pub total_bytes: u64,
}

impl Count {
    /// Of payload, in bit/s.
    pub fn bit_rate(&self) -> f64 {
        self.per_second(self.bytes as f64 * 8.0)
    }

    pub fn packet_rate(&self) -> f64 {
        self.per_second(self.packets as f64)
    }

    /// Several streams at once.
    pub fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.packets += other.packets;
        self.total_bytes += other.total_bytes;
        self.window = self.window.max(other.window);
    }

    /// Of datagrams that were sent for a shorter time than was asked for: all that arrived, over that time.
    pub fn of_all(self, window: Duration, payload: u16) -> Self {
        let packets = self.total_bytes / u64::from(payload.max(1));
        Self { bytes: self.total_bytes, packets, window, ..self }
    }

    fn per_second(&self, amount: f64) -> f64 {
        if self.window.is_zero() { 0.0 } else { amount / self.window.as_secs_f64() }
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let window = self.window.as_nanos() as u64;
        let fields = [self.bytes, self.packets, window, self.total_bytes].map(u64::to_be_bytes);
        to.write_all(fields.as_flattened())
    }

    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let [bytes, packets, window, total_bytes] = read_words(from)?;
        Ok(Self { bytes, packets, window: Duration::from_nanos(window), total_bytes })
    }
}

impl Request {
    /// From the first byte to the last.
    pub fn length(&self) -> Duration {
        self.warm_up + self.duration
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX).to_be_bytes();
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(MAGIC);
        bytes.extend([self.kind as u8, 0]);
        bytes.extend(self.payload.to_be_bytes());
        bytes.extend(millis(self.warm_up));
        bytes.extend(millis(self.duration));
        bytes.extend(self.rate.unwrap_or(0).to_be_bytes());
        to.write_all(&bytes)
    }

    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let [head, times, rate] = read_words(from)?;
        let [a, b, c, d, kind, _, high, low] = head.to_be_bytes();
        if &[a, b, c, d] != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a request of this bench's version"));
        }
        let kind = [Kind::TcpSink, Kind::TcpSource, Kind::UdpSink, Kind::UdpSource]
            .into_iter()
            .find(|known| *known as u8 == kind)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("unknown request {kind}")))?;
        Ok(Self {
            kind,
            payload: u16::from_be_bytes([high, low]),
            warm_up: Duration::from_millis(times >> 32),
            duration: Duration::from_millis(times & 0xffff_ffff),
            rate: Some(rate).filter(|rate| *rate > 0),
        })
    }
}

fn read_words<const N: usize>(from: &mut impl Read) -> io::Result<[u64; N]> {
    let mut words = [[0; 8]; N];
    from.read_exact(words.as_flattened_mut())?;
    Ok(words.map(u64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let request = Request {
            kind: Kind::UdpSource,
            payload: 1400,
            warm_up: Duration::from_millis(500),
            duration: Duration::from_millis(3000),
            rate: Some(300_000_000),
        };
        let mut bytes = Vec::new();
        request.write(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 24);
        assert_eq!(Request::read(&mut bytes.as_slice()).unwrap(), request);

        let count = Count { bytes: 1, packets: 2, window: Duration::from_nanos(3), total_bytes: 4 };
        let mut bytes = Vec::new();
        count.write(&mut bytes).unwrap();
        assert_eq!(Count::read(&mut bytes.as_slice()).unwrap(), count);
    }

    #[test]
    fn other_bytes_are_refused() {
        assert!(Request::read(&mut [0; 24].as_slice()).is_err());
        assert!(Request::read(&mut b"BRB1\x09".repeat(5).as_slice()).is_err());
        assert!(Request::read(&mut b"BRB1".as_slice()).is_err());
    }

    #[test]
    fn rates_are_of_the_window() {
        let count = Count { bytes: 1000, packets: 10, window: Duration::from_millis(500), total_bytes: 9999 };
        assert_eq!((count.bit_rate(), count.packet_rate()), (16_000.0, 20.0));
        assert_eq!(Count::default().bit_rate(), 0.0);
    }
}

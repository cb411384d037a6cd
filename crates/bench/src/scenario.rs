//! What is transferred.

use crate::throughput::{Direction, Protocol};

/// A kind of transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub name: &'static str,
    pub protocol: Protocol,
    pub direction: Direction,
    /// In each direction.
    pub streams: u16,
    /// Offered, in bit/s; `None`: as fast as it goes.
    pub rate: Option<u64>,
}

/// Offered in the fixed-load section, in bit/s.
pub const FIXED: u64 = 300_000_000;

/// Of a full datagram, in bytes: 1400 with its headers (IPv4), which fits into a tunnel whole. A larger one would be sent in fragments.
pub const DATAGRAM: u16 = 1372;
const SMALL: u16 = 200;

pub const THROUGHPUT: [Scenario; 10] = [
    tcp("tcp-up-1", Direction::Up, 1),
    tcp("tcp-down-1", Direction::Down, 1),
    tcp("tcp-both-1", Direction::Both, 1),
    tcp("tcp-up-4", Direction::Up, 4),
    tcp("tcp-down-4", Direction::Down, 4),
    tcp("tcp-both-4", Direction::Both, 4),
    udp("udp-up", Direction::Up, DATAGRAM),
    udp("udp-down", Direction::Down, DATAGRAM),
    udp("udp-small-up", Direction::Up, SMALL),
    udp("udp-small-down", Direction::Down, SMALL),
];

pub const FIXED_LOAD: [Scenario; 2] = [
    Scenario { rate: Some(FIXED), ..tcp("fixed-up", Direction::Up, 1) },
    Scenario { rate: Some(FIXED), ..tcp("fixed-down", Direction::Down, 1) },
];

impl Scenario {
    /// Whether the bare path is measured too.
    pub fn has_direct(&self) -> bool {
        self.protocol == Protocol::Tcp && self.streams == 1 && self.rate.is_none()
    }
}

const fn tcp(name: &'static str, direction: Direction, streams: u16) -> Scenario {
    Scenario { name, protocol: Protocol::Tcp, direction, streams, rate: None }
}

const fn udp(name: &'static str, direction: Direction, payload: u16) -> Scenario {
    Scenario { name, protocol: Protocol::Udp(payload), direction, streams: 1, rate: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::MTU;

    #[test]
    fn no_datagram_is_sent_in_fragments() {
        const HEADERS: u32 = 20 + 8;
        for scenario in THROUGHPUT {
            if let Protocol::Udp(payload) = scenario.protocol {
                assert!(u32::from(payload) + HEADERS <= MTU, "{}", scenario.name);
            }
        }
    }
}

use std::net::IpAddr;
use std::time::{Duration, Instant};

use packet::Headers;

/// As long as the kernel waits for a datagram's other fragments (`net.ipv4.ipfrag_time`).
const LIFE: Duration = Duration::from_secs(30);
const REMEMBERED: usize = 64;

/// The fragmented datagrams whose first fragment passed; their later fragments, which carry no ports, follow it. A ring: the oldest gives way.
#[derive(Default)]
pub(super) struct Fragments {
    ring: Vec<(Datagram, Instant)>,
    next: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

impl Fragments {
    pub(super) fn follow(&mut self, headers: &Headers, now: Instant) {
        let Some(datagram) = Datagram::of(headers) else { return };
        if self.ring.len() < REMEMBERED {
            self.ring.push((datagram, now));
            return;
        }
        if let Some(oldest) = self.ring.get_mut(self.next) {
            *oldest = (datagram, now);
        }
        self.next = (self.next + 1) % REMEMBERED;
    }

    pub(super) fn known(&self, headers: &Headers, now: Instant) -> bool {
        let Some(datagram) = Datagram::of(headers) else { return false };
        self.ring
            .iter()
            .any(|(known, since)| *known == datagram && now.saturating_duration_since(*since) < LIFE)
    }
}

impl Datagram {
    fn of(headers: &Headers) -> Option<Self> {
        let fragment = headers.fragment?;
        Some(Self {
            source: headers.source,
            destination: headers.destination,
            protocol: headers.protocol,
            id: fragment.id,
        })
    }
}

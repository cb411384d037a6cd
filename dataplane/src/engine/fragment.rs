use std::net::IpAddr;
use std::time::{Duration, Instant};

use packet::Headers;

/// As long as the kernel waits for a datagram's other fragments (`net.ipv4.ipfrag_time`).
const LIFE: Duration = Duration::from_secs(30);
const REMEMBERED: usize = 64;

/// The fragmented datagrams whose first fragment passed, to or from which gateway; their later fragments, which carry no ports, follow it. A ring:
/// the oldest gives way.
#[derive(Default)]
pub(super) struct Fragments {
    ring: Vec<Passed>,
    next: usize,
}

struct Passed {
    datagram: Datagram,
    gateway: u8,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

impl Fragments {
    pub(super) fn follow(&mut self, headers: &Headers, gateway: u8, now: Instant) {
        let Some(datagram) = Datagram::of(headers) else { return };
        let passed = Passed { datagram, gateway, since: now };
        if self.ring.len() < REMEMBERED {
            self.ring.push(passed);
            return;
        }
        if let Some(oldest) = self.ring.get_mut(self.next) {
            *oldest = passed;
        }
        self.next = (self.next + 1) % REMEMBERED;
    }

    /// To or from which first fragments passed, the latest first.
    pub(super) fn gateways(&self, headers: &Headers, now: Instant) -> impl Iterator<Item = u8> {
        let datagram = Datagram::of(headers);
        let (latest, earlier) = self.ring.split_at_checked(self.next).unwrap_or_default();
        let passed = latest.iter().rev().chain(earlier.iter().rev());
        passed
            .filter(move |passed| {
                Some(passed.datagram) == datagram && now.saturating_duration_since(passed.since) < LIFE
            })
            .map(|passed| passed.gateway)
    }

    pub(super) fn fail_over(&mut self, from: u8, to: u8) {
        let moved = self.ring.iter_mut().filter(|passed| passed.gateway == from);
        moved.for_each(|passed| passed.gateway = to);
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

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use policy::Path;

use crate::engine::Moved;

/// What the pump counts; anyone may read. Each path's counts are written under one lock (the tunnel's outbound ones under the peer's, all
/// others under the engine's), so each step is a plain load and store; drops come from anywhere.
#[derive(Debug, Default)]
pub struct Counters {
    paths: [PathCounters; 3],
    drops: [AtomicU64; DropReason::ALL.len()],
}

/// Packets and bytes (IP packets, headers included) on one path. For the reject path `out` is what was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCount {
    pub out_packets: u64,
    pub out_bytes: u64,
    pub in_packets: u64,
    pub in_bytes: u64,
}

/// Why a packet went nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    Malformed,
    Policy,
    TunnelDown,
    ForeignSource,
    FragmentedMedia,
    OrphanFragment,
    TableFull,
    NoUnderlay,
    NoPort,
    QueueFull,
    TooBig,
    NotOurs,
    Unsolicited,
    Stranger,
    Cut,
    NotAuthentic,
    Congested,
    SendFailed,
    TunWriteFailed,
    RefusalLimited,
}

#[derive(Debug, Default)]
struct PathCounters {
    out_packets: AtomicU64,
    out_bytes: AtomicU64,
    in_packets: AtomicU64,
    in_bytes: AtomicU64,
}

impl Counters {
    pub fn path(&self, path: Path) -> PathCount {
        let counters = self.of(path);
        PathCount {
            out_packets: counters.out_packets.load(Relaxed),
            out_bytes: counters.out_bytes.load(Relaxed),
            in_packets: counters.in_packets.load(Relaxed),
            in_bytes: counters.in_bytes.load(Relaxed),
        }
    }

    /// Every reason with its count, in a fixed order.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.drops.iter().map(|count| count.load(Relaxed)))
    }

    pub(crate) fn count_out(&self, path: Path, bytes: usize) {
        let counters = self.of(path);
        add(&counters.out_packets, 1);
        add(&counters.out_bytes, bytes as u64);
    }

    pub(crate) fn count_in(&self, path: Path, bytes: usize) {
        let counters = self.of(path);
        add(&counters.in_packets, 1);
        add(&counters.in_bytes, bytes as u64);
    }

    pub(crate) fn count_moved(&self, path: Path, sent: Moved, received: Moved) {
        let counters = self.of(path);
        add(&counters.out_packets, sent.packets);
        add(&counters.out_bytes, sent.bytes);
        add(&counters.in_packets, received.packets);
        add(&counters.in_bytes, received.bytes);
    }

    pub(crate) fn count_drop(&self, reason: DropReason) {
        self.count_drops(reason, 1);
    }

    pub(crate) fn count_drops(&self, reason: DropReason, packets: usize) {
        if packets > 0
            && let Some(count) = self.drops.get(reason as usize)
        {
            count.fetch_add(packets as u64, Relaxed);
        }
    }

    fn of(&self, path: Path) -> &PathCounters {
        let [tunnel, bypass, reject] = &self.paths;
        match path {
            Path::Tunnel => tunnel,
            Path::Bypass => bypass,
            Path::Reject => reject,
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}

impl DropReason {
    /// In the order of their counters.
    pub const ALL: [Self; 20] = [
        Self::Malformed,
        Self::Policy,
        Self::TunnelDown,
        Self::ForeignSource,
        Self::FragmentedMedia,
        Self::OrphanFragment,
        Self::TableFull,
        Self::NoUnderlay,
        Self::NoPort,
        Self::QueueFull,
        Self::TooBig,
        Self::NotOurs,
        Self::Unsolicited,
        Self::Stranger,
        Self::Cut,
        Self::NotAuthentic,
        Self::Congested,
        Self::SendFailed,
        Self::TunWriteFailed,
        Self::RefusalLimited,
    ];

    /// A stable name for scripts.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What it means: a phrase for people.
    pub fn meaning(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Malformed => ("malformed", "bytes that are no well-formed IP packet"),
            Self::Policy => ("policy", "refused by a rule"),
            Self::TunnelDown => ("tunnel-down", "for the tunnel, while it is down"),
            Self::ForeignSource => (
                "foreign-source",
                "a source address that is not the interface's own; such a connection is older than the tunnel or bound to another interface",
            ),
            Self::FragmentedMedia => {
                ("fragmented-media", "a fragmented datagram to a media address; voice is never fragmented")
            }
            Self::OrphanFragment => ("orphan-fragment", "a later fragment whose first one was not seen"),
            Self::TableFull => ("table-full", "the flow or mapping table is full of live flows"),
            Self::NoUnderlay => ("no-underlay", "voice while the machine has no usable network address"),
            Self::NoPort => ("no-port", "no external port could be reserved for a voice flow"),
            Self::QueueFull => ("queue-full", "more packets than may wait for the tunnel's handshake"),
            Self::TooBig => ("too-big", "larger than the tunnel or the network path carries"),
            Self::NotOurs => ("not-ours", "out of the tunnel, for an address that is not the interface's"),
            Self::Unsolicited => ("unsolicited", "out of the tunnel, for no flow that this machine opened"),
            Self::Stranger => ("stranger", "to a voice port, from an address its flow never talked to"),
            Self::Cut => ("cut", "of a flow that a policy change cut"),
            Self::NotAuthentic => {
                ("not-authentic", "to the tunnel's port, but not from the gateway, or replayed")
            }
            Self::Congested => (
                "congested",
                "out of the tunnel, marked as congested on the way, from a sender that only loss tells so (RFC 6040)",
            ),
            Self::SendFailed => ("send-failed", "the system refused to send it"),
            Self::TunWriteFailed => ("tun-write-failed", "the interface refused it"),
            Self::RefusalLimited => {
                ("refusal-limited", "refused in silence, since refusals are limited in rate")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_at_its_own_place() {
        let counters = Counters::default();
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            (0..=place).for_each(|_| counters.count_drop(reason));
        }
        for (reason, count) in counters.drops() {
            assert_eq!(count, reason as u64 + 1, "{}", reason.name());
        }
    }
}

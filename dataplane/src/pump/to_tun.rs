use std::net::IpAddr;
use std::sync::Arc;

use packet::{Packet, build};

use crate::engine::{Action, Refusal};
use crate::io::tun::{COMPLETE, Queue, VNET_HEADER};
use crate::{Counters, DropReason};

/// A thread's way to the applications: single packets, and those that tell a sender that its own went nowhere, or not yet in this size.
pub(super) struct ToTun {
    queue: Queue,
    counters: Arc<Counters>,
    /// Where refusals are made.
    record: [u8; VNET_HEADER + build::MAX_REFUSAL],
}

impl ToTun {
    pub(super) fn new(queue: Queue, counters: Arc<Counters>) -> Self {
        let mut record = [0; VNET_HEADER + build::MAX_REFUSAL];
        if let Some(header) = record.first_chunk_mut() {
            *header = COMPLETE;
        }
        Self { queue, counters, record }
    }

    /// Writes one packet with its virtio header.
    pub(super) fn write(&self, record: &[u8]) {
        if self.queue.write(record).is_err() {
            self.counters.count_drop(DropReason::TunWriteFailed);
        }
    }

    /// Carries out a refusal, in the name of the packet's destination, as a firewall there would; other actions are not for here.
    pub(super) fn refuse(&mut self, action: Action, packet: &Packet<'_>) {
        let Action::Refuse(refusal) = action else { return };
        let from = packet.headers().destination;
        self.tell(|out| match refusal {
            Refusal::Reset => build::tcp_reset(packet, out),
            Refusal::Prohibited => build::unreachable(packet, build::Unreachable::Prohibited, from, out),
        });
    }

    pub(super) fn too_big(&mut self, packet: &Packet<'_>, mtu: u32) {
        self.counters.count_drop(DropReason::TooBig);
        let from = packet.headers().destination;
        self.tell(|out| build::too_big(packet, mtu, from, out));
    }

    pub(super) fn error_about(&mut self, sent: &build::SentUdp<'_>, error: build::IcmpError, from: IpAddr) {
        self.tell(|out| build::error_about_udp(sent, error, from, out));
    }

    fn tell(&mut self, build: impl FnOnce(&mut [u8]) -> Option<usize>) {
        let Some((_, out)) = self.record.split_at_mut_checked(VNET_HEADER) else { return };
        let Some(len) = build(out) else { return };
        if let Some(record) = self.record.get(..VNET_HEADER + len) {
            self.write(record);
        }
    }
}

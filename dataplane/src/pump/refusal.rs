use std::net::IpAddr;

use packet::{Packet, build};

use crate::engine::Refusal;
use crate::io::tun::{COMPLETE, Tun, VNET_HEADER};

/// Writes the packets that tell a sender that its packet went nowhere, or not yet in this size.
pub(super) struct Refuser {
    record: [u8; VNET_HEADER + build::MAX_REFUSAL],
}

impl Refuser {
    pub(super) fn new() -> Self {
        let mut record = [0; VNET_HEADER + build::MAX_REFUSAL];
        if let Some(header) = record.first_chunk_mut() {
            *header = COMPLETE;
        }
        Self { record }
    }

    /// Refuses in the name of the packet's destination, as a firewall there would.
    pub(super) fn refuse(&mut self, tun: &Tun, packet: &Packet<'_>, refusal: Refusal) -> bool {
        let from = packet.headers().destination;
        self.write(tun, |out| match refusal {
            Refusal::Reset => build::tcp_reset(packet, out),
            Refusal::Prohibited => build::unreachable(packet, build::Unreachable::Prohibited, from, out),
        })
    }

    pub(super) fn too_big(&mut self, tun: &Tun, packet: &Packet<'_>, mtu: u32, from: IpAddr) -> bool {
        self.write(tun, |out| build::too_big(packet, mtu, from, out))
    }

    pub(super) fn error_about(
        &mut self,
        tun: &Tun,
        sent: &build::SentUdp<'_>,
        error: build::IcmpError,
        from: IpAddr,
    ) -> bool {
        self.write(tun, |out| build::error_about_udp(sent, error, from, out))
    }

    /// `false` if the interface refused it; nothing to write is not a failure.
    fn write(&mut self, tun: &Tun, build: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let Some((_, out)) = self.record.split_at_mut_checked(VNET_HEADER) else { return true };
        let Some(len) = build(out) else { return true };
        self.record.get(..VNET_HEADER + len).is_none_or(|record| tun.write(record).is_ok())
    }
}

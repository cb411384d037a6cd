use std::net::IpAddr;

use crate::build::Route;
use crate::checksum::Sum;
use crate::{Icmp, Tos, protocol};

/// What names an ICMP echo (RFC 792, RFC 4443 §4): between whom, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Who asks.
    pub source: IpAddr,
    pub destination: IpAddr,
    pub id: u16,
    pub sequence: u16,
}

/// Whether a packet may be an ICMP message, told from two bytes. IPv6 only without extension headers.
#[inline]
pub fn may_be_icmp(packet: &[u8]) -> bool {
    match packet.first() {
        Some(0x45..=0x4f) => packet.get(9) == Some(&protocol::ICMP),
        Some(0x60..=0x6f) => packet.get(6) == Some(&protocol::ICMPV6),
        _ => false,
    }
}

impl Echo {
    /// Writes the request into the whole of `out`, with `payload` and zeros behind its headers; IPv4 has DF set. `false` if the families
    /// differ, or no echo has this length.
    pub fn request(&self, ttl: u8, payload: &[u8], out: &mut [u8]) -> bool {
        let route = Route { source: self.source, destination: self.destination };
        self.write(route, if self.source.is_ipv4() { 8 } else { 128 }, ttl, payload, out).is_some()
    }

    /// Writes the answer to that request, likewise, but with zeros only: how much of what the request carried goes back is `out`'s length.
    pub fn reply(&self, ttl: u8, out: &mut [u8]) -> bool {
        let route = Route { source: self.destination, destination: self.source };
        self.write(route, if self.source.is_ipv4() { 0 } else { 129 }, ttl, &[], out).is_some()
    }

    pub(crate) fn named(source: IpAddr, destination: IpAddr, icmp: Icmp) -> Self {
        Self { source, destination, id: (icmp.rest >> 16) as u16, sequence: icmp.rest as u16 }
    }

    fn write(&self, route: Route, kind: u8, ttl: u8, payload: &[u8], out: &mut [u8]) -> Option<()> {
        let len = u16::try_from(out.len().checked_sub(route.header_len())?).ok()?;
        let protocol = if self.source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        let message = route.write(out, protocol, Tos(0), ttl, len)?;
        message.fill(0);
        let (header, room) = message.split_first_chunk_mut::<8>()?;
        room.get_mut(..payload.len())?.copy_from_slice(payload);
        let [i0, i1] = self.id.to_be_bytes();
        let [s0, s1] = self.sequence.to_be_bytes();
        *header = [kind, 0, 0, 0, i0, i1, s0, s1];
        // RFC 792 has no pseudo header, RFC 4443 §2.3 has. Zeros add nothing.
        let pseudo_header =
            if self.source.is_ipv4() { Sum::default() } else { route.pseudo_header(protocol, len) };
        let [c0, c1] = pseudo_header.add_bytes(header).add_bytes(payload).checksum().to_be_bytes();
        (header[2], header[3]) = (c0, c1);
        Some(())
    }
}

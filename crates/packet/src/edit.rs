use std::net::{IpAddr, SocketAddr};

use crate::checksum::{self, Sum};
use crate::{Dscp, Ecn, Headers, Packet, ParseError, TcpFlags, Tos, Transport};

/// In which state a packet's transport checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The field covers the whole packet (or is 0 in UDP: none was computed).
    Complete,
    /// The field holds only the pseudo header's folded sum, not complemented (0 in ICMP over IPv4, which has no pseudo header); the rest
    /// is for whoever sends the packet on (virtio NEEDS_CSUM, the kernel's CHECKSUM_PARTIAL).
    Partial,
}

/// A packet that can be edited in place. Each edit leaves the IP header checksum and the transport checksum as right
/// as they were before (RFC 1624), at a cost that does not depend on the packet's length.
#[derive(Debug)]
pub struct PacketMut<'a> {
    bytes: &'a mut [u8],
    headers: Headers,
    checksum: Checksum,
}

impl<'a> PacketMut<'a> {
    /// Parses a packet; bytes behind its stated length are ignored.
    // Its result is large: as a call's it would be copied, field by field just written, which stalls.
    #[inline(always)]
    pub fn parse(bytes: &'a mut [u8], checksum: Checksum) -> Result<Self, ParseError> {
        let headers = *Packet::parse(bytes)?.headers();
        let found = bytes.len();
        let stated = headers.len as usize;
        let bytes = bytes.get_mut(..stated).ok_or(ParseError::LengthBeyondBuffer { stated, found })?;
        Ok(Self { bytes, headers, checksum })
    }

    pub fn as_packet(&self) -> Packet<'_> {
        Packet::from_parts(self.bytes, self.headers)
    }

    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The packet, without whatever followed it in the buffer.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Rewrites source address and port. Nothing is changed (and `false` returned) if the address is of the other family or the
    /// packet has no ports (then only a change of address with port 0 would be meaningful, and is refused too): ICMP, other protocols,
    /// later fragments.
    pub fn set_source(&mut self, source: SocketAddr) -> bool {
        let (Transport::Udp { source: port, .. } | Transport::Tcp { source: port, .. }) =
            &mut self.headers.transport
        else {
            return false;
        };
        let old = SocketAddr::new(self.headers.source, *port);
        if old.is_ipv4() != source.is_ipv4() {
            return false;
        }
        *port = source.port();
        self.headers.source = source.ip();
        let address_at = if source.is_ipv4() { 12 } else { 8 };
        self.rewrite(address_at, usize::from(self.headers.transport_at), old, source);
        true
    }

    /// The same for the destination.
    pub fn set_destination(&mut self, destination: SocketAddr) -> bool {
        let (Transport::Udp { destination: port, .. } | Transport::Tcp { destination: port, .. }) =
            &mut self.headers.transport
        else {
            return false;
        };
        let old = SocketAddr::new(self.headers.destination, *port);
        if old.is_ipv4() != destination.is_ipv4() {
            return false;
        }
        *port = destination.port();
        self.headers.destination = destination.ip();
        let address_at = if destination.is_ipv4() { 16 } else { 24 };
        self.rewrite(address_at, usize::from(self.headers.transport_at) + 2, old, destination);
        true
    }

    /// Rewrites the DSCP, keeps ECN.
    pub fn set_dscp(&mut self, dscp: Dscp) {
        self.set_tos(self.headers.tos.with_dscp(dscp));
    }

    /// Rewrites ECN, keeps the DSCP.
    pub fn set_ecn(&mut self, ecn: Ecn) {
        self.set_tos(self.headers.tos.with_ecn(ecn));
    }

    fn set_tos(&mut self, tos: Tos) {
        self.headers.tos = tos;
        let old: [u8; 2] = self.read(0);
        if self.headers.source.is_ipv4() {
            self.write_ipv4_word(0, old, [old[0], tos.0]);
            return;
        }
        // RFC 8200 §3: version (4 bits), traffic class (8), flow label (20).
        let Tos(class) = tos;
        self.write(0, [old[0] & 0xf0 | class >> 4, class << 4 | old[1] & 0x0f]);
    }

    /// Decrements TTL or hop limit; `false`, without a change, if it was 0 or 1 already.
    pub fn decrement_ttl(&mut self) -> bool {
        if self.headers.ttl <= 1 {
            return false;
        }
        self.headers.ttl -= 1;
        if self.headers.source.is_ipv4() {
            let old: [u8; 2] = self.read(8);
            self.write_ipv4_word(8, old, [self.headers.ttl, old[1]]);
        } else {
            self.write(7, [self.headers.ttl]);
        }
        true
    }

    /// Lowers the MSS that a TCP SYN offers to what fits into `mtu` bytes of IP packet, options aside (RFC 6691 §2). One that offers less, or
    /// does not say, is left alone. Whether it was changed.
    pub fn clamp_mss(&mut self, mtu: u16) -> bool {
        const TCP_HEADER: u16 = 20;
        let ip_header = if self.headers.source.is_ipv4() { 20 } else { 40 };
        let Some(at) = self.mss_at() else { return false };
        let (old, new): ([u8; 2], u16) = (self.read(at), mtu.saturating_sub(ip_header + TCP_HEADER));
        if u16::from_be_bytes(old) <= new {
            return false;
        }
        let [high, low] = new.to_be_bytes();
        let change = if at.is_multiple_of(2) {
            Sum::default().replace(old, [high, low])
        } else {
            // Half of each of two words of the sum. The header has an even length, so the second one is whole.
            let [before, _, _, behind] = self.read(at - 1);
            let [old_high, old_low] = old;
            Sum::default().replace([before, old_high, old_low, behind], [before, high, low, behind])
        };
        self.write(at, [high, low]);
        // A partial checksum holds the pseudo header's sum only.
        if self.checksum == Checksum::Complete
            && let Some(checksum_at) = self.checksum_at()
        {
            let field = u16::from_be_bytes(self.read(checksum_at));
            self.write_checksum(checksum_at, checksum::update(field, change));
        }
        true
    }

    /// Computes a partial transport checksum to completion; one that is complete is left alone. `false`, without a change, where that
    /// cannot be: in a fragment, whose checksum covers bytes that are not here, and in protocols other than UDP, TCP and ICMP.
    pub fn complete_checksum(&mut self) -> bool {
        if self.checksum == Checksum::Complete {
            return true;
        }
        let Some(at) = self.checksum_at().filter(|_| self.headers.fragment.is_none()) else {
            return false;
        };
        // The field already holds the pseudo header's part of the sum.
        let segment = self.bytes.get(usize::from(self.headers.transport_at)..).unwrap_or_default();
        let sum = Sum::default().add_bytes(segment);
        let is_udp = matches!(self.headers.transport, Transport::Udp { .. });
        self.write_checksum(at, if is_udp { sum.udp_checksum() } else { sum.checksum() });
        self.checksum = Checksum::Complete;
        true
    }

    /// Writes an address and a port of the same family as before and brings both checksums up to date.
    fn rewrite(&mut self, address_at: usize, port_at: usize, old: SocketAddr, new: SocketAddr) {
        let addresses = match (old.ip(), new.ip()) {
            (IpAddr::V4(old), IpAddr::V4(new)) => {
                let change = Sum::default().replace(old.octets(), new.octets());
                self.write(address_at, new.octets());
                self.update_ipv4_checksum(change);
                change
            }
            (IpAddr::V6(old), IpAddr::V6(new)) => {
                self.write(address_at, new.octets());
                Sum::default().replace(old.octets(), new.octets())
            }
            _ => return,
        };
        let ports = (old.port().to_be_bytes(), new.port().to_be_bytes());
        self.write(port_at, ports.1);
        let Some(at) = self.checksum_at() else { return };
        let field = u16::from_be_bytes(self.read(at));
        let is_udp = matches!(self.headers.transport, Transport::Udp { .. });
        let field = match self.checksum {
            Checksum::Partial => addresses.add_word(field).fold(),
            // RFC 768: the sender computed none.
            Checksum::Complete if is_udp && field == 0 => return,
            Checksum::Complete => match checksum::update(field, addresses.replace(ports.0, ports.1)) {
                0 if is_udp => 0xffff,
                field => field,
            },
        };
        self.write_checksum(at, field);
    }

    /// Where a SYN's MSS is (RFC 9293 §3.2).
    fn mss_at(&self) -> Option<usize> {
        const OPTIONS_AT: usize = 20;
        let Transport::Tcp { flags, .. } = self.headers.transport else { return None };
        if !flags.has(TcpFlags::SYN) || self.headers.fragment.is_some() {
            return None;
        }
        let mut at = usize::from(self.headers.transport_at) + OPTIONS_AT;
        loop {
            at += match *self.bytes.get(at..usize::from(self.headers.payload_at))? {
                [2, 4, _, _, ..] => return Some(at + 2),
                // A single byte of padding; all others state their length.
                [1, ..] => 1,
                [kind, len @ 2..=u8::MAX, ..] if kind > 1 => usize::from(len),
                _ => return None,
            };
        }
    }

    /// Where the transport's checksum field is.
    fn checksum_at(&self) -> Option<usize> {
        let offset = match self.headers.transport {
            Transport::Udp { .. } => 6,
            Transport::Tcp { .. } => 16,
            Transport::Icmp(_) => 2,
            Transport::Opaque => return None,
        };
        Some(usize::from(self.headers.transport_at) + offset)
    }

    fn write_checksum(&mut self, at: usize, field: u16) {
        self.write(at, field.to_be_bytes());
        if let Transport::Udp { checksum, .. } = &mut self.headers.transport {
            *checksum = field;
        }
    }

    fn write_ipv4_word(&mut self, at: usize, old: [u8; 2], new: [u8; 2]) {
        self.write(at, new);
        self.update_ipv4_checksum(Sum::default().replace(old, new));
    }

    fn update_ipv4_checksum(&mut self, change: Sum) {
        const AT: usize = 10;
        let field = u16::from_be_bytes(self.read(AT));
        self.write(AT, checksum::update(field, change).to_be_bytes());
    }

    #[expect(clippy::indexing_slicing, reason = "parsing has proven that the headers lie inside the packet")]
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[at..at + N]);
        field
    }

    #[expect(clippy::indexing_slicing, reason = "parsing has proven that the headers lie inside the packet")]
    fn write<const N: usize>(&mut self, at: usize, field: [u8; N]) {
        self.bytes[at..at + N].copy_from_slice(&field);
    }
}

//! Packets that Breakout itself writes: the header in front of a bypass answer, ICMP errors, TCP resets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::checksum::{self, Sum};
use crate::{Packet, TcpFlags, Tos, Transport, protocol};

/// Bytes of IP and UDP header in front of a payload: 28 (IPv4) or 48 (IPv6).
pub const fn udp_header_len(destination: &SocketAddr) -> usize {
    if destination.is_ipv4() { 28 } else { 48 }
}

/// The largest packet that [`unreachable()`], [`too_big`], [`error_about_udp`] or [`tcp_reset`] write.
pub const MAX_REFUSAL: usize = 1280;

/// Why a destination cannot be reached, in either family's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// RFC 1812 §5.2.7.1 code 13, RFC 4443 §3.1 code 1.
    Prohibited,
    /// Code 3, code 4.
    Port,
    /// Code 1, code 3.
    Host,
}

/// What an ICMP error says, in its family's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    pub kind: u8,
    pub code: u8,
    /// The second header word: the MTU where the packet was too big, else 0.
    pub rest: u32,
}

/// A UDP datagram whose headers are gone, since it left through a socket.
#[derive(Clone, Copy, Debug)]
pub struct SentUdp<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// As much of it as is still known; the rebuilt headers state this length.
    pub payload: &'a [u8],
}

/// Of packets that start here (RFC 1700, "IP time to live parameter").
const TTL: u8 = 64;
/// RFC 1812 §4.3.2.5: ICMP errors travel as internetwork control (CS6).
const ICMP_TOS: Tos = Tos(0xc0);

/// Writes IP and UDP header into `out`, which must be exactly [`udp_header_len`] long, for a payload of `payload_len` bytes that follows.
/// IPv4 has DF set and identification 0 (RFC 6864 §4.1), IPv6 flow label 0. The UDP checksum is left [`crate::Checksum::Partial`].
/// `false` if the families differ, `out` has another length, or the payload is too long.
pub fn udp_header(
    out: &mut [u8],
    source: SocketAddr,
    destination: SocketAddr,
    tos: Tos,
    ttl: u8,
    payload_len: usize,
) -> bool {
    let Some(len) = payload_len.checked_add(8).and_then(|len| u16::try_from(len).ok()) else { return false };
    if out.len() != udp_header_len(&destination) {
        return false;
    }
    let route = Route { source: source.ip(), destination: destination.ip() };
    let Some(rest) = route.write(out, protocol::UDP, tos, ttl, len) else { return false };
    let Some(header) = rest.first_chunk_mut::<8>() else { return false };
    let [s0, s1] = source.port().to_be_bytes();
    let [d0, d1] = destination.port().to_be_bytes();
    let [l0, l1] = len.to_be_bytes();
    let [c0, c1] = route.pseudo_header(protocol::UDP, len).fold().to_be_bytes();
    *header = [s0, s1, d0, d1, l0, l1, c0, c1];
    true
}

/// Writes the ICMP error that tells `original`'s sender so; returns its length, or `None` where RFC 1812 §4.3.2.7 and RFC 4443 §2.4(e)
/// forbid one (about an ICMP error, a later fragment, a multicast or broadcast, to a source that is no single host), the families differ
/// or `out` is too small; [`MAX_REFUSAL`] always suffices.
///
/// As much of `original` is quoted as fits into 576 bytes (IPv4, RFC 1812 §4.3.2.3) or 1280 (IPv6, RFC 4443 §2.4(c)), as it is: a checksum
/// that was [`crate::Checksum::Partial`] is quoted so. Receivers find the socket by addresses and ports and do not look at it.
pub fn unreachable(
    original: &Packet<'_>,
    reason: Unreachable,
    from: IpAddr,
    out: &mut [u8],
) -> Option<usize> {
    if original.headers().destination.is_multicast() || !may_be_reported(original) {
        return None;
    }
    let (kind, code) = match (from.is_ipv4(), reason) {
        (true, Unreachable::Prohibited) => (3, 13),
        (true, Unreachable::Port) => (3, 3),
        (true, Unreachable::Host) => (3, 1),
        (false, Unreachable::Prohibited) => (1, 1),
        (false, Unreachable::Port) => (1, 4),
        (false, Unreachable::Host) => (1, 3),
    };
    let route = Route { source: from, destination: original.headers().source };
    route.write_error(out, IcmpError { kind, code, rest: 0 }, original.bytes(), &[])
}

/// Fragmentation needed (RFC 1191 §4, `mtu` capped at 65535) or packet too big (RFC 4443 §3.2, which allows it about a multicast).
/// Whether `original` may be fragmented instead (IPv4 without DF) is the caller's to know. Else as [`unreachable()`].
pub fn too_big(original: &Packet<'_>, mtu: u32, from: IpAddr, out: &mut [u8]) -> Option<usize> {
    if from.is_ipv4() && original.headers().destination.is_multicast() || !may_be_reported(original) {
        return None;
    }
    let error = match from {
        IpAddr::V4(_) => IcmpError { kind: 3, code: 4, rest: mtu.min(0xffff) },
        IpAddr::V6(_) => IcmpError { kind: 2, code: 0, rest: mtu },
    };
    let route = Route { source: from, destination: original.headers().source };
    route.write_error(out, error, original.bytes(), &[])
}

/// Writes an ICMP error about a UDP datagram to its sender: the headers are rebuilt in front of the payload, of which what fits is quoted.
/// Returns its length, or `None` if the families differ, the payload is longer than UDP allows, or `out` is too small.
pub fn error_about_udp(sent: &SentUdp<'_>, error: IcmpError, from: IpAddr, out: &mut [u8]) -> Option<usize> {
    let mut headers = [0; 48];
    let headers = headers.get_mut(..udp_header_len(&sent.destination))?;
    if !udp_header(headers, sent.source, sent.destination, Tos::default(), TTL, sent.payload.len()) {
        return None;
    }
    let (_, udp) = headers.split_last_chunk_mut::<8>()?;
    let [c0, c1] = Sum::default().add_bytes(udp).add_bytes(sent.payload).udp_checksum().to_be_bytes();
    (udp[6], udp[7]) = (c0, c1);
    let route = Route { source: from, destination: sent.source.ip() };
    route.write_error(out, error, headers, sent.payload)
}

/// Writes the reset that ends `original`'s connection for its sender (RFC 9293 §3.10.7.1) and returns its length, 40 (IPv4) or 60 (IPv6).
/// `None` if it is no TCP, a reset itself, a fragment (whose length in sequence numbers is unknown), not between two single hosts,
/// or `out` is too small.
pub fn tcp_reset(original: &Packet<'_>, out: &mut [u8]) -> Option<usize> {
    const LEN: u16 = 20;
    let headers = original.headers();
    let Transport::Tcp { source, destination, sequence, acknowledgment, flags } = headers.transport else {
        return None;
    };
    let is_unicast = is_single_host(headers.source) && is_single_host(headers.destination);
    if flags.has(TcpFlags::RST) || headers.fragment.is_some() || !is_unicast {
        return None;
    }
    let (sequence, acknowledgment, flags) = if flags.has(TcpFlags::ACK) {
        (acknowledgment, 0, TcpFlags::RST)
    } else {
        let controls = u32::from(flags.has(TcpFlags::SYN)) + u32::from(flags.has(TcpFlags::FIN));
        let len = original.payload().len() as u32 + controls;
        (0, sequence.wrapping_add(len), TcpFlags::RST | TcpFlags::ACK)
    };
    let route = Route { source: headers.destination, destination: headers.source };
    let rest = route.write(out, protocol::TCP, Tos::default(), TTL, LEN)?;
    let segment = rest.first_chunk_mut::<20>()?;
    segment[0..2].copy_from_slice(&destination.to_be_bytes());
    segment[2..4].copy_from_slice(&source.to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
    // Data offset in words, flags, then window, checksum and urgent pointer.
    segment[12..20].copy_from_slice(&[5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    let checksum = route.pseudo_header(protocol::TCP, LEN).add_bytes(segment).checksum();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    Some(route.header_len() + usize::from(LEN))
}

/// The two ends of a packet to be written.
pub(crate) struct Route {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

impl Route {
    pub(crate) fn header_len(&self) -> usize {
        if self.destination.is_ipv4() { 20 } else { 40 }
    }

    pub(crate) fn pseudo_header(&self, protocol: u8, len: u16) -> Sum {
        checksum::pseudo_header(self.source, self.destination, protocol, u32::from(len))
    }

    /// Writes the IP header for `len` bytes behind it; returns the buffer's rest. `None` if the families differ, `out` is too small or
    /// the packet would be too long.
    pub(crate) fn write<'a>(
        &self,
        out: &'a mut [u8],
        protocol: u8,
        tos: Tos,
        ttl: u8,
        len: u16,
    ) -> Option<&'a mut [u8]> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (header, rest) = out.split_first_chunk_mut()?;
                *header = ipv4_header(source, destination, protocol, tos, ttl, len.checked_add(20)?);
                Some(rest)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (header, rest) = out.split_first_chunk_mut()?;
                *header = ipv6_header(source, destination, protocol, tos, ttl, len);
                Some(rest)
            }
            _ => None,
        }
    }

    /// Writes an ICMP error that quotes what fits of `first` and then of `second`.
    fn write_error(&self, out: &mut [u8], error: IcmpError, first: &[u8], second: &[u8]) -> Option<usize> {
        let (protocol, max_len) =
            if self.source.is_ipv4() { (protocol::ICMP, 576) } else { (protocol::ICMPV6, 1280) };
        let max_quote = max_len - self.header_len() - 8;
        let first = first.get(..max_quote).unwrap_or(first);
        let second = second.get(..max_quote - first.len()).unwrap_or(second);
        let len = 8 + first.len() + second.len();

        let message = self.write(out, protocol, ICMP_TOS, TTL, len as u16)?.get_mut(..len)?;
        let (header, quote) = message.split_first_chunk_mut::<8>()?;
        let [a, b, c, d] = error.rest.to_be_bytes();
        *header = [error.kind, error.code, 0, 0, a, b, c, d];
        let (first_quote, second_quote) = quote.split_at_mut(first.len());
        first_quote.copy_from_slice(first);
        second_quote.copy_from_slice(second);

        // RFC 792 has no pseudo header, RFC 4443 §2.3 has.
        let pseudo_header =
            if self.source.is_ipv4() { Sum::default() } else { self.pseudo_header(protocol, len as u16) };
        let [c0, c1] = pseudo_header.add_bytes(message).checksum().to_be_bytes();
        let (header, _) = message.split_first_chunk_mut::<8>()?;
        (header[2], header[3]) = (c0, c1);
        Some(self.header_len() + len)
    }
}

fn ipv4_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    tos: Tos,
    ttl: u8,
    total_len: u16,
) -> [u8; 20] {
    let [l0, l1] = total_len.to_be_bytes();
    let [s0, s1, s2, s3] = source.octets();
    let [d0, d1, d2, d3] = destination.octets();
    // Version and header length, TOS, length; identification 0, DF; TTL, protocol, checksum; addresses.
    let mut header =
        [0x45, tos.0, l0, l1, 0, 0, 0x40, 0, ttl, protocol, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    let [c0, c1] = Sum::default().add_bytes(&header).checksum().to_be_bytes();
    (header[10], header[11]) = (c0, c1);
    header
}

fn ipv6_header(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: u8,
    Tos(class): Tos,
    hop_limit: u8,
    payload_len: u16,
) -> [u8; 40] {
    let [l0, l1] = payload_len.to_be_bytes();
    let mut header = [0; 40];
    header[..8].copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0, l0, l1, next_header, hop_limit]);
    header[8..24].copy_from_slice(&source.octets());
    header[24..].copy_from_slice(&destination.octets());
    header
}

/// Whether an error about `original` may be sent at all, its destination being multicast aside.
fn may_be_reported(original: &Packet<'_>) -> bool {
    let headers = original.headers();
    let is_later_fragment = headers.fragment.is_some_and(|fragment| fragment.offset > 0);
    let is_icmp_error = match headers.transport {
        // RFC 4443 §2.4(e.2): a redirect counts too.
        Transport::Icmp(icmp) => icmp.is_error || headers.protocol == protocol::ICMPV6 && icmp.kind == 137,
        // Too short a first fragment to tell.
        Transport::Opaque => matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6),
        Transport::Udp { .. } | Transport::Tcp { .. } => false,
    };
    let to_broadcast = headers.destination == IpAddr::V4(Ipv4Addr::BROADCAST);
    !is_later_fragment && !is_icmp_error && !to_broadcast && is_single_host(headers.source)
}

/// RFC 1812 §5.3.7, RFC 4443 §2.4(e.6).
fn is_single_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            // "This" network, loopback, multicast and what is reserved behind it.
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_loopback(),
    }
}

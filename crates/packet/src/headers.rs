use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

/// IP protocol numbers this program distinguishes (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;

    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;

    /// What a protocol that is distinguished is called in configurations and tables.
    pub const fn name(number: u8) -> Option<&'static str> {
        match number {
            ICMP => Some("icmp"),
            TCP => Some("tcp"),
            UDP => Some("udp"),
            ICMPV6 => Some("icmpv6"),
            _ => None,
        }
    }

    /// An IPv6 extension header that parsing steps over.
    pub(crate) const fn is_extension(protocol: u8) -> bool {
        matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
    }
}

/// What the headers of one IP packet say and where its parts lie. Offsets count bytes from the first byte of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Upper-layer protocol, behind any IPv6 extension headers. In a later IPv6 fragment: what its fragment header names.
    pub protocol: u8,
    pub tos: super::Tos,
    /// TTL or hop limit.
    pub ttl: u8,
    /// `None` for a whole packet (an IPv6 atomic fragment, RFC 6946, counts as whole).
    pub fragment: Option<Fragment>,
    pub transport: Transport,
    /// Where the transport header starts.
    pub transport_at: u16,
    /// Where the transport's payload starts.
    pub payload_at: u16,
    /// Whole length as the IP header states it, that header included; up to 65535 (IPv4) or 65575 (IPv6). Bytes of the buffer behind it are not part of the packet.
    pub len: u32,
}

/// A packet's place in the datagram it is a piece of.
///
/// Only the first fragment (offset 0) carries ports, and its checksum covers the whole datagram. A later one has no ports and so no
/// five-tuple: no flow can be found for it by itself. Breakout therefore refuses fragmented UDP to media and counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    /// In bytes, a multiple of 8.
    pub offset: u16,
    pub more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp {
        source: u16,
        destination: u16,
        checksum: u16,
    },
    Tcp {
        source: u16,
        destination: u16,
        sequence: u32,
        acknowledgment: u32,
        flags: TcpFlags,
    },
    Icmp(Icmp),
    /// Any other protocol (the IPv6 authentication header among them), or a fragment that does not hold the transport header.
    Opaque,
}

/// ICMP (RFC 792) or ICMPv6 (RFC 4443) header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    /// The second header word: identifier and sequence of an echo, MTU of a too-big, unused otherwise.
    pub rest: u32,
    /// An error message, which quotes the packet it is about.
    pub is_error: bool,
}

/// The flag byte of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;

    pub fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }
}

/// What names a flow. For ICMP echo both ports hold the identifier, so that request and answer are each other's reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FiveTuple {
    pub protocol: u8,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// In few words, since it is computed for each packet: its parts' own take a word for each field and each length.
impl Hash for FiveTuple {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                state.write_u64(u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits()));
            }
            ends => [ends.0, ends.1].into_iter().for_each(|ip| match ip {
                IpAddr::V4(v4) => state.write_u32(v4.to_bits()),
                IpAddr::V6(v6) => state.write_u128(v6.to_bits()),
            }),
        }
        let (source, destination) = (u64::from(self.source.port()), u64::from(self.destination.port()));
        state.write_u64(u64::from(self.protocol) << 32 | source << 16 | destination);
    }
}

impl FiveTuple {
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }
}

impl Headers {
    /// The flow this packet belongs to; `None` where there are no ports to tell (later fragments, other protocols, ICMP that is not echo).
    pub fn five_tuple(&self) -> Option<FiveTuple> {
        let (source, destination) = match self.transport {
            Transport::Udp { source, destination, .. } | Transport::Tcp { source, destination, .. } => {
                (source, destination)
            }
            Transport::Icmp(icmp) => {
                let id = icmp.echo_id(self.protocol)?;
                (id, id)
            }
            Transport::Opaque => return None,
        };
        Some(FiveTuple {
            protocol: self.protocol,
            source: SocketAddr::new(self.source, source),
            destination: SocketAddr::new(self.destination, destination),
        })
    }
}

impl Icmp {
    /// The identifier of an echo request or reply.
    pub(crate) fn echo_id(self, protocol: u8) -> Option<u16> {
        let is_echo = match protocol {
            protocol::ICMP => matches!(self.kind, 0 | 8),
            _ => matches!(self.kind, 128 | 129),
        };
        is_echo.then_some((self.rest >> 16) as u16)
    }

    pub(crate) fn is_echo_request(self, protocol: u8) -> bool {
        self.kind == if protocol == protocol::ICMP { 8 } else { 128 }
    }

    pub(crate) fn is_echo_reply(self, protocol: u8) -> bool {
        self.kind == if protocol == protocol::ICMP { 0 } else { 129 }
    }
}

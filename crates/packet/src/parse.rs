use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Echo, FiveTuple, Fragment, Headers, Icmp, TcpFlags, Tos, Transport, protocol};

/// A well-formed IP packet, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    headers: Headers,
}

/// Why bytes are not a packet. Lengths and offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("no bytes at all")]
    Empty,
    #[error("not an IPv4 or IPv6 packet: the version field says {version}")]
    NotIp { version: u8 },
    #[error("too short: {what} needs {needed} bytes, {found} are there")]
    TooShort { what: &'static str, needed: usize, found: usize },
    #[error("{what} states {stated} bytes, less than its fixed part of {fixed}")]
    HeaderLength { what: &'static str, stated: usize, fixed: usize },
    #[error("the IP header states {stated} bytes for a packet whose headers alone take {headers}")]
    LengthBelowHeaders { stated: usize, headers: usize },
    #[error("the IP header states {stated} bytes, {found} are there")]
    LengthBeyondBuffer { stated: usize, found: usize },
    #[error("an IPv6 jumbogram (RFC 2675), which is not supported")]
    Jumbo,
    #[error("the IPv4 option at byte {at} of the header is malformed")]
    Ipv4Option { at: usize },
    /// Such a packet's destination field names a waypoint, so that neither the policy nor the pseudo header could trust it
    /// (RFC 7126 §4.3 and RFC 5095 advise to drop them).
    #[error("source-routed: the destination field names a waypoint")]
    SourceRouted,
    #[error("more than {MAX_EXTENSION_HEADERS} IPv6 extension headers")]
    TooManyExtensionHeaders,
    /// A hop-by-hop header that is not the first, or a second fragment header (RFC 8200 §4.1).
    #[error("IPv6 extension header {header} out of place")]
    MisplacedExtensionHeader { header: u8 },
    /// One that ends beyond 65535 or that is not the last and no multiple of 8 long (RFC 8200 §4.5, RFC 791 §3.2).
    #[error("a fragment of {len} bytes at offset {offset} fits no datagram")]
    Fragment { offset: u16, len: usize },
    /// Surplus bytes behind the UDP datagram (RFC 9868) are refused too, since a socket could not pass them on.
    #[error("the UDP header states {stated} bytes, the packet has {found}")]
    UdpLength { stated: usize, found: usize },
}

/// Senders use one or two; the bound keeps a hostile chain from costing time.
const MAX_EXTENSION_HEADERS: usize = 8;

impl<'a> Packet<'a> {
    /// Parses a packet; bytes behind its stated length are ignored. Checksums are not verified.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let ip = Ip::parse(bytes)?;
        let Some(bytes) = bytes.get(..ip.len) else {
            return Err(ParseError::LengthBeyondBuffer { stated: ip.len, found: bytes.len() });
        };
        let segment = bytes
            .get(ip.transport_at..)
            .ok_or(ParseError::LengthBelowHeaders { stated: ip.len, headers: ip.transport_at })?;
        let (transport, header_len) = ip.transport(segment)?;
        let headers = Headers {
            source: ip.source,
            destination: ip.destination,
            protocol: ip.protocol,
            tos: ip.tos,
            ttl: ip.ttl,
            fragment: ip.fragment,
            transport,
            // At most 40 + 8 × 2048 bytes of IP headers and 60 of TCP.
            transport_at: ip.transport_at as u16,
            payload_at: (ip.transport_at + header_len) as u16,
            len: ip.len as u32,
        };
        Ok(Self { bytes, headers })
    }

    /// A packet that was parsed before: `headers` must be those that [`Packet::parse`] finds in `bytes`.
    pub fn from_parts(bytes: &'a [u8], headers: Headers) -> Self {
        Self { bytes, headers }
    }

    /// The packet, without whatever followed it in the buffer.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// What the transport carries (for ICMP: what follows its eight header bytes).
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(usize::from(self.headers.payload_at)..).unwrap_or_default()
    }

    pub fn five_tuple(&self) -> Option<FiveTuple> {
        self.headers.five_tuple()
    }

    /// The flow that an ICMP error is about, as its sender wrote it, from the quoted header (which may be cut short
    /// behind the ports); `None` if this is no ICMP error or the quote is unusable.
    pub fn quoted(&self) -> Option<FiveTuple> {
        let (ip, segment) = self.quote()?;
        let (source, destination) = match ip.protocol {
            protocol::UDP | protocol::TCP => ports(segment.first_chunk()?),
            protocol::ICMP | protocol::ICMPV6 => {
                let (Transport::Icmp(icmp), _) = ip.icmp(segment).ok()? else { return None };
                let id = icmp.echo_id(ip.protocol)?;
                (id, id)
            }
            _ => return None,
        };
        Some(FiveTuple {
            protocol: ip.protocol,
            source: (ip.source, source).into(),
            destination: (ip.destination, destination).into(),
        })
    }

    /// The echo that this packet asks for; `None` of a fragment, which asks for nothing without the others.
    pub fn echo_request(&self) -> Option<Echo> {
        let Headers { source, destination, protocol, fragment, .. } = self.headers;
        let icmp = self.icmp().filter(|icmp| icmp.is_echo_request(protocol) && fragment.is_none())?;
        Some(Echo::named(source, destination, icmp))
    }

    /// The echo request that this packet answers, be it with a reply or with an ICMP error about it.
    pub fn answered_echo(&self) -> Option<Echo> {
        let Headers { source, destination, protocol, .. } = self.headers;
        if let Some(icmp) = self.icmp().filter(|icmp| icmp.is_echo_reply(protocol)) {
            return Some(Echo::named(destination, source, icmp));
        }
        let (ip, segment) = self.quote()?;
        if !matches!(ip.protocol, protocol::ICMP | protocol::ICMPV6) {
            return None;
        }
        match ip.icmp(segment).ok()? {
            (Transport::Icmp(icmp), _) if icmp.is_echo_request(ip.protocol) => {
                Some(Echo::named(ip.source, ip.destination, icmp))
            }
            _ => None,
        }
    }

    fn icmp(&self) -> Option<Icmp> {
        match self.headers.transport {
            Transport::Icmp(icmp) => Some(icmp),
            _ => None,
        }
    }

    /// The packet that an ICMP error quotes: its headers, and its transport's part as far as it is there.
    fn quote(&self) -> Option<(Ip, &'a [u8])> {
        self.icmp().filter(|icmp| icmp.is_error)?;
        let quote = self.payload();
        let ip = Ip::parse(quote).ok()?;
        if ip.source.is_ipv4() != self.headers.source.is_ipv4() || ip.is_later_fragment() {
            return None;
        }
        let segment = quote.get(ip.transport_at..)?;
        Some((ip, segment))
    }
}

/// The network layer of a packet whose end may be missing, as in an ICMP error's quote.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    tos: Tos,
    ttl: u8,
    fragment: Option<Fragment>,
    transport_at: usize,
    /// As stated.
    len: usize,
}

impl Ip {
    #[inline]
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(version) => Err(ParseError::NotIp { version }),
            None => Err(ParseError::Empty),
        }
    }

    #[inline]
    fn parse_v4(bytes: &[u8]) -> Result<Self, ParseError> {
        let fixed = chunk::<20>("the IPv4 header", bytes)?;
        let (_, addresses) = fixed.split_at(12);
        let (source, destination) = addresses.split_at(4);
        let header_len = usize::from(fixed[0] & 15) * 4;
        let len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_len < 20 {
            return Err(ParseError::HeaderLength { what: "the IPv4 header", stated: header_len, fixed: 20 });
        }
        if len < header_len {
            return Err(ParseError::LengthBelowHeaders { stated: len, headers: header_len });
        }
        if header_len > 20 {
            check_options(bytes, header_len)?;
        }
        // RFC 791 §3.1: three flag bits (reserved, DF, MF), then the offset in units of 8 bytes.
        let placement = u16::from_be_bytes([fixed[6], fixed[7]]);
        let fragment = match placement & 0x3fff {
            0 => None,
            _ => Some(Fragment {
                id: u32::from(u16::from_be_bytes([fixed[4], fixed[5]])),
                offset: (placement & 0x1fff) << 3,
                more: placement & 0x2000 != 0,
            }),
        };
        fragment.map_or(Ok(()), |fragment| fragment.check(len - header_len))?;
        Ok(Self {
            source: v4(source),
            destination: v4(destination),
            protocol: fixed[9],
            tos: Tos(fixed[1]),
            ttl: fixed[8],
            fragment,
            transport_at: header_len,
            len,
        })
    }

    #[inline]
    fn parse_v6(bytes: &[u8]) -> Result<Self, ParseError> {
        let fixed = chunk::<40>("the IPv6 header", bytes)?;
        let (_, addresses) = fixed.split_at(8);
        let (source, destination) = addresses.split_at(16);
        let payload_len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if payload_len == 0 && fixed[6] == protocol::HOP_BY_HOP {
            return Err(ParseError::Jumbo);
        }
        let mut ip = Self {
            source: v6(source),
            destination: v6(destination),
            protocol: fixed[6],
            tos: Tos(fixed[0] << 4 | fixed[1] >> 4),
            ttl: fixed[7],
            fragment: None,
            transport_at: 40,
            len: 40 + payload_len,
        };
        if protocol::is_extension(ip.protocol) {
            ip.skip_extension_headers(bytes.get(..ip.len).unwrap_or(bytes))?;
        }
        Ok(ip)
    }

    /// Moves on to the upper layer (RFC 8200 §4). The authentication header is no part of the chain: behind it nothing may be edited.
    fn skip_extension_headers(&mut self, packet: &[u8]) -> Result<(), ParseError> {
        let mut fragmented = false;
        for position in 0..=MAX_EXTENSION_HEADERS {
            let header = self.protocol;
            if !protocol::is_extension(header) {
                return Ok(());
            }
            if position == MAX_EXTENSION_HEADERS {
                break;
            }
            if header == protocol::HOP_BY_HOP && position > 0 || header == protocol::FRAGMENT && fragmented {
                return Err(ParseError::MisplacedExtensionHeader { header });
            }
            let rest = packet.get(self.transport_at..).unwrap_or_default();
            let fixed = chunk::<8>("an IPv6 extension header", rest)?;
            let len = if header == protocol::FRAGMENT { 8 } else { (usize::from(fixed[1]) + 1) * 8 };
            if rest.len() < len {
                let what = "an IPv6 extension header";
                return Err(ParseError::TooShort { what, needed: len, found: rest.len() });
            }
            if header == protocol::ROUTING && fixed[3] > 0 {
                return Err(ParseError::SourceRouted);
            }
            self.protocol = fixed[0];
            self.transport_at += len;
            if header == protocol::FRAGMENT {
                fragmented = true;
                self.fragment = Fragment::of_v6(fixed);
                self.fragment.map_or(Ok(()), |fragment| fragment.check(self.len - self.transport_at))?;
            }
            if self.is_later_fragment() {
                return Ok(());
            }
        }
        Err(ParseError::TooManyExtensionHeaders)
    }

    fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset > 0)
    }

    /// Reads the transport header at the start of `segment`; returns its length too.
    #[inline]
    fn transport(&self, segment: &[u8]) -> Result<(Transport, usize), ParseError> {
        if self.is_later_fragment() {
            return Ok((Transport::Opaque, 0));
        }
        let transport = match self.protocol {
            protocol::UDP => self.udp(segment),
            protocol::TCP => tcp(segment),
            protocol::ICMP if self.source.is_ipv4() => self.icmp(segment),
            protocol::ICMPV6 if self.source.is_ipv6() => self.icmp(segment),
            _ => Ok((Transport::Opaque, 0)),
        };
        match transport {
            Err(ParseError::TooShort { .. }) if self.fragment.is_some() => Ok((Transport::Opaque, 0)),
            transport => transport,
        }
    }

    #[inline]
    fn udp(&self, segment: &[u8]) -> Result<(Transport, usize), ParseError> {
        let header = chunk::<8>("the UDP header", segment)?;
        let stated = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let found = segment.len();
        let right = if self.fragment.is_none() { stated == found } else { stated > found };
        if !right {
            return Err(ParseError::UdpLength { stated, found });
        }
        let (source, destination) = ports(&[header[0], header[1], header[2], header[3]]);
        let checksum = u16::from_be_bytes([header[6], header[7]]);
        Ok((Transport::Udp { source, destination, checksum }, 8))
    }

    fn icmp(&self, segment: &[u8]) -> Result<(Transport, usize), ParseError> {
        let [kind, code, _, _, a, b, c, d] = *chunk::<8>("the ICMP header", segment)?;
        let is_error = match self.protocol {
            // RFC 1122 §3.2.2: unreachable, source quench, redirect, time exceeded, parameter problem.
            protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
            // RFC 4443 §2.1.
            _ => kind < 128,
        };
        Ok((Transport::Icmp(Icmp { kind, code, rest: u32::from_be_bytes([a, b, c, d]), is_error }), 8))
    }
}

impl Fragment {
    /// `None` for an atomic fragment.
    fn of_v6(header: &[u8; 8]) -> Option<Self> {
        let placement = u16::from_be_bytes([header[2], header[3]]);
        let fragment = Self {
            id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            offset: placement & 0xfff8,
            more: placement & 1 != 0,
        };
        (fragment.offset > 0 || fragment.more).then_some(fragment)
    }

    fn check(self, len: usize) -> Result<(), ParseError> {
        let ragged = self.more && !len.is_multiple_of(8);
        if ragged || usize::from(self.offset) + len > 65535 {
            return Err(ParseError::Fragment { offset: self.offset, len });
        }
        Ok(())
    }
}

#[inline]
fn tcp(segment: &[u8]) -> Result<(Transport, usize), ParseError> {
    let header = chunk::<20>("the TCP header", segment)?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < 20 {
        return Err(ParseError::HeaderLength { what: "the TCP header", stated: header_len, fixed: 20 });
    }
    if header_len > segment.len() {
        let what = "the TCP header";
        return Err(ParseError::TooShort { what, needed: header_len, found: segment.len() });
    }
    let (source, destination) = ports(&[header[0], header[1], header[2], header[3]]);
    let transport = Transport::Tcp {
        source,
        destination,
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        acknowledgment: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        flags: TcpFlags(header[13]),
    };
    Ok((transport, header_len))
}

/// Walks IPv4 options (RFC 791 §3.1) for a source route that has not reached its end.
#[cold]
fn check_options(bytes: &[u8], header_len: usize) -> Result<(), ParseError> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;

    let what = "the IPv4 header";
    let header = bytes.get(..header_len).ok_or(ParseError::TooShort {
        what,
        needed: header_len,
        found: bytes.len(),
    })?;
    let mut at = 20;
    while let Some((&kind, rest)) = header.get(at..).and_then(<[u8]>::split_first) {
        let malformed = ParseError::Ipv4Option { at };
        match kind {
            END => break,
            NO_OPERATION => at += 1,
            _ => {
                let len = usize::from(*rest.first().ok_or(malformed)?);
                if len < 2 || len > rest.len() + 1 {
                    return Err(malformed);
                }
                if matches!(kind, LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE) {
                    let pointer = *rest.get(1).filter(|_| len >= 3).ok_or(malformed)?;
                    if usize::from(pointer) <= len {
                        return Err(ParseError::SourceRouted);
                    }
                }
                at += len;
            }
        }
    }
    Ok(())
}

#[inline]
fn chunk<'a, const N: usize>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8; N], ParseError> {
    bytes.first_chunk().ok_or(ParseError::TooShort { what, needed: N, found: bytes.len() })
}

fn ports(bytes: &[u8; 4]) -> (u16, u16) {
    let [a, b, c, d] = *bytes;
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// `octets` must be 4 long.
fn v4(octets: &[u8]) -> IpAddr {
    Ipv4Addr::from(octets.first_chunk().copied().unwrap_or([0; 4])).into()
}

/// `octets` must be 16 long.
fn v6(octets: &[u8]) -> IpAddr {
    Ipv6Addr::from(octets.first_chunk().copied().unwrap_or([0; 16])).into()
}

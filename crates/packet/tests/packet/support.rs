//! Packets from plain descriptions, and their checksums by plain loops: what the crate is held against, in its tests and under the fuzzer.
//! Nothing here uses the crate's own code for layout or sums.

use std::net::{IpAddr, SocketAddr};

use packet::build::{self, Unreachable};
use packet::{Checksum, Dscp, Packet, PacketMut, protocol};

/// A packet to be made. Both addresses are of one family.
#[derive(Clone, Debug)]
pub struct Spec {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub tos: u8,
    pub ttl: u8,
    pub body: Body,
    /// IPv4: words of options (0–10). IPv6: see `extensions`.
    pub option_words: u8,
    pub extensions: Vec<Extension>,
    /// Cut behind this many units of 8 bytes of the transport, which makes it a first fragment; 0: whole.
    pub cut: u8,
    pub payload: Vec<u8>,
    pub checksum: Checksum,
}

#[derive(Clone, Copy, Debug)]
pub enum Body {
    Udp {
        summed: bool,
    },
    /// Words of options: 0–10.
    Tcp {
        option_words: u8,
        flags: u8,
    },
    Icmp {
        kind: u8,
    },
    Other,
}

#[derive(Clone, Copy, Debug)]
pub enum Extension {
    /// Units of 8 bytes beyond the first. Only the first extension header may be one.
    HopByHop(u8),
    DestinationOptions(u8),
    Routing(u8),
    AtomicFragment,
}

#[derive(Clone, Debug)]
pub enum Edit {
    Source(SocketAddr),
    Destination(SocketAddr),
    Dscp(u8),
    DecrementTtl,
    Complete,
}

#[derive(Clone, Debug)]
pub struct Built {
    pub spec: Spec,
    pub bytes: Vec<u8>,
    /// What a first fragment's datagram has behind it.
    pub tail: Vec<u8>,
    pub transport_at: usize,
    pub transport_header_len: usize,
}

pub const OTHER_PROTOCOL: u8 = 132;

impl Spec {
    pub fn protocol(&self) -> u8 {
        match self.body {
            Body::Udp { .. } => protocol::UDP,
            Body::Tcp { .. } => protocol::TCP,
            Body::Icmp { .. } if self.source.is_ipv4() => protocol::ICMP,
            Body::Icmp { .. } => protocol::ICMPV6,
            Body::Other => OTHER_PROTOCOL,
        }
    }

    pub fn has_ports(&self) -> bool {
        matches!(self.body, Body::Udp { .. } | Body::Tcp { .. })
    }

    pub fn build(mut self) -> Built {
        let transport_header_len = match self.body {
            Body::Udp { .. } | Body::Icmp { .. } => 8,
            Body::Tcp { option_words, .. } => 20 + 4 * usize::from(option_words),
            Body::Other => 0,
        };
        let mut datagram = self.transport(transport_header_len);
        // A fragment's header must lie in it as a whole, and something must be left for the next.
        let cut = usize::from(self.cut) * 8;
        let tail = if cut >= transport_header_len && cut < datagram.len() && cut > 0 {
            datagram.split_off(cut)
        } else {
            Vec::new()
        };
        if !tail.is_empty() {
            self.checksum = Checksum::Complete;
        }
        let mut bytes = self.network(datagram.len(), !tail.is_empty());
        let transport_at = bytes.len();
        bytes.extend(datagram);
        let mut built = Built { spec: self, bytes, tail, transport_at, transport_header_len };
        if let Some((at, field)) = built.expected_checksum() {
            built.bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
        }
        built
    }

    fn transport(&self, header_len: usize) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let mut bytes = match self.body {
            Body::Udp { .. } => {
                let len = (8 + self.payload.len()) as u16;
                [&ports[..], &len.to_be_bytes(), &[0, 0]].concat()
            }
            Body::Tcp { option_words, flags } => {
                let fixed = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, (5 + option_words) << 4, flags];
                [&ports[..], &fixed, &[0xff, 0xff, 0, 0, 0, 0]].concat()
            }
            Body::Icmp { kind } => vec![kind, 0, 0, 0, 0x12, 0x34, 0, 7],
            Body::Other => Vec::new(),
        };
        bytes.resize(header_len, 1);
        bytes.extend(&self.payload);
        bytes
    }

    fn network(&self, len: usize, more: bool) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_len = 20 + 4 * usize::from(self.option_words);
                let [l0, l1] = ((header_len + len) as u16).to_be_bytes();
                let placement = if more { 0x20 } else { 0x40 };
                let mut bytes = vec![0x45 + self.option_words, self.tos, l0, l1, 0x12, 0x34, placement, 0];
                bytes.extend([self.ttl, self.protocol(), 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.resize(header_len, 1);
                let checksum = !plain_sum(&bytes);
                bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut headers: Vec<(u8, Vec<u8>)> =
                    self.extensions.iter().map(|extension| extension.write()).collect();
                if more {
                    headers.push((44, vec![0, 0, 0, 1, 1, 2, 3, 4]));
                }
                for at in 0..headers.len() {
                    let next = headers.get(at + 1).map_or(self.protocol(), |(kind, _)| *kind);
                    headers[at].1[0] = next;
                }
                let first = headers.first().map_or(self.protocol(), |(kind, _)| *kind);
                let extensions: Vec<u8> = headers.into_iter().flat_map(|(_, bytes)| bytes).collect();
                let [l0, l1] = ((extensions.len() + len) as u16).to_be_bytes();
                let mut bytes =
                    vec![0x60 | self.tos >> 4, self.tos << 4 | 0x0a, 0xbc, 0xde, l0, l1, first, self.ttl];
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(extensions);
                bytes
            }
            _ => panic!("a packet's addresses are of one family"),
        }
    }
}

impl Extension {
    fn write(self) -> (u8, Vec<u8>) {
        // PadN (RFC 8200 §4.2) is no business of the parser: any content will do.
        let padded = |units: u8| {
            let mut bytes = vec![0, units, 0, 0];
            bytes.resize((usize::from(units) + 1) * 8, 0);
            bytes
        };
        match self {
            Self::HopByHop(units) => (0, padded(units)),
            Self::DestinationOptions(units) => (60, padded(units)),
            Self::Routing(units) => (43, padded(units)),
            Self::AtomicFragment => (44, vec![0, 0, 0, 0, 9, 9, 9, 9]),
        }
    }
}

impl Built {
    pub fn is_fragment(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Where the transport checksum is and what a full recomputation, of the whole datagram, puts there.
    pub fn expected_checksum(&self) -> Option<(usize, u16)> {
        let at = self.transport_at
            + match self.spec.body {
                Body::Udp { .. } => 6,
                Body::Tcp { .. } => 16,
                Body::Icmp { .. } => 2,
                Body::Other => return None,
            };
        let mut segment = [&self.bytes[self.transport_at..], &self.tail].concat();
        segment[at - self.transport_at..][..2].fill(0);

        let is_icmpv4 = self.spec.protocol() == protocol::ICMP;
        let addresses = if self.bytes[0] >> 4 == 4 { &self.bytes[12..20] } else { &self.bytes[8..40] };
        let len = (segment.len() as u32).to_be_bytes();
        let pseudo_header = [addresses, &len, &[0, 0, 0, self.spec.protocol()]].concat();
        let pseudo_header = if is_icmpv4 { Vec::new() } else { pseudo_header };
        let field = match (self.spec.checksum, self.spec.body) {
            (Checksum::Partial, _) => plain_sum(&pseudo_header),
            (Checksum::Complete, Body::Udp { summed: false }) => 0,
            (Checksum::Complete, body) => match !plain_sum(&[pseudo_header, segment].concat()) {
                0 if matches!(body, Body::Udp { .. }) => 0xffff,
                field => field,
            },
        };
        Some((at, field))
    }

    /// Holds every checksum against a full recomputation.
    pub fn assert_right(&self) {
        if self.bytes[0] >> 4 == 4 {
            let header = &self.bytes[..usize::from(self.bytes[0] & 15) * 4];
            assert_eq!(plain_sum(header), 0xffff, "IPv4 header checksum of {:?}", self.spec);
        }
        if let Some((at, field)) = self.expected_checksum() {
            let found = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
            assert_eq!(found, field, "transport checksum of {:?}", self.spec);
        }
    }

    /// Makes one edit through the crate and looks at everything that it should and should not have done.
    pub fn edit(&mut self, edit: &Edit) {
        let before = self.bytes.clone();
        let fragment = self.is_fragment();
        let (has_ports, is_known) = (self.spec.has_ports(), !matches!(self.spec.body, Body::Other));
        let mut packet = PacketMut::parse(&mut self.bytes, self.spec.checksum).expect("a valid packet");
        let old = *packet.headers();
        let mut expected = old;
        match *edit {
            Edit::Source(source) => {
                let possible = has_ports && source.is_ipv4() == old.source.is_ipv4();
                assert_eq!(packet.set_source(source), possible);
                if possible {
                    expected.source = source.ip();
                    assert_eq!(packet.headers().five_tuple().expect("ports").source, source);
                }
            }
            Edit::Destination(destination) => {
                let possible = has_ports && destination.is_ipv4() == old.source.is_ipv4();
                assert_eq!(packet.set_destination(destination), possible);
                if possible {
                    expected.destination = destination.ip();
                    assert_eq!(packet.headers().five_tuple().expect("ports").destination, destination);
                }
            }
            Edit::Dscp(value) => {
                let dscp = Dscp::new(value & 63).expect("below 64");
                packet.set_dscp(dscp);
                expected.tos.0 = value << 2 | old.tos.0 & 3;
            }
            Edit::DecrementTtl => {
                assert_eq!(packet.decrement_ttl(), old.ttl > 1);
                expected.ttl -= u8::from(old.ttl > 1);
            }
            Edit::Complete => {
                let possible = self.spec.checksum == Checksum::Complete || is_known && !fragment;
                assert_eq!(packet.complete_checksum(), possible);
                if possible {
                    self.spec.checksum = Checksum::Complete;
                    // A partial UDP checksum is always computed in the end.
                    if let Body::Udp { summed } = &mut self.spec.body {
                        let Checksum::Complete = packet.checksum() else { panic!("still partial") };
                        *summed |= before[self.transport_at + 6..][..2] != [0, 0];
                    }
                }
            }
        }
        let headers = *packet.headers();
        expected.transport = headers.transport;
        assert_eq!(headers, expected);
        let parsed = Packet::parse(&self.bytes).expect("an edit leaves a valid packet");
        assert_eq!(*parsed.headers(), headers, "headers in step with the bytes");
        assert_eq!(self.bytes.len(), before.len());
        let payload_at = self.transport_at + self.transport_header_len;
        assert_eq!(self.bytes[payload_at..], before[payload_at..], "payload untouched");
        self.assert_right();
    }
}

/// Calls everything there is on bytes that may or may not be a packet.
pub fn exercise(bytes: &mut [u8], endpoint: SocketAddr) {
    let mut out = [0; build::MAX_REFUSAL];
    if let Ok(packet) = Packet::parse(bytes) {
        let headers = packet.headers();
        assert_eq!(packet.bytes().len(), headers.len as usize);
        assert!(headers.transport_at <= headers.payload_at && u32::from(headers.payload_at) <= headers.len);
        assert_eq!(packet.payload().len(), headers.len as usize - usize::from(headers.payload_at));
        packet.five_tuple();
        packet.quoted();
        build::unreachable(&packet, Unreachable::Host, endpoint.ip(), &mut out);
        build::too_big(&packet, 1280, endpoint.ip(), &mut out);
        build::tcp_reset(&packet, &mut out);
    }
    for checksum in [Checksum::Complete, Checksum::Partial] {
        if let Ok(mut packet) = PacketMut::parse(bytes, checksum) {
            packet.set_source(endpoint);
            packet.set_destination(endpoint);
            packet.set_dscp(Dscp::EF);
            packet.decrement_ttl();
            packet.complete_checksum();
        }
    }
}

/// The sum of 16-bit words as RFC 1071 §1 states it, one by one.
pub fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u16;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (wrapped, carry) = sum.overflowing_add(word);
        sum = wrapped + u16::from(carry);
    }
    sum
}

//! What holds for every packet.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::support::{Body, Built, Edit, Extension, Spec, exercise, plain_sum};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use packet::build::{self, IcmpError, SentUdp, Unreachable};
use packet::checksum::Sum;
use packet::{Checksum, Packet, Tos, Transport, protocol};
use proptest::prelude::*;

fn endpoint(v6: bool) -> BoxedStrategy<SocketAddr> {
    // Words of all zeros and all ones are where one's-complement sums go wrong.
    let edge = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    if v6 {
        (prop::array::uniform16(edge), any::<u16>())
            .prop_map(|(ip, port)| (Ipv6Addr::from(ip), port).into())
            .boxed()
    } else {
        (prop::array::uniform4(edge), any::<u16>())
            .prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into())
            .boxed()
    }
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        any::<bool>().prop_map(|summed| Body::Udp { summed }),
        (0..=10u8, any::<u8>()).prop_map(|(option_words, flags)| Body::Tcp { option_words, flags }),
        any::<u8>().prop_map(|kind| Body::Icmp { kind }),
        Just(Body::Other),
    ]
}

fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    let options =
        prop_oneof![(0..4u8).prop_map(Extension::DestinationOptions), (0..4u8).prop_map(Extension::Routing),];
    (prop::collection::vec(options, 0..5), prop::option::of(0..4u8), any::<bool>()).prop_map(
        |(mut all, hop_by_hop, atomic)| {
            if let Some(units) = hop_by_hop {
                all.insert(0, Extension::HopByHop(units));
            }
            if atomic {
                all.push(Extension::AtomicFragment);
            }
            all
        },
    )
}

fn spec() -> impl Strategy<Value = Spec> {
    any::<bool>().prop_flat_map(|v6| {
        let payload = prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..120);
        let checksum = prop_oneof![Just(Checksum::Complete), Just(Checksum::Partial)];
        let layout = (0..=10u8, extensions(), prop_oneof![3 => Just(0u8), 1 => 1..12u8]);
        (endpoint(v6), endpoint(v6), any::<[u8; 2]>(), body(), layout, payload, checksum).prop_map(
            |(source, destination, [tos, ttl], body, (option_words, extensions, cut), payload, checksum)| {
                // A packet has one fragment header at most.
                let atomic = extensions.iter().any(|one| matches!(one, Extension::AtomicFragment));
                let cut = if atomic { 0 } else { cut };
                Spec { source, destination, tos, ttl, body, option_words, extensions, cut, payload, checksum }
            },
        )
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => any::<bool>().prop_flat_map(endpoint).prop_map(Edit::Source),
        4 => any::<bool>().prop_flat_map(endpoint).prop_map(Edit::Destination),
        1 => any::<u8>().prop_map(Edit::Dscp),
        1 => Just(Edit::DecrementTtl),
        1 => Just(Edit::Complete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn edits_leave_every_checksum_right(spec in spec(), edits in prop::collection::vec(edit(), 0..12)) {
        let mut built = spec.build();
        built.assert_right();
        for edit in &edits {
            built.edit(edit);
        }
    }

    #[test]
    fn a_parsed_packet_says_what_was_written(spec in spec(), slack in 0..9usize) {
        let mut built = spec.build();
        let len = built.bytes.len();
        built.bytes.resize(len + slack, 0xee);
        let packet = Packet::parse(&built.bytes).expect("a valid packet");
        let headers = packet.headers();
        let spec = &built.spec;
        prop_assert_eq!((headers.source, headers.destination), (spec.source.ip(), spec.destination.ip()));
        prop_assert_eq!((headers.protocol, headers.tos, headers.ttl), (spec.protocol(), Tos(spec.tos), spec.ttl));
        prop_assert_eq!(headers.len as usize, len);
        prop_assert_eq!(usize::from(headers.transport_at), built.transport_at);
        prop_assert_eq!(usize::from(headers.payload_at), built.transport_at + built.transport_header_len);
        prop_assert_eq!(headers.fragment.is_some(), built.is_fragment());
        if let Some(tuple) = packet.five_tuple().filter(|_| spec.has_ports()) {
            prop_assert_eq!((tuple.source, tuple.destination), (spec.source, spec.destination));
        } else {
            prop_assert!(!spec.has_ports());
        }
    }

    #[test]
    fn etherparse_reads_the_same(spec in spec()) {
        // It wants ICMP timestamps to be exactly 20 bytes long.
        prop_assume!(!matches!(spec.body, Body::Icmp { kind: 13 | 14 }));
        let built = spec.build();
        let packet = Packet::parse(&built.bytes).expect("a valid packet");
        let headers = packet.headers();
        let theirs = SlicedPacket::from_ip(&built.bytes).expect("a valid packet");
        let (source, destination, protocol) = match theirs.net.as_ref().expect("an IP layer") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number)
            }
            other => panic!("not IP: {other:?}"),
        };
        prop_assert_eq!((source, destination, protocol.0), (headers.source, headers.destination, headers.protocol));
        if built.is_fragment() {
            return Ok(());
        }
        match (theirs.transport, headers.transport) {
            (Some(TransportSlice::Udp(udp)), Transport::Udp { source, destination, checksum }) => {
                prop_assert_eq!((udp.source_port(), udp.destination_port(), udp.checksum()), (source, destination, checksum));
                prop_assert_eq!(udp.payload(), packet.payload());
            }
            (Some(TransportSlice::Tcp(tcp)), Transport::Tcp { source, destination, sequence, acknowledgment, flags }) => {
                prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (source, destination));
                prop_assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (sequence, acknowledgment));
                prop_assert_eq!((tcp.syn(), tcp.rst()), (flags.has(packet::TcpFlags::SYN), flags.has(packet::TcpFlags::RST)));
                prop_assert_eq!(tcp.payload(), packet.payload());
            }
            (Some(TransportSlice::Icmpv4(icmp)), Transport::Icmp(ours)) => {
                prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (ours.kind, ours.code));
            }
            (Some(TransportSlice::Icmpv6(icmp)), Transport::Icmp(ours)) => {
                prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (ours.kind, ours.code));
            }
            (None, Transport::Opaque) => {}
            (theirs, ours) => prop_assert!(false, "{:?} is not {:?}", theirs, ours),
        }
    }

    #[test]
    fn no_bytes_cause_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6 in any::<bool>(), to in endpoint(true)) {
        exercise(&mut bytes, to);
        if let Some(first) = bytes.first_mut() {
            *first = if v6 { 0x60 } else { 0x40 | *first & 15 };
        }
        exercise(&mut bytes, to);
    }

    #[test]
    fn no_damage_causes_a_panic(
        spec in spec(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
        to in any::<bool>().prop_flat_map(endpoint),
    ) {
        let mut bytes = spec.build().bytes;
        for (at, byte) in damage {
            let at = at.index(bytes.len().min(80));
            bytes[at] = byte;
        }
        exercise(&mut bytes, to);
        let end = end.index(bytes.len() + 1);
        exercise(&mut bytes[..end], to);
    }

    #[test]
    fn a_cut_packet_is_refused(spec in spec(), end in any::<prop::sample::Index>()) {
        let bytes = spec.build().bytes;
        prop_assert!(Packet::parse(&bytes[..end.index(bytes.len())]).is_err());
    }

    #[test]
    fn wide_sums_equal_the_plain_loop(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..3000), at in 0..64usize) {
        let (head, tail) = bytes.split_at((at * 2).min(bytes.len() & !1));
        prop_assert_eq!(Sum::default().add_bytes(head).add_bytes(tail).fold(), plain_sum(&bytes));
    }

    #[test]
    fn a_written_udp_header_reads_back(
        (source, destination) in any::<bool>().prop_flat_map(|v6| (endpoint(v6), endpoint(v6))),
        tos: u8,
        ttl: u8,
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let header_len = build::udp_header_len(&destination);
        let mut bytes = vec![0xaa; header_len];
        prop_assert!(build::udp_header(&mut bytes, source, destination, Tos(tos), ttl, payload.len()));
        bytes.extend(&payload);
        let spec = Spec {
            source, destination, tos, ttl, payload,
            body: Body::Udp { summed: true }, option_words: 0, extensions: Vec::new(), cut: 0, checksum: Checksum::Partial,
        };
        let mut built = Built { spec, bytes, tail: Vec::new(), transport_at: header_len - 8, transport_header_len: 8 };
        built.assert_right();
        built.edit(&Edit::Complete);
    }

    #[test]
    fn refusals_verify_and_quote_their_cause(spec in spec(), from4: [u8; 4], from6: [u8; 16], mtu: u32) {
        let built = spec.build();
        let original = Packet::parse(&built.bytes).expect("a valid packet");
        let from = if built.spec.source.is_ipv4() { Ipv4Addr::from(from4).into() } else { Ipv6Addr::from(from6).into() };
        let mut out = [0; build::MAX_REFUSAL];
        let max_len = if built.spec.source.is_ipv4() { 576 } else { 1280 };
        for too_big in [false, true] {
            let len = if too_big {
                build::too_big(&original, mtu, from, &mut out)
            } else {
                build::unreachable(&original, Unreachable::Prohibited, from, &mut out)
            };
            let Some(len) = len else { continue };
            prop_assert!(len <= max_len);
            let error = assert_verifies(&out[..len]);
            prop_assert_eq!((error.headers().source, error.headers().destination), (from, built.spec.source.ip()));
            prop_assert_eq!(error.payload(), &built.bytes[..error.payload().len()]);
            prop_assert!(error.payload().len() == built.bytes.len() || len == max_len);
            prop_assert_eq!(error.quoted(), original.five_tuple());
            // RFC 1122 §3.2.2: no error about an error.
            prop_assert_eq!(build::unreachable(&error, Unreachable::Host, from, &mut [0; 1280]), None);
        }
        if let Some(len) = build::tcp_reset(&original, &mut out) {
            let reset = assert_verifies(&out[..len]);
            prop_assert_eq!(reset.five_tuple(), original.five_tuple().map(|tuple| tuple.reversed()));
            prop_assert_eq!(build::tcp_reset(&reset, &mut [0; 1280]), None);
        }
    }

    #[test]
    fn an_error_about_a_sent_datagram_quotes_it(
        (source, destination, from) in any::<bool>().prop_flat_map(|v6| (endpoint(v6), endpoint(v6), endpoint(v6))),
        payload in prop::collection::vec(any::<u8>(), 0..2000),
        kind in 3..5u8,
    ) {
        let mut out = [0; build::MAX_REFUSAL];
        let kind = if source.is_ipv4() { 3 } else { kind - 2 };
        let error = IcmpError { kind, code: 1, rest: 77 };
        let sent = SentUdp { source, destination, payload: &payload };
        let len = build::error_about_udp(&sent, error, from.ip(), &mut out).expect("room enough");
        let error = assert_verifies(&out[..len]);
        let quoted = error.quoted().expect("a quote");
        prop_assert_eq!((quoted.source, quoted.destination, quoted.protocol), (source, destination, protocol::UDP));
        if len < if source.is_ipv4() { 576 } else { 1280 } {
            let quote = assert_verifies(error.payload());
            prop_assert_eq!(quote.payload(), &payload[..]);
        }
    }
}

/// Parses a packet without options or extensions and holds its complete checksums against the plain loop.
fn assert_verifies(bytes: &[u8]) -> Packet<'_> {
    let packet = Packet::parse(bytes).expect("a valid packet");
    let headers = packet.headers();
    let at = usize::from(headers.transport_at);
    assert_eq!(headers.len as usize, bytes.len());
    let (addresses, is_v4) =
        if headers.source.is_ipv4() { (&bytes[12..20], true) } else { (&bytes[8..40], false) };
    if is_v4 {
        assert_eq!(plain_sum(&bytes[..at]), 0xffff);
    }
    let pseudo_header =
        [addresses, &((bytes.len() - at) as u32).to_be_bytes(), &[0, 0, 0, headers.protocol]].concat();
    let pseudo_header = if headers.protocol == protocol::ICMP { Vec::new() } else { pseudo_header };
    assert_eq!(plain_sum(&[&pseudo_header, &bytes[at..]].concat()), 0xffff);
    packet
}

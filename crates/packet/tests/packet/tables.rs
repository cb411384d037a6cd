//! Single packets, by hand and from the RFCs.

use std::net::IpAddr;

use crate::support::{Body, Built, Edit, Extension, Spec};
use packet::build::{self, IcmpError, SentUdp, Unreachable};
use packet::checksum::{self, Sum};
use packet::{Checksum, Dscp, FiveTuple, Packet, PacketMut, ParseError, TcpFlags, Tos, Transport, protocol};

const UDP: Body = Body::Udp { summed: true };
const SYN: Body = Body::Tcp { option_words: 5, flags: TcpFlags::SYN };
const ECHO: Body = Body::Icmp { kind: 8 };

fn v4(body: Body) -> Spec {
    Spec {
        source: "10.99.0.1:40000".parse().unwrap(),
        destination: "52.129.96.10:20000".parse().unwrap(),
        tos: 0xb9,
        ttl: 64,
        body,
        option_words: 0,
        extensions: Vec::new(),
        cut: 0,
        payload: b"sixteen bytes...".to_vec(),
        checksum: Checksum::Complete,
    }
}

fn v6(body: Body) -> Spec {
    Spec {
        source: "[fd00::1]:40000".parse().unwrap(),
        destination: "[2001:db8::10]:443".parse().unwrap(),
        ..v4(body)
    }
}

fn error(built: &Built, change: impl FnOnce(&mut Vec<u8>)) -> ParseError {
    let mut bytes = built.bytes.clone();
    change(&mut bytes);
    Packet::parse(&bytes).expect_err("no valid packet")
}

#[test]
fn rfc_1071_section_3_example() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(Sum::default().add_bytes(&bytes).fold(), 0xddf2);
    assert_eq!(Sum::default().add_bytes(&bytes).checksum(), 0x220d);
}

#[test]
fn rfc_1624_section_4_example() {
    let change = Sum::default().replace([0x55, 0x55], [0x32, 0x85]);
    assert_eq!(checksum::update(0xdd2f, change), 0x0000);
}

#[test]
fn lies_are_told_apart() {
    use ParseError as E;
    let udp = v4(UDP).build();
    let tcp = v4(SYN).build();
    let with_options = Spec { option_words: 2, ..v4(UDP) }.build();
    let udp6 = v6(UDP).build();
    let chain = Spec { extensions: vec![Extension::DestinationOptions(0); 9], ..v6(UDP) }.build();
    let late_hop = |kind| Spec {
        extensions: vec![Extension::DestinationOptions(0), kind, Extension::AtomicFragment],
        ..v6(UDP)
    };
    let routed = Spec { extensions: vec![Extension::Routing(2)], ..v6(UDP) }.build();
    let first = Spec { cut: 2, ..v4(UDP) }.build();

    let table = [
        (error(&udp, |b| b.clear()), E::Empty),
        (error(&udp, |b| b[0] = 0x55), E::NotIp { version: 5 }),
        (error(&udp, |b| b.truncate(19)), E::TooShort { what: "the IPv4 header", needed: 20, found: 19 }),
        (error(&udp6, |b| b.truncate(39)), E::TooShort { what: "the IPv6 header", needed: 40, found: 39 }),
        (error(&udp, |b| b[0] = 0x44), E::HeaderLength { what: "the IPv4 header", stated: 16, fixed: 20 }),
        (error(&udp, |b| b[3] = 19), E::LengthBelowHeaders { stated: 19, headers: 20 }),
        (error(&udp, |b| b[2..4].fill(0)), E::LengthBelowHeaders { stated: 0, headers: 20 }),
        (error(&udp, |b| b[3] += 1), E::LengthBeyondBuffer { stated: 45, found: 44 }),
        (error(&udp, |b| b[3] -= 1), E::UdpLength { stated: 24, found: 23 }),
        (error(&udp, |b| b[3] = 27), E::TooShort { what: "the UDP header", needed: 8, found: 7 }),
        (error(&udp, |b| b[25] += 1), E::UdpLength { stated: 25, found: 24 }),
        (error(&udp, |b| b[25] = 7), E::UdpLength { stated: 7, found: 24 }),
        (error(&udp6, |b| b[44..46].fill(0)), E::UdpLength { stated: 0, found: 24 }),
        (error(&first, |b| b[25] = 16), E::UdpLength { stated: 16, found: 16 }),
        (error(&udp6, |b| b[4..7].fill(0)), E::Jumbo),
        (error(&udp6, |b| b[5] += 1), E::LengthBeyondBuffer { stated: 65, found: 64 }),
        (error(&tcp, |b| b[32] = 4 << 4), E::HeaderLength { what: "the TCP header", stated: 16, fixed: 20 }),
        (error(&tcp, |b| b[32] = 15 << 4), E::TooShort { what: "the TCP header", needed: 60, found: 56 }),
        (error(&with_options, |b| b[20..22].copy_from_slice(&[7, 9])), E::Ipv4Option { at: 20 }),
        (error(&with_options, |b| b[20..22].copy_from_slice(&[7, 1])), E::Ipv4Option { at: 20 }),
        (error(&with_options, |b| b[27] = 7), E::Ipv4Option { at: 27 }),
        (error(&with_options, |b| b[20..23].copy_from_slice(&[131, 7, 4])), E::SourceRouted),
        (error(&with_options, |b| b[20..23].copy_from_slice(&[137, 7, 4])), E::SourceRouted),
        (error(&routed, |b| b[43] = 1), E::SourceRouted),
        (error(&chain, |_| {}), E::TooManyExtensionHeaders),
        (error(&late_hop(Extension::HopByHop(0)).build(), |_| {}), E::MisplacedExtensionHeader { header: 0 }),
        (
            error(&late_hop(Extension::AtomicFragment).build(), |_| {}),
            E::MisplacedExtensionHeader { header: 44 },
        ),
        (
            error(&Spec { payload: vec![1; 3], ..v4(UDP) }.build(), |b| b[6] = 0x20),
            E::Fragment { offset: 0, len: 11 },
        ),
        (error(&udp, |b| b[6..8].copy_from_slice(&[0x1f, 0xff])), E::Fragment { offset: 65528, len: 24 }),
    ];
    for (row, (found, expected)) in table.into_iter().enumerate() {
        assert_eq!(found, expected, "row {row}");
    }
}

#[test]
fn a_source_route_at_its_end_is_no_lie() {
    let mut built = Spec { option_words: 2, ..v4(UDP) }.build();
    built.bytes[20..23].copy_from_slice(&[131, 7, 8]);
    assert!(Packet::parse(&built.bytes).is_ok());
}

#[test]
fn super_packets_are_packets() {
    for (spec, payload) in [(v4(UDP), 65507), (v4(SYN), 65535 - 60), (v6(UDP), 65527), (v6(SYN), 65535 - 40)]
    {
        let mut built = Spec { payload: vec![0xa5; payload], checksum: Checksum::Partial, ..spec }.build();
        let packet = Packet::parse(&built.bytes).unwrap();
        assert_eq!(packet.payload().len(), payload);
        built.edit(&Edit::Source(built.spec.destination));
        built.edit(&Edit::Complete);
    }
}

#[test]
fn fragments_have_ports_only_at_their_head() {
    for spec in [v4(UDP), v6(UDP), v4(SYN), v6(SYN)] {
        let mut first = Spec { cut: 5, payload: vec![7; 64], ..spec }.build();
        let packet = Packet::parse(&first.bytes).unwrap();
        let fragment = packet.headers().fragment.unwrap();
        assert_eq!((fragment.offset, fragment.more), (0, true));
        assert!(packet.five_tuple().is_some());
        first.edit(&Edit::Source(first.spec.destination));
        // Its checksum covers bytes that are elsewhere.
        let before = first.bytes.clone();
        let mut partial = PacketMut::parse(&mut first.bytes, Checksum::Partial).unwrap();
        assert!(!partial.complete_checksum());
        assert_eq!((partial.checksum(), partial.bytes()), (Checksum::Partial, &before[..]));

        // The same bytes at another offset.
        let placement = if first.spec.source.is_ipv4() { 6 } else { 42 };
        let (high, low) = if placement == 6 { (0x20, 2) } else { (0, 0x11) };
        first.bytes[placement..placement + 2].copy_from_slice(&[high, low]);
        let before = first.bytes.clone();
        let mut later = PacketMut::parse(&mut first.bytes, Checksum::Complete).unwrap();
        assert_eq!(later.headers().fragment.unwrap().offset, 16);
        assert_eq!(later.headers().transport, Transport::Opaque);
        assert_eq!(later.as_packet().five_tuple(), None);
        assert!(!later.set_source(first.spec.source) && !later.set_destination(first.spec.source));
        assert_eq!(first.bytes, before);
    }
    // A first fragment too short for its transport header.
    let mut tiny = v4(SYN).build();
    tiny.bytes.truncate(20 + 16);
    tiny.bytes[3] = 36;
    tiny.bytes[6] = 0x20;
    assert_eq!(Packet::parse(&tiny.bytes).unwrap().headers().transport, Transport::Opaque);
}

#[test]
fn the_authentication_header_ends_the_chain() {
    let mut built = v6(UDP).build();
    built.bytes[6] = 51;
    let packet = Packet::parse(&built.bytes).unwrap();
    assert_eq!((packet.headers().protocol, packet.headers().transport), (51, Transport::Opaque));
    assert_eq!(packet.payload().len(), 24);
}

#[test]
fn zero_means_no_udp_checksum_and_is_never_computed() {
    let mut unsummed = Spec { body: Body::Udp { summed: false }, ..v4(UDP) }.build();
    unsummed.edit(&Edit::Source("1.2.3.4:5".parse().unwrap()));
    assert_eq!(unsummed.bytes[26..28], [0, 0]);

    // Choose the source port so that the sum becomes 0xffff.
    for checksum in [Checksum::Complete, Checksum::Partial] {
        let mut built = Spec { checksum, ..v4(UDP) }.build();
        built.edit(&Edit::Source("10.99.0.1:0".parse().unwrap()));
        let complete =
            Built { spec: Spec { checksum: Checksum::Complete, ..built.spec.clone() }, ..built.clone() };
        let (_, port) = complete.expected_checksum().unwrap();
        built.edit(&Edit::Source((built.spec.source.ip(), port).into()));
        built.edit(&Edit::Complete);
        assert_eq!(built.bytes[26..28], [0xff, 0xff]);
    }
}

#[test]
fn ecn_and_flow_label_survive_a_new_mark() {
    for (spec, before, after) in
        [(v4(UDP), [0x45, 0xb9], [0x45, 0x89]), (v6(UDP), [0x6b, 0x9a], [0x68, 0x9a])]
    {
        let mut built = spec.build();
        assert_eq!(built.bytes[..2], before);
        built.edit(&Edit::Dscp(Dscp::AF41.value()));
        assert_eq!(built.bytes[..2], after);
    }
}

#[test]
fn an_echo_and_its_answer_are_one_flow() {
    let request = v4(ECHO).build();
    let answer = Spec {
        source: request.spec.destination,
        destination: request.spec.source,
        ..v4(Body::Icmp { kind: 0 })
    }
    .build();
    let request = Packet::parse(&request.bytes).unwrap().five_tuple().unwrap();
    assert_eq!(request.source, "10.99.0.1:4660".parse().unwrap());
    assert_eq!(Packet::parse(&answer.bytes).unwrap().five_tuple(), Some(request.reversed()));
    let unreachable = v4(Body::Icmp { kind: 3 }).build();
    assert_eq!(Packet::parse(&unreachable.bytes).unwrap().five_tuple(), None);
}

#[test]
fn refusals_use_their_familys_numbers() {
    let from4: IpAddr = "10.99.0.2".parse().unwrap();
    let from6: IpAddr = "fd00::2".parse().unwrap();
    let mut out = [0; build::MAX_REFUSAL];
    for (reason, v4_code, v6_code) in
        [(Unreachable::Prohibited, 13, 1), (Unreachable::Port, 3, 4), (Unreachable::Host, 1, 3)]
    {
        for (built, from, kind, code) in
            [(v4(UDP).build(), from4, 3, v4_code), (v6(UDP).build(), from6, 1, v6_code)]
        {
            let original = Packet::parse(&built.bytes).unwrap();
            let len = build::unreachable(&original, reason, from, &mut out).unwrap();
            let error = Packet::parse(&out[..len]).unwrap();
            let Transport::Icmp(icmp) = error.headers().transport else { panic!("no ICMP") };
            assert_eq!((icmp.kind, icmp.code, icmp.rest, icmp.is_error), (kind, code, 0, true));
            assert_eq!(error.quoted(), original.five_tuple());
            assert_eq!(build::unreachable(&original, reason, from, &mut out[..len - 1]), None);
        }
    }
    for (built, from, numbers, total) in [
        (Spec { payload: vec![1; 9000], ..v4(SYN) }.build(), from4, (3, 4, 1400), 576),
        (Spec { payload: vec![1; 9000], ..v6(SYN) }.build(), from6, (2, 0, 1400), 1280),
    ] {
        let original = Packet::parse(&built.bytes).unwrap();
        let len = build::too_big(&original, 1400, from, &mut out).unwrap();
        let error = Packet::parse(&out[..len]).unwrap();
        let Transport::Icmp(icmp) = error.headers().transport else { panic!("no ICMP") };
        assert_eq!((icmp.kind, icmp.code, icmp.rest), numbers);
        assert_eq!(len, total);
    }
}

#[test]
fn some_packets_must_not_be_answered() {
    let from4: IpAddr = "10.99.0.2".parse().unwrap();
    let from6: IpAddr = "fd00::2".parse().unwrap();
    let endpoint = |text: &str| text.parse().unwrap();
    let to = |destination| Spec { destination: endpoint(destination), ..v4(UDP) };
    let by = |source| Spec { source: endpoint(source), ..v4(UDP) };
    let silent = [
        to("224.0.0.251:5353"),
        to("255.255.255.255:67"),
        by("0.0.0.0:68"),
        by("127.0.0.1:9"),
        by("239.1.1.1:9"),
        by("255.255.255.255:9"),
        v4(Body::Icmp { kind: 3 }),
        v4(Body::Icmp { kind: 5 }),
        v6(Body::Icmp { kind: 1 }),
        v6(Body::Icmp { kind: 137 }),
        Spec { source: endpoint("[::]:1"), ..v6(UDP) },
        Spec { source: endpoint("[ff02::1]:1"), ..v6(UDP) },
        Spec { destination: endpoint("[ff02::1]:1"), ..v6(UDP) },
    ];
    let mut out = [0; build::MAX_REFUSAL];
    for spec in silent {
        let from = if spec.source.is_ipv4() { from4 } else { from6 };
        let built = spec.build();
        let original = Packet::parse(&built.bytes).unwrap();
        assert_eq!(
            build::unreachable(&original, Unreachable::Port, from, &mut out),
            None,
            "{:?}",
            built.spec
        );
    }
    let echo = v4(ECHO).build();
    let echo = Packet::parse(&echo.bytes).unwrap();
    assert!(build::unreachable(&echo, Unreachable::Host, from4, &mut out).is_some());
    assert_eq!(build::unreachable(&echo, Unreachable::Host, from6, &mut out), None);
    // RFC 4443 §2.4(e.3): path MTU discovery works for multicast.
    let multicast = Spec { destination: endpoint("[ff02::1]:1"), ..v6(UDP) }.build();
    let multicast = Packet::parse(&multicast.bytes).unwrap();
    assert!(build::too_big(&multicast, 1280, from6, &mut out).is_some());
}

#[test]
fn resets_fit_the_segment_they_answer() {
    let flags = TcpFlags::SYN | TcpFlags::FIN;
    // 0x01020304 + 16 bytes + SYN + FIN; the acknowledgment number is 0x05060708.
    for (flags, sequence, acknowledgment, answer) in [
        (flags, 0, 0x0102_0316, TcpFlags::RST | TcpFlags::ACK),
        (TcpFlags::ACK, 0x0506_0708, 0, TcpFlags::RST),
        (0, 0, 0x0102_0314, TcpFlags::RST | TcpFlags::ACK),
    ] {
        for spec in [v4(Body::Tcp { option_words: 3, flags }), v6(Body::Tcp { option_words: 3, flags })] {
            let built = spec.build();
            let original = Packet::parse(&built.bytes).unwrap();
            let mut out = [0; 60];
            let len = build::tcp_reset(&original, &mut out).unwrap();
            let reset = Packet::parse(&out[..len]).unwrap();
            let expected = Transport::Tcp {
                source: built.spec.destination.port(),
                destination: built.spec.source.port(),
                sequence,
                acknowledgment,
                flags: TcpFlags(answer),
            };
            assert_eq!(reset.headers().transport, expected);
        }
    }
    for spec in [v4(UDP), v4(Body::Tcp { option_words: 0, flags: TcpFlags::RST })] {
        let built = spec.build();
        assert_eq!(build::tcp_reset(&Packet::parse(&built.bytes).unwrap(), &mut [0; 60]), None);
    }
}

#[test]
fn a_quote_may_end_behind_the_ports() {
    let (source, destination) = ("10.99.0.1:40000".parse().unwrap(), "52.129.96.10:3478".parse().unwrap());
    let mut out = [0; build::MAX_REFUSAL];
    let sent = SentUdp { source, destination, payload: &[1; 100] };
    let error = IcmpError { kind: 3, code: 3, rest: 0 };
    let len = build::error_about_udp(&sent, error, destination.ip(), &mut out).unwrap();
    assert_eq!(len, 20 + 8 + 128);
    let tuple = FiveTuple { protocol: protocol::UDP, source, destination };
    for (quote, expected) in [(24, Some(tuple)), (23, None), (19, None), (0, None)] {
        let len = 28 + quote;
        out[3] = len as u8;
        assert_eq!(Packet::parse(&out[..len]).unwrap().quoted(), expected, "{quote} bytes quoted");
    }
}

#[test]
fn headers_to_write_must_fit() {
    let (four, six) = ("1.2.3.4:5".parse().unwrap(), "[::1]:5".parse().unwrap());
    let tos = Tos::default();
    let mut out = [0; 48];
    assert!(build::udp_header(&mut out[..28], four, four, tos, 64, 65507));
    assert!(!build::udp_header(&mut out[..28], four, four, tos, 64, 65508));
    assert!(build::udp_header(&mut out, six, six, tos, 64, 65527));
    assert!(!build::udp_header(&mut out, six, six, tos, 64, 65528));
    assert!(!build::udp_header(&mut out, six, six, tos, 64, usize::MAX));
    assert!(!build::udp_header(&mut out, four, four, tos, 64, 0));
    assert!(!build::udp_header(&mut out[..28], six, four, tos, 64, 0));
}

#[test]
fn dscp_names() {
    let named = [
        ("ef", 46),
        ("va", 44),
        ("le", 1),
        ("cs0", 0),
        ("cs1", 8),
        ("cs3", 24),
        ("cs7", 56),
        ("af11", 10),
        ("af12", 12),
        ("af13", 14),
        ("af21", 18),
        ("af33", 30),
        ("af41", 34),
        ("af42", 36),
        ("af43", 38),
        ("5", 5),
        ("63", 63),
    ];
    for (name, value) in named {
        let dscp: Dscp = name.parse().unwrap();
        assert_eq!((dscp.value(), dscp.to_string()), (value, name.to_owned()));
        assert_eq!(name.to_uppercase().parse(), Ok(dscp));
    }
    for value in 0..64 {
        let dscp = Dscp::new(value).unwrap();
        assert_eq!(dscp.to_string().parse(), Ok(dscp));
        assert_eq!(value.to_string().parse(), Ok(dscp));
    }
    for wrong in ["", "64", "256", "-1", "+5", "ef ", "cs8", "af44", "af51", "af40", "af4", "expedited"] {
        let error = wrong.parse::<Dscp>().unwrap_err();
        assert!(error.to_string().starts_with(&format!("`{wrong}` is no DSCP")));
    }
}

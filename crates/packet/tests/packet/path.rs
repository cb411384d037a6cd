//! What a path's MTU is found out by, and what follows it: echoes and MSS.

use std::net::{IpAddr, SocketAddr};

use packet::checksum::{Sum, pseudo_header};
use packet::{Checksum, Echo, Packet, PacketMut, TcpFlags, build, clamp_mss, may_be_icmp, protocol};

use crate::support::{Body, Spec};

const ENDS: [[&str; 2]; 2] =
    [["192.0.2.1:5000", "203.0.113.9:443"], ["[2001:db8::1]:5000", "[2001:db8::9]:443"]];

/// A segment with an MSS option behind `before` bytes of padding; its checksum is complete.
fn syn(v6: bool, flags: u8, before: usize, mss: u16) -> Vec<u8> {
    let [source, destination] = ENDS[usize::from(v6)].map(|end| end.parse::<SocketAddr>().unwrap());
    let spec = Spec {
        source,
        destination,
        tos: 0,
        ttl: 64,
        body: Body::Tcp { option_words: 3, flags },
        option_words: 0,
        extensions: Vec::new(),
        cut: 0,
        payload: b"odd".to_vec(),
        checksum: Checksum::Complete,
    };
    let built = spec.build();
    let (mut bytes, tcp) = (built.bytes, built.transport_at);
    let at = tcp + 20 + before;
    bytes[at..at + 4].copy_from_slice(&[2, 4, (mss >> 8) as u8, mss as u8]);
    bytes[tcp + 16..tcp + 18].fill(0);
    let checksum = sum(&bytes, tcp).checksum();
    bytes[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn sum(bytes: &[u8], tcp: usize) -> Sum {
    let headers = *Packet::parse(bytes).unwrap().headers();
    let len = (bytes.len() - tcp) as u32;
    pseudo_header(headers.source, headers.destination, protocol::TCP, len).add_bytes(&bytes[tcp..])
}

#[test]
fn a_syn_offers_no_more_than_fits_and_its_checksum_stays_right() {
    for v6 in [false, true] {
        let (tcp, headers) = if v6 { (40, 60) } else { (20, 40) };
        for before in 0..=8 {
            for flags in [TcpFlags::SYN, TcpFlags::SYN | TcpFlags::ACK] {
                let mut bytes = syn(v6, flags, before, 1460);
                clamp_mss(&mut bytes, 1220);
                assert_eq!(bytes, syn(v6, flags, before, 1220 - headers), "{v6} {before}");
                assert_eq!(sum(&bytes, tcp).fold(), 0xffff);
                let once = bytes.clone();
                clamp_mss(&mut bytes, 1300);
                assert_eq!(bytes, once, "it never offers more than before");
            }
        }
    }
}

#[test]
fn a_partial_checksum_does_not_cover_options() {
    let mut bytes = syn(false, TcpFlags::SYN, 3, 1460);
    let field = bytes[36..38].to_vec();
    let mut packet = PacketMut::parse(&mut bytes, Checksum::Partial).unwrap();
    assert!(packet.clamp_mss(1000));
    assert_eq!(bytes[45..47], 960_u16.to_be_bytes());
    assert_eq!(bytes[36..38], field);
}

#[test]
fn what_is_no_syn_or_says_no_mss_is_left_alone() {
    let data = syn(false, TcpFlags::ACK, 0, 1460);
    let mut broken = syn(false, TcpFlags::SYN, 0, 1460);
    // An option that states no length, and one that states more than there is.
    broken[40..44].copy_from_slice(&[8, 0, 2, 4]);
    let mut long = broken.clone();
    long[41] = 200;
    let mut end = syn(false, TcpFlags::SYN, 4, 1460);
    end[40] = 0;
    let mut cut = syn(true, TcpFlags::SYN, 0, 1460);
    cut.truncate(50);
    for bytes in [data, broken, long, end, cut, vec![0x45], Vec::new()] {
        let mut clamped = bytes.clone();
        clamp_mss(&mut clamped, 600);
        assert_eq!(clamped, bytes);
    }
}

#[test]
fn an_echo_is_known_by_its_answer_of_whichever_kind() {
    for [source, destination] in [["10.99.0.1", "203.0.113.1"], ["2001:db8:99::1", "2001:db8:113::1"]] {
        let [source, destination] = [source, destination].map(|ip| ip.parse::<IpAddr>().unwrap());
        let echo = Echo { source, destination, id: 0x6d74, sequence: 1420 };
        let mut request = vec![0xff; 1420];
        assert!(echo.request(1, b"ours", &mut request));
        assert!(may_be_icmp(&request));
        let packet = Packet::parse(&request).unwrap();
        assert_eq!((packet.headers().len, packet.headers().ttl), (1420, 1));
        assert!(packet.payload().starts_with(b"ours\0"));
        assert_eq!((packet.echo_request(), packet.answered_echo()), (Some(echo), None));
        assert_eq!(icmp_sum(&request), 0xffff);

        let mut reply = vec![0xff; if source.is_ipv4() { 28 } else { 48 }];
        assert!(echo.reply(64, &mut reply));
        assert_eq!(icmp_sum(&reply), 0xffff);
        let reply = Packet::parse(&reply).unwrap();
        assert_eq!((reply.echo_request(), reply.answered_echo()), (None, Some(echo)));
        assert_eq!((reply.headers().source, reply.headers().destination), (destination, source));

        let mut error = vec![0; build::MAX_REFUSAL];
        let len = build::unreachable(&packet, build::Unreachable::Host, destination, &mut error).unwrap();
        assert_eq!(Packet::parse(&error[..len]).unwrap().answered_echo(), Some(echo));
        // About the reply there is nothing to know.
        let len = build::unreachable(&reply, build::Unreachable::Host, source, &mut error).unwrap();
        assert_eq!(Packet::parse(&error[..len]).unwrap().answered_echo(), None);
    }
}

#[test]
fn a_fragment_asks_for_no_echo() {
    let [source, destination] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
    let mut request = vec![0; 20 + 24];
    assert!(Echo { source, destination, id: 1, sequence: 1 }.request(64, &[], &mut request));
    assert!(Packet::parse(&request).unwrap().echo_request().is_some());
    const MORE_FRAGMENTS: u8 = 0x20;
    request[6] = MORE_FRAGMENTS;
    assert_eq!(Packet::parse(&request).unwrap().echo_request(), None);
}

#[test]
fn no_echo_is_written_that_cannot_be() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let echo =
        |source, destination| Echo { source: ip(source), destination: ip(destination), id: 1, sequence: 1 };
    assert!(!echo("192.0.2.1", "192.0.2.2").request(1, &[], &mut [0; 27]));
    assert!(!echo("2001:db8::1", "2001:db8::2").request(1, &[], &mut [0; 47]));
    assert!(!echo("192.0.2.1", "2001:db8::2").request(1, &[], &mut [0; 100]));
    assert!(!echo("192.0.2.1", "192.0.2.2").request(1, &[], &mut vec![0; 65_536]));
    assert!(!echo("192.0.2.1", "192.0.2.2").request(1, b"longer", &mut [0; 30]));
}

fn icmp_sum(bytes: &[u8]) -> u16 {
    let headers = *Packet::parse(bytes).unwrap().headers();
    let message = &bytes[usize::from(headers.transport_at)..];
    let pseudo_header = match headers.source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => {
            pseudo_header(headers.source, headers.destination, protocol::ICMPV6, message.len() as u32)
        }
    };
    pseudo_header.add_bytes(message).fold()
}

//! What the programs do to any packet is what crate `packet` does to it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::Direction;
use dataplane::fast_path::Link;
use packet::{Checksum, Dscp};
use policy::Mark;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::machine::skip;
use crate::packets::{Body, Extension, Spec};
use crate::programs::{Case, Outcome, Programs, SOURCE_V4, SOURCE_V6, Talk, has_link_header, least_len};

#[test]
fn any_packet_is_rewritten_as_the_pump_would_or_left_alone() {
    match Programs::start() {
        Ok(programs) => hold(programs, 6000),
        Err(why) => skip(&why),
    }
}

#[test]
fn the_plainest_packets_of_a_flow_move() {
    let mut programs = match Programs::start() {
        Ok(programs) => programs,
        Err(why) => return skip(&why),
    };
    for v6 in [false, true] {
        for physical in [Link::Ethernet, Link::None] {
            for direction in [Direction::Outbound, Direction::Inbound] {
                for summed in [true, false] {
                    let case = plain(v6, physical, direction, summed);
                    assert!(matches!(programs.check(&case), Outcome::Moved(_)));
                    if direction == Direction::Inbound {
                        assert_eq!(programs.verdict_elsewhere(&case), -1, "an answer on another interface");
                    }
                }
            }
        }
    }
}

/// Holds programs against `packet` in many random cases.
pub fn hold(mut programs: Programs, cases: u32) {
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let programs = RefCell::new(&mut programs);
    let (moved, handed_up, left) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let result = runner.run(&case(), |case| {
        let seen = match programs.borrow_mut().check(&case) {
            Outcome::Moved(_) => &moved,
            Outcome::HandedUp => &handed_up,
            Outcome::Passed | Outcome::Left | Outcome::Dropped => &left,
        };
        seen.set(seen.get() + 1);
        Ok(())
    });
    result.unwrap();
    for (seen, least) in [(moved, cases / 5), (handed_up, cases / 20), (left, cases / 20)] {
        assert!(seen.get() >= least, "the cases are one-sided: {} of {cases}", seen.get());
    }
}

fn plain(v6: bool, physical: Link, direction: Direction, summed: bool) -> Case {
    let at = |v4: &str, v6_text: &str| -> SocketAddr { if v6 { v6_text } else { v4 }.parse().unwrap() };
    let internal = at("8.0.0.1:5000", "[2001:db8:86dd::1]:5000");
    let remote = at("8.0.9.9:20000", "[2001:db8:86dd::9]:20000");
    let external = at("192.168.77.10:5001", "[2001:db8:77::10]:5001");
    let (source, destination) = ends(direction, internal, external, remote);
    let spec = Spec { body: Body::Udp { summed }, ..spec_between(source, destination) };
    let packet = spec.build().bytes;
    let mark = Mark::Voice(Dscp::EF);
    Case {
        direction,
        physical,
        internal,
        external,
        remote,
        mark,
        mtu: 1500,
        live: true,
        packet,
        segment: None,
        talk: Talk::default(),
    }
}

fn spec_between(source: SocketAddr, destination: SocketAddr) -> Spec {
    Spec {
        source,
        destination,
        tos: 2,
        ttl: 64,
        body: Body::Udp { summed: true },
        option_words: 0,
        extensions: Vec::new(),
        cut: 0,
        payload: vec![7; 172],
        checksum: Checksum::Complete,
    }
}

fn ends(
    direction: Direction,
    internal: SocketAddr,
    external: SocketAddr,
    remote: SocketAddr,
) -> (SocketAddr, SocketAddr) {
    match direction {
        Direction::Outbound => (internal, remote),
        Direction::Inbound => (remote, external),
    }
}

fn case() -> impl Strategy<Value = Case> {
    any::<bool>().prop_flat_map(|v6| {
        let ways = (any::<[bool; 2]>(), prop::bool::weighted(0.9));
        (flow(v6), spec(v6), talk(), ways, damage(), extra()).prop_map(
            move |((internal, external, remote, mark, mtu), mut spec, (talk, said), ways, damage, extra)| {
                let ([out, plain], live) = ways;
                spec.payload = said.unwrap_or(spec.payload);
                let direction = if out { Direction::Outbound } else { Direction::Inbound };
                let physical = if plain { Link::None } else { Link::Ethernet };
                (spec.source, spec.destination) = ends(direction, internal, external, remote);
                let mut packet = spec.build().bytes;
                for (at, value) in damage {
                    let at = at.index(packet.len().min(60));
                    packet[at] = value;
                }
                packet.extend(&extra.0);
                if !has_link_header(direction, physical) {
                    packet.resize(packet.len().max(least_len(v6)), 0);
                }
                Case {
                    direction,
                    physical,
                    internal,
                    external,
                    remote,
                    mark,
                    mtu,
                    live,
                    packet,
                    segment: extra.1,
                    talk,
                }
            },
        )
    })
}

/// What passed before, and mostly what comes next.
fn talk() -> impl Strategy<Value = (Talk, Option<Vec<u8>>)> {
    let interval = prop_oneof![Just(20), Just(70), Just(600), Just(70_000)].prop_map(Duration::from_millis);
    let clock_rate = prop_oneof![Just(8_000), Just(16_000), Just(48_000), Just(90_000)];
    let late = (0..20_000_u64).prop_map(Duration::from_micros);
    let before = (0..7_u16, interval, late, clock_rate, any::<u16>(), any::<[bool; 2]>()).prop_map(
        |(packets, interval, late, clock_rate, sequence, [interrupted, handed_over])| Talk {
            packets,
            interval,
            late,
            interrupted,
            clock_rate,
            sequence,
            handed_over,
        },
    );
    let ahead = prop_oneof![8 => Just(0), 2 => 1..5_u16, 2 => 65_430..=65_535_u16, 1 => any::<u16>()];
    let rest = prop::collection::vec(any::<u8>(), 0..300);
    let next = (ahead, prop::bool::weighted(0.3), prop::bool::weighted(0.3), rest);
    (before, prop::option::weighted(0.8, next)).prop_map(|(talk, next)| {
        (talk, next.map(|(ahead, other, relayed, rest)| talk.next(ahead, other, relayed, &rest)))
    })
}

fn flow(v6: bool) -> impl Strategy<Value = (SocketAddr, SocketAddr, SocketAddr, Mark, u32)> {
    let mark =
        prop_oneof![Just(Mark::Keep), (0..64u8).prop_map(|value| Mark::Voice(Dscp::new(value).unwrap()))];
    (source(v6), endpoint(v6), source(v6), mark, 28..1600u32)
}

fn endpoint(v6: bool) -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(octets, port)| match v6 {
        true => (octets, port).into(),
        false => (*octets.first_chunk::<4>().unwrap(), port).into(),
    })
}

/// One that may stand in a packet without link header.
fn source(v6: bool) -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(mut octets, port)| {
        octets[..SOURCE_V6.len()].copy_from_slice(&SOURCE_V6);
        match v6 {
            true => (octets, port).into(),
            false => ([SOURCE_V4[0], SOURCE_V4[1], octets[6], octets[7]], port).into(),
        }
    })
}

/// A packet, mostly plain; its ends are filled in later.
fn spec(v6: bool) -> impl Strategy<Value = Spec> {
    let body = prop_oneof![
        12 => any::<bool>().prop_map(|summed| Body::Udp { summed }),
        1 => (0..11u8, any::<u8>()).prop_map(|(option_words, flags)| Body::Tcp { option_words, flags }),
        1 => any::<u8>().prop_map(|kind| Body::Icmp { kind }),
        1 => Just(Body::Other),
    ];
    let extension = prop_oneof![
        (0..4u8).prop_map(Extension::DestinationOptions),
        (0..4u8).prop_map(Extension::Routing),
        Just(Extension::AtomicFragment),
    ];
    let extensions = prop_oneof![8 => Just(Vec::new()), 1 => prop::collection::vec(extension, 1..3)];
    let rest = (
        any::<[u8; 2]>(),
        body,
        prop_oneof![8 => Just(0), 1 => 1..11u8],
        extensions,
        prop_oneof![8 => Just(0), 1 => 1..13u8],
        prop::collection::vec(any::<u8>(), 0..600),
    );
    let anywhere = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
    rest.prop_map(move |([tos, ttl], body, option_words, extensions, cut, payload)| Spec {
        tos,
        ttl,
        body,
        option_words: if v6 { 0 } else { option_words },
        extensions: if v6 { extensions } else { Vec::new() },
        cut,
        payload,
        ..spec_between(anywhere, anywhere)
    })
}

/// Bytes of the headers to be overwritten.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..3)]
}

/// Bytes behind the packet, and whether it is a super-packet.
fn extra() -> impl Strategy<Value = (Vec<u8>, Option<u16>)> {
    (
        prop_oneof![6 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 1..20)],
        prop::option::weighted(0.2, 1..1600u16),
    )
}

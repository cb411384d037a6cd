//! The kernel's programs do to any packet what crate `packet` does, and measure RTP as the pump does. Needs root; without it, or without BPF, every input passes.
#![no_main]

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use dataplane::Direction;
use dataplane::fast_path::Link;
use libfuzzer_sys::fuzz_target;
use packet::{Checksum, Dscp};
use policy::Mark;

#[path = "../../crates/packet/tests/packet/support.rs"]
#[allow(dead_code, reason = "shared with tests")]
mod packets;
#[path = "../../dataplane/tests/fast_path/programs.rs"]
#[allow(dead_code, reason = "shared with tests")]
mod programs;
#[path = "../../dataplane/tests/fast_path/tun.rs"]
#[allow(dead_code, reason = "shared with tests")]
mod tun;

use packets::{Body, Extension, Spec};
use programs::{Case, Programs, SOURCE_V4, SOURCE_V6, Talk, has_link_header, least_len};

thread_local! {
    static PROGRAMS: RefCell<Option<Programs>> = RefCell::new(match Programs::start() {
        Ok(programs) => Some(programs),
        Err(why) => {
            eprintln!("skipped, because {why}");
            None
        }
    });
}

fuzz_target!(|data: &[u8]| {
    let Ok(case) = case(Unstructured::new(data)) else { return };
    PROGRAMS.with_borrow_mut(|programs| {
        if let Some(programs) = programs {
            programs.check(&case);
        }
    });
});

fn case(mut data: Unstructured<'_>) -> arbitrary::Result<Case> {
    let input = &mut data;
    let v6 = bool::arbitrary(input)?;
    let direction = if bool::arbitrary(input)? { Direction::Outbound } else { Direction::Inbound };
    let physical = if bool::arbitrary(input)? { Link::Ethernet } else { Link::None };
    let (internal, external, remote) = (source(input, v6)?, endpoint(input, v6)?, source(input, v6)?);
    let mark = Dscp::new(input.int_in_range(0..=64)?).map_or(Mark::Keep, Mark::Voice);
    let mtu = input.int_in_range(28..=1600)?;
    let live = input.ratio(9, 10)?;
    let segment = if input.ratio(1, 5)? { Some(input.int_in_range(1..=1600)?) } else { None };
    let (source, destination) = match direction {
        Direction::Outbound => (internal, remote),
        Direction::Inbound => (remote, external),
    };
    let talk = talk(input)?;
    let spec = Spec {
        source,
        destination,
        tos: u8::arbitrary(input)?,
        ttl: u8::arbitrary(input)?,
        body: body(input)?,
        option_words: if !v6 && input.ratio(1, 8)? { input.int_in_range(1..=10)? } else { 0 },
        extensions: if v6 && input.ratio(1, 8)? { vec![extension(input)?] } else { Vec::new() },
        cut: if input.ratio(1, 8)? { input.int_in_range(1..=12)? } else { 0 },
        checksum: Checksum::Complete,
        payload: match bool::arbitrary(input)? {
            true => said(input, &talk)?,
            false => vec![0x5a; input.int_in_range(0..=1400)?],
        },
    };
    let mut packet = spec.build().bytes;
    for _ in 0..input.int_in_range(0..=4)? {
        let at = input.choose_index(packet.len().min(80))?;
        packet[at] = u8::arbitrary(input)?;
    }
    packet.extend(data.take_rest().iter().take(500));
    if !has_link_header(direction, physical) {
        packet.resize(packet.len().max(least_len(v6)), 0);
    }
    Ok(Case { direction, physical, internal, external, remote, mark, mtu, live, packet, segment, talk })
}

fn talk(input: &mut Unstructured<'_>) -> arbitrary::Result<Talk> {
    Ok(Talk {
        packets: input.int_in_range(0..=6)?,
        interval: Duration::from_millis(*input.choose(&[20, 70, 600, 70_000])?),
        late: Duration::from_micros(input.int_in_range(0..=20_000)?),
        interrupted: bool::arbitrary(input)?,
        clock_rate: *input.choose(&[8_000, 16_000, 48_000, 90_000])?,
        sequence: u16::arbitrary(input)?,
        handed_over: bool::arbitrary(input)?,
    })
}

/// What comes next.
fn said(input: &mut Unstructured<'_>, talk: &Talk) -> arbitrary::Result<Vec<u8>> {
    let ahead = if input.ratio(1, 2)? { 0 } else { u16::arbitrary(input)? };
    let rest = vec![0x5a; input.int_in_range(0..=300)?];
    Ok(talk.next(ahead, input.ratio(1, 4)?, bool::arbitrary(input)?, &rest))
}

fn body(input: &mut Unstructured<'_>) -> arbitrary::Result<Body> {
    Ok(match input.int_in_range(0..=15)? {
        0 => Body::Tcp { option_words: input.int_in_range(0..=10)?, flags: u8::arbitrary(input)? },
        1 => Body::Icmp { kind: u8::arbitrary(input)? },
        2 => Body::Other,
        _ => Body::Udp { summed: bool::arbitrary(input)? },
    })
}

fn extension(input: &mut Unstructured<'_>) -> arbitrary::Result<Extension> {
    Ok(match input.int_in_range(0..=3)? {
        0 => Extension::HopByHop(input.int_in_range(0..=3)?),
        1 => Extension::Routing(input.int_in_range(0..=3)?),
        2 => Extension::DestinationOptions(input.int_in_range(0..=3)?),
        _ => Extension::AtomicFragment,
    })
}

fn endpoint(input: &mut Unstructured<'_>, v6: bool) -> arbitrary::Result<SocketAddr> {
    let port = u16::arbitrary(input)?;
    Ok(if v6 {
        (Ipv6Addr::arbitrary(input)?, port).into()
    } else {
        (Ipv4Addr::arbitrary(input)?, port).into()
    })
}

/// One that may stand in a packet without link header.
fn source(input: &mut Unstructured<'_>, v6: bool) -> arbitrary::Result<SocketAddr> {
    let mut address = endpoint(input, v6)?;
    address.set_ip(match address {
        SocketAddr::V4(v4) => {
            let [_, _, c, d] = v4.ip().octets();
            Ipv4Addr::new(SOURCE_V4[0], SOURCE_V4[1], c, d).into()
        }
        SocketAddr::V6(v6) => {
            let mut octets = v6.ip().octets();
            octets[..SOURCE_V6.len()].copy_from_slice(&SOURCE_V6);
            Ipv6Addr::from(octets).into()
        }
    });
    Ok(address)
}

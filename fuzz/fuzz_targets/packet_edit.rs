//! Any sequence of edits on any valid packet leaves every checksum as a plain recomputation says, and no bytes cause a panic.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use packet::Checksum;

#[path = "../../crates/packet/tests/packet/support.rs"]
mod support;

use support::{Body, Edit, Extension, Spec, exercise};

fuzz_target!(|data: &[u8]| {
    let endpoint = SocketAddr::from(([0xff, 0xff, 0, 0], 0xffff));
    exercise(&mut data.to_vec(), endpoint);

    let mut input = Unstructured::new(data);
    let Ok((spec, edits)) = scenario(&mut input) else { return };
    let mut built = spec.build();
    built.assert_right();
    for edit in &edits {
        built.edit(edit);
    }
    damage(&mut built.bytes, input.take_rest());
    exercise(&mut built.bytes, endpoint);
});

fn scenario(input: &mut Unstructured<'_>) -> arbitrary::Result<(Spec, Vec<Edit>)> {
    let v6 = bool::arbitrary(input)?;
    let mut spec = Spec {
        source: endpoint(input, v6)?,
        destination: endpoint(input, v6)?,
        tos: u8::arbitrary(input)?,
        ttl: u8::arbitrary(input)?,
        body: body(input)?,
        option_words: input.int_in_range(0..=10)?,
        extensions: Vec::new(),
        cut: input.int_in_range(0..=12)?,
        payload: Vec::arbitrary(input)?,
        checksum: if bool::arbitrary(input)? { Checksum::Partial } else { Checksum::Complete },
    };
    for position in 0..input.int_in_range(0..=6)? {
        spec.extensions.push(match input.int_in_range(0..=2)? {
            0 if position == 0 => Extension::HopByHop(input.int_in_range(0..=9)?),
            1 => Extension::Routing(input.int_in_range(0..=9)?),
            _ => Extension::DestinationOptions(input.int_in_range(0..=9)?),
        });
    }
    if spec.cut == 0 && bool::arbitrary(input)? {
        spec.extensions.push(Extension::AtomicFragment);
    }
    let mut edits = Vec::new();
    for _ in 0..input.int_in_range(0..=16)? {
        edits.push(edit(input)?);
    }
    Ok((spec, edits))
}

fn body(input: &mut Unstructured<'_>) -> arbitrary::Result<Body> {
    Ok(match input.int_in_range(0..=3)? {
        0 => Body::Udp { summed: bool::arbitrary(input)? },
        1 => Body::Tcp { option_words: input.int_in_range(0..=10)?, flags: u8::arbitrary(input)? },
        2 => Body::Icmp { kind: u8::arbitrary(input)? },
        _ => Body::Other,
    })
}

fn edit(input: &mut Unstructured<'_>) -> arbitrary::Result<Edit> {
    let v6 = bool::arbitrary(input)?;
    Ok(match input.int_in_range(0..=4)? {
        0 => Edit::Source(endpoint(input, v6)?),
        1 => Edit::Destination(endpoint(input, v6)?),
        2 => Edit::Dscp(u8::arbitrary(input)?),
        3 => Edit::DecrementTtl,
        _ => Edit::Complete,
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

/// Overwrites bytes of the headers: pairs of place and value.
fn damage(bytes: &mut [u8], pairs: &[u8]) {
    for pair in pairs.chunks_exact(2).take(8) {
        let at = usize::from(pair[0]) % bytes.len();
        bytes[at] = pair[1];
    }
}

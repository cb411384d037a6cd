//! How many instructions each stage takes, as valgrind counts them: what `.ci/instructions` holds against `instructions.txt`.
//!
//! Counts that must be the same on each x86-64: no cipher, which picks its code by the processor's features, and a C library that is kept from
//! doing so for its copies. Setting up and tearing down is not counted.

mod flows;

#[allow(dead_code, reason = "shared with the bench of verdicts")]
mod prefixes;

use std::hint::black_box;
use std::net::SocketAddr;

use dataplane::offload::{Coalescer, SegmentKind, Segmentation, Segments};
use flows::Flows;
use flows::scenario::{self, MEDIA, SIGNALING, TUN};
use gungraun::Callgrind;
use gungraun::prelude::*;
use packet::{Headers, Packet, TcpFlags};
use policy::{Facts, Snapshot};
use prefixes::Family;

/// The TCP payload of a packet of 1420 bytes with timestamps.
const MSS: u16 = 1368;
const SEGMENTS: usize = 45;

#[library_benchmark]
#[bench::bypass(args = (MEDIA, 20_000, 0xb8), setup = flows)]
#[bench::tunnel(args = (SIGNALING, 5060, 0), setup = flows)]
fn engine(mut flows: Flows) -> Flows {
    flows.step();
    flows
}

#[library_benchmark]
#[bench::v4(args = (Family::V4), setup = table)]
#[bench::v6(args = (Family::V6), setup = table)]
fn classify((snapshot, facts): (Box<Snapshot>, Vec<Facts>)) -> (Box<Snapshot>, Vec<Facts>) {
    for facts in &facts {
        black_box(snapshot.classify(black_box(facts)));
    }
    (snapshot, facts)
}

// Headers and checksums of each segment.
#[library_benchmark]
#[bench::tcp(setup = super_packet)]
fn split((mut bytes, headers): (Vec<u8>, Headers)) -> Vec<u8> {
    let segmentation = Segmentation { kind: SegmentKind::Tcp, size: MSS };
    if let Some(mut segments) = Segments::new(&mut bytes, &headers, segmentation) {
        while let Some(segment) = segments.next() {
            black_box(&segment.room);
        }
    }
    bytes
}

// Checksums, comparison, and the joined packet's headers.
#[library_benchmark]
#[bench::tcp(setup = segments)]
fn coalesce((mut coalescer, mut packets): (Box<Coalescer>, Vec<Vec<u8>>)) -> (Box<Coalescer>, Vec<Vec<u8>>) {
    for (slot, bytes) in packets.iter().enumerate() {
        if let Ok(packet) = Packet::parse(black_box(bytes)) {
            coalescer.add(slot, &packet, |slot| packets.get(slot).map(Vec::as_slice).unwrap_or_default());
        }
    }
    for bundle in coalescer.bundles() {
        if let Some(first) = packets.get_mut(bundle.first) {
            black_box(bundle.finish(first));
        }
    }
    (coalescer, packets)
}

fn flows(destination: std::net::IpAddr, port: u16, tos: u8) -> Flows {
    Flows::new(SocketAddr::new(destination, port), tos, 172)
}

fn table(family: Family) -> (Box<Snapshot>, Vec<Facts>) {
    let prefixes = prefixes::prefixes(family, 10_000);
    (Box::new(prefixes::snapshot(&prefixes)), prefixes::facts(family, &prefixes, true, 256))
}

/// TCP over IPv4 with 12 bytes of options, and room for padding behind it.
fn super_packet() -> (Vec<u8>, Headers) {
    let payload = usize::from(MSS) * SEGMENTS;
    let (source, destination) = (SocketAddr::new(SIGNALING, 443), SocketAddr::new(TUN, 5000));
    let mut bytes = scenario::udp(source, destination, 0, &vec![7; 24 + payload]);
    bytes[9] = packet::protocol::TCP;
    let (_, tcp) = bytes.split_at_mut(20);
    tcp[4..32].fill(0);
    tcp[12] = 8 << 4;
    tcp[13] = TcpFlags::ACK | TcpFlags::PSH;
    let headers = *Packet::parse(&bytes).unwrap().headers();
    bytes.extend([0; 15]);
    (bytes, headers)
}

fn segments() -> (Box<Coalescer>, Vec<Vec<u8>>) {
    let (mut bytes, headers) = super_packet();
    let segmentation = Segmentation { kind: SegmentKind::Tcp, size: MSS };
    let mut segments = Segments::new(&mut bytes, &headers, segmentation).unwrap();
    let mut packets = Vec::new();
    while let Some(segment) = segments.next() {
        packets.push(segment.room[..segment.length].to_vec());
    }
    assert_eq!(packets.len(), SEGMENTS);
    // As in use, its vectors have grown already.
    let mut coalescer = Box::<Coalescer>::default();
    for (slot, bytes) in packets.iter().enumerate() {
        coalescer.add(slot, &Packet::parse(bytes).unwrap(), |slot| &packets[slot]);
    }
    assert_eq!(coalescer.bundles().len(), 1);
    coalescer.clear();
    (coalescer, packets)
}

library_benchmark_group!(name = stages, benchmarks = [engine, classify, split, coalesce]);

main!(
    config = LibraryBenchmarkConfig::default()
        .tool(Callgrind::with_args(["--cache-sim=no"]))
        // The plainest of each function, which every x86-64 has.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX512VL,-AVX512F,-AVX2,-AVX,-BMI2,-ERMS,-FSRM,-SSE4_2,-SSE4_1,-SSSE3,-AVX_Fast_Unaligned_Load"
        ),
    library_benchmark_groups = stages
);

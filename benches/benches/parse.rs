//! Reading a packet, and completing its checksum.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use packet::{Checksum, Packet, PacketMut, TcpFlags, Tos, build};

const PAYLOADS: [usize; 3] = [64, 200, 1400];

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for (family, source, destination) in
        [("v4", "10.99.0.1:40000", "52.129.96.10:20000"), ("v6", "[fd00::1]:40000", "[2001:db8::10]:20000")]
    {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        for payload_len in PAYLOADS {
            for (name, bytes) in [
                (format!("{family}-udp"), udp(source, destination, payload_len)),
                (format!("{family}-tcp"), tcp(source, destination, payload_len)),
            ] {
                group.bench_with_input(BenchmarkId::new(name, payload_len), &bytes, |b, bytes| {
                    b.iter(|| Packet::parse(black_box(bytes)).unwrap().five_tuple())
                });
            }
        }
    }
    group.finish();
}

fn complete_checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("complete_checksum");
    let payload_len = 1400;
    let bytes = udp("10.99.0.1:40000".parse().unwrap(), "52.129.96.10:20000".parse().unwrap(), payload_len);
    group.throughput(Throughput::Bytes(payload_len as u64));
    group.bench_function(BenchmarkId::from_parameter(payload_len), |b| {
        b.iter_batched_ref(
            || bytes.clone(),
            |bytes| PacketMut::parse(black_box(bytes), Checksum::Partial).unwrap().complete_checksum(),
            BatchSize::SmallInput,
        )
    });
    group.finish();
}

fn udp(source: SocketAddr, destination: SocketAddr, payload_len: usize) -> Vec<u8> {
    let header_len = build::udp_header_len(&destination);
    let mut bytes = vec![0x5a; header_len + payload_len];
    assert!(build::udp_header(&mut bytes[..header_len], source, destination, Tos(0xb8), 64, payload_len));
    bytes
}

/// A segment whose checksums are wrong, which parsing does not look at.
fn tcp(source: SocketAddr, destination: SocketAddr, payload_len: usize) -> Vec<u8> {
    const TCP: u8 = 6;
    let ip_len = build::udp_header_len(&destination) - 8;
    // The same lengths, but 20 bytes of TCP header in place of 8 of UDP's and 12 of payload.
    let mut bytes = udp(source, destination, payload_len + 12);
    bytes[if ip_len == 20 { 9 } else { 6 }] = TCP;
    bytes[ip_len + 12] = 5 << 4;
    bytes[ip_len + 13] = TcpFlags::ACK;
    bytes
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = parse, complete_checksum
}
criterion_main!(benches);

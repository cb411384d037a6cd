//! What a NAT does to a packet: another source, another mark. The cost must not depend on the payload.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use packet::{Checksum, Dscp, PacketMut, Tos, build};

fn rewrite(c: &mut Criterion) {
    let mut group = c.benchmark_group("nat");
    for (family, inside, outside, destination) in [
        ("v4", "10.99.0.1:40000", "192.168.1.20:40000", "52.129.96.10:20000"),
        ("v6", "[fd00::1]:40000", "[2001:db8:1::20]:40001", "[2001:db8::10]:20000"),
    ] {
        let [inside, outside, destination]: [SocketAddr; 3] =
            [inside, outside, destination].map(|endpoint| endpoint.parse().unwrap());
        for payload_len in [64, 200, 1400] {
            let header_len = build::udp_header_len(&destination);
            let mut bytes = vec![0x5a; header_len + payload_len];
            let header = &mut bytes[..header_len];
            assert!(build::udp_header(header, inside, destination, Tos::default(), 64, payload_len));
            assert!(PacketMut::parse(&mut bytes, Checksum::Partial).unwrap().complete_checksum());

            group.bench_function(BenchmarkId::new(family, payload_len), |b| {
                b.iter(|| {
                    let mut packet = PacketMut::parse(black_box(&mut bytes), Checksum::Complete).unwrap();
                    packet.set_source(black_box(outside));
                    packet.set_dscp(Dscp::EF)
                })
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = rewrite
}
criterion_main!(benches);

//! What the engine adds to a packet on each path, in batches of 32 as the pump has them; of the payload the bypass looks at an RTP header alone.

#[path = "../../dataplane/tests/scenario/mod.rs"]
#[allow(dead_code)]
mod scenario;

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::engine::{Action, Engine, Limits};
use packet::{Checksum, PacketMut};
use scenario::{MEDIA, SIGNALING, STRANGER, TUN, rtp, udp};

const BATCH: usize = 32;
/// Behind the IPv4 and UDP header.
const PAYLOAD_AT: usize = 28;

fn engine_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    group.throughput(Throughput::Elements(BATCH as u64));
    for (path, destination, tos, payload) in [
        ("bypass/64", SocketAddr::new(MEDIA, 20_000), 0xb8, 64),
        ("bypass/1400", SocketAddr::new(MEDIA, 20_000), 0xb8, 1400),
        ("tunnel/64", SocketAddr::new(SIGNALING, 5060), 0, 64),
        ("tunnel/1400", SocketAddr::new(SIGNALING, 5060), 0, 1400),
        ("reject/64", SocketAddr::new(STRANGER, 9), 0, 64),
    ] {
        let mut now = Instant::now();
        let mut engine = scenario::engine(Limits::default());
        let mut batch: Vec<_> = (0..BATCH)
            .map(|place| udp(SocketAddr::new(TUN, 5000 + place as u16), destination, tos, &rtp(0, payload)))
            .collect();
        batch.iter_mut().for_each(|packet| open(&mut engine, packet, now));
        // Long enough that the clock rate is known and jitter measured.
        for number in 1..60 {
            now += Duration::from_millis(20);
            for bytes in &mut batch {
                bytes[PAYLOAD_AT..].copy_from_slice(&rtp(number, payload));
                let Ok(mut packet) = PacketMut::parse(bytes, Checksum::Partial) else { continue };
                engine.outbound(&mut packet, None, now);
            }
        }
        group.bench_function(path, |bencher| {
            bencher.iter(|| {
                for bytes in &mut batch {
                    let Ok(mut packet) = PacketMut::parse(black_box(bytes), Checksum::Partial) else {
                        continue;
                    };
                    black_box(engine.outbound(&mut packet, None, now));
                }
            });
        });
    }
}

/// Sends a flow's first packet, so that the flow is pinned.
fn open(engine: &mut Engine, bytes: &mut [u8], now: Instant) {
    let Ok(mut packet) = PacketMut::parse(bytes, Checksum::Partial) else { return };
    if let Action::Reserve { internal, external } = engine.outbound(&mut packet, None, now) {
        engine.reserved(internal, SocketAddr::new(external, internal.port()), now);
        engine.outbound(&mut packet, None, now);
    }
}

criterion_group!(benches, engine_step);
criterion_main!(benches);

//! What the engine adds to a packet on each path, in batches of 32 as the pump has them; of the payload the bypass looks at an RTP header alone.

mod flows;

use std::net::SocketAddr;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flows::scenario::{MEDIA, SIGNALING, STRANGER};
use flows::{BATCH, Flows};

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
        let mut flows = Flows::new(destination, tos, payload);
        group.bench_function(path, |bencher| bencher.iter(|| flows.step()));
    }
}

criterion_group!(benches, engine_step);
criterion_main!(benches);

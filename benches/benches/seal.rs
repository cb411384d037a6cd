//! Sealing and opening a packet, beside the bare cipher at the same size.

mod session;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use session::{MTU, ROOM, connected, packet};
use tunnel::{DATAGRAM_OVERHEAD, Opened, Sealed};

const SIZES: [usize; 2] = [200, 1420];
/// Datagrams sealed ahead, so that each is opened once only.
const BATCH: usize = 256;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for size in SIZES {
        let mut group = criterion.benchmark_group(format!("seal/{size}"));
        group.throughput(Throughput::Bytes(size as u64));
        cipher(&mut group, size);
        seal(&mut group, size);
        open(&mut group, size);
        group.finish();
    }
    criterion.final_summary();
}

/// The cipher alone, in place, on the padded packet.
fn cipher(group: &mut BenchmarkGroup<'_, WallTime>, size: usize) {
    let Ok(key) = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]) else { return };
    let key = LessSafeKey::new(key);
    let mut data = vec![0; size.next_multiple_of(16).min(usize::from(MTU))];
    group.bench_function("cipher", |bencher| {
        bencher.iter(|| {
            let nonce = Nonce::assume_unique_for_key([0; 12]);
            black_box(key.seal_in_place_separate_tag(nonce, Aad::empty(), black_box(&mut data)).is_ok())
        });
    });
}

fn seal(group: &mut BenchmarkGroup<'_, WallTime>, size: usize) {
    let Some((mut agent, _gateway, now)) = connected() else { return };
    let (mut packet, mut out) = (packet(size), [0; ROOM]);
    group.bench_function("seal", |bencher| {
        bencher.iter(|| black_box(agent.seal(black_box(&mut packet), size, &mut out, now).is_ok()));
    });
}

fn open(group: &mut BenchmarkGroup<'_, WallTime>, size: usize) {
    let Some((mut agent, mut gateway, now)) = connected() else { return };
    let (mut packet, mut out) = (packet(size), [0; ROOM]);
    let mut sealed = vec![[0; ROOM]; BATCH];
    let length = size.next_multiple_of(16).min(usize::from(MTU)) + DATAGRAM_OVERHEAD;
    group.bench_function("open", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = usize::try_from(iterations).unwrap_or(usize::MAX);
            while left > 0 {
                let batch = left.min(BATCH);
                for datagram in sealed.iter_mut().take(batch) {
                    assert!(matches!(agent.seal(&mut packet, size, datagram, now), Ok(Sealed::Datagram(_))));
                }
                let began = Instant::now();
                for datagram in sealed.iter().filter_map(|datagram| datagram.get(..length)).take(batch) {
                    let opened = gateway.open(black_box(datagram), &mut out, now);
                    assert!(matches!(opened, Ok(Opened::Packet(_))));
                }
                spent += began.elapsed();
                left -= batch;
            }
            spent
        });
    });
}

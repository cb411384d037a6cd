//! What a verdict costs: 4 and 10 000 prefixes, IPv4 and IPv6, addresses inside (`hit`) and outside (`miss`) of them,
//! taken in turn from a list longer than the nearest caches hold.

mod prefixes;

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policy::recognise;
use prefixes::{Family, facts, prefixes, snapshot};

const ADDRESSES: usize = 4096;

fn classify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("classify");
    for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        for count in [4, 10_000] {
            let prefixes = prefixes(family, count);
            let snapshot = snapshot(&prefixes);
            for (kind, is_hit) in [("hit", true), ("miss", false)] {
                let facts = facts(family, &prefixes, is_hit, ADDRESSES);
                for facts in &facts {
                    assert_eq!(snapshot.set_of(facts.destination).is_some(), is_hit);
                }
                let mut turn = facts.iter().cycle();
                group.bench_function(BenchmarkId::new(format!("{name}-{kind}"), count), |bencher| {
                    bencher.iter(|| turn.next().map(|facts| snapshot.classify(black_box(facts))));
                });
            }
        }
    }
    group.finish();
}

fn recognition(criterion: &mut Criterion) {
    let mut rtp = [0xa5; 172];
    (rtp[0], rtp[1]) = (0x80, 111);
    let other = [0xff; 172];
    let mut group = criterion.benchmark_group("recognise");
    for (name, payload) in [("rtp", rtp), ("other", other)] {
        group.bench_function(name, |bencher| bencher.iter(|| recognise(black_box(&payload))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = classify, recognition
}
criterion_main!(benches);

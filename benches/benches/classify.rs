//! What a verdict costs: 4 and 10 000 prefixes, IPv4 and IPv6, addresses inside (`hit`) and outside (`miss`) of them,
//! taken in turn from a list longer than the nearest caches hold.

use std::{
    collections::BTreeSet,
    fmt::Write,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use packet::Dscp;
use policy::{Config, Content, Facts, Snapshot, recognise};

const ADDRESSES: usize = 4096;

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

fn classify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("classify");
    for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        for count in [4, 10_000] {
            let prefixes = prefixes(family, count);
            let snapshot = snapshot(&prefixes);
            for (kind, is_hit) in [("hit", true), ("miss", false)] {
                let facts = facts(family, &prefixes, is_hit);
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

/// The policy that is built in, with its two sets filled in turn.
fn snapshot(prefixes: &[IpNet]) -> Snapshot {
    let mut text = String::from(
        "[interface]\naddress = [\"192.0.2.1/32\", \"fd00::1/128\"]\n\
         [tunnel]\nprivate_key_file = \"k\"\npeer_public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"\n\
         endpoint = \"vpn.example.com:51820\"\n",
    );
    for (at, name) in ["genesys-media", "genesys-signaling"].into_iter().enumerate() {
        let cidrs: Vec<String> = prefixes.iter().skip(at).step_by(2).map(ToString::to_string).collect();
        writeln!(text, "[sets.{name}]\ncidrs = {cidrs:?}").expect("writing to a string");
    }
    let (config, _) = Config::parse(&text, "bench").expect("the bench's policy is valid");
    Snapshot::compile(&config)
}

/// Random prefixes in 16.0.0.0/5 or 2400::/12, of the lengths that routing tables have.
fn prefixes(family: Family, count: usize) -> Vec<IpNet> {
    let mut random = Random(1);
    let mut prefixes = BTreeSet::new();
    while prefixes.len() < count {
        let length = match family {
            Family::V4 => 16 + random.below(13),
            Family::V6 => 29 + random.below(36),
        };
        let net = IpNet::new(address(family, &mut random), length as u8).expect("the length fits the family");
        prefixes.insert(net.trunc());
    }
    prefixes.into_iter().collect()
}

fn facts(family: Family, prefixes: &[IpNet], is_hit: bool) -> Vec<Facts> {
    let mut random = Random(2);
    let mut fact = || {
        let destination = if is_hit {
            inside(prefixes[random.below(prefixes.len() as u64) as usize], &mut random)
        } else {
            outside(family, prefixes, &mut random)
        };
        Facts::udp((destination, 20_000).into(), Dscp::EF, Content::Rtp)
    };
    (0..ADDRESSES).map(|_| fact()).collect()
}

fn inside(net: IpNet, random: &mut Random) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            (net.network() | (Ipv4Addr::from_bits(random.next() as u32) & net.hostmask())).into()
        }
        IpNet::V6(net) => {
            let bits = u128::from(random.next()) << 64 | u128::from(random.next());
            (net.network() | (Ipv6Addr::from_bits(bits) & net.hostmask())).into()
        }
    }
}

/// Between the prefixes, where the search is as deep as for a hit.
fn outside(family: Family, prefixes: &[IpNet], random: &mut Random) -> IpAddr {
    loop {
        let candidate = address(family, random);
        // Ascending, disjoint or nested: a linear look is right, and fast enough for a bench's preparation.
        if !prefixes.iter().any(|net| net.contains(&candidate)) {
            return candidate;
        }
    }
}

fn address(family: Family, random: &mut Random) -> IpAddr {
    let bits = u128::from(random.next()) << 64 | u128::from(random.next());
    match family {
        Family::V4 => Ipv4Addr::from_bits(0x1000_0000 | (bits as u32 >> 5)).into(),
        Family::V6 => Ipv6Addr::from_bits(0x2400 << 112 | bits >> 12).into(),
    }
}

/// SplitMix64: the same prefixes and addresses in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
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

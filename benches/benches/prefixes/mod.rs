//! A routing table's worth of prefixes, and addresses to look up in it: the same in each run.

use std::{
    collections::BTreeSet,
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use packet::Dscp;
use policy::{Config, Content, Facts, Snapshot};

#[derive(Clone, Copy)]
pub enum Family {
    V4,
    V6,
}

/// The policy that is built in, with its two sets filled in turn.
pub fn snapshot(prefixes: &[IpNet]) -> Snapshot {
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
pub fn prefixes(family: Family, count: usize) -> Vec<IpNet> {
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

/// `count` destinations inside or outside of the prefixes.
pub fn facts(family: Family, prefixes: &[IpNet], is_hit: bool, count: usize) -> Vec<Facts> {
    let mut random = Random(2);
    let mut fact = || {
        let destination = if is_hit {
            inside(prefixes[random.below(prefixes.len() as u64) as usize], &mut random)
        } else {
            outside(family, prefixes, &mut random)
        };
        Facts::udp((destination, 20_000).into(), Dscp::EF, Content::Rtp)
    };
    (0..count).map(|_| fact()).collect()
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

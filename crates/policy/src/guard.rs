//! What the tunnel's rules take of the sets that fail closed, in words that a firewall knows: addresses and ports.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use crate::{
    Path,
    ports::Ports,
    prefix_table::{Owner, PrefixTable},
    rule::{Protocols, Rule},
};

/// A set no rule of which lets anything break out, and what of the traffic to it belongs into the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The set's addresses by longest prefix: ascending ranges that neither overlap nor touch.
    pub v4: Vec<RangeInclusive<Ipv4Addr>>,
    pub v6: Vec<RangeInclusive<Ipv6Addr>>,
    pub traffic: Traffic,
}

/// Kinds of traffic, by protocol and destination port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Ascending port ranges that neither overlap nor touch.
    pub tcp: Vec<RangeInclusive<u16>>,
    pub udp: Vec<RangeInclusive<u16>>,
    /// ICMP and ICMPv6.
    pub icmp: bool,
    /// Every other protocol.
    pub other: bool,
}

const ALL_PORTS: RangeInclusive<u16> = 0..=u16::MAX;

impl Guarded {
    /// The set numbered `set`, whose rules are `rules`. `None` if it fails direct, or has nothing for the tunnel.
    pub(crate) fn of<'a>(
        set: u32,
        rules: impl Iterator<Item = &'a Rule> + Clone,
        unmatched: Path,
        v4: &PrefixTable<u32>,
        v6: &PrefixTable<u128>,
    ) -> Option<Self> {
        if rules.clone().any(|rule| rule.path == Path::Bypass) || rules.clone().next().is_none() {
            return None;
        }
        let traffic = match unmatched {
            Path::Tunnel => Traffic::all(),
            Path::Bypass | Path::Reject => Traffic::of(rules.filter(|rule| rule.path == Path::Tunnel)),
        };
        let is_its = |owner: &Owner| owner.set == set;
        let guarded = Self {
            v4: join(v4.owned().filter(|(_, _, owner)| is_its(owner)).map(|(from, to, _)| (from, to)))
                .map(|(from, to)| Ipv4Addr::from_bits(from)..=Ipv4Addr::from_bits(to))
                .collect(),
            v6: join(v6.owned().filter(|(_, _, owner)| is_its(owner)).map(|(from, to, _)| (from, to)))
                .map(|(from, to)| Ipv6Addr::from_bits(from)..=Ipv6Addr::from_bits(to))
                .collect(),
            traffic,
        };
        (guarded.traffic != Traffic::default()).then_some(guarded)
    }
}

impl Traffic {
    /// Whether traffic to a port is of these kinds; `None` where there is no port, or it is not known.
    pub fn holds(&self, protocol: u8, port: Option<u16>) -> bool {
        let among = |ranges: &[RangeInclusive<u16>]| match port {
            Some(port) => ranges.iter().any(|range| range.contains(&port)),
            None => ranges == [ALL_PORTS],
        };
        match Protocols::of(protocol) {
            Protocols::TCP => among(&self.tcp),
            Protocols::UDP => among(&self.udp),
            Protocols::ICMP => self.icmp,
            _ => self.other,
        }
    }

    fn all() -> Self {
        Self { tcp: vec![ALL_PORTS], udp: vec![ALL_PORTS], icmp: true, other: true }
    }

    /// What any of these rules takes. One that an earlier rule hides adds to it: it is refused either way.
    pub(crate) fn of<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut traffic = Self::default();
        for rule in rules {
            let ports = rule.ports.as_ref().map_or_else(|| vec![ALL_PORTS], |ports| ports.ranges().to_vec());
            if rule.protocols.contains(Protocols::TCP) {
                traffic.tcp.extend(ports.iter().cloned());
            }
            if rule.protocols.contains(Protocols::UDP) {
                traffic.udp.extend(ports);
            }
            // A rule with ports does not apply to what has none.
            if rule.ports.is_none() {
                traffic.icmp |= rule.protocols.contains(Protocols::ICMP);
                traffic.other |= rule.protocols.contains(Protocols::OTHER);
            }
        }
        traffic.tcp = Ports::new(traffic.tcp).ranges().to_vec();
        traffic.udp = Ports::new(traffic.udp).ranges().to_vec();
        traffic
    }
}

/// Ranges that touch become one.
fn join<A: Copy + Into<u128>>(ranges: impl Iterator<Item = (A, A)>) -> impl Iterator<Item = (A, A)> {
    let mut joined: Vec<(A, A)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, end)) if (*end).into().checked_add(1) == Some(from.into()) => *end = to,
            _ => joined.push((from, to)),
        }
    }
    joined.into_iter()
}

#[cfg(test)]
mod tests {
    use super::{Owner, PrefixTable};
    use crate::{Config, Snapshot};

    const CONFIG: &str = r#"
[interface]
address = ["10.99.0.1/32", "fd99::1/128"]
[tunnel]
private_key_file = "agent.key"
peer_public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
endpoint = "198.18.0.2:51820"
[sets.genesys-signaling]
cidrs = ["203.0.113.0/25", "203.0.113.128/25", "2001:db8:5::/48"]
"#;

    fn guarded(more: &str) -> String {
        let (config, _) = Config::parse(&format!("{CONFIG}{more}"), "test").unwrap();
        let line = |set: &super::Guarded| format!("{:?} {:?} {:?}\n", set.v4, set.v6, set.traffic);
        Snapshot::compile(&config).guarded().iter().map(line).collect()
    }

    #[test]
    fn signaling_is_guarded_by_address_and_port_and_media_is_not() {
        assert_eq!(
            guarded(""),
            "[203.0.113.0..=203.0.113.255] \
             [2001:db8:5::..=2001:db8:5:ffff:ffff:ffff:ffff:ffff] \
             Traffic { tcp: [80..=80, 443..=443, 5060..=5061, 8061..=8061], \
             udp: [80..=80, 443..=443, 5060..=5061, 8061..=8061], icmp: false, other: false }\n"
        );
    }

    #[test]
    fn a_set_inside_another_is_cut_out_of_it() {
        let more = r#"
[sets.phones]
cidrs = ["203.0.113.64/26", "2001:db8:5:7::/64"]
[[rules]]
name = "phones"
to = "phones"
protocol = "udp"
path = "bypass"
[[rules]]
name = "phones-ssh"
to = "phones"
protocol = "tcp"
ports = ["22"]
path = "tunnel"
[[rules]]
name = "no-telnet"
to = "genesys-signaling"
protocol = "tcp"
ports = ["23"]
path = "reject"
[[rules]]
name = "all"
to = "genesys-signaling"
protocol = "any"
path = "tunnel"
"#;
        assert_eq!(
            guarded(more),
            "[203.0.113.0..=203.0.113.63, 203.0.113.128..=203.0.113.255] \
             [2001:db8:5::..=2001:db8:5:6:ffff:ffff:ffff:ffff, \
             2001:db8:5:8::..=2001:db8:5:ffff:ffff:ffff:ffff:ffff] \
             Traffic { tcp: [0..=65535], udp: [0..=65535], icmp: true, other: true }\n"
        );
    }

    #[test]
    fn the_highest_address_has_its_end() {
        let owner = Owner { prefix: 0, set: 0 };
        let v4 = PrefixTable::<u32>::new([("255.255.255.0/24".parse().unwrap(), owner)]);
        assert_eq!(v4.owned().collect::<Vec<_>>(), [(0xffff_ff00, u32::MAX, owner)]);
        let v6 = PrefixTable::<u128>::new([("ffff::/16".parse().unwrap(), owner)]);
        assert_eq!(v6.owned().collect::<Vec<_>>(), [(0xffff << 112, u128::MAX, owner)]);
    }

    #[test]
    fn what_no_rule_tunnels_is_not_guarded() {
        let reject = "[[rules]]\nname = \"no\"\nto = \"genesys-signaling\"\npath = \"reject\"\n";
        assert_eq!(guarded(reject), "");
        let unmatched = "[policy]\nunmatched = \"tunnel\"\n";
        assert!(guarded(unmatched).ends_with("icmp: true, other: true }\n"));
    }
}

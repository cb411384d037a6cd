//! Addresses that names were found to have: part of the policy while they live, and of no configuration.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::{Traffic, rule::Rule, snapshot::CompiledSet};

/// An address that some name under a set's domains was found to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    pub address: IpAddr,
    /// The set's name.
    pub set: String,
}

/// The learned addresses of a set, and what of the traffic to them is routed into the TUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedSet {
    pub set: String,
    /// Ascending, distinct; in no configured prefix.
    pub addresses: Vec<IpAddr>,
    /// What any rule for the set takes, whatever its path: the rest of the traffic to these addresses is a stranger's.
    pub traffic: Traffic,
}

/// The learned addresses of all sets.
#[derive(Debug, Default)]
pub(crate) struct LearnedTable {
    /// Each address with the index of each of its sets, ascending.
    owners: Vec<(IpAddr, u32)>,
    sets: Vec<LearnedSet>,
}

impl LearnedTable {
    /// Leaves out what is of no set that learns.
    pub(crate) fn compile<'a>(
        learned: impl Iterator<Item = &'a Learned>,
        sets: &[CompiledSet],
        rules: &[Rule],
    ) -> Self {
        let learning: HashMap<&str, u32> = (0..)
            .zip(sets)
            .filter(|(_, set)| set.learns())
            .map(|(at, set)| (set.name.as_str(), at))
            .collect();
        let mut owners: Vec<(IpAddr, u32)> = learned
            .filter_map(|learned| Some((learned.address, *learning.get(learned.set.as_str())?)))
            .collect();
        owners.sort();
        owners.dedup();

        let mut by_set: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for (address, set) in &owners {
            by_set.entry(*set).or_default().push(*address);
        }
        let learned = |(at, addresses): (u32, Vec<IpAddr>)| {
            let set = sets.get(at as usize)?;
            Some(LearnedSet { set: set.name.clone(), addresses, traffic: Traffic::of(set.rules_in(rules)) })
        };
        Self { sets: by_set.into_iter().filter_map(learned).collect(), owners }
    }

    /// The address with the index of each set that it was learned for, ascending.
    pub(crate) fn sets_of(&self, address: IpAddr) -> &[(IpAddr, u32)] {
        let from = self.owners.partition_point(|(owned, _)| *owned < address);
        let rest = self.owners.get(from..).unwrap_or_default();
        rest.get(..rest.partition_point(|(owned, _)| *owned == address)).unwrap_or_default()
    }

    pub(crate) fn sets(&self) -> &[LearnedSet] {
        &self.sets
    }
}

impl LearnedSet {
    /// Whether traffic of this kind to this address is routed into the TUN; `port` is `None` where there is none.
    pub fn takes(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.addresses.binary_search(&address).is_ok() && self.traffic.holds(protocol, port)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use packet::{Dscp, protocol};

    use super::*;
    use crate::{Config, Content, Facts, Path, Snapshot};

    const CONFIG: &str = r#"
[interface]
address = ["10.99.0.1/32", "fd99::1"]
[tunnel]
private_key_file = "agent.key"
peer_public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
endpoint = "198.18.0.2:51820"
dns = ["10.99.0.53"]
[sets.genesys-signaling]
cidrs = ["203.0.113.0/25"]
domains = ["*.mypurecloud.com"]
[sets.phones]
domains = ["phones.mypurecloud.com"]
"#;

    fn snapshot(more: &str) -> Snapshot {
        let (config, warnings) = Config::parse(&format!("{CONFIG}{more}"), "test").unwrap();
        assert!(warnings.iter().all(|warning| warning.message.contains("phones")), "{warnings:?}");
        Snapshot::compile(&config)
    }

    fn learned(address: &str, set: &str) -> Learned {
        Learned { address: address.parse().unwrap(), set: set.to_owned() }
    }

    fn tcp(to: &str) -> Facts {
        Facts::tcp(to.parse::<SocketAddr>().unwrap())
    }

    #[test]
    fn a_learned_address_is_judged_by_its_sets_rules() {
        let base = snapshot("");
        assert_eq!(base.classify(&tcp("198.51.100.7:443")).path, Path::Reject);
        let snapshot = base.with_learned(&[
            learned("198.51.100.7", "genesys-signaling"),
            learned("2001:db8::7", "genesys-signaling"),
            learned("198.51.100.6", "genesys-signaling"),
        ]);
        for to in ["198.51.100.7:443", "198.51.100.6:443", "[2001:db8::7]:443"] {
            let facts = tcp(to);
            assert_eq!(snapshot.rule_name(snapshot.classify(&facts).rule), "signaling", "{to}");
            assert!(snapshot.is_routed(&facts) && snapshot.is_learned(facts.destination), "{to}");
            assert_eq!(
                snapshot.set_of(facts.destination),
                Some(("genesys-signaling", facts.destination.into()))
            );
        }
        assert!(!snapshot.is_routed(&tcp("198.51.100.7:22")), "a stranger's port");
        assert!(!snapshot.is_routed(&tcp("198.51.100.8:443")));
        assert_eq!(snapshot.captured(), base.captured());

        let explained = snapshot.explain(&tcp("198.51.100.7:443"));
        assert_eq!(explained.rule, "signaling");
        assert_eq!(
            explained.steps[0].found,
            "198.51.100.7 is in genesys-signaling: a name under its domains has this address"
        );
        assert!(snapshot.with_learned(&[]).learned().is_empty());
    }

    #[test]
    fn each_set_has_its_addresses_and_its_rules_traffic() {
        let snapshot = snapshot("").with_learned(&[
            learned("198.51.100.7", "genesys-signaling"),
            learned("198.51.100.6", "genesys-signaling"),
            learned("198.51.100.7", "genesys-signaling"),
        ]);
        let [set] = snapshot.learned() else { panic!("{:?}", snapshot.learned()) };
        assert_eq!(set.set, "genesys-signaling");
        assert_eq!(set.addresses, ["198.51.100.6", "198.51.100.7"].map(|a| a.parse::<IpAddr>().unwrap()));
        let ports = vec![80..=80, 443..=443, 5060..=5061, 8061..=8061];
        let traffic = Traffic { tcp: ports.clone(), udp: ports, icmp: false, other: false };
        assert_eq!(set.traffic, traffic);
        assert!(traffic.holds(protocol::TCP, Some(443)) && !traffic.holds(protocol::TCP, Some(444)));
        assert!(!traffic.holds(protocol::ICMP, None) && !traffic.holds(protocol::UDP, None));
    }

    #[test]
    fn what_a_prefix_holds_or_no_set_learns_is_left_out() {
        let snapshot = snapshot("").with_learned(&[
            learned("52.129.96.9", "genesys-signaling"),
            learned("203.0.113.9", "genesys-signaling"),
            learned("10.99.0.53", "genesys-signaling"),
            learned("198.51.100.7", "genesys-media"),
            learned("198.51.100.7", "phones"),
            learned("198.51.100.7", "nonsense"),
        ]);
        assert!(snapshot.learned().is_empty(), "{:?}", snapshot.learned());
        let voice = Facts::udp("52.129.96.9:20000".parse().unwrap(), Dscp::EF, Content::Rtp);
        assert_eq!(snapshot.classify(&voice).path, Path::Bypass);
    }

    #[test]
    fn an_address_of_two_sets_is_judged_by_the_rules_of_both_in_their_order() {
        let rules = "[[rules]]\nname = \"web\"\nto = \"genesys-signaling\"\nprotocol = \"tcp\"\nports = [443]\npath = \"tunnel\"\n\
             [[rules]]\nname = \"phones\"\nto = \"phones\"\nprotocol = \"tcp\"\nports = [443, 5061]\npath = \"reject\"\n";
        let [phones, web] = [learned("198.51.100.7", "phones"), learned("198.51.100.7", "genesys-signaling")];
        let base = snapshot(rules);
        for found in [[phones.clone(), web.clone()], [web, phones]] {
            let snapshot = base.with_learned(&found);
            let sets: Vec<&str> = snapshot.learned().iter().map(|set| set.set.as_str()).collect();
            assert_eq!(sets, ["genesys-signaling", "phones"]);
            for (to, rule) in [
                ("198.51.100.7:443", "web"),
                ("198.51.100.7:5061", "phones"),
                ("198.51.100.7:22", "unmatched"),
            ] {
                let facts = tcp(to);
                assert_eq!(snapshot.rule_name(snapshot.classify(&facts).rule), rule, "{to}");
                assert_eq!(snapshot.explain(&facts).rule, rule, "{to}");
                assert_eq!(snapshot.is_routed(&facts), rule != "unmatched", "{to}");
            }
            assert_eq!(
                snapshot.explain(&tcp("198.51.100.7:443")).steps[0].found,
                "198.51.100.7 is in genesys-signaling and phones: names under their domains have this address"
            );
        }
    }

    #[test]
    fn other_ports_of_a_learned_address_are_a_strangers_whatever_matches_no_rule() {
        let snapshot = snapshot("[policy]\nunmatched = \"tunnel\"\n")
            .with_learned(&[learned("198.51.100.7", "genesys-signaling")]);
        assert!(snapshot.guarded()[0].traffic.holds(protocol::TCP, Some(22)));
        let [learned] = snapshot.learned() else { panic!("{:?}", snapshot.learned()) };
        assert!(
            !learned.traffic.holds(protocol::TCP, Some(22))
                && learned.traffic.holds(protocol::TCP, Some(443))
        );
    }

    #[test]
    fn the_longest_domain_decides_a_names_set() {
        let rules =
            "[[rules]]\nname = \"all\"\nto = [\"genesys-signaling\", \"phones\"]\npath = \"tunnel\"\n";
        let snapshot = snapshot(rules);
        let (signaling, phones) =
            (Some(("mypurecloud.com", "genesys-signaling")), Some(("phones.mypurecloud.com", "phones")));
        for (name, expected) in [
            ("mypurecloud.com", signaling),
            ("API.MyPureCloud.com.", signaling),
            ("phones.mypurecloud.com", phones),
            ("a.b.phones.mypurecloud.com", phones),
            ("telephones.mypurecloud.com", signaling),
            ("notmypurecloud.com", None),
            ("mypurecloud.com.example", None),
            ("com", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(snapshot.set_for_name(name), expected, "{name}");
        }
        let domains: Vec<_> = snapshot.domains().collect();
        assert_eq!(domains, [signaling.unwrap(), phones.unwrap()]);
    }

    #[test]
    fn the_ports_of_a_names_addresses_are_those_of_its_sets_rules() {
        let snapshot = snapshot(
            "[[rules]]\nname = \"web\"\nto = \"genesys-signaling\"\nprotocol = \"tcp\"\nports = [443, 8061]\npath = \"tunnel\"\n\
             [[rules]]\nname = \"phones\"\nto = \"phones\"\nprotocol = \"udp\"\nports = [5060]\npath = \"reject\"\n",
        );
        for (name, protocol, port, is_taken) in [
            ("api.MyPureCloud.com.", protocol::TCP, 443, true),
            ("api.mypurecloud.com", protocol::TCP, 8443, false),
            ("api.mypurecloud.com", protocol::UDP, 443, false),
            ("api.mypurecloud.com", protocol::UDP, 5060, false),
            ("sip.phones.mypurecloud.com", protocol::UDP, 5060, true),
            ("sip.phones.mypurecloud.com", protocol::TCP, 443, false),
            ("api.example.com", protocol::TCP, 443, false),
        ] {
            assert_eq!(snapshot.takes(name, protocol, port), is_taken, "{name} {protocol} {port}");
        }
    }

    #[test]
    fn an_address_is_expected_of_the_names_of_the_set_that_holds_it() {
        let rules = "[sets.more]\ncidrs = [\"10.20.0.0/16\"]\ndomains = [\"more.example\"]\n\
                     [sets.other]\ncidrs = [\"10.20.30.0/24\"]\n\
                     [[rules]]\nname = \"all\"\nto = [\"genesys-signaling\", \"more\", \"other\", \"phones\"]\npath = \"tunnel\"\n";
        let (config, _) = Config::parse(&format!("{CONFIG}{rules}"), "test").unwrap();
        let snapshot = Snapshot::compile(&config);
        for (name, address, is_expected) in [
            ("api.more.example", "10.20.0.7", true),
            ("API.more.example.", "10.20.0.7", true),
            ("api.more.example", "10.20.30.7", false),
            ("api.more.example", "10.21.0.7", false),
            ("api.mypurecloud.com", "10.20.0.7", false),
            ("api.mypurecloud.com", "203.0.113.9", true),
            ("api.example", "10.20.0.7", false),
        ] {
            assert_eq!(snapshot.expects(name, address.parse().unwrap()), is_expected, "{name} {address}");
        }
        let learned = snapshot.with_learned(&[learned("198.51.100.7", "more")]);
        assert!(!learned.expects("api.more.example", "198.51.100.7".parse().unwrap()), "by no configuration");
    }

    #[test]
    fn domains_of_a_set_that_no_rule_is_for_are_not_asked() {
        let snapshot = snapshot("");
        assert_eq!(snapshot.domains().collect::<Vec<_>>(), [("mypurecloud.com", "genesys-signaling")]);
        assert_eq!(
            snapshot.set_for_name("phones.mypurecloud.com"),
            Some(("mypurecloud.com", "genesys-signaling"))
        );
        let phones = snapshot.sets().find(|set| set.name == "phones").unwrap();
        assert_eq!((phones.domains, phones.captured), (&["phones.mypurecloud.com".to_owned()][..], false));
    }
}

//! A second, plain implementation of the policy, against which the first is held: a scan of all prefixes, then of all
//! rules. It shares nothing with the crate but the facts it judges.
#![allow(clippy::indexing_slicing, reason = "a failing index is a failing test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnet::IpNet;
use packet::Dscp;
use policy::{Content, Facts, Learned, Path};

/// In the name of a set that stands for several.
pub const SEVERAL: &str = "-and-others-";

#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub sets: Vec<Set>,
    pub rules: Vec<Rule>,
    pub tunnel_unmatched: bool,
}

#[derive(Clone, Debug)]
pub struct Set {
    pub name: String,
    pub prefixes: Vec<IpNet>,
    pub domains: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    /// Indices of sets.
    pub to: Vec<usize>,
    pub protocols: Vec<&'static str>,
    pub ports: Vec<RangeInclusive<u16>>,
    pub when: &'static str,
    pub path: Path,
    pub gives_ef: bool,
}

/// What both implementations must agree on.
#[derive(Debug, PartialEq, Eq)]
pub struct Judgement {
    pub path: Path,
    pub rule: String,
    pub gives_ef: bool,
}

impl Policy {
    pub fn judge(&self, facts: &Facts) -> Judgement {
        if let Some((set, _)) = self.set_of(facts.destination) {
            for rule in &self.rules {
                if rule.to.contains(&set) && rule.matches(facts) {
                    return Judgement { path: rule.path, rule: rule.name.clone(), gives_ef: rule.gives_ef };
                }
            }
        }
        let path = if self.tunnel_unmatched { Path::Tunnel } else { Path::Reject };
        Judgement { path, rule: "unmatched".to_owned(), gives_ef: false }
    }

    /// The set whose prefix is the longest of those that hold the address.
    pub fn set_of(&self, address: IpAddr) -> Option<(usize, IpNet)> {
        let mut best: Option<(usize, IpNet)> = None;
        for (at, set) in self.sets.iter().enumerate() {
            for prefix in &set.prefixes {
                if prefix.contains(&address)
                    && best.is_none_or(|(_, net)| prefix.prefix_len() > net.prefix_len())
                {
                    best = Some((at, *prefix));
                }
            }
        }
        best
    }

    /// How an address fails when the TUN is gone, of those that some rule is for: the longest of these prefixes decides.
    pub fn fails_direct(&self, address: IpAddr) -> Option<bool> {
        let captured =
            self.sets.iter().enumerate().filter(|(at, _)| self.rules.iter().any(|rule| rule.to.contains(at)));
        let (set, _) = captured
            .flat_map(|(at, set)| set.prefixes.iter().map(move |prefix| (at, prefix)))
            .filter(|(_, prefix)| prefix.contains(&address))
            .max_by_key(|(_, prefix)| prefix.prefix_len())?;
        Some(self.rules.iter().any(|rule| rule.to.contains(&set) && rule.path == Path::Bypass))
    }

    /// This policy with learned addresses written as prefixes, where no prefix holds them. For one of several sets there is a new set
    /// that the rules of all of these are for; its name begins with that of the first of them by name.
    pub fn with_learned(&self, learned: &[Learned]) -> Self {
        let mut owners: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        for Learned { address, set } in learned {
            if self.set_of(*address).is_none() && self.sets.iter().any(|other| other.name == *set) {
                owners.entry(*address).or_default().insert(set);
            }
        }
        let mut policy = self.clone();
        for (number, (address, names)) in owners.into_iter().enumerate() {
            let prefix = IpNet::from(address);
            let mut indices = (0..self.sets.len()).filter(|at| names.contains(self.sets[*at].name.as_str()));
            if names.len() == 1 {
                policy.sets[indices.next().unwrap()].prefixes.push(prefix);
                continue;
            }
            let indices: Vec<usize> = indices.collect();
            let new = policy.sets.len();
            let name = format!("{}{SEVERAL}{number}", names.first().unwrap());
            policy.sets.push(Set { name, prefixes: vec![prefix], domains: Vec::new() });
            for rule in &mut policy.rules {
                if rule.to.iter().any(|set| indices.contains(set)) {
                    rule.to.push(new);
                }
            }
        }
        policy
    }

    /// The policy as a configuration file.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "[interface]\naddress = [\"192.0.2.1/32\", \"2001:db8::1/128\"]\n\
             [tunnel]\nprivate_key_file = \"agent.key\"\npeer_public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"\n\
             endpoint = \"198.51.100.1:51820\"\n",
        );
        if self.sets.iter().any(|set| !set.domains.is_empty()) {
            text.push_str("dns = \"192.0.2.53\"\n");
        }
        let unmatched = if self.tunnel_unmatched { "tunnel" } else { "reject" };
        let _ = writeln!(text, "[policy]\nunmatched = \"{unmatched}\"");
        for set in &self.sets {
            let prefixes: Vec<String> = set.prefixes.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "[sets.{}]\ncidrs = {prefixes:?}", set.name);
            if !set.domains.is_empty() {
                let _ = writeln!(text, "domains = {:?}", set.domains);
            }
        }
        for rule in &self.rules {
            let to: Vec<&str> = rule.to.iter().map(|set| self.sets[*set].name.as_str()).collect();
            let path = format!("{:?}", rule.path).to_lowercase();
            let _ = writeln!(
                text,
                "[[rules]]\nname = {:?}\nto = {to:?}\nprotocol = {:?}\nwhen = {:?}\npath = {path:?}",
                rule.name, rule.protocols, rule.when
            );
            if !rule.ports.is_empty() {
                let ports: Vec<String> =
                    rule.ports.iter().map(|r| format!("{}-{}", r.start(), r.end())).collect();
                let _ = writeln!(text, "ports = {ports:?}");
            }
            if rule.gives_ef {
                text.push_str("dscp = \"ef\"\n");
            }
        }
        text
    }
}

impl Rule {
    /// Whether it is for traffic of this kind, whatever its marks and contents.
    pub fn takes(&self, protocol: u8, port: Option<u16>) -> bool {
        let is_its = self.protocols.iter().any(|name| match *name {
            "tcp" => protocol == 6,
            "udp" => protocol == 17,
            "icmp" => protocol == 1 || protocol == 58,
            _ => true,
        });
        is_its
            && (self.ports.is_empty()
                || port.is_some_and(|port| self.ports.iter().any(|range| range.contains(&port))))
    }

    fn matches(&self, facts: &Facts) -> bool {
        let is_ef = facts.dscp.value() == 46;
        let when = match self.when {
            "ef" => is_ef,
            "ef-or-webrtc" => is_ef || facts.content != Content::Other,
            _ => true,
        };
        self.takes(facts.protocol, facts.port) && when
    }
}

/// Makes a policy and facts out of choices: `choose(n)` gives a number below `n`. Prefixes and addresses come from a
/// small space, so that they meet.
pub fn generate(mut choose: impl FnMut(usize) -> usize) -> (Policy, Vec<Facts>) {
    let sets = (0..1 + choose(4)).map(|at| generate_set(at, &mut choose)).collect::<Vec<_>>();
    let mut policy = Policy { sets, rules: Vec::new(), tunnel_unmatched: choose(2) == 1 };
    keep_distinct(&mut policy.sets);
    if !policy.sets.is_empty() {
        let rules = 1 + choose(6);
        policy.rules = (0..rules).map(|at| generate_rule(at, policy.sets.len(), &mut choose)).collect();
    }
    let facts = (0..32).map(|_| generate_facts(&mut choose)).collect();
    (policy, facts)
}

/// Gives a domain to each set that some rule is for and none lets break out, and makes up addresses of names under them.
pub fn learn(policy: &mut Policy, mut choose: impl FnMut(usize) -> usize) -> Vec<Learned> {
    let (rules, sets) = (&policy.rules, &mut policy.sets);
    let mut learning = Vec::new();
    for (at, set) in sets.iter_mut().enumerate() {
        let mut paths = rules.iter().filter(|rule| rule.to.contains(&at)).map(|rule| rule.path).peekable();
        if paths.peek().is_some() && paths.all(|path| path != Path::Bypass) {
            set.domains = vec![format!("{}.example", set.name)];
            learning.push(set.name.clone());
        }
    }
    let count = if learning.is_empty() { 0 } else { choose(12) };
    let mut learned: Vec<Learned> = Vec::with_capacity(count);
    for _ in 0..count {
        // Now and then another name has the same address, perhaps another set's.
        let address = match learned.last() {
            Some(last) if choose(3) == 0 => last.address,
            _ => generate_address(&mut choose),
        };
        learned.push(Learned { set: learning[choose(learning.len())].clone(), address });
    }
    learned
}

fn generate_set(at: usize, choose: &mut impl FnMut(usize) -> usize) -> Set {
    let prefixes = (0..1 + choose(8)).map(|_| generate_prefix(choose)).collect();
    Set { name: format!("set{at}"), prefixes, domains: Vec::new() }
}

fn generate_prefix(choose: &mut impl FnMut(usize) -> usize) -> IpNet {
    let address = generate_address(choose);
    let (low, high) = if address.is_ipv4() { (8, 32) } else { (16, 128) };
    let length = match choose(3) {
        0 => high - choose(6),
        1 => low + choose(6),
        _ => low + choose(high - low + 1),
    };
    IpNet::new(address, length as u8).map(|net| net.trunc()).unwrap_or(IpNet::from(address))
}

fn generate_address(choose: &mut impl FnMut(usize) -> usize) -> IpAddr {
    let low = [0u8, 1, 2, 3, 127, 128, 254, 255];
    let (a, b) = (low[choose(low.len())], low[choose(low.len())]);
    match choose(2) {
        0 => IpAddr::from([10 + choose(2) as u8, low[choose(2)], a, b]),
        _ => {
            let mut bytes = [0; 16];
            bytes[0] = 0xfd;
            (bytes[1], bytes[2]) = (choose(2) as u8, low[choose(2)]);
            (bytes[7], bytes[8], bytes[15]) = (low[choose(2)], a, b);
            IpAddr::from(bytes)
        }
    }
}

/// A prefix belongs to one set, and a set is not empty.
fn keep_distinct(sets: &mut Vec<Set>) {
    let mut seen = Vec::new();
    for set in sets.iter_mut() {
        set.prefixes.retain(|prefix| {
            !seen.contains(prefix) && {
                seen.push(*prefix);
                true
            }
        });
    }
    sets.retain(|set| !set.prefixes.is_empty());
}

fn generate_rule(at: usize, sets: usize, choose: &mut impl FnMut(usize) -> usize) -> Rule {
    let lists: [&[&str]; 6] = [&["udp"], &["udp"], &["tcp"], &["tcp", "udp"], &["icmp"], &["any"]];
    let protocols = lists[choose(lists.len())].to_vec();
    let is_udp = protocols == ["udp"];
    let has_ports = !protocols.iter().any(|name| matches!(*name, "icmp" | "any"));
    let paths = [Path::Tunnel, Path::Reject, Path::Bypass];
    Rule {
        name: format!("rule{at}"),
        to: (0..1 + choose(2)).map(|_| choose(sets)).collect(),
        ports: (0..if has_ports { choose(4) } else { 0 }).map(|_| generate_ports(choose)).collect(),
        when: if is_udp { ["always", "ef", "ef-or-webrtc"][choose(3)] } else { "always" },
        path: paths[choose(if is_udp { 3 } else { 2 })],
        gives_ef: choose(2) == 1,
        protocols,
    }
}

fn generate_ports(choose: &mut impl FnMut(usize) -> usize) -> RangeInclusive<u16> {
    let (a, b) = (PORTS[choose(PORTS.len())], PORTS[choose(PORTS.len())]);
    a.min(b)..=a.max(b)
}

const PORTS: [u16; 10] = [1, 80, 442, 443, 444, 3478, 16383, 16384, 65534, 65535];

fn generate_facts(choose: &mut impl FnMut(usize) -> usize) -> Facts {
    let protocol = [17, 17, 17, 6, 1, 58, 47][choose(7)];
    let has_port = matches!(protocol, 6 | 17) && choose(8) > 0;
    let contents = [Content::Other, Content::Stun, Content::Rtp, Content::Dtls];
    Facts {
        protocol,
        destination: generate_address(choose),
        port: has_port.then(|| PORTS[choose(PORTS.len())]),
        dscp: [Dscp::DEFAULT, Dscp::EF, Dscp::AF41, Dscp::CS3][choose(4)],
        content: if protocol == 17 { contents[choose(4)] } else { Content::Other },
    }
}

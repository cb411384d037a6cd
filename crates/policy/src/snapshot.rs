use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use packet::{Dscp, Packet, Transport, protocol};
use serde::Serialize;

use crate::{
    Config, Content, Guarded, Learned, LearnedSet, Mark, Path, RuleId, Traffic, Verdict,
    capture::aggregate,
    domain,
    explain::Trace,
    learned::LearnedTable,
    prefix_table::{Owner, PrefixTable},
    recognise,
    rule::Rule,
};

/// A compiled policy: immutable, shared, and all that any enforcer asks.
#[derive(Debug)]
pub struct Snapshot {
    compiled: Arc<Compiled>,
    /// In no configured prefix.
    learned: LearnedTable,
}

/// What the configuration alone says.
#[derive(Debug)]
struct Compiled {
    sets: Vec<CompiledSet>,
    /// By [`Owner::prefix`].
    prefixes: Vec<IpNet>,
    v4: PrefixTable<u32>,
    v6: PrefixTable<u128>,
    /// Each with the index of its set, by name.
    domains: Vec<(String, u32)>,
    rules: Vec<Rule>,
    unmatched: Path,
    captured: Vec<Captured>,
    guarded: Vec<Guarded>,
}

#[derive(Debug)]
pub(crate) struct CompiledSet {
    pub(crate) name: String,
    prefixes: Vec<IpNet>,
    domains: Vec<String>,
    /// The rules for this set, in their order.
    rules: Vec<u16>,
}

/// What the policy looks at in a packet. A flow keeps those of its first packet, so that a later snapshot can judge it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub protocol: u8,
    pub destination: IpAddr,
    /// `None` for a protocol without ports and for a fragment without its transport header.
    pub port: Option<u16>,
    pub dscp: Dscp,
    /// `Other` for anything but UDP.
    pub content: Content,
}

/// What becomes of captured packets when the TUN is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// Refused: no rule lets this prefix break out.
    Closed,
    /// Sent directly: some rule lets it break out.
    Direct,
}

/// A prefix that is routed into the TUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    pub prefix: IpNet,
    pub fail: Fail,
}

/// A set as the configuration gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SetView<'a> {
    pub name: &'a str,
    pub prefixes: &'a [IpNet],
    /// Lowercase, without `*.`.
    pub domains: &'a [String],
    /// Whether some rule is for it, so that it is routed into the TUN.
    pub captured: bool,
}

/// A rule as the configuration gave it, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleView<'a> {
    pub name: &'a str,
    pub to: Vec<&'a str>,
    /// `udp`, `tcp, udp`, … or `any`.
    pub protocol: String,
    /// `443, 16384-65535`; `None` for all.
    pub ports: Option<String>,
    pub when: &'static str,
    pub path: Path,
    /// The DSCP given to packets marked neither EF nor AF4x, by name.
    pub dscp: Option<String>,
}

impl Snapshot {
    /// Compiles a checked configuration.
    pub fn compile(config: &Config) -> Self {
        let policy = &config.policy;
        let sets: Vec<CompiledSet> = policy
            .sets
            .iter()
            .enumerate()
            .map(|(at, set)| CompiledSet {
                name: set.name.clone(),
                prefixes: set.prefixes.clone(),
                domains: set.domains.clone(),
                rules: (0..)
                    .zip(&policy.rules)
                    .filter(|(_, rule)| rule.to.contains(&at))
                    .map(|(id, _)| id)
                    .collect(),
            })
            .collect();

        let owned: Vec<(IpNet, Owner)> = (0..)
            .zip(&sets)
            .flat_map(|(set, compiled)| compiled.prefixes.iter().map(move |prefix| (*prefix, set)))
            .zip(0..)
            .map(|((net, set), prefix)| (net, Owner { prefix, set }))
            .collect();
        let family = |v4: bool| owned.iter().copied().filter(move |(net, _)| net.addr().is_ipv4() == v4);

        let fail = |set: &CompiledSet| match set.rules_in(&policy.rules).any(|rule| rule.path == Path::Bypass)
        {
            true => Fail::Direct,
            false => Fail::Closed,
        };
        let captured = sets
            .iter()
            .filter(|set| !set.rules.is_empty())
            .flat_map(|set| set.prefixes.iter().map(move |prefix| (*prefix, fail(set))));

        let (v4, v6) = (PrefixTable::new(family(true)), PrefixTable::new(family(false)));
        let guarded = (0..)
            .zip(&sets)
            .filter_map(|(at, set)| Guarded::of(at, set.rules_in(&policy.rules), policy.unmatched, &v4, &v6))
            .collect();
        let mut domains: Vec<(String, u32)> = (0..)
            .zip(&sets)
            .filter(|(_, set)| set.learns())
            .flat_map(|(at, set)| set.domains.iter().map(move |domain| (domain.clone(), at)))
            .collect();
        domains.sort();
        let compiled = Compiled {
            prefixes: owned.iter().map(|(net, _)| *net).collect(),
            v4,
            v6,
            domains,
            captured: aggregate(captured),
            guarded,
            rules: policy.rules.clone(),
            unmatched: policy.unmatched,
            sets,
        };
        Self { compiled: Arc::new(compiled), learned: LearnedTable::default() }
    }

    /// This policy with these addresses in their sets, in place of those learned before. Left out is an address that a
    /// configured prefix holds, which says already what becomes of it, and one whose set has no domains or no rules. One that
    /// several sets have is judged by the rules for any of them.
    pub fn with_learned(&self, learned: &[Learned]) -> Self {
        let free = learned.iter().filter(|learned| self.owner(learned.address).is_none());
        let learned = LearnedTable::compile(free, &self.compiled.sets, &self.compiled.rules);
        Self { compiled: self.compiled.clone(), learned }
    }

    /// Judges a flow's first packet: longest prefix over all sets, then the first rule that matches.
    pub fn classify(&self, facts: &Facts) -> Verdict {
        self.walk(facts, &mut ())
    }

    /// The name a rule has in the configuration; `unmatched` for the policy's last word.
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.compiled.rules.get(usize::from(rule.0)).map_or(UNMATCHED, |rule| &rule.name)
    }

    /// The set that holds an address, by longest prefix; the address itself is the prefix where it was learned, and its first set counts.
    pub fn set_of(&self, address: IpAddr) -> Option<(&str, IpNet)> {
        let (set, prefix) = match self.owner(address) {
            Some(owner) => (owner.set, *self.compiled.prefixes.get(owner.prefix as usize)?),
            None => (self.learned.sets_of(address).first()?.1, IpNet::from(address)),
        };
        Some((&self.compiled.sets.get(set as usize)?.name, prefix))
    }

    /// Whether an address is in its set because a name has it.
    pub fn is_learned(&self, address: IpAddr) -> bool {
        !self.learned.sets_of(address).is_empty()
    }

    /// The sets that an address was learned for.
    pub(crate) fn learned_sets(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.learned.sets_of(address).iter().filter_map(|(_, set)| self.set_name(*set))
    }

    /// All configured prefixes that are routed into the TUN, aggregated, none inside another of the same kind. The longest
    /// prefix that holds an address says how it fails.
    pub fn captured(&self) -> &[Captured] {
        &self.compiled.captured
    }

    /// What besides [`Snapshot::captured`] is routed into the TUN, by address and port; all of it fails closed.
    pub fn learned(&self) -> &[LearnedSet] {
        self.learned.sets()
    }

    /// Whether packets like this are routed into the TUN.
    pub fn is_routed(&self, facts: &Facts) -> bool {
        let Facts { destination, protocol, port, .. } = *facts;
        self.compiled.captured.iter().any(|captured| captured.prefix.contains(&destination))
            || self.learned().iter().any(|set| set.takes(destination, protocol, port))
    }

    /// What of the sets that fail closed belongs into the tunnel, a set each: of their configured prefixes. All that is
    /// [`Snapshot::learned`] fails closed too.
    pub fn guarded(&self) -> &[Guarded] {
        &self.compiled.guarded
    }

    /// The domains that are asked for through the tunnel, each with its set, by name. One stands for itself and every name
    /// below it.
    pub fn domains(&self) -> impl Iterator<Item = (&str, &str)> {
        self.compiled.domains.iter().filter_map(|(domain, set)| Some((domain.as_str(), self.set_name(*set)?)))
    }

    /// The longest domain that covers a name, and its set. Any case will do, and a dot at the end.
    pub fn set_for_name(&self, name: &str) -> Option<(&str, &str)> {
        let (domain, set) = self.domain_of(name)?;
        Some((domain, self.set_name(*set)?))
    }

    /// Whether packets to this port are routed into the TUN at each address that a name leads to, once that is learned. The rest is
    /// taken for a stranger's, and goes directly.
    pub fn takes(&self, name: &str, protocol: u8, port: u16) -> bool {
        let set = self.domain_of(name).and_then(|(_, set)| self.compiled.sets.get(*set as usize));
        set.is_some_and(|set| Traffic::of(set.rules_in(&self.compiled.rules)).holds(protocol, Some(port)))
    }

    /// Whether a configured prefix of the set that a name is of holds an address, by longest prefix: somebody wants it there.
    pub fn expects(&self, name: &str, address: IpAddr) -> bool {
        let owner = self.owner(address).map(|owner| owner.set);
        owner.is_some() && owner == self.domain_of(name).map(|(_, set)| *set)
    }

    /// All sets, by name.
    pub fn sets(&self) -> impl Iterator<Item = SetView<'_>> {
        self.compiled.sets.iter().map(|set| SetView {
            name: &set.name,
            prefixes: &set.prefixes,
            domains: &set.domains,
            captured: !set.rules.is_empty(),
        })
    }

    /// All rules, in the order they are tried.
    pub fn rules(&self) -> impl Iterator<Item = RuleView<'_>> {
        self.compiled.rules.iter().map(|rule| RuleView {
            name: &rule.name,
            to: rule.to.iter().filter_map(|set| Some(self.compiled.sets.get(*set)?.name.as_str())).collect(),
            protocol: rule.protocols.to_string(),
            ports: rule.ports.as_ref().map(ToString::to_string),
            when: rule.when.name(),
            path: rule.path,
            dscp: match rule.mark {
                Mark::Keep => None,
                Mark::Voice(dscp) => Some(dscp.to_string()),
            },
        })
    }

    /// The path of what reaches the TUN and matches no rule.
    pub fn unmatched(&self) -> Path {
        self.compiled.unmatched
    }

    pub(crate) fn walk(&self, facts: &Facts, trace: &mut impl Trace) -> Verdict {
        trace.set(self, facts);
        match self.owner(facts.destination) {
            Some(owner) => self.walk_rules(self.rules_for(owner.set), facts, trace),
            None => self.walk_learned(facts, trace),
        }
    }

    /// Apart, so that it costs nothing where a prefix holds the address, which is what the pump mostly asks.
    #[cold]
    #[inline(never)]
    fn walk_learned(&self, facts: &Facts, trace: &mut impl Trace) -> Verdict {
        match self.learned.sets_of(facts.destination) {
            [] => self.walk_rules([], facts, trace),
            [(_, set)] => self.walk_rules(self.rules_for(*set), facts, trace),
            several => {
                let is_for = |rule: &Rule| several.iter().any(|(_, set)| rule.to.contains(&(*set as usize)));
                let rules =
                    (0..).zip(&self.compiled.rules).filter(|(_, rule)| is_for(rule)).map(|(id, _)| id);
                self.walk_rules(rules, facts, trace)
            }
        }
    }

    #[inline(always)]
    fn rules_for(&self, set: u32) -> impl Iterator<Item = u16> {
        self.compiled.sets.get(set as usize).map_or(&[][..], |set| &set.rules).iter().copied()
    }

    #[inline(always)]
    fn walk_rules(
        &self,
        rules: impl IntoIterator<Item = u16>,
        facts: &Facts,
        trace: &mut impl Trace,
    ) -> Verdict {
        for id in rules {
            let Some(rule) = self.compiled.rules.get(usize::from(id)) else { continue };
            let result = rule.check(facts);
            trace.rule(rule, facts, result);
            if result.is_ok() {
                return Verdict { path: rule.path, rule: RuleId(id), mark: rule.mark };
            }
        }
        trace.unmatched(self.compiled.unmatched);
        Verdict { path: self.compiled.unmatched, rule: RuleId(u16::MAX), mark: Mark::Keep }
    }

    fn domain_of(&self, name: &str) -> Option<&(String, u32)> {
        let name = domain::normal(name);
        let at = domain::upward(&name).find_map(|above| {
            self.compiled.domains.binary_search_by_key(&above, |(domain, _)| domain.as_str()).ok()
        })?;
        self.compiled.domains.get(at)
    }

    fn owner(&self, address: IpAddr) -> Option<Owner> {
        match address {
            IpAddr::V4(address) => self.compiled.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.compiled.v6.lookup(address.to_bits()),
        }
    }

    fn set_name(&self, set: u32) -> Option<&str> {
        Some(&self.compiled.sets.get(set as usize)?.name)
    }
}

/// What [`Snapshot::rule_name`] and `explain` call the policy's last word; no rule may have this name.
pub(crate) const UNMATCHED: &str = "unmatched";

impl CompiledSet {
    /// Whether addresses of its names are routed into the TUN.
    pub(crate) fn learns(&self) -> bool {
        !self.domains.is_empty() && !self.rules.is_empty()
    }

    pub(crate) fn rules_in<'a>(&self, rules: &'a [Rule]) -> impl Iterator<Item = &'a Rule> + Clone {
        self.rules.iter().filter_map(|id| rules.get(usize::from(*id)))
    }
}

impl Facts {
    /// Takes a packet's facts; those of a later fragment or of a protocol without ports have no port.
    pub fn of(packet: &Packet<'_>) -> Self {
        let headers = packet.headers();
        let (port, content) = match headers.transport {
            Transport::Udp { destination, .. } => (Some(destination), recognise(packet.payload())),
            Transport::Tcp { destination, .. } => (Some(destination), Content::Other),
            Transport::Icmp(_) | Transport::Opaque => (None, Content::Other),
        };
        Self {
            protocol: headers.protocol,
            destination: headers.destination,
            port,
            dscp: headers.tos.dscp(),
            content,
        }
    }

    /// A TCP connection's, without a mark.
    pub fn tcp(destination: SocketAddr) -> Self {
        Self { protocol: protocol::TCP, ..Self::udp(destination, Dscp::DEFAULT, Content::Other) }
    }

    pub fn udp(destination: SocketAddr, dscp: Dscp, content: Content) -> Self {
        Self {
            protocol: protocol::UDP,
            destination: destination.ip(),
            port: Some(destination.port()),
            dscp,
            content,
        }
    }
}

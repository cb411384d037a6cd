//! What routes and rules there should be: a pure function of the settings and the policy.
//!
//! ```text
//! rule 90  fwmark M              → rule 94, where there are learned addresses
//!      91  ipproto P dport A-B   → table 51900…  ADDRESS dev tun metric 100, for each address that a set's names have led to,
//!      92  ipproto P                             in a table for each set; behind it, outliving the TUN:
//!      93                                        prohibit ADDRESS metric 200
//! rule 94  not fwmark M          → table 51821   PREFIX dev tun metric 100, for each captured prefix;
//!                                                behind it, outliving the TUN:
//!                                                prohibit PREFIX metric 200 (fails closed)
//!                                                throw    PREFIX metric 300 (fails direct)
//! rule 95  from TUN-ADDRESS      → table 51822   default dev tun metric 100, prohibit default metric 200
//! ```
//!
//! The rules' priorities are these as long as no other program's come ahead ([`crate::place`]).
//! The throw route is there for a prefix that fails direct inside one that fails closed.
//! A learned address may be a stranger's too: only what the set's rules take is led there, by protocol and port. The kernel
//! cannot name port 65535: where a range ends there, all ports of the protocol are taken, and the policy refuses what is not
//! its own.
//! Rules with other conditions name no mark, since `not` would turn the whole condition round: what is marked passes by them, and marked
//! sockets are never bound to the TUN's address.

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::Range,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use policy::{Captured, Fail, Traffic};

use crate::{
    ip_protocol::{ICMP, ICMPV6, TCP, UDP},
    learned::Placed,
    netlink::{Family, Kind, Route, Rule},
};

/// The table of the captured prefixes.
pub const TABLE_CAPTURED: u32 = 51821;
/// The table of packets from the TUN's own addresses to anywhere else.
pub const TABLE_SOURCE: u32 = 51822;
/// The first of the tables of learned addresses; the others follow it.
pub const TABLE_LEARNED: u32 = 51900;
/// All that our rules have: ahead of those that other programs are known to use (NetBird's 105, strongSwan's 220, the VRFs' 1000), with
/// room before them.
pub(crate) const PRIORITIES: Range<u32> = 90..97;
/// Leads our own sockets past the rules to learned addresses: a gateway may come to be heard at one.
pub const PRIORITY_MARKED: u32 = PRIORITIES.start;
/// Rules to learned addresses, one priority for each kind of condition: [`crate::netlink::Netlink::delete_rule`] says why.
pub const PRIORITY_LEARNED_PORTS: u32 = PRIORITIES.start + 1;
pub const PRIORITY_LEARNED_PROTOCOL: u32 = PRIORITIES.start + 2;
pub const PRIORITY_LEARNED_ALL: u32 = PRIORITIES.start + 3;
pub const PRIORITY_CAPTURED: u32 = PRIORITIES.start + 4;
pub const PRIORITY_SOURCE: u32 = PRIORITIES.start + 5;
/// Of [`Plan::idle_rule`].
const PRIORITY_IDLE: u32 = PRIORITIES.start + 6;
/// Marks our routes and rules as ours: a `RTPROT_*` number that linux/rtnetlink.h leaves free.
pub const PROTOCOL: u8 = 181;
pub const METRIC_TUN: u32 = 100;
pub const METRIC_PROHIBIT: u32 = 200;
/// Another than [`METRIC_PROHIBIT`], so that both can stand while a reload turns one into the other.
pub const METRIC_THROW: u32 = 300;

/// Whether a route in this table, whoever made it, may decide where signaling goes; of the learned addresses' tables, of as many as are
/// ever in use.
pub(crate) fn is_ours(table: u32) -> bool {
    [TABLE_CAPTURED, TABLE_SOURCE].contains(&table) || (TABLE_LEARNED..TABLE_LEARNED + 100).contains(&table)
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What answers when the TUN's routes are gone.
    pub behind: Vec<Route>,
    pub rules: Vec<Rule>,
    pub tun: Vec<Route>,
    /// How far the rules are from [`PRIORITIES`], modulo 2³².
    shift: u32,
}

impl Plan {
    /// `tun` is the TUN's index; without `ipv6` the kernel has none, and nothing is planned for it.
    pub fn new(
        captured: &[Captured],
        learned: &[Placed],
        addresses: &[IpNet],
        tun: u32,
        mark: u32,
        ipv6: bool,
    ) -> Self {
        let mut plan = Self::learned(learned, tun, mark, ipv6);
        for captured in captured {
            plan.capture(TABLE_CAPTURED, captured.prefix, captured.fail, tun);
        }
        for family in FAMILIES {
            plan.rules.push(Rule {
                mark: Some(mark),
                invert: true,
                protocol: PROTOCOL,
                ..Rule::new(family, PRIORITY_CAPTURED, TABLE_CAPTURED)
            });
            if addresses.iter().any(|address| family_of(address) == family) {
                plan.capture(TABLE_SOURCE, everything(family), Fail::Closed, tun);
            }
        }
        for address in addresses {
            plan.rules.push(Rule {
                from: Some(IpNet::from(address.addr())),
                protocol: PROTOCOL,
                ..Rule::new(family_of(address), PRIORITY_SOURCE, TABLE_SOURCE)
            });
        }
        plan.limit(ipv6)
    }

    /// The learned addresses' part alone.
    pub fn learned(learned: &[Placed], tun: u32, mark: u32, ipv6: bool) -> Self {
        let mut plan = Self::default();
        if !learned.is_empty() {
            plan.rules.extend(FAMILIES.map(|family| Rule {
                mark: Some(mark),
                goto: Some(PRIORITY_CAPTURED),
                protocol: PROTOCOL,
                ..Rule::new(family, PRIORITY_MARKED, 0)
            }));
        }
        for Placed { table, set } in learned {
            for address in &set.addresses {
                plan.capture(*table, IpNet::from(*address), Fail::Closed, tun);
            }
            for family in FAMILIES {
                plan.rules.extend(rules(*table, family, &set.traffic));
            }
        }
        plan.limit(ipv6)
    }

    /// A new plan's rules moved so that they begin at `place`.
    pub fn at(mut self, place: u32) -> Self {
        self.shift = place.wrapping_sub(PRIORITIES.start);
        for rule in &mut self.rules {
            rule.priority = rule.priority.wrapping_add(self.shift);
            rule.goto = rule.goto.map(|priority| priority.wrapping_add(self.shift));
        }
        self
    }

    /// Whether one of its rules leads there.
    pub fn leads_to(&self, table: u32) -> bool {
        self.rules.iter().any(|rule| rule.table == table)
    }

    /// A rule that leads nothing anywhere, behind the others.
    pub fn idle_rule(&self) -> Rule {
        let priority = PRIORITY_IDLE.wrapping_add(self.shift);
        let nobody = Some(IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)));
        Rule { from: nobody, protocol: PROTOCOL, ..Rule::new(Family::V6, priority, TABLE_CAPTURED) }
    }

    fn capture(&mut self, table: u32, prefix: IpNet, fail: Fail, tun: u32) {
        let (kind, metric) = match fail {
            Fail::Closed => (Kind::Prohibit, METRIC_PROHIBIT),
            Fail::Direct => (Kind::Throw, METRIC_THROW),
        };
        let route = Route { table, protocol: PROTOCOL, ..Route::new(prefix) };
        self.behind.push(Route { kind, metric, ..route.clone() });
        self.tun.push(Route { metric: METRIC_TUN, device: Some(tun), ..route });
    }

    fn limit(mut self, ipv6: bool) -> Self {
        if !ipv6 {
            self.rules.retain(|rule| rule.family == Family::V4);
            self.behind.retain(|route| route.prefix.addr().is_ipv4());
            self.tun.retain(|route| route.prefix.addr().is_ipv4());
        }
        self
    }
}

/// What leads this traffic to a table.
fn rules(table: u32, family: Family, traffic: &Traffic) -> Vec<Rule> {
    let rule = |priority| Rule { protocol: PROTOCOL, ..Rule::new(family, priority, table) };
    let of = |number| Rule { ip_protocol: Some(number), ..rule(PRIORITY_LEARNED_PROTOCOL) };
    if traffic.other {
        return vec![rule(PRIORITY_LEARNED_ALL)];
    }
    let mut rules = Vec::new();
    for (number, ranges) in [(TCP, &traffic.tcp), (UDP, &traffic.udp)] {
        if ranges.iter().any(|range| *range.start() == 0 || *range.end() == u16::MAX) {
            rules.push(of(number));
            continue;
        }
        rules.extend(ranges.iter().map(|range| Rule {
            ip_protocol: Some(number),
            ports: Some((*range.start(), *range.end())),
            ..rule(PRIORITY_LEARNED_PORTS)
        }));
    }
    if traffic.icmp {
        rules.push(of(if family == Family::V4 { ICMP } else { ICMPV6 }));
    }
    rules
}

fn family_of(net: &IpNet) -> Family {
    match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::default().into(),
        Family::V6 => Ipv6Net::default().into(),
    }
}

#[cfg(test)]
mod tests {
    use policy::LearnedSet;

    use super::*;

    #[test]
    fn every_captured_prefix_has_something_behind_it_and_no_ipv6_is_planned_without_it() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let captured = [
            Captured { prefix: net("203.0.113.0/24"), fail: Fail::Closed },
            Captured { prefix: net("203.0.113.64/26"), fail: Fail::Direct },
            Captured { prefix: net("2001:db8::/32"), fail: Fail::Closed },
        ];
        let addresses = [net("10.99.0.1/24"), net("fd99::1/64")];
        let plan = Plan::new(&captured, &[], &addresses, 7, 9, true);
        let kinds: Vec<_> = plan.behind.iter().map(|route| (route.prefix, route.kind)).collect();
        assert_eq!(
            kinds,
            [
                (net("203.0.113.0/24"), Kind::Prohibit),
                (net("203.0.113.64/26"), Kind::Throw),
                (net("2001:db8::/32"), Kind::Prohibit),
                (net("0.0.0.0/0"), Kind::Prohibit),
                (net("::/0"), Kind::Prohibit),
            ]
        );
        assert_eq!(plan.tun.len(), plan.behind.len());
        let from: Vec<_> = plan.rules.iter().filter_map(|rule| rule.from).collect();
        assert_eq!(from, [net("10.99.0.1/32"), net("fd99::1/128")], "the address alone, not its network");

        let plan = Plan::new(&captured, &[], &addresses, 7, 9, false);
        assert_eq!((plan.behind.len(), plan.tun.len(), plan.rules.len()), (3, 3, 2));
    }

    #[test]
    fn learned_addresses_are_led_by_protocol_and_port_as_far_as_the_kernel_can_say() {
        let rules = |traffic: Traffic| -> Vec<String> {
            let addresses = vec!["198.51.100.10".parse().unwrap(), "2001:db8:51::10".parse().unwrap()];
            let set = LearnedSet { set: "signaling".to_owned(), addresses, traffic };
            let plan = Plan::learned(&[Placed { table: 51903, set }], 7, 9, true);
            let behind: Vec<_> = plan.behind.iter().map(ToString::to_string).collect();
            assert_eq!(
                behind,
                [
                    "prohibit 198.51.100.10/32 in table 51903 with metric 200",
                    "prohibit 2001:db8:51::10/128 in table 51903 with metric 200",
                ]
            );
            let tun: Vec<_> = plan.tun.iter().map(ToString::to_string).collect();
            assert_eq!(
                tun,
                [
                    "198.51.100.10/32 on link 7 in table 51903 with metric 100",
                    "2001:db8:51::10/128 on link 7 in table 51903 with metric 100",
                ]
            );
            let rules: Vec<_> = plan.rules.iter().map(ToString::to_string).collect();
            assert_eq!(rules[..2], ["90: from all fwmark 0x9 goto 94", "90: from ::/0 fwmark 0x9 goto 94"]);
            let elsewhere = plan.at(40).rules.first().map(ToString::to_string);
            assert_eq!(elsewhere.as_deref(), Some("40: from all fwmark 0x9 goto 44"));
            rules[2..].to_vec()
        };
        let all = 0..=u16::MAX;
        assert_eq!(
            rules(Traffic { tcp: vec![80..=80, 5060..=5061], udp: vec![all.clone()], ..Traffic::default() }),
            [
                "91: from all ipproto 6 dport 80-80 lookup 51903",
                "91: from all ipproto 6 dport 5060-5061 lookup 51903",
                "92: from all ipproto 17 lookup 51903",
                "91: from ::/0 ipproto 6 dport 80-80 lookup 51903",
                "91: from ::/0 ipproto 6 dport 5060-5061 lookup 51903",
                "92: from ::/0 ipproto 17 lookup 51903",
            ]
        );
        assert_eq!(
            rules(Traffic { tcp: vec![22..=22, 1024..=u16::MAX], icmp: true, ..Traffic::default() }),
            [
                "92: from all ipproto 6 lookup 51903",
                "92: from all ipproto 1 lookup 51903",
                "92: from ::/0 ipproto 6 lookup 51903",
                "92: from ::/0 ipproto 58 lookup 51903",
            ]
        );
        assert_eq!(
            rules(Traffic { tcp: vec![all.clone()], udp: vec![all], icmp: true, other: true }),
            ["93: from all lookup 51903", "93: from ::/0 lookup 51903"]
        );
        assert_eq!(rules(Traffic::default()), [""; 0]);
    }
}

//! What routes and rules there should be: a pure function of the settings and the policy.
//!
//! ```text
//! rule 5180  not fwmark M          → table 51821   PREFIX dev tun metric 100, for each captured prefix;
//!                                                  behind it, outliving the TUN:
//!                                                  prohibit PREFIX metric 200 (fails closed)
//!                                                  throw    PREFIX metric 300 (fails direct)
//! rule 5181  from TUN-ADDRESS      → table 51822   default dev tun metric 100, prohibit default metric 200
//! ```
//!
//! The throw route is there for a prefix that fails direct inside one that fails closed.
//! The second rule names no mark: `not` would turn the whole condition round, and marked sockets are never bound to the
//! TUN's address.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use policy::{Captured, Fail};

use crate::netlink::{Family, Kind, Route, Rule};

/// The table of the captured prefixes.
pub const TABLE_CAPTURED: u32 = 51821;
/// The table of packets from the TUN's own addresses to anywhere else.
pub const TABLE_SOURCE: u32 = 51822;
/// Before main (32766), after local (0).
pub const PRIORITY_CAPTURED: u32 = 5180;
pub const PRIORITY_SOURCE: u32 = 5181;
/// Marks our routes and rules as ours: a `RTPROT_*` number that linux/rtnetlink.h leaves free.
pub const PROTOCOL: u8 = 181;
pub const METRIC_TUN: u32 = 100;
pub const METRIC_PROHIBIT: u32 = 200;
/// Another than [`METRIC_PROHIBIT`], so that both can stand while a reload turns one into the other.
pub const METRIC_THROW: u32 = 300;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What answers when the TUN's routes are gone.
    pub behind: Vec<Route>,
    pub rules: Vec<Rule>,
    pub tun: Vec<Route>,
}

impl Plan {
    /// `tun` is the TUN's index; without `ipv6` the kernel has none, and nothing is planned for it.
    pub fn new(captured: &[Captured], addresses: &[IpNet], tun: u32, mark: u32, ipv6: bool) -> Self {
        let mut plan = Self::default();
        for captured in captured {
            plan.capture(TABLE_CAPTURED, captured.prefix, captured.fail, tun);
        }
        for family in [Family::V4, Family::V6] {
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
        if !ipv6 {
            plan.rules.retain(|rule| rule.family == Family::V4);
            plan.behind.retain(|route| route.prefix.addr().is_ipv4());
            plan.tun.retain(|route| route.prefix.addr().is_ipv4());
        }
        plan
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
        let plan = Plan::new(&captured, &addresses, 7, 9, true);
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

        let plan = Plan::new(&captured, &addresses, 7, 9, false);
        assert_eq!((plan.behind.len(), plan.tun.len(), plan.rules.len()), (3, 3, 2));
    }
}

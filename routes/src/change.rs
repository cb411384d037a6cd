//! Changes of routes and rules that happen all or not at all.

use std::{collections::HashSet, fmt};

use tracing::warn;

use crate::{
    Error,
    netlink::{self, AnyRoute, AnyRule, Netlink, Route, Rule},
    plan::{PROTOCOL, Plan, TABLE_CAPTURED, TABLE_LEARNED, TABLE_SOURCE},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    AddRoute(Route),
    AddRule(Rule),
    DeleteRoute(Route),
    DeleteRule(Rule),
}

/// Our routes and rules as the kernel has them, and those of others.
#[derive(Debug)]
pub(crate) struct Present {
    pub routes: Vec<Route>,
    pub rules: Vec<Rule>,
    pub others: Vec<AnyRule>,
    other_routes: Vec<AnyRoute>,
}

impl Present {
    pub async fn read(netlink: &Netlink) -> Result<Self, Error> {
        Self::with(netlink.any_routes().await?, netlink).await
    }

    /// Without routes.
    pub async fn read_rules(netlink: &Netlink) -> Result<Self, Error> {
        Self::with(Vec::new(), netlink).await
    }

    /// Fails if somebody else has routes in the plan's tables, but for those that are ours already.
    pub fn refuse_taken(&self, plan: &Plan, is_ours: impl Fn(u32) -> bool) -> Result<(), Error> {
        match self.intruders(plan).find(|route| !is_ours(route.table)) {
            Some(foreign) => Err(Error::TableTaken { table: foreign.table, found: foreign.to_string() }),
            None => Ok(()),
        }
    }

    /// Somebody else's routes in the plan's tables.
    pub fn intruders(&self, plan: &Plan) -> impl Iterator<Item = &AnyRoute> {
        self.other_routes.iter().filter(|route| plan.leads_to(route.table))
    }

    /// Whether a rule of ours leads there or a route of ours is there: also one that a dead run has left.
    pub fn uses(&self, table: u32) -> bool {
        self.rules.iter().any(|rule| rule.table == table)
            || self.routes.iter().any(|route| route.table == table)
    }

    /// As if the kernel had what is planned and nothing else.
    pub fn assumed(plan: Plan) -> Self {
        let routes = [plan.behind, plan.tun].concat();
        Self { routes, rules: plan.rules, others: Vec::new(), other_routes: Vec::new() }
    }

    async fn with(routes: Vec<AnyRoute>, netlink: &Netlink) -> Result<Self, Error> {
        let (ours, other_routes): (Vec<_>, Vec<_>) =
            routes.into_iter().partition(|route| route.protocol == PROTOCOL);
        let routes = ours.into_iter().filter_map(|any| any.route).filter(is_ours).collect();
        let (ours, others): (Vec<_>, Vec<_>) =
            netlink.all_rules().await?.into_iter().partition(|rule| rule.protocol == PROTOCOL);
        let rules = ours.into_iter().filter_map(|any| any.rule).collect();
        Ok(Self { routes, rules, others, other_routes })
    }

    /// What refuses and the rules that lead to it.
    pub fn missing_guards(&self, plan: &Plan) -> Vec<Change> {
        [self.missing_routes(&plan.behind), self.missing_rules(plan)].concat()
    }

    pub fn missing_rules(&self, plan: &Plan) -> Vec<Change> {
        let present: HashSet<_> = self.rules.iter().collect();
        plan.rules.iter().filter(|rule| !present.contains(rule)).cloned().map(Change::AddRule).collect()
    }

    pub fn missing_tun_routes(&self, plan: &Plan) -> Vec<Change> {
        self.missing_routes(&plan.tun)
    }

    /// What the plan does not know: the rules, then what stood behind the TUN's routes, then these. The other way round a
    /// prefix that a wider one goes on capturing would be refused in between.
    pub fn stale(&self, plan: &Plan) -> Vec<Change> {
        let rules: HashSet<_> = plan.rules.iter().collect();
        let routes: HashSet<_> = plan.behind.iter().chain(&plan.tun).collect();
        let mut stale: Vec<_> = self.routes.iter().filter(|route| !routes.contains(route)).cloned().collect();
        stale.sort_by_key(|route| std::cmp::Reverse(route.metric));
        let rules = self.rules.iter().filter(|rule| !rules.contains(rule)).cloned().map(Change::DeleteRule);
        rules.chain(stale.into_iter().map(Change::DeleteRoute)).collect()
    }

    fn missing_routes(&self, wanted: &[Route]) -> Vec<Change> {
        let present: HashSet<_> = self.routes.iter().collect();
        wanted.iter().filter(|route| !present.contains(route)).cloned().map(Change::AddRoute).collect()
    }
}

fn is_ours(route: &Route) -> bool {
    let is_our_table = [TABLE_CAPTURED, TABLE_SOURCE].contains(&route.table) || route.table >= TABLE_LEARNED;
    route.protocol == PROTOCOL && is_our_table
}

/// Makes the changes in turn and notes each in `done`. What is as wanted already is no error and not noted.
pub(crate) async fn make(
    netlink: &Netlink,
    changes: Vec<Change>,
    done: &mut Vec<Change>,
) -> Result<(), Error> {
    for change in changes {
        match change.make(netlink).await {
            Ok(()) => done.push(change),
            Err(error) if change.needless(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Deletes what others have in our tables, and notes each in `removed`.
pub(crate) async fn evict(
    netlink: &Netlink,
    intruders: impl Iterator<Item = &AnyRoute>,
    removed: &mut Vec<String>,
) -> Result<(), Error> {
    for route in intruders {
        match netlink.delete_any_route(route).await {
            Ok(()) => removed.push(format!("our table without somebody else's route {route}")),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The same for what refuses, and the rules that lead to it. An IPv6 socket goes on by the route that it has found until one in the same
/// place changes, or a rule does (`fib6_rules_ops`, net/ipv6/fib6_rules.c): where routes are new, a rule comes and goes.
pub(crate) async fn make_guards(
    netlink: &Netlink,
    guards: Vec<Change>,
    plan: &Plan,
    done: &mut Vec<Change>,
) -> Result<(), Error> {
    let before = done.len();
    make(netlink, guards, done).await?;
    let is_new = |change: &Change| matches!(change, Change::AddRoute(route) if route.prefix.addr().is_ipv6());
    if !done.iter().skip(before).any(is_new) {
        return Ok(());
    }
    let changes = vec![Change::AddRule(plan.idle_rule()), Change::DeleteRule(plan.idle_rule())];
    make(netlink, changes, &mut Vec::new()).await
}

/// Takes changes back, the last first. What cannot be taken back is logged: the error that led here is the one to tell.
pub(crate) async fn revert(netlink: &Netlink, done: Vec<Change>) {
    for change in done.into_iter().rev() {
        let undo = change.inverse();
        if let Err(error) = undo.make(netlink).await
            && !undo.needless(&error)
        {
            warn!("could not undo a change: {error}");
        }
    }
}

impl Change {
    async fn make(&self, netlink: &Netlink) -> Result<(), netlink::Error> {
        match self {
            Self::AddRoute(route) => netlink.add_route(route).await,
            Self::AddRule(rule) => netlink.add_rule(rule).await,
            Self::DeleteRoute(route) => netlink.delete_route(route).await,
            Self::DeleteRule(rule) => netlink.delete_rule(rule).await,
        }
    }

    fn inverse(self) -> Self {
        match self {
            Self::AddRoute(route) => Self::DeleteRoute(route),
            Self::AddRule(rule) => Self::DeleteRule(rule),
            Self::DeleteRoute(route) => Self::AddRoute(route),
            Self::DeleteRule(rule) => Self::AddRule(rule),
        }
    }

    fn needless(&self, error: &netlink::Error) -> bool {
        match self {
            Self::AddRoute(_) | Self::AddRule(_) => error.errno() == Some(libc::EEXIST),
            Self::DeleteRoute(_) | Self::DeleteRule(_) => is_gone(error),
        }
    }
}

fn is_gone(error: &netlink::Error) -> bool {
    matches!(error.errno(), Some(libc::ESRCH | libc::ENOENT | libc::ENODEV))
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRoute(route) => write!(f, "route {route}"),
            Self::AddRule(rule) => write!(f, "rule {rule}"),
            Self::DeleteRoute(route) => write!(f, "no route {route}"),
            Self::DeleteRule(rule) => write!(f, "no rule {rule}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::netlink::{Family, Kind};

    #[test]
    fn a_failure_midway_takes_back_what_was_done() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "this needs root");
            return println!("skipped, because this needs root");
        }
        let test = async {
            let netlink = Netlink::new().unwrap();
            let kept = Route {
                kind: Kind::Prohibit,
                table: TABLE_CAPTURED,
                protocol: PROTOCOL,
                metric: 5,
                ..Route::new("192.0.2.0/24".parse::<IpNet>().unwrap())
            };
            let added = Route { prefix: "2001:db8::/32".parse().unwrap(), ..kept.clone() };
            let impossible = Route { kind: Kind::Unicast, device: Some(4711), ..added.clone() };
            let rule = Rule { protocol: PROTOCOL, ..Rule::new(Family::V6, 77, TABLE_CAPTURED) };
            netlink.add_route(&kept).await.unwrap();

            let changes = vec![
                Change::AddRoute(kept.clone()),
                Change::AddRoute(added),
                Change::AddRule(rule),
                Change::DeleteRoute(kept.clone()),
                Change::AddRoute(Route { metric: 6, ..impossible }),
            ];
            let mut done = Vec::new();
            make(&netlink, changes, &mut done).await.unwrap_err();
            assert_eq!(done.len(), 3, "{done:?}");
            revert(&netlink, done).await;
            let present = Present::read(&netlink).await.unwrap();
            assert_eq!((present.routes, present.rules), (vec![kept], vec![]));
        };
        let inside = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
        });
        inside.join().unwrap();
    }
}

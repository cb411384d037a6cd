//! What the daemon changes on the machine, and what it must know of it.

use std::{collections::HashSet, net::IpAddr, num::NonZero, time::Instant};

use dataplane::{GatewayLeg, OwnAddress, Tun, tunnel_mtu};
use packet::Dscp;
use policy::{Captured, Content, Facts, Path, Snapshot};
use routes::{
    Cleaned, Conflict, KILL_SWITCH, Routes, Settings, State, Wanted,
    connections::{self, Connection},
    dns::{self, Dns},
    netlink::{Netlink, Watch},
};

use super::{
    fold::Fold,
    leading::{Leading, Led},
    load::Loaded,
};
use crate::{
    failure::{Failure, Problem},
    state::StateDir,
};

/// SO_MARK of our own sockets; the routing rules let what carries it pass by the TUN. "brkt" in ASCII.
const FWMARK: NonZero<u32> = match NonZero::new(0x6272_6b74) {
    Some(mark) => mark,
    None => NonZero::<u32>::MIN,
};

/// The machine with the split tunnel's routes in place. Dropped without [`Machine::restore`], it keeps signaling closed.
pub struct Machine {
    /// Resolves when links, addresses, routes or rules change; then call [`Machine::follow`].
    pub watch: Watch,
    netlink: Netlink,
    routes: Routes,
    tun: String,
    /// Leads the questions for the policy's names to our resolver.
    leading: Option<Leading>,
    /// A crash had left them led to a resolver that was gone.
    took_over_names: bool,
    /// As far as they are known.
    gateways: Vec<Option<IpAddr>>,
    underlay: routes::Underlay,
    /// Why a change of the network could not be followed; it is tried again.
    failure: Option<String>,
    /// Of what was put back.
    told: Fold,
    /// All addresses of this machine.
    addresses: HashSet<IpAddr>,
    ended: Ended,
}

/// The connections outside of the tunnel.
#[derive(Default)]
struct Ended {
    /// How many were.
    count: usize,
    /// Why the last time not all were.
    failure: Option<String>,
}

/// What has become of a change of the network.
pub struct Followed {
    pub has_changed: bool,
    /// Something went wrong, and may keep signaling open or closed.
    pub is_to_repeat: bool,
}

/// Takes the state directory's lock, or says who has it.
pub fn lock(state: &StateDir) -> Result<State, Failure> {
    Ok(State::open(state.path()).map_err(|error| match error {
        routes::Error::Running(pid) => {
            let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            Failure::system(format!("a breakout daemon is running already{pid}")).remedy(
                "`breakout status` shows it, `breakout reload` gives it a new configuration, `breakout down` ends it",
            )
        }
        error => refused("cannot take the state directory", error),
    })?)
}

/// Removes what a daemon that died has left; says what it was, a line each.
pub async fn clean(state: &StateDir) -> Result<Vec<String>, Failure> {
    if !state.path().exists() && !nix::unistd::Uid::effective().is_root() {
        return Ok(Vec::new());
    }
    let failed = |error| refused("cannot clean up", error);
    // Held to the end: a daemon that starts then has a socket and a memory of its own.
    let lock = State::open(state.path()).map_err(failed)?;
    let cleaned = routes::clean(&lock).await.map_err(failed)?;
    match std::fs::remove_file(state.control_socket()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "cannot remove the control socket");
        }
        _ => {}
    }
    state.forget_learned();
    Ok(lines(&cleaned))
}

/// Removes whatever of ours keeps signaling closed, without asking lock or journal. Says what it was, and what went wrong.
pub async fn open_up() -> (Vec<String>, Vec<String>) {
    let (cleaned, errors) = routes::open_up().await;
    (lines(&cleaned), errors.iter().map(ToString::to_string).collect())
}

/// What a configuration's policy wants of the machine, with the addresses that were learned.
pub fn wanted(loaded: &Loaded, snapshot: &Snapshot) -> Wanted {
    Wanted {
        captured: snapshot.captured().to_vec(),
        learned: snapshot.learned().to_vec(),
        // What was learned is kept in by the routes' own account of it.
        kill_switch: loaded.config.routes.kill_switch.then(|| loaded.snapshot.guarded().to_vec()),
    }
}

fn lines(cleaned: &Cleaned) -> Vec<String> {
    let counted = [
        (usize::from(cleaned.kill_switch), "kill switch", "kill switches"),
        (usize::from(cleaned.dns), "way of resolving names (put back as it was)", "ways of resolving names"),
        (usize::from(cleaned.tun), "address setup of the TUN", "address setups of the TUN"),
        (cleaned.rules, "routing rule", "routing rules"),
        (cleaned.routes, "route", "routes, which kept signaling closed"),
        (
            cleaned.sysctls,
            "rp_filter setting (put back as it was)",
            "rp_filter settings (put back as they were)",
        ),
    ];
    counted
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
        .collect()
}

impl Machine {
    /// Gives the TUN its addresses and leads the captured prefixes into it. On an error everything is as before.
    pub async fn raise(
        state: State,
        tun: &Tun,
        loaded: &Loaded,
        snapshot: &Snapshot,
    ) -> Result<(Self, u16), Failure> {
        let unwatched = |error| refused("cannot look at the network", routes::Error::from(error));
        let mut watch = Watch::new().map_err(unwatched)?;
        let netlink = Netlink::new().map_err(unwatched)?;
        let gateways: Vec<_> = loaded.endpoints.iter().map(|at| at.map(|at| at.ip())).collect();
        let underlay = look(&netlink, &gateways, tun.index()).await?;
        heed_conflicts(snapshot.captured(), &loaded.gateways(), &underlay)?;
        let mtu = loaded.config.interface.mtu.unwrap_or_else(|| tunnel_mtu(gateway_mtu(&underlay)));
        let settings = Settings {
            tun: tun.name().to_owned(),
            addresses: loaded.config.interface.address.clone(),
            mtu: u32::from(mtu),
            mark: FWMARK,
        };
        let took_over_names = state.leads_names();
        let routes = Routes::apply(state, settings, &wanted(loaded, snapshot))
            .await
            .map_err(|error| refused("cannot set up addresses and routes", error))?;
        watch.ignore(routes.netlink());
        let tun = tun.name().to_owned();
        let mut machine = Self {
            watch,
            netlink,
            routes,
            tun,
            leading: None,
            took_over_names,
            gateways,
            underlay,
            failure: None,
            told: Fold::new(Instant::now()),
            addresses: HashSet::new(),
            ended: Ended::default(),
        };
        machine.read_addresses().await;
        machine.end_old_connections(loaded, snapshot);
        Ok((machine, mtu))
    }

    /// Lets go of what a crash kept closed and this configuration does not: when nothing else of the start can fail.
    pub async fn let_go(&self) -> Result<(), Failure> {
        let let_go = self.routes.let_go().await;
        Ok(let_go.map_err(|error| refused("cannot let go of what a crash kept closed", error))?)
    }

    /// Ends the connections that run outside of the TUN and belong into the tunnel: they are older than the routes, or were made
    /// while somebody else had taken those away. A UDP socket that may be voice is let be, and so is what never leaves this machine.
    pub fn end_old_connections(&mut self, loaded: &Loaded, snapshot: &Snapshot) {
        let own = &loaded.config.interface.address;
        let is_own = |address: IpAddr| own.iter().any(|own| own.addr() == address);
        let is_tunnels =
            |facts: Facts| snapshot.is_routed(&facts) && snapshot.classify(&facts).path == Path::Tunnel;
        let is_elsewhere = |Connection { local, remote, mark, .. }: &Connection| {
            !is_own(local.ip()) && !self.is_here(remote.ip()) && *mark != Some(FWMARK.get())
        };
        let tcp = connections::end(|connection| {
            is_elsewhere(connection) && is_tunnels(Facts::tcp(connection.remote))
        });
        let udp = connections::end_udp(|connection| {
            let marked = |dscp| is_tunnels(Facts::udp(connection.remote, dscp, Content::Other));
            is_elsewhere(connection) && marked(Dscp::DEFAULT) && marked(Dscp::EF)
        });
        self.ended.failure = None;
        for ended in [tcp, udp] {
            match &ended {
                Ok(ended) => {
                    for Connection { local, remote, .. } in ended {
                        tracing::info!(%local, %remote, "ended a connection to signaling outside of the tunnel");
                    }
                }
                Err(error) => tracing::warn!("connections to signaling outside of the tunnel stay: {error}"),
            }
            match ended {
                Ok(ended) => self.ended.count += ended.len(),
                Err(error) => _ = self.ended.failure.get_or_insert(error.to_string()),
            }
        }
    }

    fn is_here(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// As they are now; if they cannot be read, as they were.
    async fn read_addresses(&mut self) {
        match self.netlink.addresses().await {
            Ok(addresses) => self.addresses = addresses.iter().map(|address| address.net.addr()).collect(),
            Err(error) => tracing::warn!("this machine's addresses cannot be read: {error}"),
        }
    }

    pub const fn fwmark() -> u32 {
        FWMARK.get()
    }

    pub fn underlay(&self) -> dataplane::Underlay {
        let source = |leg: &Option<routes::Leg>| leg.as_ref().map(|leg| leg.source);
        dataplane::Underlay {
            v4: source(&self.underlay.v4).and_then(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
            v6: source(&self.underlay.v6).and_then(|address| match address {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            }),
            addresses: self.underlay.addresses.iter().map(own_address).collect(),
            gateways: self.underlay.gateways.iter().map(gateway_leg).collect(),
        }
    }

    /// Puts back what others have removed, ends what was connected meanwhile, and looks at the underlay again, whatever has become of
    /// the rest. Only a TUN that is gone is an error.
    pub async fn follow(&mut self, loaded: &Loaded, snapshot: &Snapshot) -> Result<Followed, routes::Error> {
        let repaired = self.routes.repair().await;
        self.read_addresses().await;
        if !matches!(&repaired, Ok(repaired) if repaired.is_empty()) {
            self.end_old_connections(loaded, snapshot);
        }
        let by =
            self.watch.last().map_or_else(String::new, |by| format!(", after {by} changed routes or rules"));
        let unrepaired = match repaired {
            Ok(repaired) => {
                for repaired in repaired {
                    match self.told.tell(Instant::now()) {
                        Some(0) => tracing::warn!("put back: {repaired}{by}"),
                        Some(more) => tracing::warn!("put back: {repaired}{by}; {more} others before it"),
                        None => {}
                    }
                }
                None
            }
            Err(error @ routes::Error::TunGone(_)) => return Err(error),
            Err(error) => Some(error.to_string()),
        };
        let gateways = &self.gateways;
        let now = routes::underlay(&self.netlink, FWMARK.get(), gateways, Some(self.routes.tun())).await;
        let unseen = now.as_ref().err().map(ToString::to_string);
        let has_changed = now.as_ref().is_ok_and(|now| *now != self.underlay);
        self.underlay = now.unwrap_or(self.underlay.clone());
        self.note_failure(unrepaired.or(unseen));
        Ok(Followed { has_changed, is_to_repeat: self.failure.is_some() })
    }

    /// Tells a failure that lasts once.
    fn note_failure(&mut self, failure: Option<String>) {
        match &failure {
            Some(why) if self.failure != failure => {
                tracing::error!("cannot follow a change of the network: {why}; trying again");
            }
            None if self.failure.is_some() => tracing::info!("changes of the network are followed again"),
            _ => {}
        }
        self.failure = failure;
    }

    /// Leads questions for these domains to our resolver, which listens on `on_link` and on [`dns::LOOPBACK`], and has it hand on others
    /// to where they went before.
    pub async fn set_up_dns(
        &mut self,
        on_link: IpAddr,
        domains: Vec<String>,
        resolver: names::Handle,
    ) -> Result<(), Failure> {
        let settings = dns::Settings { link: self.tun.clone(), index: self.routes.tun(), on_link, domains };
        let set_up = Dns::set_up(self.routes.state(), settings).await;
        let dns = set_up.map_err(|error| refused("cannot lead names to our resolver", error))?;
        tracing::info!("the policy's names are resolved through the tunnel, by way of {}", dns.report().mode);
        self.leading = Some(Leading::start(dns, self.routes.state().clone(), resolver));
        Ok(())
    }

    /// Has these domains led to our resolver in place of those before. The answer resolves when that is done, and need not be waited for.
    pub fn set_domains(&self, domains: Vec<String>) -> impl Future<Output = Result<(), Failure>> + use<> {
        let leading = self.leading.as_ref().map(|leading| leading.set_domains(domains));
        async {
            let Some(leading) = leading else { return Ok(()) };
            Ok(leading
                .await
                .map_err(|error| Failure::system("cannot lead other names to our resolver").because(error))?)
        }
    }

    /// Takes back how a dead run had led names to its resolver: this one has none.
    pub async fn put_dns_back(&mut self) -> Result<(), Failure> {
        let put_back = dns::put_back(self.routes.state()).await;
        put_back.map(drop).map_err(|error| refused("cannot put back how names were resolved", error).into())
    }

    /// Takes back how this run has led names to its resolver.
    async fn let_names_go(&mut self) {
        if let Some(leading) = self.leading.take() {
            leading.end().await;
        }
        if let Err(failure) = self.put_dns_back().await {
            tracing::error!("{}", failure.plain());
        }
    }

    /// How names are led to our resolver, why that way, and where others go; `None`: they are not.
    pub fn led(&self) -> Option<Led> {
        self.leading.as_ref().map(Leading::led)
    }

    /// Whether it is this machine's own or a neighbour's, or a DNS server that it asks: nothing that is in the cloud.
    pub fn is_near(&self, address: IpAddr) -> bool {
        let is_on_link = self.underlay.addresses.iter().any(|own| own.net.contains(&address));
        is_on_link || self.led().is_some_and(|led| led.others.iter().any(|server| server.ip() == address))
    }

    /// Leads exactly this into the TUN; on an error all is as before.
    pub async fn want(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        Ok(self.routes.update(wanted).await.map_err(|error| refused("cannot change the routes", error))?)
    }

    /// Leads what was learned into the TUN, and nothing else that was; on an error all is as before.
    pub async fn learn(&mut self, snapshot: &Snapshot) -> Result<(), Failure> {
        let learned = self.routes.learn(snapshot.learned()).await;
        Ok(learned.map_err(|error| refused("cannot route learned addresses", error))?)
    }

    /// Has applications make packets of this size, in bytes, for the tunnel.
    pub async fn set_mtu(&mut self, mtu: u16) -> Result<(), routes::Error> {
        self.routes.set_mtu(mtu.into()).await
    }

    /// Looks for the ways to other addresses of the gateways, now and from now on; on an error all is as before.
    pub async fn set_gateways(&mut self, gateways: Vec<Option<IpAddr>>) -> Result<(), Failure> {
        self.underlay = look(&self.netlink, &gateways, self.routes.tun()).await?;
        self.gateways = gateways;
        Ok(())
    }

    /// Says what is not as it should be, a feature each: name, on or off, why.
    pub fn features(&self) -> Vec<(&'static str, bool, String)> {
        let firewall = match self.routes.firewall_missing() {
            None => {
                (true, "packets for the interface's addresses that arrive elsewhere are dropped".to_owned())
            }
            Some(error) => (false, error.to_string()),
        };
        let kill_switch = match self.routes.kill_switch() {
            None => (false, "not configured (`kill_switch` in [routes])".to_owned()),
            Some(report) => (report.missing.is_none(), kill_switch(&report)),
        };
        let rules = match self.routes.ahead() {
            [] => (true, "no other program's decide before ours".to_owned()),
            ahead => (false, format!("rules of somebody else decide before ours: {}", ahead.join("; "))),
        };
        let following = match &self.failure {
            None => (true, "changes of the network are followed".to_owned()),
            Some(why) => (false, format!("{why}; it is tried again")),
        };
        let old_connections = match &self.ended {
            Ended { failure: Some(why), .. } => (false, why.clone()),
            Ended { count: 0, .. } => (true, "there was none to end".to_owned()),
            Ended { count: 1, .. } => {
                (true, "1 connection to signaling outside of the tunnel was ended".to_owned())
            }
            Ended { count, .. } => {
                (true, format!("{count} connections to signaling outside of the tunnel were ended"))
            }
        };
        let names = match self.led() {
            None => (false, "not configured (`dns` in [tunnel])".to_owned()),
            Some(Led { report, .. }) => (true, format!("by way of {}: {}", report.mode, report.why)),
        };
        vec![
            ("firewall", firewall.0, firewall.1),
            ("kill-switch", kill_switch.0, kill_switch.1),
            ("routing-rules", rules.0, rules.1),
            ("network-changes", following.0, following.1),
            ("old-connections", old_connections.0, old_connections.1),
            ("split-dns", names.0, names.1),
        ]
    }

    /// Whether a dead run's leftovers were there.
    pub fn took_over(&self) -> bool {
        self.routes.took_over()
    }

    /// The state directory's lock, as long as this is kept.
    pub fn lock(&self) -> State {
        self.routes.state().clone()
    }

    /// Leaves the machine as it was found, and lets go of the lock.
    pub async fn restore(mut self) -> Result<(), Failure> {
        if let Some(leading) = self.leading.take() {
            leading.end().await;
        }
        Ok(self.routes.teardown().await.map_err(|error| {
            refused("cannot put everything back", error).remedy("`breakout down` tries again what is left")
        })?)
    }

    /// After a start that failed: leaves the machine as it was found, be that with signaling refused after a crash.
    pub async fn give_up(mut self) {
        if self.routes.took_over() {
            tracing::warn!("signaling stays refused, as a crash had left it; `breakout down` lifts that");
            if !self.took_over_names {
                self.let_names_go().await;
            }
        } else if let Err(failure) = self.restore().await {
            tracing::error!("{}", failure.plain());
        }
    }
}

fn kill_switch(report: &routes::KillSwitchReport) -> String {
    let mut told = match &report.missing {
        Some(why) => format!("the table inet {KILL_SWITCH} was changed and cannot be put back: {why}"),
        None => {
            let ranges = if report.ranges == 1 { "range" } else { "ranges" };
            format!(
                "the table inet {KILL_SWITCH} keeps {} {ranges} of addresses off other interfaces",
                report.ranges
            )
        }
    };
    if report.put_back > 0 {
        told += &format!("; put back {} times", report.put_back);
    }
    if let Some(by) = &report.last {
        told += &format!(", last after {by}");
    }
    told
}

async fn look(netlink: &Netlink, gateways: &[Option<IpAddr>], tun: u32) -> Result<routes::Underlay, Failure> {
    Ok(routes::underlay(netlink, FWMARK.get(), gateways, Some(tun))
        .await
        .map_err(|error| refused("cannot look at the network", error))?)
}

fn heed_conflicts(
    captured: &[Captured],
    gateways: &[IpAddr],
    underlay: &routes::Underlay,
) -> Result<(), Failure> {
    for conflict in routes::conflicts(captured, gateways, underlay) {
        if let Conflict::Endpoint { .. } = conflict {
            return Err(Failure::usage("the tunnel cannot run inside itself").because(conflict).into());
        }
        tracing::warn!("{conflict}");
    }
    Ok(())
}

fn own_address(address: &routes::PhysicalAddress) -> OwnAddress {
    OwnAddress { ip: address.net.addr(), device: address.leads_out.then_some(address.index) }
}

fn gateway_leg(leg: &Option<routes::Leg>) -> GatewayLeg {
    GatewayLeg {
        reachable: leg.is_some(),
        mtu: leg.as_ref().map(|leg| leg.mtu),
        by: leg.as_ref().map(|leg| (leg.index, leg.source, leg.via)),
    }
}

fn gateway_mtu(underlay: &routes::Underlay) -> Option<u32> {
    underlay.gateways.iter().flatten().map(|leg| leg.mtu).min()
}

fn refused(what: &str, error: routes::Error) -> Problem {
    Failure::system(what).because(error)
}

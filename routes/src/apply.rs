use std::num::NonZeroU32;

use ipnet::IpNet;
use policy::{Captured, Guarded, LearnedSet};
use tracing::warn;

use crate::{
    Cleaned, Error, State, Undo,
    change::{self, Change, Present},
    clean::{take_back, take_back_all, take_back_but},
    kill_switch::{Contents, KillSwitch, KillSwitchReport, Passing, TABLES},
    learned::{Placed, place},
    netlink::{AnyRule, Link, Netlink},
    nft, place,
    plan::{PRIORITIES, Plan},
    sysctl,
};

/// Below this the kernel takes IPv6 addresses and routes away from a link (RFC 8200 section 5).
const MTU_MIN: u32 = 1280;

/// The nftables table that drops what neighbours send to the TUN's addresses.
const FIREWALL: &str = "breakout";
/// Before connection tracking (`NF_IP_PRI_RAW`, linux/netfilter_ipv4.h).
const PRIORITY_RAW: i32 = -300;

/// What is to be set up, beside the captured prefixes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The TUN's name. It exists, and vanishes with the process.
    pub tun: String,
    /// The TUN's addresses.
    pub addresses: Vec<IpNet>,
    /// Bytes of IP packet. The link's MTU is 1280 if this is less.
    pub mtu: u32,
    /// The fwmark of our own sockets, which never enter the TUN. 0 is everybody else's.
    pub mark: NonZeroU32,
}

/// What the policy wants of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What leads into the TUN.
    pub captured: Vec<Captured>,
    /// What of the traffic to addresses that names have led to does so too.
    pub learned: Vec<LearnedSet>,
    /// What the firewall keeps off all other interfaces, beside all of `learned`: that of the policy before it learned.
    /// `None`: there is no kill switch.
    pub kill_switch: Option<Vec<Guarded>>,
}

/// Captured prefixes lead into the TUN until [`Routes::teardown`].
///
/// Dropped without that, as in a crash, it leaves what keeps signaling closed: the prohibit routes, the rules and the kill
/// switch.
/// All calls must be made from threads in the network namespace in which it was applied.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
    state: State,
    settings: Settings,
    captured: Vec<Captured>,
    learned: Vec<Placed>,
    tun: u32,
    /// The first of our rules' priorities.
    place: u32,
    /// Others' rules that decide before ours.
    ahead: Vec<String>,
    kill_switch: Option<KillSwitch>,
    firewall: Result<nft::Owned, nft::Error>,
    took_over: bool,
}

impl Settings {
    fn link_mtu(&self) -> u32 {
        self.mtu.max(MTU_MIN)
    }
}

impl Routes {
    /// Sets everything up; on an error everything is as before, but for the TUN's own settings, which go with it, and for what
    /// others had put into our tables, in whose stead ours refuses.
    /// What a crash has left is taken over; at no time does a prefix that fails closed go out directly, unless others had it do
    /// so, or what refused was theirs and stood in the place of ours: that is deleted a moment before ours is there.
    /// What a crash kept closed stays closed beside what is wanted now, until [`Routes::let_go`].
    pub async fn apply(state: State, settings: Settings, wanted: &Wanted) -> Result<Self, Error> {
        let netlink = Netlink::new()?;
        let closed = closed(&netlink).await?;
        let took_over = !closed.is_empty();
        let left = [state.journal().undo(), closed].concat();
        let mut done = Vec::new();
        match raise(&netlink, &state, &settings, wanted, &mut done).await {
            Ok(Raised { learned, tun, place, others, kill_switch, firewall }) => {
                let captured = wanted.captured.clone();
                let mut routes = Self {
                    netlink,
                    state,
                    settings,
                    captured,
                    learned,
                    tun,
                    place,
                    ahead: Vec::new(),
                    kill_switch,
                    firewall,
                    took_over,
                };
                routes.heed(&others);
                Ok(routes)
            }
            Err(error) => {
                change::revert(&netlink, done).await;
                // What cannot be taken back is logged there: the error that led here is the one to tell.
                drop(take_back_but(&netlink, &state, &left, &mut Cleaned::default()).await);
                Err(error)
            }
        }
    }

    /// Lets go of what a run that crashed kept closed and this one does not want: when nothing else can fail any more. On an
    /// error it stays closed.
    pub async fn let_go(&self) -> Result<(), Error> {
        let plan = self.plan(&self.captured, &self.learned);
        let present = Present::read(&self.netlink).await?;
        let mut done = Vec::new();
        let mut left = change::make(&self.netlink, present.stale(&plan), &mut done).await;
        if left.is_ok() {
            left = match &self.kill_switch {
                Some(up) => up.take_over().map_err(Error::KillSwitch),
                None => take_back_kill_switch(&self.netlink, &self.state).await,
            };
        }
        if left.is_err() {
            change::revert(&self.netlink, done).await;
        }
        left
    }

    /// Swaps what is captured and what the kill switch keeps in: the new is there before the old goes. On an error all is as
    /// before.
    pub async fn update(&mut self, wanted: &Wanted) -> Result<(), Error> {
        let learned = place(&self.learned, &wanted.learned);
        let before = match (&self.kill_switch, contents(wanted)) {
            (Some(up), Some(contents)) => Some(up.swap(contents).map_err(Error::KillSwitch)?),
            (None, Some(contents)) => {
                self.kill_switch = Some(self.raise_kill_switch(contents).await?);
                None
            }
            (_, None) => self.kill_switch.as_ref().map(KillSwitch::contents),
        };
        if let Err(error) = self.reach(&wanted.captured, &learned).await {
            let undone = match (&self.kill_switch, before) {
                (Some(up), Some(before)) => up.swap(before).map(drop).map_err(Error::KillSwitch),
                _ => self.remove_kill_switch(),
            };
            undone.unwrap_or_else(|error| warn!("could not undo a change: {error}"));
            return Err(error);
        }
        if wanted.kill_switch.is_none()
            && let Err(error) = self.remove_kill_switch()
        {
            if let Err(error) = self.reach(&self.captured, &self.learned).await {
                warn!("could not undo a change: {error}");
            }
            return Err(error);
        }
        self.captured = wanted.captured.clone();
        self.learned = learned;
        Ok(())
    }

    /// Swaps the learned addresses alone, in a time that does not grow with the captured prefixes: by what was set up, without
    /// a look at the kernel's tables. The new lead into the TUN, and are refused behind it, when this returns. On an error
    /// all is as before.
    pub async fn learn(&mut self, learned: &[LearnedSet]) -> Result<(), Error> {
        let learned = place(&self.learned, learned);
        let mut done = Vec::new();
        if let Err(error) = self.swap_learned(&learned, &mut done).await {
            change::revert(&self.netlink, done).await;
            return Err(error);
        }
        self.learned = learned;
        Ok(())
    }

    /// Puts back what others have removed, removes what they have put into our tables, moves our rules ahead of theirs, and makes
    /// `rp_filter` loose on new interfaces: to be called after each [`crate::netlink::Watch::changed`], and again after an error.
    /// Answers with what was missing. What refuses comes first and stays, whatever fails after it. Fails with [`Error::TunGone`] when
    /// there is no TUN to lead to.
    pub async fn repair(&mut self) -> Result<Vec<String>, Error> {
        let stood = self.place;
        let mut done = Vec::new();
        // The rules first, since all routes may take a while to read: until they are there, signaling is in the open.
        let present = Present::read_rules(&self.netlink).await?;
        let came = self.heed(&present.others);
        let mut repaired: Vec<_> =
            came.iter().map(|rule| format!("our rules' place ahead of {rule}")).collect();
        let plan = self.plan(&self.captured, &self.learned);
        change::make(&self.netlink, present.missing_rules(&plan), &mut done).await?;
        if self.place != stood {
            // They are not missing, they stand elsewhere.
            done.clear();
        }
        let present = Present::read(&self.netlink).await?;
        change::evict(&self.netlink, present.intruders(&plan), &mut repaired).await?;
        let guarded =
            change::make_guards(&self.netlink, present.missing_guards(&plan), &plan, &mut done).await;
        repaired.extend(done.iter().map(ToString::to_string));
        guarded?;

        let links = self.netlink.links().await?;
        let tun = links.iter().find(|link| link.index == self.tun).ok_or_else(|| self.tun_gone())?;
        let present = self.netlink.addresses().await?;
        for address in &self.settings.addresses {
            if !present.iter().any(|found| found.index == self.tun && found.net == *address) {
                repaired.push(format!("address {address}"));
            }
        }
        if !tun.up || tun.mtu != self.settings.link_mtu() {
            repaired.push(format!("link {}", tun.name));
        }
        // An IPv6 address vanishes with a link that is set down or made too narrow: both go together.
        raise_tun(&self.netlink, &self.settings, tun).await?;
        repaired.extend(self.reach(&self.captured, &self.learned).await?.iter().map(ToString::to_string));
        let loosened = sysctl::loosen(self.state.journal(), &links)?;
        repaired.extend(loosened.into_iter().map(|name| format!("loose rp_filter of {name}")));
        Ok(repaired)
    }

    /// Gives the TUN another MTU, in bytes of IP packet; the link's stays at 1280 if this is less.
    pub async fn set_mtu(&mut self, mtu: u32) -> Result<(), Error> {
        self.settings.mtu = mtu;
        Ok(self.netlink.set_mtu(self.tun, self.settings.link_mtu()).await?)
    }

    /// Removes everything, the TUN's addresses and routes first, so that nothing goes out with its address.
    /// Goes on after an error and tells the first; what is left then is for the next [`Routes::apply`] or
    /// [`clean`](crate::clean).
    pub async fn teardown(self) -> Result<(), Error> {
        // What it keeps would only be put back.
        drop(self.kill_switch);
        take_back_all(&self.netlink, &self.state).await.map(drop)
    }

    /// Why packets for the TUN's addresses that arrive on other interfaces are not dropped; `None`: they are.
    pub fn firewall_missing(&self) -> Option<&nft::Error> {
        self.firewall.as_ref().err()
    }

    /// What has become of the kill switch; `None` if there is none.
    pub fn kill_switch(&self) -> Option<KillSwitchReport> {
        self.kill_switch.as_ref().map(KillSwitch::report)
    }

    /// Whether a run that crashed had left signaling refused. Who cannot go on then should drop this rather than open
    /// the way again with [`Routes::teardown`].
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// Through which all changes are made: what [`crate::netlink::Watch::ignore`] wants.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The state directory, to be used by [`Dns`](crate::dns::Dns) too.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The TUN's index.
    pub fn tun(&self) -> u32 {
        self.tun
    }

    /// The rules of others that decide before ours, which cannot be moved ahead of them; a line each.
    pub fn ahead(&self) -> &[String] {
        &self.ahead
    }

    /// Has our rules stand ahead of these from the next change on. Answers with those that have come ahead of where they stand now.
    fn heed(&mut self, others: &[AnyRule]) -> Vec<String> {
        let told = |place| place::ahead(others, place).map(ToString::to_string).collect::<Vec<_>>();
        let mut came = told(self.place);
        self.place = place::place(others, self.place);
        let ahead = told(self.place);
        for rule in ahead.iter().filter(|rule| !self.ahead.contains(rule)) {
            warn!("a rule of somebody else decides before ours: {rule}");
        }
        came.retain(|rule| !ahead.contains(rule));
        self.ahead = ahead;
        came
    }

    fn plan(&self, captured: &[Captured], learned: &[Placed]) -> Plan {
        plan(&self.settings, captured, learned, self.tun).at(self.place)
    }

    fn tun_gone(&self) -> Error {
        Error::TunGone(self.settings.tun.clone())
    }

    /// On an error there is none.
    async fn raise_kill_switch(&self, contents: Contents) -> Result<KillSwitch, Error> {
        let up = raise_kill_switch(&self.state, contents, passing(&self.settings, self.tun));
        let up = up.and_then(|up| up.take_over().map(|()| up).map_err(Error::KillSwitch));
        if up.is_err()
            && let Err(error) = take_back_kill_switch(&self.netlink, &self.state).await
        {
            warn!("could not undo a change: {error}");
        }
        up
    }

    /// On an error it stands, and is kept.
    fn remove_kill_switch(&mut self) -> Result<(), Error> {
        let Some(up) = &self.kill_switch else { return Ok(()) };
        up.remove().map_err(Error::Firewall)?;
        self.kill_switch = None;
        // A note of what is gone already undoes nothing.
        if let Err(error) = self.state.journal().forget(|undo| matches!(undo, Undo::Table { .. })) {
            warn!("the kill switch is removed, but still noted: {error}");
        }
        Ok(())
    }

    async fn swap_learned(&self, learned: &[Placed], done: &mut Vec<Change>) -> Result<(), Error> {
        let mark = self.settings.mark.get();
        let plan =
            |learned: &[Placed]| Plan::learned(learned, self.tun, mark, sysctl::has_ipv6()).at(self.place);
        let (present, plan) = (Present::assumed(plan(&self.learned)), plan(learned));
        change::make(&self.netlink, present.missing_tun_routes(&plan), done).await?;
        change::make_guards(&self.netlink, present.missing_guards(&plan), &plan, done).await?;
        let Some(up) = &self.kill_switch else {
            return change::make(&self.netlink, present.stale(&plan), done).await;
        };
        let learned = learned.iter().map(|placed| placed.set.clone()).collect();
        let before = up.contents();
        up.swap(Contents { learned, ..before.clone() }).map_err(Error::KillSwitch)?;
        let changed = change::make(&self.netlink, present.stale(&plan), done).await;
        if changed.is_err()
            && let Err(error) = up.swap(before)
        {
            warn!("could not undo a change: {error}");
        }
        changed
    }

    /// Answers with what was added.
    async fn reach(&self, captured: &[Captured], learned: &[Placed]) -> Result<Vec<Change>, Error> {
        let mut done = Vec::new();
        let reached = self.change(captured, learned, &mut done).await;
        if let Err(error) = reached {
            change::revert(&self.netlink, done).await;
            return Err(error);
        }
        done.retain(|change| matches!(change, Change::AddRoute(_) | Change::AddRule(_)));
        Ok(done)
    }

    async fn change(
        &self,
        captured: &[Captured],
        learned: &[Placed],
        done: &mut Vec<Change>,
    ) -> Result<(), Error> {
        let plan = self.plan(captured, learned);
        let present = Present::read(&self.netlink).await?;
        let standing = self.plan(&self.captured, &self.learned);
        present.refuse_taken(&plan, |table| standing.leads_to(table))?;
        // A new prefix inside an old one would be refused if what stands behind its route came first.
        change::make(&self.netlink, present.missing_tun_routes(&plan), done).await?;
        change::make_guards(&self.netlink, present.missing_guards(&plan), &plan, done).await?;
        change::make(&self.netlink, present.stale(&plan), done).await
    }
}

struct Raised {
    learned: Vec<Placed>,
    tun: u32,
    place: u32,
    others: Vec<AnyRule>,
    kill_switch: Option<KillSwitch>,
    firewall: Result<nft::Owned, nft::Error>,
}

/// The undo of what a dead run keeps closed, noted or not.
async fn closed(netlink: &Netlink) -> Result<Vec<Undo>, Error> {
    let mut closed = Vec::new();
    if !Present::read_rules(netlink).await?.rules.is_empty() {
        closed.push(Undo::Routing);
    }
    for name in TABLES {
        if nft::exists(name).map_err(Error::Firewall)? {
            closed.push(Undo::Table { name: name.to_owned() });
        }
    }
    Ok(closed)
}

/// What refuses comes first, then the firewall, then the TUN's addresses, and only then its routes.
async fn raise(
    netlink: &Netlink,
    state: &State,
    settings: &Settings,
    wanted: &Wanted,
    done: &mut Vec<Change>,
) -> Result<Raised, Error> {
    let links = netlink.links().await?;
    let gone = || Error::TunGone(settings.tun.clone());
    let tun = links.iter().find(|link| link.name == settings.tun).ok_or_else(gone)?;
    let learned = place(&[], &wanted.learned);
    let plan = plan(settings, &wanted.captured, &learned, tun.index);
    let present = Present::read(netlink).await?;
    present.refuse_taken(&plan, |table| present.uses(table))?;
    let place = place::place(&present.others, PRIORITIES.start);
    let plan = plan.at(place);

    let raised = |contents| raise_kill_switch(state, contents, passing(settings, tun.index));
    let kill_switch = contents(wanted).map(raised).transpose()?;
    sysctl::loosen(state.journal(), &links)?;
    let addresses = settings.addresses.clone();
    state
        .journal()
        .note([Undo::Routing, Undo::Tun { name: tun.name.clone(), index: tun.index, addresses }])?;
    let mut removed = Vec::new();
    change::evict(netlink, present.intruders(&plan), &mut removed).await?;
    for removed in &removed {
        warn!("put back: {removed}");
    }
    change::make_guards(netlink, present.missing_guards(&plan), &plan, done).await?;
    if !removed.is_empty() {
        // What others had put there may have refused, and is gone: what refuses now stays, whatever fails after it.
        done.clear();
    }

    let firewall = firewall(settings).install_owned();
    if let Err(error) = &firewall {
        warn!("neighbours can reach the tunnel's address: {error}");
    }
    if sysctl::has_ipv6() {
        sysctl::enable_ipv6(&settings.tun)?;
        netlink.set_no_own_address(tun.index).await?;
    }
    raise_tun(netlink, settings, tun).await?;
    change::make(netlink, present.missing_tun_routes(&plan), done).await?;
    take_back_other_tun(netlink, state, tun.index).await?;
    Ok(Raised { learned, tun: tun.index, place, others: present.others, kill_switch, firewall })
}

/// A dead run's, that a child of its daemon's has kept.
async fn take_back_other_tun(netlink: &Netlink, state: &State, tun: u32) -> Result<(), Error> {
    let is_other = |undo: &Undo| match undo {
        Undo::Tun { index, .. } | Undo::ResolvedLink { index, .. } => *index != tun,
        Undo::Routing | Undo::RpFilter { .. } | Undo::Table { .. } => false,
        Undo::ResolvConf { .. } | Undo::ResolvconfEntry | Undo::DnsLink => false,
    };
    for undo in state.journal().undo().into_iter().filter(is_other) {
        take_back_one(netlink, state, undo).await?;
    }
    Ok(())
}

/// Also one whose journal is lost.
async fn take_back_kill_switch(netlink: &Netlink, state: &State) -> Result<(), Error> {
    for undo in kill_switch_undo() {
        take_back_one(netlink, state, undo).await?;
    }
    Ok(())
}

async fn take_back_one(netlink: &Netlink, state: &State, undo: Undo) -> Result<(), Error> {
    take_back(netlink, &undo, &mut Cleaned::default()).await?;
    state.journal().forget(|noted| *noted == undo)
}

fn raise_kill_switch(state: &State, contents: Contents, passing: Passing) -> Result<KillSwitch, Error> {
    state.journal().note(kill_switch_undo())?;
    KillSwitch::raise(contents, passing).map_err(Error::KillSwitch)
}

fn passing(settings: &Settings, tun: u32) -> Passing {
    Passing { tun: settings.tun.clone(), index: tun, mark: settings.mark.get() }
}

/// The table itself is undone last.
fn kill_switch_undo() -> impl Iterator<Item = Undo> {
    TABLES.into_iter().rev().map(|name| Undo::Table { name: name.to_owned() })
}

/// What the kill switch is to keep in, if there is to be one.
fn contents(wanted: &Wanted) -> Option<Contents> {
    let guarded = wanted.kill_switch.clone()?;
    Some(Contents { guarded, learned: wanted.learned.clone() })
}

fn plan(settings: &Settings, captured: &[Captured], learned: &[Placed], tun: u32) -> Plan {
    Plan::new(captured, learned, &settings.addresses, tun, settings.mark.get(), sysctl::has_ipv6())
}

async fn raise_tun(netlink: &Netlink, settings: &Settings, tun: &Link) -> Result<(), Error> {
    let mtu = settings.link_mtu();
    if tun.mtu != mtu {
        netlink.set_mtu(tun.index, mtu).await?;
    }
    if !tun.up {
        netlink.set_up(tun.index).await?;
    }
    for address in &settings.addresses {
        match netlink.add_address(tun.index, *address).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => {}
            added => added?,
        }
    }
    Ok(())
}

fn firewall(settings: &Settings) -> nft::Table {
    let drop_elsewhere = |address: &IpNet| {
        vec![
            nft::Expr::NotInInterface(settings.tun.clone()),
            nft::Expr::NotInInterface("lo".to_owned()),
            nft::Expr::Destination(IpNet::from(address.addr())),
            nft::Expr::Counter,
            nft::Expr::Drop,
        ]
    };
    nft::Table {
        name: FIREWALL.to_owned(),
        comment: None,
        sets: Vec::new(),
        chains: vec![nft::Chain {
            name: "elsewhere".to_owned(),
            kind: nft::ChainKind::Filter,
            hook: nft::Hook::Prerouting,
            priority: PRIORITY_RAW,
            policy: nft::Policy::Accept,
            rules: settings.addresses.iter().map(drop_elsewhere).collect(),
        }],
    }
}

use std::{num::NonZeroU32, path::Path};

use ipnet::IpNet;
use policy::Captured;
use tracing::warn;

use crate::{
    Error, State,
    change::{self, Change, Present},
    netlink::{self, Link, Netlink},
    nft,
    plan::Plan,
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

/// Captured prefixes lead into the TUN until [`Routes::teardown`].
///
/// Dropped without that, as in a crash, it leaves what keeps signaling closed: the prohibit routes and the rules.
/// All calls must be made from threads in the network namespace in which it was applied.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
    state: State,
    settings: Settings,
    captured: Vec<Captured>,
    tun: u32,
    firewall: Result<nft::Owned, nft::Error>,
    took_over: bool,
}

impl Settings {
    fn link_mtu(&self) -> u32 {
        self.mtu.max(MTU_MIN)
    }
}

/// How much an earlier run had left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub rules: usize,
    pub routes: usize,
    pub sysctls: usize,
}

impl Routes {
    /// Sets everything up; on an error everything is as before, but for the TUN's own settings, which go with it.
    /// What a crash has left is taken over; at no time does a prefix that fails closed go out directly.
    pub async fn apply(mut state: State, settings: Settings, captured: &[Captured]) -> Result<Self, Error> {
        let netlink = Netlink::new()?;
        let mut done = Vec::new();
        match raise(&netlink, &mut state, &settings, captured, &mut done).await {
            Ok(Raised { tun, firewall, took_over }) => {
                Ok(Self { netlink, state, settings, captured: captured.to_vec(), tun, firewall, took_over })
            }
            Err(error) => {
                lower_tun(&netlink, &settings).await.unwrap_or_else(|error| warn!("could not undo: {error}"));
                change::revert(&netlink, done).await;
                restore_sysctls(&netlink, &mut state)
                    .await
                    .map_or_else(|error| warn!("could not undo: {error}"), drop);
                Err(error)
            }
        }
    }

    /// Swaps the captured prefixes: the new ones are there before old ones go. On an error all is as before.
    pub async fn update(&mut self, captured: &[Captured]) -> Result<(), Error> {
        self.reach(captured).await?;
        self.captured = captured.to_vec();
        Ok(())
    }

    /// Puts back what others have removed, and makes `rp_filter` loose on new interfaces: to be called after each
    /// [`netlink::Watch::changed`], and again after an error. Answers with what was missing. What refuses comes first and stays,
    /// whatever fails after it. Fails with [`Error::TunGone`] when there is no TUN to lead to.
    pub async fn repair(&mut self) -> Result<Vec<String>, Error> {
        let mut guards = Vec::new();
        let present = Present::read(&self.netlink).await?;
        let plan = plan(&self.settings, &self.captured, self.tun);
        let guarded = change::make(&self.netlink, present.missing_guards(&plan), &mut guards).await;
        let mut repaired: Vec<_> = guards.iter().map(ToString::to_string).collect();
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
        repaired.extend(self.reach(&self.captured).await?.iter().map(ToString::to_string));
        let loosened = sysctl::loosen(&mut self.state, &links)?;
        repaired.extend(loosened.into_iter().map(|name| format!("loose rp_filter of {name}")));
        Ok(repaired)
    }

    /// Gives the TUN another MTU, in bytes of IP packet; the link's stays at 1280 if this is less.
    pub async fn set_mtu(&mut self, mtu: u32) -> Result<(), Error> {
        self.settings.mtu = mtu;
        Ok(self.netlink.set_mtu(self.tun, self.settings.link_mtu()).await?)
    }

    /// Removes everything, the TUN's addresses and routes first, so that nothing goes out with its address.
    /// Goes on after an error and tells the first; what is left then is for the next [`Routes::apply`] or [`clean`].
    pub async fn teardown(mut self) -> Result<(), Error> {
        let lowered = lower_tun(&self.netlink, &self.settings).await;
        let removed = remove_all(&self.netlink).await;
        drop(self.firewall);
        let restored = restore_sysctls(&self.netlink, &mut self.state).await;
        lowered.and(removed.map(drop)).and(restored.map(drop))
    }

    /// Why packets for the TUN's addresses that arrive on other interfaces are not dropped; `None`: they are.
    pub fn firewall_missing(&self) -> Option<&nft::Error> {
        self.firewall.as_ref().err()
    }

    /// Whether a run that crashed had left signaling refused. Who cannot go on then should drop this rather than open
    /// the way again with [`Routes::teardown`].
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// The TUN's index.
    pub fn tun(&self) -> u32 {
        self.tun
    }

    fn tun_gone(&self) -> Error {
        Error::TunGone(self.settings.tun.clone())
    }

    /// Answers with what was added.
    async fn reach(&self, captured: &[Captured]) -> Result<Vec<Change>, Error> {
        let mut done = Vec::new();
        let reached = self.change(captured, &mut done).await;
        if let Err(error) = reached {
            change::revert(&self.netlink, done).await;
            return Err(error);
        }
        done.retain(|change| matches!(change, Change::AddRoute(_) | Change::AddRule(_)));
        Ok(done)
    }

    async fn change(&self, captured: &[Captured], done: &mut Vec<Change>) -> Result<(), Error> {
        let plan = plan(&self.settings, captured, self.tun);
        let present = Present::read_alone(&self.netlink).await?;
        // A new prefix inside an old one would be refused if what stands behind its route came first.
        change::make(&self.netlink, present.missing_tun_routes(&plan), done).await?;
        change::make(&self.netlink, present.missing_guards(&plan), done).await?;
        change::make(&self.netlink, present.stale(&plan), done).await
    }
}

/// Undoes what a daemon that is gone has left in the calling thread's network namespace.
/// Fails with [`Error::Running`] if one is there.
pub async fn clean(state_directory: &Path) -> Result<Cleaned, Error> {
    let mut state = State::open(state_directory)?;
    let netlink = Netlink::new()?;
    let removed = remove_all(&netlink).await?;
    let sysctls = restore_sysctls(&netlink, &mut state).await?;
    Ok(Cleaned { sysctls, ..removed })
}

struct Raised {
    tun: u32,
    firewall: Result<nft::Owned, nft::Error>,
    took_over: bool,
}

/// What refuses comes first, then the firewall, then the TUN's addresses, and only then its routes.
async fn raise(
    netlink: &Netlink,
    state: &mut State,
    settings: &Settings,
    captured: &[Captured],
    done: &mut Vec<Change>,
) -> Result<Raised, Error> {
    let links = netlink.links().await?;
    let gone = || Error::TunGone(settings.tun.clone());
    let tun = links.iter().find(|link| link.name == settings.tun).ok_or_else(gone)?;
    let plan = plan(settings, captured, tun.index);
    let present = Present::read_alone(netlink).await?;
    sysctl::loosen(state, &links)?;
    change::make(netlink, present.missing_guards(&plan), done).await?;

    let firewall = firewall(settings).install_owned();
    if let Err(error) = &firewall {
        warn!("neighbours can reach the tunnel's address: {error}");
    }
    if sysctl::has_ipv6() {
        sysctl::prepare_tun(&settings.tun)?;
    }
    raise_tun(netlink, settings, tun).await?;
    change::make(netlink, present.missing_tun_routes(&plan), done).await?;
    change::make(netlink, present.stale(&plan), done).await?;
    Ok(Raised { tun: tun.index, firewall, took_over: !present.rules.is_empty() })
}

fn plan(settings: &Settings, captured: &[Captured], tun: u32) -> Plan {
    Plan::new(captured, &settings.addresses, tun, settings.mark.get(), sysctl::has_ipv6())
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

/// Takes the TUN's addresses, with which its sockets lose their voice, and sets it down. Nothing to do if it is gone.
async fn lower_tun(netlink: &Netlink, settings: &Settings) -> Result<(), Error> {
    let Ok(tun) = netlink.link_index(&settings.tun).await else { return Ok(()) };
    for address in &settings.addresses {
        tolerate_gone(netlink.delete_address(tun, *address).await)?;
    }
    tolerate_gone(netlink.set_down(tun).await)
}

fn tolerate_gone(result: Result<(), netlink::Error>) -> Result<(), Error> {
    match result {
        Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::EADDRNOTAVAIL)) => Ok(()),
        result => Ok(result?),
    }
}

async fn remove_all(netlink: &Netlink) -> Result<Cleaned, Error> {
    let present = Present::read(netlink).await?;
    change::make(netlink, present.stale(&Plan::default()), &mut Vec::new()).await?;
    Ok(Cleaned { rules: present.rules.len(), routes: present.routes.len(), sysctls: 0 })
}

async fn restore_sysctls(netlink: &Netlink, state: &mut State) -> Result<usize, Error> {
    sysctl::restore(state, &netlink.links().await?)
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

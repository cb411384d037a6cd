//! Captive portals: networks that let nobody out who has not seen a page of theirs.

mod answer;
mod ask;

use std::{future::pending, pin::Pin, time::Duration};

use dataplane::{PumpError, TunnelReport};
use tokio::time::Instant;

use super::{clock, machine::Machine, start::Running, wait::wait_until};

pub use answer::Finding;

/// Between one look and the next, while the tunnel is not there.
const PAUSE: Duration = Duration::from_secs(30);
/// The same after a change of the network.
const PAUSE_AFTER_CHANGE: Duration = Duration::from_secs(5);
/// A network's own servers may need it.
const SETTLE: Duration = Duration::from_secs(1);
/// For a gateway to answer that is asked when the network changes, as WireGuard has it.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether there is one in the way, as far as is known. Nobody is asked while the tunnel is up or not wanted.
pub struct Portal {
    /// When to look next; `None`: when something happens.
    due: Option<Instant>,
    asked: Option<Instant>,
    asking: Option<Pin<Box<dyn Future<Output = Finding>>>>,
    /// Since when this network is the one, by the clock that counts sleep: what gateways said before says nothing of the way out.
    since: Duration,
    /// Whether nobody was asked yet since then.
    is_new: bool,
    /// Whether nobody was in the way when that was asked last.
    is_open: bool,
    url: Option<String>,
}

/// What was waited for.
pub enum Step {
    Look,
    Found(Finding),
}

impl Portal {
    pub fn new() -> Self {
        let (since, due) = (clock::since_boot(), Some(Instant::now() + SETTLE));
        Self { due, asked: None, asking: None, since, is_new: true, is_open: false, url: None }
    }

    /// The page to open in a browser.
    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// Whether any gateway is heard in this network.
    pub fn is_passed(&self, tunnels: &[TunnelReport]) -> bool {
        tunnels.iter().any(|tunnel| self.hears(tunnel))
    }

    /// Whether a gateway is heard in this network: its session may be older.
    pub fn hears(&self, tunnel: &TunnelReport) -> bool {
        let is_heard =
            tunnel.last_received.is_some_and(|ago| ago <= clock::since_boot().saturating_sub(self.since));
        tunnel.state == "up" && is_heard
    }

    /// Whether a gateway has had time enough to be heard in this network.
    pub fn has_waited(&self) -> bool {
        clock::since_boot() > self.since + ANSWER
    }

    /// What came before `since` is of no use any more.
    pub fn network_changed(&mut self, since: Duration) {
        self.since = since;
        self.ask_anew();
    }

    /// What was found out is of no use any more.
    pub fn ask_anew(&mut self) {
        *self = Self { since: self.since, asked: self.asked, ..Self::new() };
        let soon = Instant::now() + SETTLE;
        self.due = Some(self.asked.map_or(soon, |asked| soon.max(asked + PAUSE_AFTER_CHANGE)));
    }

    /// The tunnel to a gateway is wanted and not there.
    pub fn gateway_down(&mut self) {
        let now = Instant::now();
        self.due.get_or_insert(self.asked.map_or(now, |asked| now.max(asked + PAUSE)));
    }

    /// Resolves when [`go_on`] has something to do. Safe to drop in between.
    pub async fn step(&mut self) -> Step {
        let finding = async {
            match &mut self.asking {
                Some(asking) => asking.await,
                None => pending().await,
            }
        };
        tokio::select! {
            finding = finding => Step::Found(finding),
            () = wait_until(self.due) => Step::Look,
        }
    }
}

pub fn go_on(running: &mut Running, step: Step) -> Result<(), PumpError> {
    match step {
        Step::Look => look(running),
        Step::Found(finding) => heed(running, finding),
    }
}

fn look(running: &mut Running) -> Result<(), PumpError> {
    let now = Instant::now();
    let tunnels = running.pump.tunnels()?;
    let check = running.loaded.config.network.portal_check.clone();
    let portal = &mut running.portal;
    portal.due = None;
    let Some(check) = check.filter(|_| !portal.is_passed(&tunnels)) else {
        portal.url = None;
        portal.is_new = false;
        return Ok(());
    };
    let is_wanted =
        portal.is_new || portal.url.is_some() || tunnels.iter().any(|tunnel| tunnel.state != "idle");
    if !is_wanted {
        return Ok(());
    }
    portal.due = Some(now + PAUSE);
    let underlay = running.machine.underlay();
    // Where names have no answers before a login, no gateway has an address.
    let has_route = underlay.v4.is_some() || underlay.v6.is_some();
    if has_route && portal.asking.is_none() {
        portal.is_new = false;
        portal.asked = Some(now);
        let tun = running.loaded.config.interface.address.iter().map(|net| net.addr());
        let own = underlay.addresses.iter().map(|own| own.ip).chain(tun).collect();
        portal.asking = Some(Box::pin(ask::ask(check, running.snapshot.clone(), own, Machine::fwmark())));
    }
    Ok(())
}

fn heed(running: &mut Running, finding: Finding) -> Result<(), PumpError> {
    let portal = &mut running.portal;
    portal.asking = None;
    match finding {
        Finding::Portal(url) => {
            portal.is_open = false;
            if portal.url.as_ref() != Some(&url) {
                tracing::warn!("a captive portal is in the way: open {url} in a browser");
                portal.url = Some(url);
            }
        }
        Finding::Open => {
            if portal.url.take().is_some() {
                tracing::info!("the captive portal is out of the way");
            }
            if !std::mem::replace(&mut portal.is_open, true) {
                // The tunnel tries at once, and names may have an answer now.
                running.pump.try_again()?;
                running.lookups.want_names(Instant::now());
            }
        }
        Finding::Unclear(why) => {
            portal.is_open = false;
            tracing::debug!("whether a captive portal is in the way is not known: {why}")
        }
    }
    Ok(())
}

//! How the machine's applications come to ask the daemon's resolver.
//!
//! Where /etc/resolv.conf leads to systemd-resolved, that is told to ask it for the policy's domains; where resolvconf(8)
//! keeps the file, it gets an entry that stands alone; else the file itself is replaced, and put back again. All paths are
//! those of the calling thread's mount namespace.

mod fight;
mod file;
mod link;
mod resolv_conf;
mod resolvconf;
mod resolved;
mod search;
mod undo;
mod watch;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use futures::future::OptionFuture;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::{Error, State, Undo, journal::Journal, netlink};
use fight::Fight;
use resolved::Resolved;
use watch::Watch;

pub use file::{Entry, Text};
pub use link::NAME as LINK;
pub(crate) use link::is_ours as is_our_link;
pub use undo::put_back;
pub(crate) use undo::{is_about_dns, undo, undo_unnoted};

/// Where the resolver listens for whoever reads /etc/resolv.conf. It is this machine whatever becomes of the TUN.
pub const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 51, 82, 53);

/// Where systemd-resolved lists the servers that it asks itself (systemd-resolved(8)).
const UPLINKS: &str = "/run/systemd/resolve/resolv.conf";
/// Who replaces the file may do so in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// Where the file or the link cannot be watched they are looked at as often as this.
const UNWATCHED: Duration = Duration::from_secs(5);

/// What applications are to come to ask.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The TUN's name and index.
    pub link: String,
    pub index: u32,
    /// The address of the TUN where the resolver listens, beside [`LOOPBACK`]: systemd-resolved is told of the TUN where the
    /// kernel has no [`LINK`].
    pub on_link: IpAddr,
    /// Each stands for itself and all names below it.
    pub domains: Vec<String>,
}

/// By what means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// systemd-resolved asks for the policy's names, and for no others.
    Resolved,
    /// All names are asked at the resolver; resolvconf(8) has been told.
    Resolvconf,
    /// All names are asked at the resolver; /etc/resolv.conf was replaced.
    File,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub mode: Mode,
    pub why: String,
}

/// Applications ask the resolver until this is dropped and [`put_back`] has undone it. Without that, as after a crash, they go on
/// asking it until it is undone; with [`Mode::Resolved`] only where the kernel has a [`LINK`], else until the TUN is gone.
#[derive(Debug)]
pub struct Dns {
    settings: Settings,
    report: Report,
    before: Vec<SocketAddr>,
    search: Vec<String>,
    resolved: Resolved,
    watch: Option<Watch>,
    /// Of the link that systemd-resolved was told of.
    link: Option<netlink::Watch>,
    due: Option<Instant>,
    fight: Fight,
    /// Why systemd-resolved forgets the policy's names with the process, if so.
    forgets: Option<String>,
}

impl Dns {
    /// To be called when the TUN is up and the resolver listens. On an error all is as before, be it as a crash has left it.
    pub async fn set_up(state: &State, settings: Settings) -> Result<Self, Error> {
        let was_noted = state.journal().undo().iter().any(is_about_dns);
        let watch = Watch::new().inspect_err(|error| warn!("cannot watch /etc/resolv.conf: {error}")).ok();
        let link = netlink::Watch::of_link();
        let link = link.inspect_err(|error| warn!("cannot watch the link {LINK}: {error}")).ok();
        let mut dns = Self {
            settings,
            report: Report { mode: Mode::File, why: String::new() },
            before: Vec::new(),
            search: Vec::new(),
            resolved: Resolved::connect().await,
            watch,
            link,
            due: None,
            fight: Fight::new(Instant::now()),
            forgets: None,
        };
        match dns.reach(state).await {
            Ok(_) => Ok(dns),
            Err(error) => {
                if !was_noted {
                    // What cannot be taken back stays noted; the error that led here is the one to tell.
                    drop(put_back(state).await);
                }
                Err(error)
            }
        }
    }

    /// Only systemd-resolved has to know them.
    pub async fn set_domains(&mut self, state: &State, domains: Vec<String>) -> Result<(), Error> {
        self.settings.domains = domains;
        self.reach(state).await.map(drop)
    }

    /// The servers that names were asked at before, and others than the policy's still are: at most three, and never the
    /// resolver itself. May be others after each [`Dns::repair`].
    pub fn before(&self) -> Vec<SocketAddr> {
        self.before.clone()
    }

    /// The domains that the C library completes names with: it does as before. May be others after each [`Dns::repair`].
    pub fn search(&self) -> &[String] {
        &self.search
    }

    /// Resolves when somebody may have changed something; then call [`Dns::repair`]. Safe to drop in between.
    pub async fn changed(&mut self) {
        loop {
            if self.watch.is_none() || self.link.is_none() {
                self.wake_within(UNWATCHED);
            }
            let pause = tokio::select! {
                Some(()) = OptionFuture::from(self.due.map(sleep_until)) => {
                    self.due = None;
                    return;
                }
                () = self.resolved.changed() => SETTLE,
                Some(watched) = OptionFuture::from(self.link.as_mut().map(netlink::Watch::changed)) => {
                    if let Err(error) = watched {
                        warn!("cannot watch the link {LINK} any more: {error}");
                        self.link = None;
                        continue;
                    }
                    SETTLE
                }
                Some(watched) = OptionFuture::from(self.watch.as_ref().map(Watch::changed)) => {
                    if let Err(error) = watched {
                        warn!("cannot watch /etc/resolv.conf any more: {error}");
                        self.watch = None;
                        continue;
                    }
                    SETTLE.max(self.fight.pause(Instant::now()))
                }
            };
            self.wake_within(pause);
        }
    }

    /// Puts back what others have changed; what they wrote into /etc/resolv.conf is the new state before. Answers with what was changed.
    pub async fn repair(&mut self, state: &State) -> Result<Vec<String>, Error> {
        self.reach(state).await
    }

    pub fn report(&self) -> Report {
        self.report.clone()
    }

    fn wake_within(&mut self, pause: Duration) {
        self.wake_at(Instant::now() + pause);
    }

    fn wake_at(&mut self, due: Instant) {
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Finds the mode and goes there: the new is in place before the old goes.
    async fn reach(&mut self, state: &State) -> Result<Vec<String>, Error> {
        let journal = state.journal();
        let found = Entry::look().map_err(Error::ResolvConf)?;
        let others = file::others(file::noted(journal).as_ref(), &found);
        self.follow(&others);
        let content = others.content();
        let mut changed = Vec::new();

        // Programs can ask it past /etc/resolv.conf (nss-resolve(8), D-Bus): it is told wherever it runs.
        let (domains, is_all) = search::routed(&self.settings.domains, &search::list(&content));
        let told = self.tell_resolved(journal, &domains).await?;
        if told == Ok(true) {
            changed.push("systemd-resolved's settings".to_owned());
        }
        let not_resolved = match (&told, is_all) {
            (Ok(_), Ok(())) if resolv_conf::leads_to_stub(&content) => {
                let mut why =
                    "/etc/resolv.conf leads to systemd-resolved, which asks for the policy's domains only"
                        .to_owned();
                if let Some(forgets) = &self.forgets {
                    why += &format!("; a crash would have it ask others for them ({forgets})");
                }
                self.settle(Mode::Resolved, &why, &content);
                undo::take_back(journal, |undo| {
                    matches!(undo, Undo::ResolvConf { .. } | Undo::ResolvconfEntry)
                })
                .await?;
                undo::undo_unnoted_entries().await?;
                return Ok(changed);
            }
            (Ok(_), Err(why)) if resolv_conf::leads_to_stub(&content) => {
                format!("systemd-resolved would not ask Breakout alone ({why})")
            }
            (Ok(_), _) => "/etc/resolv.conf does not lead to systemd-resolved".to_owned(),
            (Err(why), _) => format!("systemd-resolved cannot be used ({why})"),
        };

        let not_resolvconf = if found == others && resolvconf::keeps(&found) {
            journal.note([Undo::ResolvconfEntry])?;
            match resolvconf::reach(LOOPBACK.into()).await {
                Ok((beside, is_new)) => {
                    let why = format!("{not_resolved}; resolvconf keeps it");
                    self.settle(Mode::Resolvconf, &why, &beside);
                    if is_new {
                        changed.push("our entry of resolvconf".to_owned());
                    }
                    return Ok(changed);
                }
                Err(why) => {
                    undo::take_back(journal, |undo| *undo == Undo::ResolvconfEntry).await?;
                    format!("resolvconf cannot be used ({why})")
                }
            }
        } else {
            "resolvconf does not keep it".to_owned()
        };

        changed.extend(self.reach_file(journal, format!("{not_resolved}; {not_resolvconf}"))?);
        Ok(changed)
    }

    fn reach_file(&mut self, journal: &Journal, mut why: String) -> Result<Option<String>, Error> {
        let (others, is_foreign) = file::take(journal)?;
        let content = others.content();
        let now = Instant::now();
        let news = is_foreign.then(|| self.fight.found(&content, now)).flatten();
        if let Some(fight) = self.fight.state(now) {
            why += &format!("; {fight}");
            self.wake_at(self.fight.end());
        }
        self.settle(Mode::File, &why, &content);
        Ok(news)
    }

    fn follow(&mut self, others: &Entry) {
        if let Some(Err(error)) = self.watch.as_mut().map(|watch| watch.follow(others)) {
            warn!("cannot watch /etc/resolv.conf any more: {error}");
            self.watch = None;
        }
    }

    fn settle(&mut self, mode: Mode, why: &str, content: &[u8]) {
        self.report = Report { mode, why: why.to_owned() };
        self.before = servers(content);
        self.before.retain(|server| server.ip() != self.settings.on_link);
        self.search = search::list(content);
    }

    /// Whether it was told something new, or why it cannot be.
    async fn tell_resolved(
        &mut self,
        journal: &Journal,
        domains: &[String],
    ) -> Result<Result<bool, String>, Error> {
        if let Err(why) = self.resolved.is_here().await {
            return Ok(Err(why));
        }
        let Settings { link, index, on_link, .. } = &self.settings;
        journal.note([Undo::DnsLink])?;
        let (index, server, forgets) = match link::raise().await {
            Ok(index) => (index, LOOPBACK.into(), None),
            Err(why) => {
                undo::take_back(journal, |undo| *undo == Undo::DnsLink).await?;
                journal.note([Undo::ResolvedLink { name: link.clone(), index: *index }])?;
                (*index, *on_link, Some(why))
            }
        };
        if let Some(why) = forgets.as_ref().filter(|_| self.forgets.is_none()) {
            warn!("after a crash systemd-resolved will ask others for the policy's names: {why}");
        }
        if let Some(watch) = &mut self.link {
            watch.follow(index);
        }
        self.forgets = forgets;
        let told = self.resolved.tell(index, server, domains).await;
        if self.forgets.is_none() && told.is_ok() {
            undo::take_back(journal, |undo| matches!(undo, Undo::ResolvedLink { .. })).await?;
        }
        Ok(told)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolved => "systemd-resolved",
            Self::Resolvconf => "resolvconf",
            Self::File => file::PATH,
        })
    }
}

/// The servers that names were asked at before a dead run came, if names still lead to it and so nowhere; `None`: they do
/// not.
pub async fn left_before() -> Option<Vec<SocketAddr>> {
    let found = Entry::look().ok()?;
    let others = file::others(None, &found);
    if others != found {
        return Some(servers(&others.content()));
    }
    let content = found.content();
    if resolv_conf::leads_to_stub(&content) && matches!(link::index().await, Ok(Some(_))) {
        return Some(servers(&content));
    }
    let named = resolv_conf::nameservers(&content);
    if named.iter().all(|server| server.ip() != LOOPBACK) {
        return None;
    }
    Some(servers(&resolvconf::beside_ours().await.unwrap_or_default()))
}

/// Whom `content` has asked. systemd-resolved may ask us again, as it reads /etc/resolv.conf too: its own servers are asked
/// in its place.
fn servers(content: &[u8]) -> Vec<SocketAddr> {
    let mut servers = resolv_conf::nameservers(content);
    if servers.iter().any(resolv_conf::is_stub) {
        let uplinks = file::read(Path::new(UPLINKS)).map(|content| resolv_conf::nameservers(&content));
        servers.retain(|server| !resolv_conf::is_stub(server));
        servers.extend(uplinks.unwrap_or_default());
    }
    servers.retain(|server| server.ip() != LOOPBACK);
    servers
}

//! The policy's names: our resolver, and what is done before an application gets an answer.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use control::{DohServer, LearnedAddress};
use names::{CANARIES, Handle, Learn, Policy, Resolver, Settings, Transport};
use packet::protocol;
use policy::Snapshot;
use routes::dns;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use super::{
    leading::Led,
    learned::{self, Addresses, News},
    load::Loaded,
    machine::Machine,
    start::Running,
};
use crate::failure::{Failure, Problem};

const PORT: u16 = 53;
/// After which learned addresses that could not be forgotten are tried again.
const RETRY: Duration = Duration::from_secs(60);
/// After which further names of learned addresses are written down, together.
const WRITING: Duration = Duration::from_secs(1);
/// Answers that wait until their addresses are routed.
const WAITING: usize = 256;
/// Names that are asked for in advance at the same time.
const AT_ONCE: usize = 16;
/// Between attempts at names that could not be resolved in advance: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// What a Genesys client asks for first, below each of signaling's domains.
const HOSTS: [&str; 4] = ["api", "apps", "login", "streaming"];

/// Our resolver, and what it has found. Dropped, it answers nobody.
pub struct Names {
    resolver: Handle,
    servers: Vec<SocketAddr>,
    policies: Arc<Policies>,
    serving: AbortHandle,
    resolving: AbortHandle,
}

/// Whom the resolver asks: while a reload may go either way, a name of either policy is ours.
struct Policies(RwLock<Vec<Ours>>);

/// The names of a policy, but for the gateways' own: the tunnel needs those, and cannot be asked for them.
struct Ours {
    snapshot: Arc<Snapshot>,
    gateways: Vec<String>,
}

/// What the resolver has to say.
pub struct Heard {
    /// Answers that wait until their addresses are routed.
    pub learn: mpsc::Receiver<Learn>,
    /// Ends only if it cannot go on.
    pub ended: JoinHandle<()>,
}

impl Names {
    /// Starts the resolver and leads the machine's questions to it; `None` without `tunnel.dns`.
    pub async fn start(machine: &mut Machine, loaded: &Loaded) -> Result<Option<(Self, Heard)>, Failure> {
        let Loaded { config, snapshot, .. } = loaded;
        let domains = domains(snapshot);
        let addresses: Vec<IpAddr> = config.interface.address.iter().map(|net| net.addr()).collect();
        let Some(on_link) = addresses.first().copied().filter(|_| !config.tunnel.dns.is_empty()) else {
            machine.put_dns_back().await?;
            return Ok(None);
        };
        let servers: Vec<SocketAddr> =
            config.tunnel.dns.iter().map(|server| (*server, PORT).into()).collect();
        let settings = Settings {
            listen: vec![(on_link, PORT).into(), (dns::LOOPBACK, PORT).into()],
            upstreams: servers.clone(),
            ipv6: addresses.iter().any(IpAddr::is_ipv6),
            from: addresses,
            forward: Vec::new(),
        };
        let (learn, learned) = mpsc::channel(WAITING);
        let policies = Arc::new(Policies(RwLock::new(vec![Ours::of(loaded)])));
        let resolver = Resolver::bind(settings, policies.clone(), learn).map_err(|error| {
            Failure::system("cannot answer questions for the policy's names").because(error).remedy(
                "another DNS server on this machine may listen on all addresses, or on each that comes: `ss -lntup 'sport = :53'` shows which; give it its own ones",
            )
        })?;
        let handle = resolver.handle();
        let ended = tokio::spawn(resolver.run());
        let resolving = tokio::spawn(resolve_first(handle.clone(), first_names(snapshot)));
        let (serving, resolving) = (ended.abort_handle(), resolving.abort_handle());
        let names = Self { resolver: handle, servers, policies, serving, resolving };
        machine.set_up_dns(on_link, domains, names.resolver.clone()).await?;
        Ok(Some((names, Heard { learn: learned, ended })))
    }

    /// Another network may be nearer to other addresses.
    pub fn network_changed(&self) {
        self.resolver.flush();
    }

    /// While a reload may go either way, the names of both policies are ours.
    pub fn set_policies(&self, policies: &[&Loaded]) {
        let policies = policies.iter().copied().map(Ours::of).collect();
        *self.policies.0.write().unwrap_or_else(PoisonError::into_inner) = policies;
    }

    /// A reload's policy alone decides which names are ours, and they are resolved anew.
    pub fn set_policy(&mut self, loaded: &Loaded) {
        self.set_policies(&[loaded]);
        self.resolver.flush();
        self.resolving.abort();
        let names = first_names(&loaded.snapshot);
        self.resolving = tokio::spawn(resolve_first(self.resolver.clone(), names)).abort_handle();
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.serving.abort();
        self.resolving.abort();
    }
}

impl Policy for Policies {
    fn has(&self, name: &str) -> bool {
        self.read().iter().any(|ours| ours.has(name))
    }

    fn takes(&self, name: &str, transport: Transport, port: u16) -> bool {
        let protocol = match transport {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
        };
        self.each_of(name, |policy| policy.takes(name, protocol, port))
    }

    fn expects(&self, name: &str, address: IpAddr) -> bool {
        self.each_of(name, |policy| policy.expects(name, address))
    }
}

impl Policies {
    /// Whether it holds for a name by each policy that has it, and one has.
    fn each_of(&self, name: &str, holds: impl Fn(&Snapshot) -> bool) -> bool {
        let policies = self.read();
        let mut its = policies.iter().filter(|ours| ours.has(name)).peekable();
        its.peek().is_some() && its.all(|ours| holds(&ours.snapshot))
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Ours>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ours {
    fn of(loaded: &Loaded) -> Self {
        let gateways = &loaded.config.tunnel.gateways;
        Self {
            snapshot: loaded.snapshot.clone(),
            gateways: gateways.iter().filter_map(|gateway| gateway.endpoint.host()).collect(),
        }
    }

    fn has(&self, name: &str) -> bool {
        !self.gateways.iter().any(|gateway| gateway == name) && self.snapshot.set_for_name(name).is_some()
    }
}

/// Routes what was found and has the policy judge it; only then the application is told.
pub async fn learn(running: &mut Running, Learn { name, addresses, done }: Learn) {
    let taken = take(running, &name, addresses).await;
    if let Err(failure) = &taken {
        tracing::warn!(name, "an answer is withheld: {}", failure.plain());
    }
    // Who asked may be gone.
    let _ = done.send(taken.is_ok());
}

/// Forgets what has ended and is not used. What cannot be forgotten stays closed, and is tried again.
pub async fn expire(running: &mut Running) {
    if let Err(failure) = forget_ended(running).await {
        tracing::warn!("learned addresses that have ended stay: {}", failure.plain());
        running.names_due = Some(Instant::now() + RETRY);
    }
}

async fn forget_ended(running: &mut Running) -> Result<(), Failure> {
    let flows = running.pump.flows().map_err(not_changed)?;
    let in_use: BTreeSet<IpAddr> = flows.iter().map(|flow| flow.tuple.destination.ip()).collect();
    let mut left = running.addresses.clone();
    if left.expire(&in_use, learned::now()) {
        tracing::debug!(before = running.addresses.len(), now = left.len(), "learned addresses have ended");
        return change(running, left).await;
    }
    running.addresses = left;
    running.names_due = due(&running.addresses);
    Ok(())
}

/// When [`expire`] is to be called.
pub fn due(addresses: &Addresses) -> Option<Instant> {
    addresses.next_end().map(|end| Instant::now() + end.saturating_sub(learned::now()))
}

pub fn report(running: &Running) -> control::Names {
    let resolver =
        running.names.as_ref().zip(running.machine.led()).map(|(names, Led { report, others })| {
            let counts = names.resolver.counts();
            control::Resolver {
                mode: report.mode.to_string(),
                why: report.why,
                listening: names.resolver.listening().to_vec(),
                tunnel_dns: names.servers.clone(),
                others,
                asked: counts.asked,
                failed: counts.failed,
                handed_on: counts.relayed,
                doh: doh(names),
            }
        });
    let now = learned::now();
    let addresses = running.addresses.iter().map(|(address, found)| LearnedAddress {
        address: *address,
        name: found.name.clone(),
        set: found.set.clone(),
        seconds_left: found.until.saturating_sub(now).as_secs(),
    });
    control::Names { config: running.path.clone(), resolver, addresses: addresses.collect() }
}

/// Whether programs seem to ask the system at all, as a feature; `None`: it is not seen, or there is nothing to ask for.
pub fn feature(running: &Running) -> Option<(&'static str, bool, String)> {
    let (names, led) = running.names.as_ref().zip(running.machine.led())?;
    let seen = doh(names);
    let why = match led.report.mode {
        _ if !seen.is_empty() => {
            let servers: Vec<&str> = seen.iter().map(|server| server.name.as_str()).collect();
            format!(
                "{} was asked for: a program that resolves by itself, over HTTPS, reaches signaling directly; set the browser's policy (docs/names.md)",
                servers.join(", ")
            )
        }
        dns::Mode::Resolved => return None,
        dns::Mode::Resolvconf | dns::Mode::File => {
            "no known server of DNS over HTTPS was asked for".to_owned()
        }
    };
    Some(("system-dns", seen.is_empty(), why))
}

fn doh(names: &Names) -> Vec<DohServer> {
    let seen = names.resolver.doh().into_iter();
    seen.map(|(name, questions)| DohServer { name: name.to_owned(), questions }).collect()
}

/// The names that the resolver is to be asked for: the policy's domains, and those that tell browsers to ask it at all.
pub fn domains(snapshot: &Snapshot) -> Vec<String> {
    snapshot.domains().map(|(domain, _)| domain).chain(CANARIES).map(str::to_owned).collect()
}

/// After a reload: what the policy in force has of them. A crash before that leaves more than is needed.
pub fn keep(running: &mut Running, addresses: Addresses) {
    if addresses != running.addresses
        && let Err(error) = addresses.write(&running.state.learned())
    {
        tracing::warn!(%error, "the next start knows addresses that are of no use any more");
    }
    running.names_due = due(&addresses);
    running.addresses = addresses;
}

async fn take(running: &mut Running, name: &str, addresses: Vec<(IpAddr, Duration)>) -> Result<(), Failure> {
    let policy = running.loaded.snapshot.clone();
    let Some((_, set)) = policy.set_for_name(name) else {
        return Err(Failure::system("the policy has another mind since it was asked").into());
    };
    if addresses.iter().any(|(address, _)| is_a_gateways(running, *address)) {
        return Err(Failure::usage("it leads to a gateway's own address")
            .remedy("the tunnel cannot run inside itself: give the gateway an address of its own")
            .into());
    }
    // What a configured prefix holds is judged by that, and routed already, unless no rule is for its set.
    let held = |address: &IpAddr| policy.set_of(*address).map(|(set, _)| set);
    let is_routed =
        |address: &IpAddr| policy.captured().iter().any(|captured| captured.prefix.contains(address));
    let unrouted = addresses
        .iter()
        .map(|(address, _)| address)
        .find_map(|address| held(address).filter(|_| !is_routed(address)).map(|set| (address, set)));
    if let Some((address, other)) = unrouted {
        return Err(Failure::usage(format!(
            "{address} is in the set {other}, which no rule is for: it would be reached directly"
        ))
        .remedy(format!("make a rule for {other}, or take the address out of it"))
        .into());
    }
    // What is held for a while only is to be known afterwards.
    let is_former = |address: &IpAddr| running.former.iter().any(|kept| kept.former.prefix.contains(address));
    let unheld: Vec<_> =
        addresses.into_iter().filter(|(address, _)| held(address).is_none() || is_former(address)).collect();
    let now = learned::now();
    // Whoever asks for ever more names under a domain keeps nobody waiting for long.
    if let Some(news) = running.addresses.note_known((name, set), &unheld, now) {
        if news == News::Name {
            running.unwritten_due.get_or_insert(Instant::now() + WRITING);
        }
        return Ok(());
    }
    if let Some((address, _)) = unheld.iter().find(|(address, _)| running.machine.is_near(*address)) {
        return Err(Failure::usage(format!(
            "{address} is this machine's or a neighbour's, or a DNS server that is asked for other names"
        ))
        .remedy("see what the DNS server behind the tunnel says; a prefix in `cidrs` is taken without doubt")
        .into());
    }
    let mut known = running.addresses.clone();
    known.note((name, set), unheld, now).map_err(not_changed)?;
    change(running, known).await
}

/// Writes down names of addresses that are known. The next start needs those if the policy is another then.
pub fn write(running: &mut Running) {
    running.unwritten_due = running.addresses.write(&running.state.learned()).err().map(|error| {
        tracing::warn!(%error, "names of learned addresses cannot be written down; trying again");
        Instant::now() + RETRY
    });
}

/// One without an answer whose name is said to lead there is none: that may be a lie, to keep the address from being learned.
fn is_a_gateways(running: &Running, address: IpAddr) -> bool {
    let Loaded { config, endpoints, .. } = &running.loaded;
    let mut there = endpoints
        .iter()
        .enumerate()
        .filter(|(_, endpoint)| endpoint.is_some_and(|endpoint| endpoint.ip() == address))
        .map(|(at, _)| at)
        .peekable();
    if there.peek().is_none() {
        return false;
    }
    // A pump that has ended says so itself.
    let tunnels = running.pump.tunnels().unwrap_or_default();
    let has_name =
        |at: usize| config.tunnel.gateways.get(at).is_some_and(|gateway| gateway.endpoint.host().is_some());
    let is_down = |at: usize| tunnels.get(at).is_some_and(|tunnel| tunnel.state == "down");
    there.any(|at| !(has_name(at) && is_down(at)))
}

/// First what a crash must not forget, then what leads into the TUN, then the policy: what is routed and not yet judged is refused.
async fn change(running: &mut Running, addresses: Addresses) -> Result<(), Failure> {
    let snapshot = Arc::new(running.loaded.snapshot.with_learned(&addresses.learned()));
    addresses.write(&running.state.learned()).map_err(not_changed)?;
    running.machine.learn(&snapshot).await?;
    running.pump.swap(snapshot.clone()).map_err(not_changed)?;
    running.machine.end_old_connections(&running.loaded, &snapshot);
    (running.names_due, running.unwritten_due) = (due(&addresses), None);
    (running.snapshot, running.addresses) = (snapshot, addresses);
    Ok(())
}

/// Before anybody asks: an application may have their addresses from before `up`. What fails is asked for again, since there may be no
/// tunnel yet.
async fn resolve_first(resolver: Handle, mut names: Vec<String>) {
    let mut pause = FIRST_PAUSE;
    loop {
        names = resolve_all(&resolver, names).await;
        if names.is_empty() {
            return;
        }
        sleep(pause).await;
        pause = LAST_PAUSE.min(2 * pause);
    }
}

/// Those that failed.
async fn resolve_all(resolver: &Handle, names: Vec<String>) -> Vec<String> {
    let mut names = names.into_iter();
    let mut asking = JoinSet::new();
    let mut failed = Vec::new();
    loop {
        while asking.len() < AT_ONCE
            && let Some(name) = names.next()
        {
            let resolver = resolver.clone();
            asking.spawn(async move { resolver.resolve(&name).await.map_err(|failure| (name, failure)) });
        }
        match asking.join_next().await {
            None => return failed,
            Some(Ok(Err((name, failure)))) => {
                tracing::debug!(name, %failure, "not resolved in advance");
                failed.push(name);
            }
            Some(_) => {}
        }
    }
}

fn first_names(snapshot: &Snapshot) -> Vec<String> {
    let below = |domain: &str| HOSTS.map(|host| format!("{host}.{domain}"));
    snapshot.domains().flat_map(|(domain, _)| below(domain).into_iter().chain([domain.to_owned()])).collect()
}

fn not_changed(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    Failure::system("the learned addresses could not be changed").because(error)
}

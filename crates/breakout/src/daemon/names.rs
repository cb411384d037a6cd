//! The policy's names: our resolver, and which names it is asked for.

use std::{
    mem,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use control::{DohServer, LearnedAddress};
use names::{CANARIES, Handle, Learn, Policy, Resolver, Settings, Transport};
use packet::protocol;
use policy::Snapshot;
use routes::dns;
use tokio::{
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinHandle},
};

use super::{clock, first, leading::Led, load::Loaded, machine::Machine, start::Running};
use crate::failure::Failure;

const PORT: u16 = 53;
/// Answers that wait until their addresses are routed.
const WAITING: usize = 256;

/// Our resolver, and what it has found. Dropped, it answers nobody.
pub struct Names {
    resolver: Handle,
    servers: Vec<SocketAddr>,
    policies: Arc<Policies>,
    /// Answers for names that a reload is about to add.
    held: Vec<Learn>,
    serving: AbortHandle,
    resolving: AbortHandle,
    /// Whoever asks in advance is told that a gateway has come up.
    up: Arc<Notify>,
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
        let up = Arc::new(Notify::new());
        let resolving = tokio::spawn(first::resolve(handle.clone(), first::names(snapshot), up.clone()));
        let (serving, resolving) = (ended.abort_handle(), resolving.abort_handle());
        let names = Self { resolver: handle, servers, policies, held: Vec::new(), serving, resolving, up };
        machine.set_up_dns(on_link, domains, names.resolver.clone()).await?;
        Ok(Some((names, Heard { learn: learned, ended })))
    }

    /// Another network may be nearer to other addresses.
    pub fn network_changed(&self) {
        self.resolver.flush();
    }

    /// While a reload may go either way, the names of both policies are ours.
    pub fn begin_reload(&self, was: &Loaded, is: &Loaded) {
        self.policies.set(vec![Ours::of(was), Ours::of(is)]);
    }

    /// The policy in force has other prefixes now; that of a reload which has begun is still to come.
    pub fn policy_is(&self, is: &Loaded) {
        let mut policies = self.policies.0.write().unwrap_or_else(PoisonError::into_inner);
        policies.iter_mut().take(1).for_each(|policy| *policy = Ours::of(is));
    }

    /// Nothing came of a reload: what the other policy has let pass is forgotten.
    pub fn give_up_reload(&mut self, was: &Loaded) {
        self.policies.set(vec![Ours::of(was)]);
        self.resolver.flush();
        self.held.clear();
    }

    /// A reload's policy alone decides which names are ours, and they are resolved anew. What was held is to be learned now.
    pub fn finish_reload(&mut self, is: &Loaded) -> Vec<Learn> {
        self.policies.set(vec![Ours::of(is)]);
        self.resolver.flush();
        self.resolving.abort();
        let asking = first::resolve(self.resolver.clone(), first::names(&is.snapshot), self.up.clone());
        self.resolving = tokio::spawn(asking).abort_handle();
        mem::take(&mut self.held)
    }

    /// Holds what is found of a name that a reload is about to add; who asked waits for 2 s. Gives back anything else.
    pub fn hold(&mut self, found: Learn) -> Option<Learn> {
        let is_added = match self.policies.read().as_slice() {
            [was, is] => !was.has(&found.name) && is.has(&found.name),
            _ => false,
        };
        if !is_added || self.held.len() >= WAITING {
            return Some(found);
        }
        self.held.push(found);
        None
    }

    /// A gateway answers: names are asked for again at once.
    pub fn gateway_up(&self) {
        self.up.notify_one();
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

    fn set(&self, policies: Vec<Ours>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = policies;
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
    let now = clock::awake();
    let addresses = running.addresses.iter().map(|(address, found)| {
        // A configured prefix that holds it has the last word.
        let holder = running.loaded.snapshot.set_of(*address).map(|(set, _)| set.to_owned());
        LearnedAddress {
            address: *address,
            name: found.name.clone(),
            set: holder.unwrap_or_else(|| found.set.clone()),
            known: found.known.name().to_owned(),
            seconds_left: found.until.saturating_sub(now).as_secs(),
        }
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

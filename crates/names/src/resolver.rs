use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};
use tokio::sync::{mpsc, oneshot};

use crate::counters::Counts;
use crate::failure::{BindError, Failure};
use crate::finder::Finder;
use crate::name;
use crate::policy::Policy;
use crate::relay::Relay;
use crate::server::{Listener, Server};
use crate::sockets;
use crate::upstream::Upstream;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where this machine's applications ask, by UDP and TCP. Only they are answered.
    pub listen: Vec<SocketAddr>,
    /// The DNS servers behind the tunnel, in the order to try them.
    pub upstreams: Vec<SocketAddr>,
    /// The TUN's addresses, that queries to these servers come from. A server of a family without one is not asked.
    pub from: Vec<IpAddr>,
    /// The DNS servers for all other names, in the order to try them.
    pub forward: Vec<SocketAddr>,
    /// Whether the tunnel carries IPv6. Without it, the policy's names have no IPv6 addresses.
    pub ipv6: bool,
}

/// Addresses that an application is about to be told. It is, as soon as `done` says that their packets go into the TUN;
/// `false`, no word within 2 s and a dropped `done` make it SERVFAIL.
#[derive(Debug)]
pub struct Learn {
    /// The name that was asked for, lowercase and without trailing dot.
    pub name: String,
    /// With how long the application may use each one, 1 s to 300 s.
    pub addresses: Vec<(IpAddr, Duration)>,
    pub done: oneshot::Sender<bool>,
}

/// Bound, and answering while [`Resolver::run`] is polled.
pub struct Resolver {
    server: Arc<Server>,
    listeners: Vec<Listener>,
    listening: Arc<[SocketAddr]>,
}

impl Resolver {
    /// Binds the listening sockets; within a tokio runtime only.
    ///
    /// # Errors
    /// If an address cannot be had by UDP or TCP.
    pub fn bind(
        settings: Settings,
        policy: Arc<dyn Policy>,
        learn: mpsc::Sender<Learn>,
    ) -> Result<Self, BindError> {
        let mut listeners = Vec::with_capacity(settings.listen.len());
        let mut listening = Vec::with_capacity(settings.listen.len());
        for address in settings.listen {
            let (udp, tcp, bound) = sockets::listen(address)?;
            listeners.push(Listener { udp, tcp });
            listening.push(bound);
        }
        let own = listening.iter().map(SocketAddr::ip).chain(settings.from.iter().copied()).collect();
        let upstream = Upstream::new(settings.upstreams, settings.from);
        let finder = Finder::new(upstream, settings.ipv6, policy, learn);
        let resolver = Self {
            server: Arc::new(Server::new(finder, Relay::default(), own)),
            listeners,
            listening: listening.into(),
        };
        resolver.handle().set_forward(settings.forward);
        Ok(resolver)
    }

    pub fn handle(&self) -> Handle {
        Handle { server: self.server.clone(), listening: self.listening.clone() }
    }

    /// Answers until it is dropped, and whatever it had begun with it. Ends by itself only if it cannot go on.
    pub async fn run(self) {
        self.server.run(self.listeners).await;
    }
}

/// To a running resolver.
#[derive(Clone)]
pub struct Handle {
    server: Arc<Server>,
    listening: Arc<[SocketAddr]>,
}

impl Handle {
    /// With the port that the system chose where `Settings::listen` said 0.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Where other names are asked for from now on. Our own addresses among them are left out: they would ask in a circle.
    pub fn set_forward(&self, mut servers: Vec<SocketAddr>) {
        servers.retain(|server| !self.listening.contains(server));
        self.server.relay.set(servers);
    }

    /// What stub resolvers complete names with from now on. The policy's names are not passed on with any of these after them.
    pub fn set_search(&self, domains: &[String]) {
        self.server.search.add(domains);
    }

    /// Forgets all answers.
    pub fn flush(&self) {
        self.server.finder.cache().clear();
    }

    /// Asks for a name's addresses as an application would, the learning included.
    ///
    /// # Errors
    /// As an application is told them.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let finder = &self.server.finder;
        let mut parsed = Name::from_ascii(name).map_err(|_| Failure::NotAName(name.to_owned()))?;
        parsed.set_fqdn(true);
        let text = name::text(&parsed);
        let (v4, v6) = tokio::join!(
            finder.find(&parsed, &text, RecordType::A),
            finder.find(&parsed, &text, RecordType::AAAA),
        );
        let (v4, v6) = (v4?.0, v6?.0);
        if v4.lacks_withheld {
            return Err(Failure::NotAll);
        }
        Ok(v4.addresses.iter().chain(&v6.addresses).copied().collect())
    }

    /// The known servers of DNS over HTTPS that were asked for, by name, and how often. Their questions were passed on like others.
    pub fn doh(&self) -> Vec<(&'static str, u64)> {
        self.server.doh.list()
    }

    pub fn counts(&self) -> Counts {
        let finder = &self.server.finder;
        let cache = finder.cache();
        finder.counters.counts(cache.len(), cache.bytes())
    }
}

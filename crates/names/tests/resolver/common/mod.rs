//! A resolver between a client and DNS servers that do what a test tells them, all on loopback.

mod client;
mod learner;
mod reply;
mod server;

use std::iter;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use names::{Handle, Policy, Resolver, Settings, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use client::{Client, question};
pub use learner::{Learner, Verdict};
pub use reply::Reply;
pub use server::{Act, Asked, DnsServer};

pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// For what must happen soon, on a machine that does much else.
pub const SOON: Duration = Duration::from_secs(20);

const BINDS: usize = 20;

/// Its names are `example.com` and all below; TCP and UDP 443, TCP 5061 and UDP 5060 are led into the TUN;
/// 10.20.0.0/16 is expected.
pub struct TestPolicy;

impl Policy for TestPolicy {
    fn has(&self, name: &str) -> bool {
        name == "example.com" || name.ends_with(".example.com")
    }

    fn takes(&self, name: &str, transport: Transport, port: u16) -> bool {
        let sip = if transport == Transport::Tcp { 5061 } else { 5060 };
        self.has(name) && [443, sip].contains(&port)
    }

    fn expects(&self, name: &str, address: IpAddr) -> bool {
        self.has(name) && matches!(address, IpAddr::V4(v4) if v4.octets().starts_with(&[10, 20]))
    }
}

pub struct Scene {
    pub handle: Handle,
    pub learner: Learner,
    running: JoinHandle<()>,
}

impl Scene {
    /// With each address taken at once.
    pub fn new(settings: Settings) -> Self {
        Self::with(settings, Verdict::Yes)
    }

    pub fn with(settings: Settings, verdict: Verdict) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        // The port that the system draws for UDP may be a connection's of another test.
        let resolver =
            iter::repeat_with(|| Resolver::bind(settings.clone(), Arc::new(TestPolicy), sender.clone()))
                .take(BINDS)
                .find_map(Result::ok)
                .expect("a port that is free by UDP and TCP");
        let handle = resolver.handle();
        Self { handle, learner: Learner::start(receiver, verdict), running: tokio::spawn(resolver.run()) }
    }

    /// A resolver that asks `upstreams`.
    pub fn asking(upstreams: &[&DnsServer]) -> Self {
        Self::new(settings(upstreams))
    }

    pub fn client(&self) -> Client {
        Client::new(self.handle.listening()[0])
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.running.abort();
    }
}

pub fn settings(upstreams: &[&DnsServer]) -> Settings {
    Settings {
        listen: vec![SocketAddr::new(LOOPBACK, 0)],
        upstreams: upstreams.iter().map(|server| server.address()).collect(),
        from: vec![LOOPBACK],
        forward: Vec::new(),
        ipv6: true,
    }
}

/// Says that a test cannot run here. With BREAKOUT_REQUIRE_ALL in the environment that is a failure.
pub fn skip(why: &str) {
    let sentence = format!("skipped, because {why}");
    assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "{sentence}");
    println!("{sentence}");
}

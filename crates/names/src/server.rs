use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::doh::Seen;
use crate::finder::Finder;
use crate::policy::Transport;
use crate::question::{Judgement, Question, judge};
use crate::relay::Relay;
use crate::search::SearchList;
use crate::wire::{self, Header};
use crate::{reply, sockets};

/// Queries by UDP being answered at once, at each address.
const MAX_QUERIES: usize = 4096;
const MAX_RELAYED: usize = 256;
const MAX_CONNECTIONS: usize = 64;
/// For a client to send its next query, or to take an answer. RFC 7766 §6.2.3
const IDLE: Duration = Duration::from_secs(10);
/// After an error of a listening socket, such as having no more file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

pub struct Listener {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

pub struct Server {
    pub finder: Arc<Finder>,
    pub relay: Relay,
    pub search: SearchList,
    pub doh: Seen,
    relays: Semaphore,
    /// Addresses that only this machine itself sends from.
    own: Vec<IpAddr>,
}

impl Server {
    pub fn new(finder: Finder, relay: Relay, own: Vec<IpAddr>) -> Self {
        let (search, doh, relays) = (SearchList::default(), Seen::default(), Semaphore::new(MAX_RELAYED));
        Self { finder: Arc::new(finder), relay, search, doh, relays, own }
    }

    pub async fn run(self: Arc<Self>, listeners: Vec<Listener>) {
        let mut tasks = JoinSet::new();
        for Listener { udp, tcp } in listeners {
            tasks.spawn(self.clone().serve_udp(Arc::new(udp)));
            tasks.spawn(self.clone().serve_tcp(tcp));
        }
        until_one_ends(tasks).await;
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut queries = JoinSet::new();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
                sleep(PAUSE).await;
                continue;
            };
            while queries.try_join_next().is_some() {}
            let query = buffer.get(..length).unwrap_or_default();
            if self.is_stranger(client) {
                continue;
            }
            if queries.len() < MAX_QUERIES {
                queries.spawn(self.clone().serve_datagram(socket.clone(), client, query.to_vec()));
            } else if let Some(busy) = self.servfail(query) {
                // A full socket buffer loses it, as it may any datagram.
                _ = socket.try_send_to(&busy, client);
            }
        }
    }

    async fn serve_datagram(self: Arc<Self>, socket: Arc<UdpSocket>, client: SocketAddr, query: Vec<u8>) {
        if let Some(answer) = self.answer(&query, Transport::Udp).await {
            _ = socket.send_to(&answer, client).await;
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, client)) = listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            if !self.is_stranger(client) && connections.len() < MAX_CONNECTIONS {
                connections.spawn(self.clone().serve_connection(stream));
            }
        }
    }

    /// One query after the other, until the client has no more.
    async fn serve_connection(self: Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let query = timeout(IDLE, sockets::read_message(&mut stream)).await??;
            let Some(answer) = self.answer(&query, Transport::Tcp).await else { return Ok(()) };
            timeout(IDLE, sockets::write_message(&mut stream, &answer)).await??;
        }
    }

    /// A neighbour on the network can send to any of this machine's addresses, but not from them: the kernel drops that.
    fn is_stranger(&self, client: SocketAddr) -> bool {
        let is_stranger = !client.ip().is_loopback() && !self.own.contains(&client.ip());
        if is_stranger {
            self.finder.counters.strangers.add(1);
        }
        is_stranger
    }

    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let judgement = judge(query, &*self.finder.policy, &self.search);
        match judgement {
            Judgement::Silence => None,
            Judgement::Reply { message, is_error } => {
                self.finder.counters.refused.add(is_error.into());
                Some(message)
            }
            Judgement::Ours(question) => Some(self.find(&question, transport).await),
            Judgement::Relay { doh } => {
                doh.into_iter().for_each(|server| self.doh.note(server));
                self.pass_on(query, transport).await
            }
        }
    }

    async fn find(&self, question: &Question, transport: Transport) -> Vec<u8> {
        let limit = match transport {
            Transport::Udp => question.udp_limit(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        match self.finder.find(question.query_name(), &question.name, question.query_type()).await {
            Ok((answer, ttl)) => reply::found(question, &answer, ttl, limit),
            Err(failure) => {
                self.finder.counters.failed.add(1);
                tracing::debug!(name = question.name, %failure, "a name is answered SERVFAIL");
                reply::failed(question, &failure, limit)
            }
        }
    }

    async fn pass_on(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if self.relay.is_empty() {
            self.finder.counters.refused.add(1);
            return Header::read(query).map(|header| bare(header, query, wire::REFUSED));
        }
        let Ok(_slot) = self.relays.try_acquire() else { return self.servfail(query) };
        self.finder.counters.relayed.add(1);
        match self.relay.ask(query, transport).await {
            Some(answer) => Some(answer),
            None => self.servfail(query),
        }
    }

    fn servfail(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.finder.counters.failed.add(1);
        Header::read(query).map(|header| bare(header, query, wire::SERVFAIL))
    }
}

/// None of them does by itself. One that panics must not leave its address without an answer, and nobody told: all end with it.
async fn until_one_ends(mut tasks: JoinSet<()>) {
    tasks.join_next().await;
}

fn bare(header: Header, query: &[u8], code: u16) -> Vec<u8> {
    wire::bare(header, wire::question(query).unwrap_or_default(), code)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_listener_that_panics_ends_the_others() {
        let (held, mut released) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async {
            let _held = held;
            pending().await
        });
        tasks.spawn(async { panic!("as a listener might") });
        timeout(IDLE, until_one_ends(tasks)).await.expect("it has ended");
        timeout(IDLE, &mut released).await.expect("it has ended").expect_err("nobody holds it");
    }
}

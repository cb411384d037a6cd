use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::policy::Transport;
use crate::race::Race;
use crate::sockets;
use crate::wire::{self, Header};

/// For one server; then the next is asked as well.
const PATIENCE: Duration = Duration::from_secs(2);
/// What applications wait for a server, as a rule (resolv.conf(5), `timeout`).
const DEADLINE: Duration = Duration::from_secs(5);

/// How long somebody is asked in place of a server that was silent.
const INSTEAD: Duration = Duration::from_secs(30);

/// The servers that other names are asked for, as before the tunnel was there: no bytes changed, nothing kept, and no
/// socket bound to the TUN.
#[derive(Debug, Default)]
pub struct Relay(Mutex<Order>);

/// As the C library has it, each question goes to the first server first, whatever that said to the one before. But one that is dead
/// would cost each of them longer than an application may wait.
#[derive(Debug, Default)]
struct Order {
    servers: Vec<SocketAddr>,
    instead: Option<(SocketAddr, Instant)>,
}

impl Relay {
    pub fn set(&self, servers: Vec<SocketAddr>) {
        let mut order = self.lock();
        if order.servers != servers {
            *order = Order { servers, instead: None };
        }
    }

    pub fn is_empty(&self) -> bool {
        self.lock().servers.is_empty()
    }

    /// The answer, with the query's own id; `None` if nobody gave one.
    pub async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let servers = self.lock().at(Instant::now());
        let has_spoken = AtomicBool::new(false);
        let (first, has_spoken) = (servers.first().copied(), &has_spoken);
        let race = Race { patience: PATIENCE, failures: servers.len(), deadline: Instant::now() + DEADLINE };
        let outcome = race.run(&servers, |server| async move {
            let answer = match transport {
                Transport::Udp => by_udp(server, query).await,
                Transport::Tcp => by_tcp(server, query).await,
            };
            has_spoken.fetch_or(Some(server) == first, Ordering::Relaxed);
            judged(answer.ok())
        });
        match outcome.await {
            Ok((server, answer)) => {
                if !has_spoken.load(Ordering::Relaxed) {
                    self.lock().instead = Some((server, Instant::now() + INSTEAD));
                }
                Some(answer)
            }
            Err(last) => last.flatten(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Order> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Order {
    fn at(&self, now: Instant) -> Vec<SocketAddr> {
        let mut servers = self.servers.clone();
        if let Some((instead, until)) = self.instead
            && now < until
        {
            servers.sort_by_key(|server| *server != instead);
        }
        servers
    }
}

/// A server that refuses or fails leaves it to the next one, as a stub resolver would have it. Its answer is good for the last.
fn judged(answer: Option<Vec<u8>>) -> Result<Vec<u8>, Option<Vec<u8>>> {
    let code = answer.as_deref().and_then(Header::read).map(Header::code);
    match (answer, code) {
        (Some(answer), Some(code)) if ![wire::SERVFAIL, wire::NOTIMP, wire::REFUSED].contains(&code) => {
            Ok(answer)
        }
        (answer, _) => Err(answer),
    }
}

async fn by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
    let mut asking = query.to_vec();
    wire::set_id(&mut asking, u16::from_be_bytes(id));

    let socket = sockets::ask_udp(None, server).await?;
    socket.send(&asking).await?;
    loop {
        let mut answer = sockets::receive(&socket).await?;
        if answers(&answer, &asking) {
            wire::set_id(&mut answer, Header::read(query).map_or(0, |header| header.id));
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = sockets::ask_tcp(None, server).await?;
    sockets::write_message(&mut stream, query).await?;
    let answer = sockets::read_message(&mut stream).await?;
    if answers(&answer, query) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// An error may come without the question.
fn answers(answer: &[u8], query: &[u8]) -> bool {
    let (Some(answering), Some(asking)) = (Header::read(answer), Header::read(query)) else { return false };
    if !answering.is_answer() || answering.id != asking.id {
        return false;
    }
    match (wire::question(answer), wire::question(query)) {
        _ if answering.questions == 0 => answering.code() != 0,
        (Some(one), Some(other)) => wire::is_same_question(one, other),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_asked_in_place_of_a_silent_one_for_a_while() {
        let at = |last: u8| SocketAddr::from(([10, 0, 0, last], 53));
        let servers = vec![at(1), at(2), at(3)];
        let now = Instant::now();
        let order = Order { servers: servers.clone(), instead: Some((at(3), now + INSTEAD)) };
        assert_eq!(order.at(now), [at(3), at(1), at(2)]);
        assert_eq!(order.at(now + INSTEAD), servers);

        let relay = Relay(Mutex::new(order));
        relay.set(servers.clone());
        assert_eq!(relay.lock().at(now), [at(3), at(1), at(2)]);
        relay.set(vec![at(4), at(3)]);
        assert_eq!(relay.lock().at(now), [at(4), at(3)]);
    }
}

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::policy::Transport;
use crate::race::Race;
use crate::servers::Servers;
use crate::sockets;
use crate::wire::{self, Header};

/// For one server; then the next is asked as well.
const PATIENCE: Duration = Duration::from_secs(2);
/// What applications wait for a server, as a rule (resolv.conf(5), `timeout`).
const DEADLINE: Duration = Duration::from_secs(5);

/// The servers that other names are asked for, as before the tunnel was there: no bytes changed, nothing kept, and no
/// socket bound to the TUN.
#[derive(Debug)]
pub struct Relay {
    pub servers: Servers,
}

impl Relay {
    /// The answer, with the query's own id; `None` if nobody gave one.
    pub async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let servers = self.servers.order();
        let race = Race { patience: PATIENCE, failures: servers.len(), deadline: Instant::now() + DEADLINE };
        let outcome = race.run(&servers, |server| async move {
            let answer = match transport {
                Transport::Udp => by_udp(server, query).await,
                Transport::Tcp => by_tcp(server, query).await,
            };
            judged(answer.ok())
        });
        match outcome.await {
            Ok((server, answer)) => {
                self.servers.answered(server);
                Some(answer)
            }
            Err(last) => last.flatten(),
        }
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

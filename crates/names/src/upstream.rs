use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::time::Instant;

use crate::answer::is_referral;
use crate::counters::Counters;
use crate::exchange::{Exchange, Secret, Taken};
use crate::failure::Failure;
use crate::race::Race;
use crate::servers::Servers;
use crate::sockets;

/// For one server; then the next is asked as well.
const PATIENCE: Duration = Duration::from_secs(1);
/// A lone server that fails is asked once more.
const MIN_FAILURES: usize = 2;

/// The DNS servers behind the tunnel.
#[derive(Debug)]
pub struct Upstream {
    pub servers: Servers,
    /// The tunnel's own addresses: the kernel's routes and the policy judge our queries by them.
    from: Vec<IpAddr>,
}

impl Upstream {
    pub fn new(servers: Vec<SocketAddr>, from: Vec<IpAddr>) -> Self {
        Self { servers: Servers::new(servers), from }
    }

    /// An answer with NOERROR or NXDOMAIN from one of the servers.
    pub async fn ask(
        &self,
        name: &Name,
        query_type: RecordType,
        deadline: Instant,
        counters: &Counters,
    ) -> Result<Box<Message>, Failure> {
        let mut servers = self.servers.order();
        servers.retain(|server| self.from(*server).is_some());
        if servers.is_empty() {
            return Err(Failure::NoServer);
        }
        let race = Race { patience: PATIENCE, failures: servers.len().max(MIN_FAILURES), deadline };
        let outcome = race.run(&servers, |server| self.ask_one(server, name, query_type, counters)).await;
        let (server, message) = outcome.map_err(|last| last.unwrap_or(Failure::Silent))?;
        self.servers.answered(server);
        Ok(message)
    }

    fn from(&self, server: SocketAddr) -> Option<IpAddr> {
        self.from.iter().copied().find(|from| from.is_ipv4() == server.is_ipv4())
    }

    async fn ask_one(
        &self,
        server: SocketAddr,
        name: &Name,
        query_type: RecordType,
        counters: &Counters,
    ) -> Result<Box<Message>, Failure> {
        let from = self.from(server);
        let mut taken =
            self.by_udp(server, from, Query { name, query_type, keeps_case: true }, counters).await?;
        if matches!(taken, Taken::OtherCase) {
            taken =
                self.by_udp(server, from, Query { name, query_type, keeps_case: false }, counters).await?;
        }
        if matches!(taken, Taken::Truncated) {
            taken = by_tcp(server, from, Query { name, query_type, keeps_case: false }).await?;
        }
        match taken {
            Taken::Answer(message) => judged(server, message),
            _ => Err(Failure::Malformed(server)),
        }
    }

    async fn by_udp(
        &self,
        server: SocketAddr,
        from: Option<IpAddr>,
        query: Query<'_>,
        counters: &Counters,
    ) -> Result<Taken, Failure> {
        let exchange = query.exchange()?;
        let socket = network(server, sockets::ask_udp(from, server)).await?;
        network(server, socket.send(exchange.query())).await?;
        loop {
            let message = network(server, sockets::receive(&socket)).await?;
            match exchange.take(&message) {
                Taken::Stray => counters.strays.add(1),
                taken => return Ok(taken),
            }
        }
    }
}

async fn by_tcp(server: SocketAddr, from: Option<IpAddr>, query: Query<'_>) -> Result<Taken, Failure> {
    let exchange = query.exchange()?;
    let mut stream = network(server, sockets::ask_tcp(from, server)).await?;
    network(server, sockets::write_message(&mut stream, exchange.query())).await?;
    let message = network(server, sockets::read_message(&mut stream)).await?;
    Ok(exchange.take(&message))
}

#[derive(Clone, Copy)]
struct Query<'a> {
    name: &'a Name,
    query_type: RecordType,
    keeps_case: bool,
}

impl Query<'_> {
    fn exchange(self) -> Result<Exchange, Failure> {
        let mut id = [0; 2];
        let mut case = [0; 32];
        getrandom::fill(&mut id).map_err(|_| Failure::NoRandom)?;
        getrandom::fill(&mut case).map_err(|_| Failure::NoRandom)?;
        let secret = Secret { id: u16::from_be_bytes(id), case: self.keeps_case.then_some(case) };
        Exchange::new(self.name, self.query_type, secret)
            .ok_or_else(|| Failure::NotAName(self.name.to_ascii()))
    }
}

fn judged(server: SocketAddr, message: Box<Message>) -> Result<Box<Message>, Failure> {
    match message.response_code {
        ResponseCode::NoError if is_referral(&message) => {
            Err(Failure::Refused { server, code: "a referral".into() })
        }
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(message),
        code => Err(Failure::Refused { server, code: code.to_string() }),
    }
}

async fn network<T>(server: SocketAddr, doing: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    doing.await.map_err(|error| Failure::Network { server, why: error.to_string() })
}

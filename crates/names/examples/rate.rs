//! How many questions the resolver answers in a second, by UDP on loopback, beside the DNS server it asks and the clients:
//! from the cache, and with an exchange and new addresses for each. Fails where that is less than it is to sustain.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use names::{Learn, Policy, Resolver, Settings, Transport};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CLIENTS: usize = 32;
const TIME: Duration = Duration::from_secs(10);
/// Answers a second.
const SUSTAINED: f64 = 5000.0;
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let upstream = std::net::UdpSocket::bind(SocketAddr::from((LOOPBACK, 0)))?;
    upstream.set_nonblocking(true)?;
    let settings = Settings {
        listen: vec![SocketAddr::from((LOOPBACK, 0))],
        upstreams: vec![upstream.local_addr()?],
        from: vec![LOOPBACK.into()],
        ..Settings::default()
    };
    let (learn, learning) = mpsc::channel(256);
    let resolver = Resolver::bind(settings, Arc::new(Example), learn)?;
    let handle = resolver.handle();
    let address = *handle.listening().first().ok_or("the resolver listens nowhere")?;
    tokio::spawn(resolver.run());
    tokio::spawn(take(learning));
    // Clients and server have a thread of their own, as applications do.
    let others = std::thread::spawn(move || -> Outcome<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::spawn(serve(UdpSocket::from_std(upstream)?));
            for (what, names) in [("the same 100 names", 100), ("a new name each time", usize::MAX)] {
                let (answered, lost) = ask(address, names).await?;
                let rate = answered as f64 / TIME.as_secs_f64();
                println!("{what}: {rate:.0} answers a second for {} s, {lost} lost", TIME.as_secs());
                if rate < SUSTAINED {
                    return Err(format!("{what}: less than {SUSTAINED:.0} answers a second").into());
                }
            }
            Ok(())
        })
    });
    while !others.is_finished() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    others.join().map_err(|_| "the clients' thread panicked")??;
    println!("{:?}", handle.counts());
    Ok(())
}

struct Example;

impl Policy for Example {
    fn has(&self, name: &str) -> bool {
        name.ends_with("example.com")
    }

    fn takes(&self, name: &str, _: Transport, _: u16) -> bool {
        self.has(name)
    }

    fn expects(&self, _: &str, _: IpAddr) -> bool {
        false
    }
}

async fn take(mut learning: mpsc::Receiver<Learn>) {
    while let Some(learn) = learning.recv().await {
        _ = learn.done.send(true);
    }
}

async fn serve(socket: UdpSocket) -> Outcome<()> {
    let mut buffer = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let Ok(query) = Message::from_vec(buffer.get(..length).unwrap_or_default()) else { continue };
        let mut answer = Message::new(query.id, MessageType::Response, OpCode::Query);
        let Some(owner) = query.queries.first().map(|question| question.name.clone()) else { continue };
        answer.queries = query.queries;
        answer.answers = vec![Record::from_rdata(owner, 300, RData::A(A::new(203, 0, 113, 10)))];
        socket.send_to(&answer.to_vec()?, from).await?;
    }
}

/// How many answers came, and how many questions got none within a second.
async fn ask(resolver: SocketAddr, names: usize) -> Outcome<(usize, usize)> {
    let next = Arc::new(AtomicUsize::new(0));
    let until = Instant::now() + TIME;
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| tokio::spawn(client(resolver, next.clone(), names, until))).collect();
    let mut sum = (0, 0);
    for client in clients {
        let (answered, lost) = client.await??;
        sum = (sum.0 + answered, sum.1 + lost);
    }
    Ok(sum)
}

async fn client(
    resolver: SocketAddr,
    next: Arc<AtomicUsize>,
    names: usize,
    until: Instant,
) -> Outcome<(usize, usize)> {
    let socket = UdpSocket::bind(SocketAddr::from((LOOPBACK, 0))).await?;
    socket.connect(resolver).await?;
    let (mut answered, mut lost) = (0, 0);
    let mut buffer = [0; 512];
    while Instant::now() < until {
        let number = next.fetch_add(1, Ordering::Relaxed) % names;
        let mut query = Message::query();
        query.queries = vec![Query::query(name(number, names)?, RecordType::A)];
        socket.send(&query.to_vec()?).await?;
        match timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await {
            Ok(length) => {
                let answer = Message::from_vec(buffer.get(..length?).unwrap_or_default())?;
                let told = (answer.id, answer.response_code, answer.answers.len());
                if told != (query.id, ResponseCode::NoError, 1) {
                    return Err(format!("asked with id {}, told {told:?}", query.id).into());
                }
                answered += 1;
            }
            Err(_) => lost += 1,
        }
    }
    Ok((answered, lost))
}

fn name(number: usize, names: usize) -> Outcome<Name> {
    Ok(Name::from_ascii(format!("host-{number}.{names}.example.com."))?)
}

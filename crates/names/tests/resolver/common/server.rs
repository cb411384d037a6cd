use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::client::{receive, send};

/// What a DNS server is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub bytes: Vec<u8>,
    pub query: Message,
    pub tcp: bool,
    pub from: SocketAddr,
    /// How many it was asked before this one.
    pub before: usize,
}

impl Asked {
    /// Lowercase, with the trailing dot.
    pub fn name(&self) -> String {
        self.query.queries[0].name.to_ascii().to_lowercase()
    }

    pub fn query_type(&self) -> RecordType {
        self.query.queries[0].query_type
    }
}

/// What it does then, in this order.
#[derive(Debug, Clone)]
pub enum Act {
    Send(Vec<u8>),
    /// From another port than the one that was asked (UDP).
    SendFromElsewhere(Vec<u8>),
    Wait(Duration),
}

type Script = Arc<dyn Fn(&Asked) -> Vec<Act> + Send + Sync>;

/// A DNS server on loopback, by UDP and TCP, that keeps to a script.
pub struct DnsServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    running: [JoinHandle<()>; 2],
}

impl DnsServer {
    pub async fn start(script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let script: Script = Arc::new(script);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (udp, tcp) = bound().await;
        let address = udp.local_addr().unwrap();
        let running = [
            tokio::spawn(serve_udp(Arc::new(udp), script.clone(), asked.clone())),
            tokio::spawn(serve_tcp(tcp, script, asked.clone())),
        ];
        Self { address, asked, running }
    }

    /// One answer to each query.
    pub async fn answering(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(move |asked| vec![Act::Send(answer(asked))]).await
    }

    /// It hears all and says nothing.
    pub async fn silent() -> Self {
        Self::start(|_| Vec::new()).await
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.running.iter().for_each(JoinHandle::abort);
    }
}

/// By UDP and TCP at one port: the system draws it for UDP, and a connection of another test may have it.
async fn bound() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, script: Script, asked: Arc<Mutex<Vec<Asked>>>) {
    let mut buffer = vec![0; 65535];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let acts = script(&note(&asked, &buffer[..length], from, false));
        let socket = socket.clone();
        tokio::spawn(async move {
            for act in acts {
                match act {
                    Act::Send(bytes) => _ = socket.send_to(&bytes, from).await,
                    Act::SendFromElsewhere(bytes) => {
                        let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                        _ = elsewhere.send_to(&bytes, from).await;
                    }
                    Act::Wait(time) => sleep(time).await,
                }
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, script: Script, asked: Arc<Mutex<Vec<Asked>>>) {
    loop {
        let (stream, from) = listener.accept().await.unwrap();
        tokio::spawn(serve_connection(stream, from, script.clone(), asked.clone()));
    }
}

async fn serve_connection(
    mut stream: TcpStream,
    from: SocketAddr,
    script: Script,
    asked: Arc<Mutex<Vec<Asked>>>,
) {
    let query = receive(&mut stream).await;
    for act in script(&note(&asked, &query, from, true)) {
        match act {
            Act::Send(bytes) | Act::SendFromElsewhere(bytes) => send(&mut stream, &bytes).await,
            Act::Wait(time) => sleep(time).await,
        }
    }
}

fn note(all: &Mutex<Vec<Asked>>, bytes: &[u8], from: SocketAddr, tcp: bool) -> Asked {
    let mut all = all.lock().unwrap();
    let query = Message::from_vec(bytes).unwrap();
    let asked = Asked { bytes: bytes.to_vec(), query, tcp, from, before: all.len() };
    all.push(asked.clone());
    asked
}

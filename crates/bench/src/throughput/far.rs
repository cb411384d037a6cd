//! The far end: counts what it is sent, sends what it is asked for, within limits.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::{During, Host, LabError, Stop};

use super::pace::Pace;
use super::protocol::{Count, Kind, Request};
use super::udp;
use super::watch::Watch;

/// What the far end does at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One transfer's.
    pub duration: Duration,
    /// That one transfer sends.
    pub bytes: u64,
    pub transfers_at_once: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { duration: Duration::from_secs(120), bytes: 100_000_000_000, transfers_at_once: 32 }
    }
}

/// Of a client that neither sends nor takes anything.
const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 128 * 1024;
/// Largest payload of a datagram that is sent: it must fit a tunnel's packets.
const LARGEST_DATAGRAM: u16 = 1400;

/// Serves transfers on `address` of `host`.
pub fn serve(host: &Host, address: SocketAddr) -> Result<(), LabError> {
    let listener = host
        .run(move || TcpListener::bind(address))?
        .during(|| format!("listen on {address} of host `{}`", host.name()))?;
    host.serve(&format!("transfers {address}"), move |stop| listen(&listener, &stop, Limits::default()))
}

/// Serves transfers, each in a thread of its own, until told to stop.
pub fn listen(listener: &TcpListener, stop: &Stop, limits: Limits) {
    let active = Arc::new(AtomicUsize::new(0));
    while stop.readable(listener) {
        let Ok((stream, _)) = listener.accept() else { continue };
        if active.fetch_add(1, Ordering::Relaxed) >= limits.transfers_at_once {
            active.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let ends = Active(active.clone());
        // Without a thread for it the connection is closed, as on any server at its limit.
        let _ = std::thread::Builder::new().name("transfer".to_owned()).spawn(move || {
            let _ends = ends;
            // A client that leaves or breaks the protocol only ends its own transfer.
            let _ = transfer(stream, limits);
        });
    }
}

struct Active(Arc<AtomicUsize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn transfer(mut stream: TcpStream, limits: Limits) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Request::read(&mut stream)?;
    request.warm_up = request.warm_up.min(limits.duration);
    request.duration = request.duration.min(limits.duration.saturating_sub(request.warm_up));
    request.payload = request.payload.clamp(1, LARGEST_DATAGRAM);
    match request.kind {
        Kind::TcpSink => receive(&mut stream, &request, limits, &Watch::default())?.write(&mut stream),
        Kind::TcpSource => send(&mut stream, &request, limits.bytes, &Watch::default()),
        Kind::UdpSink => {
            let socket = announce(&mut stream)?;
            udp::receive(&socket, &request)?.write(&mut stream)
        }
        Kind::UdpSource => {
            let socket = announce(&mut stream)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            // Only to whoever holds the connection: an address that a datagram merely claims gets nothing.
            let (_, from) = socket.recv_from(&mut [0; 64])?;
            if from.ip() != stream.peer_addr()?.ip() {
                return Err(io::Error::other("the datagram is not from the client"));
            }
            socket.connect(from)?;
            udp::send(&socket, &request, limits.bytes, &Watch::default());
            Ok(())
        }
    }
}

/// Opens a UDP socket beside the connection and tells the client its port.
fn announce(stream: &mut TcpStream) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((stream.local_addr()?.ip(), 0))?;
    stream.write_all(&socket.local_addr()?.port().to_be_bytes())?;
    Ok(socket)
}

/// Counts until the sender closes its side, or the transfer is ended.
pub fn receive(
    stream: &mut TcpStream,
    request: &Request,
    limits: Limits,
    watch: &Watch,
) -> io::Result<Count> {
    let mut buffer = vec![0; CHUNK];
    let mut count = Count::default();
    let mut begun = None;
    loop {
        let len = stream.read(&mut buffer)?;
        let begun = *begun.get_or_insert_with(Instant::now);
        let since = begun.elapsed();
        if len == 0 || since > limits.duration + PATIENCE || watch.is_over() {
            // A transfer that ended early has a shorter window.
            count.window = since.min(request.length()).saturating_sub(request.warm_up);
            return Ok(count);
        }
        watch.count(len);
        count.total_bytes += len as u64;
        if (request.warm_up..request.length()).contains(&since) {
            count.bytes += len as u64;
        }
    }
}

/// Sends for as long as the request says, or until the transfer is ended.
pub fn send(stream: &mut TcpStream, request: &Request, most_bytes: u64, watch: &Watch) -> io::Result<()> {
    let unpaced = request.rate.is_none();
    // Paced, a chunk is about a millisecond of 300 Mbit/s.
    let chunk = vec![0x5a; if unpaced { CHUNK } else { 32 * 1024 }];
    let mut pace = Pace::new(request.rate);
    let mut sent = 0;
    while pace.elapsed() < request.length() && sent < most_bytes && !watch.is_over() {
        stream.write_all(&chunk)?;
        watch.count(chunk.len());
        sent += chunk.len() as u64;
        pace.sent(chunk.len());
    }
    stream.shutdown(std::net::Shutdown::Write)
}

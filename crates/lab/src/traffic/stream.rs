//! Clients over TCP and TLS.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tungstenite::Message;

use super::Outcome;
use crate::service::{http, read_head, sip, stun};

/// A client's TLS connection.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// How long a client waits for a connection or an answer.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// How many requests a client makes, and how long it waits between an answer and the next one.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub requests: u64,
    pub pause: Duration,
}

pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects and completes the handshake, so that it does not count as the first request's time.
pub fn connect_tls(to: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Tls> {
    let mut stream = connect(to)?;
    let name = ServerName::from(to.ip());
    let mut session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(session, stream))
}

/// HTTPS: one small page again and again over one connection.
pub fn https(to: SocketAddr, config: &Arc<ClientConfig>, pace: Pace) -> Outcome {
    requests(pace, || {
        let mut tls = connect_tls(to, config)?;
        let local = tls.sock.local_addr()?;
        let host = to.ip().to_string();
        Ok((local, move |_| http::get(&mut tls, &host, "/", |_| Ok(())).map(drop)))
    })
}

/// A WebSocket over TLS: messages and their echoes.
pub fn wss(to: SocketAddr, config: &Arc<ClientConfig>, pace: Pace) -> Outcome {
    requests(pace, || {
        let tls = connect_tls(to, config)?;
        let local = tls.sock.local_addr()?;
        let (mut socket, _) =
            tungstenite::client(format!("wss://{}/", to.ip()), tls).map_err(io::Error::other)?;
        Ok((local, move |number| {
            let message = Message::text(format!("message {number}"));
            socket.send(message.clone()).map_err(io::Error::other)?;
            let echo = socket.read().map_err(io::Error::other)?;
            if echo == message { Ok(()) } else { Err(io::Error::other("another message came back")) }
        }))
    })
}

/// SIP OPTIONS over TLS.
pub fn sip_tls(to: SocketAddr, config: &Arc<ClientConfig>, pace: Pace) -> Outcome {
    requests(pace, || {
        let mut tls = connect_tls(to, config)?;
        let local = tls.sock.local_addr()?;
        let mut pending = Vec::new();
        Ok((local, move |number| {
            tls.write_all(sip::request("TLS", local, to, number).as_bytes())?;
            tls.flush()?;
            let response = read_head(&mut tls, &mut pending)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if sip::is_answer(&response, number) { Ok(()) } else { Err(io::Error::other(response)) }
        }))
    })
}

/// What a browser does when UDP does not get through: STUN to a TURN server, over TLS.
pub fn turn_tls(to: SocketAddr, config: &Arc<ClientConfig>, pace: Pace) -> Outcome {
    requests(pace, || {
        let mut tls = connect_tls(to, config)?;
        let local = tls.sock.local_addr()?;
        Ok((local, move |number| {
            let transaction = stun::transaction(number);
            tls.write_all(&stun::request(transaction))?;
            tls.flush()?;
            let response = stun::read_message(&mut tls)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if stun::is_answer(&response, transaction) {
                Ok(())
            } else {
                Err(io::Error::other("no binding response"))
            }
        }))
    })
}

/// Connects over plain TCP and waits for the server's greeting.
pub fn greeting(to: SocketAddr) -> Outcome {
    requests(Pace { requests: 1, pause: Duration::ZERO }, || {
        let mut stream = connect(to)?;
        let local = stream.local_addr()?;
        Ok((local, move |_| stream.read_exact(&mut [0])))
    })
}

/// Opens a connection and makes requests on it, one after another; the first error ends it.
fn requests<R>(pace: Pace, open: impl FnOnce() -> io::Result<(SocketAddr, R)>) -> Outcome
where
    R: FnMut(u64) -> io::Result<()>,
{
    let mut outcome = Outcome::default();
    let begun = Instant::now();
    let mut request = match open() {
        Ok((local, request)) => {
            outcome.local = Some(local);
            request
        }
        Err(error) => {
            // The connection was the request.
            outcome.sent = 1;
            outcome.fail(&error, begun.elapsed());
            return outcome;
        }
    };
    for number in 0..pace.requests {
        let asked = Instant::now();
        outcome.sent += 1;
        if let Err(error) = request(number) {
            outcome.fail(&error, begun.elapsed());
            return outcome;
        }
        outcome.answer(asked.elapsed());
        std::thread::sleep(pace.pause);
    }
    outcome
}

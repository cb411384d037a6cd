//! The far ends: what answers in the lab's internet.

pub mod http;
pub mod media;
pub mod sip;
pub mod ssh;
pub mod stun;
mod tls;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

pub use tls::Identity;

use crate::{During, Host, LabError, Stop};

/// An accepted TCP connection; reading ends when the host goes away.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    stop: Stop,
}

impl Connection {
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.stop.readable(self.stream.as_fd()) {
            return Ok(0);
        }
        self.stream.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Listens on `address` of `host` and answers each connection with `serve`, in a thread of its own.
/// Listening has begun when this returns.
pub fn listen_tcp<F>(host: &Host, address: SocketAddr, serve: F) -> Result<(), LabError>
where
    F: Fn(Connection) -> io::Result<()> + Clone + Send + 'static,
{
    let listener = host
        .run(move || TcpListener::bind(address))?
        .during(|| format!("listen on {address} of host `{}`", host.name()))?;
    host.serve(&format!("tcp {address}"), move |stop| {
        while stop.readable(&listener) {
            let Ok((stream, _)) = listener.accept() else { continue };
            let (serve, stop) = (serve.clone(), stop.clone());
            // Without a thread for it the connection is closed, as on any server at its limit.
            let _ = std::thread::Builder::new().spawn(move || {
                // A client that leaves or breaks the protocol only ends its own connection.
                let _ = stream.set_nodelay(true);
                let _ = serve(Connection { stream, stop });
            });
        }
    })
}

/// As [`listen_tcp`], behind TLS.
pub fn listen_tls<F>(
    host: &Host,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    serve: F,
) -> Result<(), LabError>
where
    F: Fn(StreamOwned<ServerConnection, Connection>) -> io::Result<()> + Clone + Send + 'static,
{
    listen_tcp(host, address, move |connection| {
        let session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        serve(StreamOwned::new(session, connection))
    })
}

/// Opens a UDP socket on `address` of `host`, and sends whatever `answer` makes of each datagram back with the type of service `tos`.
pub fn answer_udp<F>(host: &Host, address: SocketAddr, tos: u8, mut answer: F) -> Result<(), LabError>
where
    F: FnMut(&[u8], SocketAddr) -> Option<Vec<u8>> + Send + 'static,
{
    let socket = host
        .run(move || -> io::Result<UdpSocket> {
            let socket = socket2::Socket::from(UdpSocket::bind(address)?);
            socket.set_tos_v4(u32::from(tos))?;
            Ok(socket.into())
        })?
        .during(|| format!("open UDP {address} on host `{}`", host.name()))?;
    host.serve(&format!("udp {address}"), move |stop| {
        let mut datagram = vec![0; 65_536];
        while stop.readable(&socket) {
            // An error here is an earlier answer's ICMP: there is nobody to tell.
            let Ok((len, from)) = socket.recv_from(&mut datagram) else { continue };
            if let Some(reply) = datagram.get(..len).and_then(|request| answer(request, from)) {
                let _ = socket.send_to(&reply, from);
            }
        }
    })
}

/// Reads up to and including the empty line that ends a head (HTTP, SIP); `pending` holds what was read beyond the last head.
/// `None` at the end of the stream.
pub(crate) fn read_head(stream: &mut impl Read, pending: &mut Vec<u8>) -> io::Result<Option<String>> {
    const END: &[u8] = b"\r\n\r\n";
    const LIMIT: usize = 16 * 1024;
    loop {
        if let Some(at) = pending.windows(END.len()).position(|window| window == END) {
            let rest = pending.split_off(at + END.len());
            let head = std::mem::replace(pending, rest);
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if pending.len() > LIMIT {
            return Err(io::Error::other("a head of more than 16 KiB"));
        }
        let mut chunk = [0; 2048];
        let len = stream.read(&mut chunk)?;
        if len == 0 {
            return Ok(None);
        }
        pending.extend(chunk.iter().take(len));
    }
}

/// The value of a header field (HTTP, SIP), whose name is compared without case.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_split_at_the_empty_line_and_the_rest_is_kept() {
        let mut stream: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2";
        let mut pending = Vec::new();
        let head = read_head(&mut stream, &mut pending).unwrap().unwrap();
        assert_eq!(head, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(field(&head, "host"), Some("a"));
        assert_eq!(pending, b"GET /2");
        assert_eq!(read_head(&mut stream, &mut pending).unwrap(), None);
    }

    #[test]
    fn an_endless_head_is_refused() {
        assert!(read_head(&mut std::io::repeat(b'x'), &mut Vec::new()).is_err());
    }
}

//! HTTP/1.1 with a WebSocket behind Upgrade, as signaling and the web have it.

use std::io::{self, Read, Write};

use tungstenite::WebSocket;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;

use super::{field, read_head};
use crate::random::Random;

/// Answers `GET /` with a short text and `GET /bytes/N` with N bytes of [`Body`]; echoes the messages of a WebSocket.
pub fn serve<S: Read + Write>(mut stream: S) -> io::Result<()> {
    let mut pending = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut pending)? {
        if field(&head, "Upgrade").is_some_and(|to| to.eq_ignore_ascii_case("websocket")) {
            return serve_websocket(stream, &head, pending);
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        let size = target.strip_prefix("/bytes/").map(str::parse::<u64>);
        match (target, size) {
            ("/", _) => respond(&mut stream, "200 OK", &mut &b"here\n"[..], 5)?,
            (_, Some(Ok(size))) => respond(&mut stream, "200 OK", &mut Body::default().take(size), size)?,
            _ => respond(&mut stream, "404 Not Found", &mut io::empty(), 0)?,
        }
    }
    Ok(())
}

fn respond(stream: &mut impl Write, status: &str, body: &mut impl Read, len: u64) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n")?;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let len = body.read(&mut chunk)?;
        let Some(read) = chunk.get(..len).filter(|read| !read.is_empty()) else { break };
        stream.write_all(read)?;
    }
    stream.flush()
}

fn serve_websocket<S: Read + Write>(mut stream: S, head: &str, pending: Vec<u8>) -> io::Result<()> {
    let key = field(head, "Sec-WebSocket-Key").unwrap_or_default();
    let accept = derive_accept_key(key.as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    stream.flush()?;
    let mut socket = WebSocket::from_partially_read(stream, pending, Role::Server, None);
    loop {
        let message = socket.read().map_err(io::Error::other)?;
        if message.is_text() || message.is_binary() {
            socket.send(message).map_err(io::Error::other)?;
        }
    }
}

/// The endless body of `/bytes/N`: the same bytes each time, none of them to be guessed from its neighbours, so that whoever downloads it
/// can tell a right one from a damaged one without a second copy.
#[derive(Debug)]
pub struct Body {
    random: Random,
    word: [u8; 8],
    used: usize,
}

impl Default for Body {
    fn default() -> Self {
        Self { random: Random::new(0), word: [0; 8], used: 8 }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in buffer.iter_mut() {
            if self.used == self.word.len() {
                self.word = self.random.next().to_le_bytes();
                self.used = 0;
            }
            *byte = self.word.get(self.used).copied().unwrap_or_default();
            self.used += 1;
        }
        Ok(buffer.len())
    }
}

/// Asks for `target` on an open connection and hands the body to `body` as it comes; returns its length.
pub fn get<S: Read + Write>(
    stream: &mut S,
    host: &str,
    target: &str,
    mut body: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    // One write: TLS makes a record and TCP a segment of it.
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    stream.flush()?;
    let mut pending = Vec::new();
    let head = read_head(stream, &mut pending)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned()));
    }
    let len: u64 = field(&head, "Content-Length")
        .and_then(|len| len.parse().ok())
        .ok_or_else(|| io::Error::other("an answer without its length"))?;
    body(&pending)?;
    let mut left = len.saturating_sub(pending.len() as u64);
    let mut chunk = vec![0; 64 * 1024];
    while left > 0 {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        body(chunk.get(..read).unwrap_or_default())?;
        left = left.saturating_sub(read as u64);
    }
    Ok(len)
}

/// Downloads `size` bytes of [`Body`] and compares each.
pub fn download<S: Read + Write>(stream: &mut S, host: &str, size: u64) -> io::Result<()> {
    let mut expected = Body::default();
    let mut wanted = Vec::new();
    get(stream, host, &format!("/bytes/{size}"), |got| {
        wanted.resize(got.len(), 0);
        expected.read_exact(&mut wanted)?;
        if wanted == got { Ok(()) } else { Err(io::Error::other("the download is damaged")) }
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_does_not_depend_on_how_it_is_read() {
        let mut whole = vec![0; 1000];
        Body::default().read_exact(&mut whole).unwrap();
        let mut pieces = Vec::new();
        let mut body = Body::default();
        for size in [1, 7, 8, 9, 975] {
            let mut piece = vec![0; size];
            body.read_exact(&mut piece).unwrap();
            pieces.extend(piece);
        }
        assert_eq!(whole, pieces);
    }
}

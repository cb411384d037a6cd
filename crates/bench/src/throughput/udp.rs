use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::protocol::{Count, Request};
use super::watch::Watch;

/// How long a receiver waits for the first datagram, and how long silence ends the rest.
const PATIENCE: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(300);
/// Datagrams between two looks at the clock.
const BATCH: u32 = 32;

/// Sends datagrams from a connected socket for as long as the request says, or until the transfer is ended. Returns how long that was.
pub fn send(socket: &UdpSocket, request: &Request, most_bytes: u64, watch: &Watch) -> Duration {
    let datagram = vec![0x5a; usize::from(request.payload)];
    let mut pace = Pace::new(request.rate);
    let mut sent = 0;
    while pace.elapsed() < request.length() && sent < most_bytes && !watch.is_over() {
        for _ in 0..BATCH {
            // A full queue or an ICMP error loses this one.
            if socket.send(&datagram).is_ok() {
                watch.count(datagram.len());
            }
            sent += datagram.len() as u64;
            pace.sent(datagram.len());
        }
    }
    pace.elapsed()
}

/// Counts what arrives at a socket until the request's time is over or nothing comes any more.
pub fn receive(socket: &UdpSocket, request: &Request) -> io::Result<Count> {
    let mut buffer = vec![0; 65_536];
    let mut count = Count::default();
    let mut begun = None;
    socket.set_read_timeout(Some(PATIENCE))?;
    loop {
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let since = match begun {
            Some(begun) => Instant::now() - begun,
            None => {
                begun = Some(Instant::now());
                socket.set_read_timeout(Some(SILENCE))?;
                Duration::ZERO
            }
        };
        count.total_bytes += len as u64;
        if (request.warm_up..request.length()).contains(&since) {
            count.bytes += len as u64;
            count.packets += 1;
        }
        if since > request.length() + PATIENCE {
            break;
        }
    }
    count.window = if begun.is_some() { request.duration } else { Duration::ZERO };
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throughput::protocol::Kind;

    #[test]
    fn what_the_socket_refuses_was_not_moved() {
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(far.local_addr().unwrap()).unwrap();
        let moved = |payload: u16| {
            let (warm_up, duration) = (Duration::ZERO, Duration::from_millis(20));
            let request = Request { kind: Kind::UdpSink, payload, warm_up, duration, rate: None };
            let watch = Watch::default();
            send(&socket, &request, u64::MAX, &watch);
            watch.moved()
        };
        assert!(moved(1000) >= 1000);
        assert_eq!(moved(u16::MAX), 0, "longer than a datagram may be");
    }
}

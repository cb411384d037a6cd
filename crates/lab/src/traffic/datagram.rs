//! Clients over UDP that ask and wait for the answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::Outcome;
use super::stream::Pace;
use crate::service::{sip, stun};

/// How long a datagram's answer is waited for.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// A socket with a port of the kernel's choice, connected, so that ICMP errors reach it. It has the address that the route gives it,
/// unless `from` says which.
pub fn open(from: Option<Ipv4Addr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((from.unwrap_or(Ipv4Addr::UNSPECIFIED), 0))?;
    socket.connect(to)?;
    Ok(socket)
}

/// SIP OPTIONS.
pub fn sip_options(to: SocketAddr, pace: Pace) -> Outcome {
    exchange(None, to, pace, |number, local| {
        let request = sip::request("UDP", local, to, number).into_bytes();
        (request, Box::new(move |response| sip::is_answer(&String::from_utf8_lossy(response), number)))
    })
}

/// STUN binding requests from a socket bound to `from`.
pub fn stun_binding(from: Option<Ipv4Addr>, to: SocketAddr, pace: Pace) -> Outcome {
    exchange(from, to, pace, |number, _| {
        let transaction = stun::transaction(number);
        (stun::request(transaction), Box::new(move |response| stun::is_answer(response, transaction)))
    })
}

/// Text and its echo: UDP that is no WebRTC.
pub fn echo(to: SocketAddr, pace: Pace) -> Outcome {
    exchange(None, to, pace, |number, _| {
        // RFC 7983 knows no protocol that begins with a letter.
        let request = format!("plain datagram {number}").into_bytes();
        let expected = request.clone();
        (request, Box::new(move |response| response == expected))
    })
}

type IsAnswer = Box<dyn Fn(&[u8]) -> bool>;

fn exchange(
    from: Option<Ipv4Addr>,
    to: SocketAddr,
    pace: Pace,
    mut request: impl FnMut(u64, SocketAddr) -> (Vec<u8>, IsAnswer),
) -> Outcome {
    let mut outcome = Outcome::default();
    let begun = Instant::now();
    let mut run = || -> io::Result<()> {
        let socket = open(from, to)?;
        let local = socket.local_addr()?;
        outcome.local = Some(local);
        for number in 0..pace.requests {
            let (datagram, is_answer) = request(number, local);
            let asked = Instant::now();
            outcome.sent += 1;
            socket.send(&datagram)?;
            if wait_for(&socket, asked + PATIENCE, is_answer)? {
                outcome.answer(asked.elapsed());
            }
            std::thread::sleep(pace.pause);
        }
        Ok(())
    };
    if let Err(error) = run() {
        outcome.fail(&error, begun.elapsed());
    }
    outcome
}

/// `false` if no answer came in time; an error if the network said that none will.
pub(super) fn wait_for(
    socket: &UdpSocket,
    until: Instant,
    is_answer: impl Fn(&[u8]) -> bool,
) -> io::Result<bool> {
    let mut datagram = [0; 2048];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut datagram) {
            Ok(len) if datagram.get(..len).is_some_and(&is_answer) => return Ok(true),
            // Late or foreign.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

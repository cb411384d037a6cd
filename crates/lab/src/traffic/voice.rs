//! A call: STUN, then RTP at a steady pace, echoed by the far end.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::time::TimeSpec;
use socket2::SockRef;

use super::datagram::{open, wait_for};
use super::{Outcome, is_refusal};
use crate::service::stun;

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub to: SocketAddr,
    /// The local address to bind to, as browsers do with each of theirs; otherwise the route's.
    pub from: Option<Ipv4Addr>,
    /// The type-of-service byte: 0xB8 is EF, 0 is what browsers do by default.
    pub tos: u8,
    /// RTP packets to send.
    pub packets: u16,
}

/// Packetization time of practically all telephony.
pub const INTERVAL: Duration = Duration::from_millis(20);
/// RTP header and 160 bytes: G.711's 20 ms.
pub const PAYLOAD: usize = 172;
const HEADER: usize = 12;
/// RTP timestamp units per packet (Opus counts at 48 kHz).
const TICKS: u32 = 960;
/// How long answers are waited for after the last packet.
const PATIENCE: Duration = Duration::from_secs(1);
const STUN_ATTEMPTS: u64 = 3;

impl Call {
    /// Makes the call. A round trip counts from when the packet was due, so that a late send counts as delay.
    pub fn run(&self) -> Outcome {
        let mut outcome = Outcome::default();
        let begun = Instant::now();
        if let Err(error) = self.talk(&mut outcome) {
            outcome.fail(&error, begun.elapsed());
        }
        outcome
    }

    fn talk(&self, outcome: &mut Outcome) -> io::Result<()> {
        let socket = open(self.from, self.to)?;
        SockRef::from(&socket).set_tos_v4(u32::from(self.tos))?;
        SockRef::from(&socket).set_recv_tos_v4(true)?;
        outcome.local = Some(socket.local_addr()?);
        check_connectivity(&socket, outcome)?;

        let begun = Instant::now();
        let mut jitter = Jitter::default();
        for number in 0..self.packets {
            let due = begun + INTERVAL * u32::from(number);
            collect(&socket, due, begun, outcome, &mut jitter)?;
            outcome.sent += 1;
            match socket.send(&rtp(number)) {
                // An earlier packet's ICMP error; this one counts as lost.
                Err(error) if is_refusal(&error) => outcome.fail(&error, begun.elapsed()),
                sent => drop(sent?),
            }
        }
        let end = begun + INTERVAL * u32::from(self.packets) + PATIENCE;
        collect(&socket, end, begun, outcome, &mut jitter)?;
        outcome.jitter_ns = Some(jitter.value);
        Ok(())
    }
}

/// As ICE does before media: a binding request until it is answered. Counts the requests and the answer like any packet, without
/// a round trip, since a first packet may wait for the tunnel.
fn check_connectivity(socket: &UdpSocket, outcome: &mut Outcome) -> io::Result<()> {
    for attempt in 0..STUN_ATTEMPTS {
        let transaction = stun::transaction(attempt);
        outcome.sent += 1;
        socket.send(&stun::request(transaction))?;
        let is_answer = |response: &[u8]| stun::is_answer(response, transaction);
        if wait_for(socket, Instant::now() + PATIENCE, is_answer)? {
            outcome.answered += 1;
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to STUN"))
}

/// Takes in echoes until `until`, or until all are there.
fn collect(
    socket: &UdpSocket,
    until: Instant,
    begun: Instant,
    outcome: &mut Outcome,
    jitter: &mut Jitter,
) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut polled, Some(TimeSpec::from_duration(left)), None) {
            Err(nix::errno::Errno::EINTR) => continue,
            ready if ready? == 0 => return Ok(()),
            _ => {}
        }
        let (number, tos) = match receive(socket) {
            Ok(Some(received)) => received,
            Ok(None) => continue,
            Err(error) if is_refusal(&error) => {
                outcome.fail(&error, begun.elapsed());
                continue;
            }
            Err(error) => return Err(error),
        };
        let transit = begun.elapsed().saturating_sub(INTERVAL * u32::from(number));
        outcome.answer(transit);
        outcome.dscp_back.extend(tos.map(|tos| tos >> 2));
        jitter.arrival(transit);
    }
}

/// The sequence number and the type-of-service byte of an echo; `None` for anything that is no RTP.
fn receive(socket: &UdpSocket) -> io::Result<Option<(u16, Option<u8>)>> {
    let mut datagram = [0; 2048];
    let mut control = nix::cmsg_space!(u8);
    let mut parts = [IoSliceMut::new(&mut datagram)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let tos = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
        _ => None,
    });
    let len = message.bytes;
    let [first, _, high, low, ..] = datagram;
    Ok((len >= HEADER && first == 0x80).then(|| (u16::from_be_bytes([high, low]), tos)))
}

/// RFC 3550 §5.1: version 2, a dynamic payload type, no extras.
fn rtp(number: u16) -> Vec<u8> {
    let timestamp = u32::from(number).wrapping_mul(TICKS);
    let mut packet = Vec::with_capacity(PAYLOAD);
    packet.extend([0x80, 111]);
    packet.extend(number.to_be_bytes());
    packet.extend(timestamp.to_be_bytes());
    packet.extend(0x6c61_6221_u32.to_be_bytes());
    packet.resize(PAYLOAD, 0xd5);
    packet
}

/// RFC 3550 §6.4.1, over round trips in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Jitter {
    value: f64,
    last: Option<f64>,
}

impl Jitter {
    fn arrival(&mut self, transit: Duration) {
        let transit = transit.as_nanos() as f64;
        if let Some(last) = self.last.replace(transit) {
            self.value += ((transit - last).abs() - self.value) / 16.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_has_no_jitter_and_one_late_packet_counts_twice() {
        let mut jitter = Jitter::default();
        let transits = [10, 10, 26, 10].map(Duration::from_nanos);
        let values = transits.map(|transit| {
            jitter.arrival(transit);
            jitter.value
        });
        assert_eq!(values, [0.0, 0.0, 1.0, 1.0 + 15.0 / 16.0]);
    }

    #[test]
    fn packets_are_rtp() {
        let packet = rtp(258);
        assert_eq!(packet.len(), PAYLOAD);
        assert_eq!(packet[..8], [0x80, 111, 1, 2, 0, 3, 0xc7, 0x80]);
    }
}

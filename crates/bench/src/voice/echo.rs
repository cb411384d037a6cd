//! The far end of calls.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use lab::{During, Host, LabError, Stop, Wake};
use socket2::SockRef;

use super::receive::{prepare, receive};
use super::{EF_TOS, packet};
use crate::scheduling::take_realtime;
use crate::{clock, dual};

/// How long a receive may block before the stop is looked at.
const PATIENCE: Duration = Duration::from_millis(200);

/// Echoes voice on `address` of `host` from a real-time thread, or with the kernel's stamps where that is not permitted.
pub fn serve(host: &Host, address: SocketAddr) -> Result<(), LabError> {
    serve_if(host, address, false)
}

/// As [`serve`], but only packets that arrive marked EF: what a bypass has carried, if it was sent without a mark.
pub fn serve_marked(host: &Host, address: SocketAddr) -> Result<(), LabError> {
    serve_if(host, address, true)
}

fn serve_if(host: &Host, address: SocketAddr, only_marked: bool) -> Result<(), LabError> {
    let socket = host
        .run(move || open(address))?
        .during(|| format!("open UDP {address} on host `{}`", host.name()))?;
    host.serve(&format!("voice {address}"), move |stop| echo(&socket, &stop, only_marked, Stamps::Machine))
}

/// A socket that answers marked EF.
pub fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = dual::udp(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Also for what an IPv6 socket sends to IPv4.
    SockRef::from(&socket).set_tos_v4(u32::from(EF_TOS))?;
    if address.is_ipv6() {
        SockRef::from(&socket).set_tclass_v6(u32::from(EF_TOS))?;
    }
    Ok(socket)
}

/// By what clock a far end says when packets came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamps {
    /// The one that it has in common with whoever is on the same machine.
    Machine,
    /// The wall clock, for other machines.
    Wall,
}

/// Sends the bench's own packets back, with the time they came, until told to stop. Anything else is ignored, so that the answer is
/// never larger than the question and never answers itself.
pub fn echo(socket: &UdpSocket, stop: &Stop, only_marked: bool, stamps: Stamps) {
    if prepare(socket, !take_realtime()).is_err() {
        return;
    }
    let mut buffer = [0; 2048];
    loop {
        let received = match receive(socket, &mut buffer) {
            Ok(received) => received,
            // Silence, or an earlier answer's ICMP error.
            Err(_)
                if stop.any_readable([std::os::fd::AsFd::as_fd(socket)], Some(Duration::ZERO))
                    == Wake::Stopped =>
            {
                return;
            }
            Err(_) => continue,
        };
        let (Some(datagram), Some(from)) = (buffer.get_mut(..received.len), received.from) else { continue };
        if !packet::is_ours(datagram) || only_marked && received.tos != Some(EF_TOS) {
            continue;
        }
        let at = match stamps {
            Stamps::Machine => received.at,
            Stamps::Wall => clock::to_wall(received.at),
        };
        packet::stamp(datagram, at);
        // An answer that cannot be sent is a lost packet, and the caller counts those.
        let _ = socket.send_to(datagram, from);
    }
}

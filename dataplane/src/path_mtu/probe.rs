use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use packet::{Echo, Packet};
use tunnel::{DATAGRAM_OVERHEAD, MIN_OUT, Peer, Sealed};

use super::PathMtu;
use super::segments::Pair;

/// Only the tunnel's other end sees such a probe: it answers rather than forward it, whoever wrote it and whatever the destination is.
const TTL: u8 = 1;

/// Of the control: a probe so small that only a gateway which answers none, or a way that carries nothing, leaves it unanswered.
pub(crate) const CONTROL: u16 = 64;
/// What our probes carry, so that their other end tells them from anybody else's pings. The smallest probe has room for it.
const MARK: &[u8; 16] = b"breakout pathmtu";

/// Between whom a path is probed: an address of ours, and one that the other end has or would forward to.
pub(crate) type Ends = (IpAddr, IpAddr);

/// Random enough that nobody guesses it who sees no probe.
pub(crate) fn secret() -> u32 {
    RandomState::new().hash_one(()) as u32
}

/// What a probe that was sent to one of these addresses asks; `None` of any other packet.
pub(crate) fn asked(packet: &Packet<'_>, own: &[IpAddr]) -> Option<Echo> {
    let echo = packet.echo_request().filter(|echo| own.contains(&echo.destination))?;
    (packet.headers().ttl == TTL && packet.payload().starts_with(MARK)).then_some(echo)
}

/// Datagrams one behind the other, of which all but the last have `first` bytes, and that no more.
pub(crate) struct Probes {
    pub bytes: Vec<u8>,
    pub first: usize,
}

/// A datagram around an echo request of this size; `None` if nothing can be sent now.
pub(crate) fn seal(path: &PathMtu, size: u16, ends: Ends, peer: &mut Peer, now: Instant) -> Option<Vec<u8>> {
    seal_named(path.name(size), size, ends, peer, now)
}

/// The same and a control: see [`SegmentCheck`](super::segments::SegmentCheck).
pub(crate) fn seal_pair(
    pair: Pair,
    path: &PathMtu,
    size: u16,
    ends: Ends,
    peer: &mut Peer,
    now: Instant,
) -> Option<Probes> {
    let mut seal = |size| seal_named(pair.name(path.name(size)), size, ends, peer, now);
    let mut sealed = Probes::one(seal(size)?);
    if let Some(control) = seal(CONTROL).filter(|control| control.len() <= sealed.first) {
        sealed.bytes.extend_from_slice(&control);
    }
    Some(sealed)
}

impl Probes {
    pub fn one(bytes: Vec<u8>) -> Self {
        Self { first: bytes.len(), bytes }
    }
}

fn seal_named(
    (id, sequence): (u16, u16),
    size: u16,
    ends: Ends,
    peer: &mut Peer,
    now: Instant,
) -> Option<Vec<u8>> {
    let (source, destination) = ends;
    let len = usize::from(size);
    let mut packet = vec![0; len.next_multiple_of(16)];
    let echo = Echo { source, destination, id, sequence };
    if !echo.request(TTL, MARK, packet.get_mut(..len)?) {
        return None;
    }
    let mut datagram = vec![0; (packet.len() + DATAGRAM_OVERHEAD).max(MIN_OUT)];
    let sealed = match peer.seal(&mut packet, len, &mut datagram, now) {
        Ok(Sealed::Datagram(sealed) | Sealed::Queued { handshake: Some(sealed) }) => sealed.len(),
        Ok(Sealed::Queued { handshake: None } | Sealed::Full | Sealed::Down) | Err(_) => return None,
    };
    datagram.truncate(sealed);
    Some(datagram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_probe_to_here_is_answered() {
        for [gateway, own] in [["10.99.0.254", "10.99.0.1"], ["fd00::fe", "fd00::1"]] {
            let [source, destination] = [gateway, own].map(|ip| ip.parse::<IpAddr>().unwrap());
            let echo = Echo { source, destination, id: 7, sequence: 9 };
            let asked = |ttl, payload: &[u8], own| {
                let mut bytes = vec![0; CONTROL.into()];
                assert!(echo.request(ttl, payload, &mut bytes));
                asked(&Packet::parse(&bytes).unwrap(), &[own])
            };
            assert_eq!(asked(TTL, MARK, destination), Some(echo));
            assert_eq!(asked(TTL, b"as ping does", destination), None);
            assert_eq!(asked(64, MARK, destination), None, "through a router");
            assert_eq!(asked(TTL, MARK, source), None, "to somebody else");
        }
    }
}

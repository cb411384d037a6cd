use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use packet::Echo;
use tunnel::{DATAGRAM_OVERHEAD, MIN_OUT, Peer, Sealed};

use super::PathMtu;

/// Only the tunnel's other end sees such a probe: it answers rather than forward it, whoever wrote it and whatever the destination is.
const TTL: u8 = 1;

/// Between whom a path is probed: an address of ours, and one that the other end has or would forward to.
pub(crate) type Ends = (IpAddr, IpAddr);

/// Random enough that nobody guesses it who sees no probe.
pub(crate) fn secret() -> u32 {
    RandomState::new().hash_one(()) as u32
}

/// A datagram around an echo request of this size; `None` if nothing can be sent now.
pub(crate) fn seal(path: &PathMtu, size: u16, ends: Ends, peer: &mut Peer, now: Instant) -> Option<Vec<u8>> {
    let (source, destination) = ends;
    let len = usize::from(size);
    let mut packet = vec![0; len.next_multiple_of(16)];
    let (id, sequence) = path.name(size);
    let echo = Echo { source, destination, id, sequence };
    if !echo.request(TTL, packet.get_mut(..len)?) {
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

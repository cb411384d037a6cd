//! A session to seal packets in.

use std::time::Instant;

use tunnel::{Opened, Peer, PeerConfig, PrivateKey, Sealed};

pub const MTU: u16 = 1420;
/// For a sealed packet.
pub const ROOM: usize = 1536;

/// Two peers with a session that both have used.
pub fn connected() -> Option<(Peer, Peer, Instant)> {
    let now = Instant::now();
    let (one, two) = (PrivateKey::generate().ok()?, PrivateKey::generate().ok()?);
    let (one_public, two_public) = (one.public_key(), two.public_key());
    let peer = |private_key, peer_public_key, index| {
        let preshared_key = None;
        let keepalive = None;
        Peer::new(PeerConfig { private_key, peer_public_key, preshared_key, keepalive, index, mtu: MTU }, now)
    };
    let (mut agent, mut gateway) = (peer(one, two_public, 1), peer(two, one_public, 2));
    let (mut out, mut back) = ([0; ROOM], [0; ROOM]);
    let sealed = agent.seal(&mut packet(200), 200, &mut out, now).ok()?;
    let Sealed::Queued { handshake: Some(initiation) } = sealed else { return None };
    let Ok(Opened::Reply(response)) = gateway.open(initiation, &mut back, now) else { return None };
    let Ok(Opened::Reply(keepalive)) = agent.open(response, &mut out, now) else { return None };
    let Ok(Opened::Keepalive) = gateway.open(keepalive, &mut back, now) else { return None };
    Some((agent, gateway, now))
}

/// An IPv4 packet with room for padding behind it.
pub fn packet(size: usize) -> Vec<u8> {
    let mut packet = vec![0; size + 15];
    if let Some(header) = packet.first_chunk_mut::<4>() {
        let [high, low] = (size as u16).to_be_bytes();
        *header = [0x45, 0, high, low];
    }
    packet
}

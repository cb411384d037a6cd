//! Two peers in memory, and time that only moves when a test says so.
#![allow(dead_code, reason = "each test file uses its part")]

use std::time::{Duration, Instant};

use tunnel::{OpenError, Opened, Peer, PeerConfig, PresharedKey, PrivateKey, Sealed};

pub const MTU: u16 = 1420;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gave {
    Datagram(Vec<u8>),
    Queued(Option<Vec<u8>>),
    Down,
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Took {
    Packet(Vec<u8>),
    Keepalive,
    Reply(Vec<u8>),
    Nothing,
}

pub struct Pair {
    pub agent: Peer,
    pub gateway: Peer,
    pub now: Instant,
}

impl Pair {
    pub fn new() -> Self {
        Self::with(None, None, None)
    }

    pub fn with(
        agent_psk: Option<PresharedKey>,
        gateway_psk: Option<PresharedKey>,
        keepalive: Option<Duration>,
    ) -> Self {
        let (agent, gateway) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let now = Instant::now();
        let (agent_public, gateway_public) = (agent.public_key(), gateway.public_key());
        let config = |private_key, peer_public_key, preshared_key, keepalive, index| PeerConfig {
            private_key,
            peer_public_key,
            preshared_key,
            keepalive,
            index,
            mtu: MTU,
        };
        Self {
            agent: Peer::new(config(agent, gateway_public, agent_psk, keepalive, 0xa1_0001), now),
            gateway: Peer::new(config(gateway, agent_public, gateway_psk, None, 0xb2_0002), now),
            now,
        }
    }

    /// A pair with a session that both ends have used, and nothing left to acknowledge.
    pub fn up() -> Self {
        let mut pair = Self::new();
        pair.connect();
        pair.gateway.set_underlay(true, pair.now);
        let keepalive = run(&mut pair.gateway, pair.now).remove(0);
        assert_eq!(take(&mut pair.agent, &keepalive, pair.now), Ok(Took::Keepalive));
        pair
    }

    /// Lets time pass on a good network; returns how many handshakes were begun.
    pub fn pass(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        let mut initiations = 0;
        while let Some(next) = [self.agent.deadline(), self.gateway.deadline()].into_iter().flatten().min()
            && next <= end
        {
            self.now = next;
            for datagram in run(&mut self.agent, next) {
                initiations += usize::from(is_initiation(&datagram));
                take(&mut self.gateway, &datagram, next).unwrap();
            }
            for datagram in run(&mut self.gateway, next) {
                initiations += usize::from(is_initiation(&datagram));
                take(&mut self.agent, &datagram, next).unwrap();
            }
        }
        self.now = end;
        initiations
    }

    pub fn connect(&mut self) {
        let packet = ipv4(100, 0);
        let Gave::Queued(Some(initiation)) = give(&mut self.agent, &packet, self.now) else {
            panic!("no initiation")
        };
        self.answer(&initiation);
        let flushed = flush(&mut self.agent, self.now);
        assert_eq!(flushed.len(), 1);
        assert_eq!(take(&mut self.gateway, &flushed[0], self.now), Ok(Took::Packet(packet)));
    }

    /// Carries an initiation of the agent to the gateway, its response back, and the agent's keepalive to the gateway.
    pub fn answer(&mut self, initiation: &[u8]) {
        let Ok(Took::Reply(response)) = take(&mut self.gateway, initiation, self.now) else {
            panic!("no response")
        };
        let Ok(Took::Reply(keepalive)) = take(&mut self.agent, &response, self.now) else {
            panic!("no keepalive")
        };
        assert_eq!(take(&mut self.gateway, &keepalive, self.now), Ok(Took::Keepalive));
    }

    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// A packet from the agent that must arrive.
    pub fn upload(&mut self) {
        let packet = ipv4(60, 1);
        let Gave::Datagram(datagram) = give(&mut self.agent, &packet, self.now) else {
            panic!("{:?}", self.agent.state(self.now))
        };
        assert_eq!(take(&mut self.gateway, &datagram, self.now), Ok(Took::Packet(packet)));
    }

    /// A packet from the gateway that must arrive.
    pub fn download(&mut self) {
        let packet = ipv4(60, 2);
        let Gave::Datagram(datagram) = give(&mut self.gateway, &packet, self.now) else {
            panic!("{:?}", self.gateway.state(self.now))
        };
        assert_eq!(take(&mut self.agent, &datagram, self.now), Ok(Took::Packet(packet)));
    }
}

/// An IPv4 packet of `length` bytes, whose payload is filled with `tag`.
pub fn ipv4(length: usize, tag: u8) -> Vec<u8> {
    let mut packet = vec![tag; length.max(20)];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 99, 0, 1]);
    packet[16..20].copy_from_slice(&[203, 0, 113, 10]);
    packet
}

pub fn give(peer: &mut Peer, packet: &[u8], now: Instant) -> Gave {
    let mut buffer = packet.to_vec();
    buffer.extend([0xee; 15]);
    let mut out = vec![0; (packet.len() + 15 + 32).max(148)];
    match peer.seal(&mut buffer, packet.len(), &mut out, now).unwrap() {
        Sealed::Datagram(datagram) => Gave::Datagram(datagram.to_vec()),
        Sealed::Queued { handshake } => Gave::Queued(handshake.map(<[u8]>::to_vec)),
        Sealed::Down => Gave::Down,
        Sealed::Full => Gave::Full,
    }
}

pub fn take(peer: &mut Peer, datagram: &[u8], now: Instant) -> Result<Took, OpenError> {
    let mut out = vec![0; datagram.len().max(148)];
    peer.open(datagram, &mut out, now).map(|opened| match opened {
        Opened::Packet(packet) => Took::Packet(packet.to_vec()),
        Opened::Keepalive => Took::Keepalive,
        Opened::Reply(reply) => Took::Reply(reply.to_vec()),
        Opened::Nothing => Took::Nothing,
    })
}

pub fn flush(peer: &mut Peer, now: Instant) -> Vec<Vec<u8>> {
    let mut out = vec![0; 2048];
    let mut flushed = Vec::new();
    while let Some(datagram) = peer.flush(&mut out, now) {
        flushed.push(datagram.to_vec());
    }
    flushed
}

/// Does what is due at `now`; a peer must be done after a few calls.
pub fn run(peer: &mut Peer, now: Instant) -> Vec<Vec<u8>> {
    let mut out = [0; 148];
    let mut sent = Vec::new();
    for _ in 0..4 {
        if peer.deadline().is_none_or(|deadline| deadline > now) {
            return sent;
        }
        sent.extend(peer.on_deadline(&mut out, now).map(<[u8]>::to_vec));
    }
    panic!("a deadline stays in the past");
}

pub fn refused(peer: &mut Peer) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| peer.take_refused()).collect()
}

pub fn is_initiation(datagram: &[u8]) -> bool {
    datagram.len() == 148 && datagram[0] == 1
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

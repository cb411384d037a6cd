//! Datagrams of any kind, made up or real and mangled, into both ends of a tunnel, among packets and passing time: never
//! a panic, never a deadline that stays in the past, and what comes out was sent, whole and once.
//!
//! An input is a script: one byte says what to do, the bytes after it with what.
#![no_main]

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tunnel::{OpenError, Opened, Peer, PeerConfig, PrivateKey, Responder, ResponderPeer, Sealed};

const MTU: u16 = 1420;
const AGENT: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
const GATEWAY: &str = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=";
/// Real datagrams kept to be delivered, mangled or repeated.
const KEPT: usize = 64;

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        head
    }
}

struct World {
    agent: Peer,
    gateway: Responder,
    now: Instant,
    from: SocketAddr,
    /// To the gateway?, datagram.
    wire: Vec<(bool, Vec<u8>)>,
    sent: HashSet<Vec<u8>>,
    delivered: HashSet<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let key = |text: &str| text.parse::<PrivateKey>().expect("a key");
        let peer = ResponderPeer {
            public_key: key(AGENT).public_key(),
            preshared_key: None,
            allowed_ips: vec!["0.0.0.0/0".parse().expect("a prefix")],
            mtu: MTU,
            keepalive: None,
        };
        let config = PeerConfig {
            private_key: key(AGENT),
            peer_public_key: key(GATEWAY).public_key(),
            preshared_key: None,
            keepalive: None,
            index: 0x00a1_b2c3,
            mtu: MTU,
        };
        Self {
            agent: Peer::new(config, now),
            gateway: Responder::new(key(GATEWAY), vec![peer], now).expect("a responder"),
            now,
            from: SocketAddr::from(([198, 18, 0, 1], 40_000)),
            wire: Vec::new(),
            sent: HashSet::new(),
            delivered: HashSet::new(),
        }
    }

    fn step(&mut self, script: &mut Script) -> Option<()> {
        let what = script.byte()?;
        let to_gateway = what & 0x80 == 0;
        match what & 0x7f {
            0..=15 => {
                let length = usize::from(script.byte()?) * 8;
                self.deliver(to_gateway, script.bytes(length));
            }
            16..=31 => {
                // Made up behind a true header: kind, and for data an index that may exist.
                let mut datagram = vec![what & 7, 0, 0, 0];
                let length =
                    [148, 92, 64, 32, 48, 1452].get(usize::from(what >> 4 & 7)).copied().unwrap_or(33);
                datagram.extend(script.bytes(length - 4));
                datagram.resize(length, 0);
                self.deliver(to_gateway, &datagram);
            }
            32..=55 => self.send(to_gateway, usize::from(script.byte()?) * 6),
            56..=79 => {
                let (to_gateway, datagram) = self.kept(script.byte()?)?;
                self.deliver(to_gateway, &datagram);
            }
            80..=103 => {
                let (to_gateway, mut datagram) = self.kept(script.byte()?)?;
                for _ in 0..=what & 7 {
                    let place = usize::from(script.byte()?) % datagram.len();
                    datagram[place] ^= script.byte()?;
                }
                self.deliver(to_gateway, &datagram);
            }
            104..=111 => {
                let (to_gateway, mut datagram) = self.kept(script.byte()?)?;
                datagram.resize(usize::from(script.byte()?) * 6, 0);
                self.deliver(to_gateway, &datagram);
            }
            112..=119 => self.from.set_port(u16::from(script.byte()?)),
            120 => self.agent.set_underlay(script.byte()? & 1 == 0, self.now),
            121..=123 => self.now += Duration::from_millis(u64::from(script.byte()?) * 50),
            _ => self.now += Duration::from_secs(u64::from(script.byte()?) * 3),
        }
        self.settle();
        Some(())
    }

    fn send(&mut self, agent: bool, length: usize) {
        let mut packet = vec![0; length.max(28) + 15];
        let length = packet.len() - 15;
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[20..28].copy_from_slice(&(self.sent.len() as u64).to_be_bytes());
        self.sent.insert(packet[..length].to_vec());
        let mut out = [0; 2048];
        let peer = if agent {
            &mut self.agent
        } else {
            let route = self.gateway.route(IpAddr::from([10, 0, 0, 1])).expect("the agent's");
            self.gateway.peer_mut(route.peer).expect("the agent")
        };
        match peer.seal(&mut packet, length, &mut out, self.now).expect("buffers that fit") {
            Sealed::Datagram(datagram) | Sealed::Queued { handshake: Some(datagram) } => {
                self.wire.push((agent, datagram.to_vec()));
            }
            Sealed::Queued { handshake: None } | Sealed::Down | Sealed::Full => {}
        }
    }

    fn deliver(&mut self, to_gateway: bool, datagram: &[u8]) {
        let mut out = vec![0; datagram.len().max(148)];
        let opened = if to_gateway {
            self.gateway.open(datagram, self.from, &mut out, self.now).map(|(_, opened)| opened)
        } else {
            self.agent.open(datagram, &mut out, self.now)
        };
        match opened {
            Ok(Opened::Packet(packet)) => {
                assert!(self.sent.contains(&*packet), "delivered what nobody sent");
                assert!(self.delivered.insert(packet.to_vec()), "delivered twice");
            }
            Ok(Opened::Reply(reply)) => self.wire.push((!to_gateway, reply.to_vec())),
            Ok(Opened::Keepalive | Opened::Nothing) => {}
            Err(error) => assert_ne!(error, OpenError::Buffer),
        }
    }

    fn settle(&mut self) {
        let mut out = [0; 2048];
        for _ in 0..4 {
            if let Some(datagram) = self.agent.on_deadline(&mut out, self.now) {
                self.wire.push((true, datagram.to_vec()));
            }
            if let Some((_, datagram)) = self.gateway.on_deadline(&mut out, self.now) {
                self.wire.push((false, datagram.to_vec()));
            }
        }
        while let Some(datagram) = self.agent.flush(&mut out, self.now) {
            self.wire.push((true, datagram.to_vec()));
        }
        let peer = self.gateway.peer_mut(0).expect("the agent");
        while let Some(datagram) = peer.flush(&mut out, self.now) {
            self.wire.push((false, datagram.to_vec()));
        }
        while self.agent.take_refused().is_some() || peer.take_refused().is_some() {}
        let next = [self.agent.deadline(), self.gateway.deadline()].into_iter().flatten().min();
        assert!(next.is_none_or(|next| next > self.now), "a deadline stays in the past");
        let surplus = self.wire.len().saturating_sub(KEPT);
        self.wire.drain(..surplus);
    }

    fn kept(&self, which: u8) -> Option<(bool, Vec<u8>)> {
        self.wire.get(usize::from(which) % self.wire.len().max(1)).cloned()
    }
}

fuzz_target!(|data: &[u8]| {
    let (mut world, mut script) = (World::new(), Script(data));
    while !script.0.is_empty() {
        world.step(&mut script);
    }
});

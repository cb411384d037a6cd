use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519;
use ipnet::IpNet;

use crate::allowed::{AllowedIps, source};
use crate::message::Message;
use crate::{Deadlines, MIN_OUT, OpenError, Opened, Peer, PeerConfig, PresharedKey, PrivateKey, PublicKey};

/// One of a gateway's peers.
pub struct ResponderPeer {
    pub public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    /// What it may send from and is sent to; the longest prefix over all peers wins.
    pub allowed_ips: Vec<IpNet>,
    /// The largest packet in the tunnel.
    pub mtu: u16,
    pub keepalive: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponderError {
    #[error("two peers have the public key {0}: give each its own")]
    DuplicateKey(PublicKey),
    #[error("a peer has the gateway's own public key {0}: put the peer's there")]
    OwnKey(PublicKey),
    #[error("{0} is in the allowed_ips of two peers: an address belongs to one")]
    DuplicatePrefix(IpNet),
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// Several peers behind one key and one socket: a gateway's side. Peers are told by their place in the configured list.
pub struct Responder {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    members: Vec<Member>,
    allowed: AllowedIps,
    by_key: HashMap<[u8; 32], usize>,
    /// By 24-bit index, sorted.
    by_index: Vec<(u32, usize)>,
    deadlines: Deadlines,
    /// Peers whose deadline may be another than when this was asked last.
    touched: Vec<usize>,
}

struct Member {
    peer: Peer,
    endpoint: Option<SocketAddr>,
    is_touched: bool,
}

/// Which peer an address belongs to (cryptokey routing), and where that peer was last heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub peer: usize,
    pub endpoint: Option<SocketAddr>,
}

/// Handshake messages a second, over all peers, before senders must prove their address with a cookie. Each is counted
/// twice: once before its sender is known, once by its peer.
const HANDSHAKES_PER_SECOND: u64 = 2 * 50;

impl Responder {
    pub fn new(
        private_key: PrivateKey,
        peers: Vec<ResponderPeer>,
        now: Instant,
    ) -> Result<Self, ResponderError> {
        let secret = private_key.secret();
        let public = x25519::PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        let mut responder = Self {
            secret,
            public,
            limiter,
            members: Vec::with_capacity(peers.len()),
            allowed: AllowedIps::default(),
            by_key: HashMap::new(),
            by_index: Vec::with_capacity(peers.len()),
            deadlines: Deadlines::default(),
            touched: Vec::new(),
        };
        let mut prefixes = Vec::new();
        let mut seen = HashSet::new();
        for (number, peer) in peers.into_iter().enumerate() {
            for prefix in &peer.allowed_ips {
                let prefix = prefix.trunc();
                if !seen.insert(prefix) {
                    return Err(ResponderError::DuplicatePrefix(prefix));
                }
                prefixes.push((prefix, number));
            }
            responder.add(private_key.clone(), peer, now)?;
        }
        responder.allowed = AllowedIps::new(prefixes);
        responder.by_index.sort_unstable();
        Ok(responder)
    }

    /// Opens a datagram from anyone: finds the peer by handshake identity or session index, and notes where it came from
    /// once it is authentic. A packet from an address that is not the peer's is an error. Without a peer, the reply is a
    /// cookie for a sender that is not known yet. `out` as for [`Peer::open`].
    pub fn open<'a>(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        out: &'a mut [u8],
        now: Instant,
    ) -> Result<(Option<usize>, Opened<'a>), OpenError> {
        if out.len() < datagram.len().max(MIN_OUT) {
            return Err(OpenError::Buffer);
        }
        let number = match Message::parse(datagram).ok_or(OpenError::NotWireGuard)? {
            Message::Initiation => match self.identify(datagram, from, out)? {
                Sender::Known(number) => number,
                Sender::Cookie(length) => {
                    return Ok((None, Opened::Reply(out.get(..length).unwrap_or_default())));
                }
            },
            Message::Response { receiver }
            | Message::CookieReply { receiver }
            | Message::Data { receiver, .. } => self.by_index(receiver)?,
        };
        let member = self.touch(number).ok_or(OpenError::NoSession)?;
        let opened = member.peer.open_from(datagram, Some(from.ip()), out, now)?;
        if opened.is_authentic() {
            member.endpoint = Some(from);
            member.peer.heard();
        }
        if let Opened::Packet(packet) = &opened
            && !source(packet).is_some_and(|source| self.allowed(number, source))
        {
            return Err(OpenError::SourceNotAllowed);
        }
        Ok((Some(number), opened))
    }

    pub fn route(&self, destination: IpAddr) -> Option<Route> {
        let peer = self.allowed.peer(destination)?;
        Some(Route { peer, endpoint: self.endpoint(peer) })
    }

    /// How many there are.
    pub fn peers(&self) -> usize {
        self.members.len()
    }

    /// The single addresses among a peer's allowed_ips.
    pub fn addresses(&self, peer: usize) -> impl Iterator<Item = IpAddr> {
        self.allowed.addresses(peer)
    }

    /// Whether packets from `source` may come from this peer.
    pub fn allowed(&self, peer: usize, source: IpAddr) -> bool {
        self.allowed.peer(source) == Some(peer)
    }

    /// Where the peer was last heard.
    pub fn endpoint(&self, peer: usize) -> Option<SocketAddr> {
        self.members.get(peer)?.endpoint
    }

    pub fn peer(&self, peer: usize) -> Option<&Peer> {
        self.members.get(peer).map(|member| &member.peer)
    }

    /// For [`Peer::seal`], [`Peer::flush`] and [`Peer::take_refused`]. A peer that was never heard is down.
    pub fn peer_mut(&mut self, peer: usize) -> Option<&mut Peer> {
        self.touch(peer).map(|member| &mut member.peer)
    }

    /// No later than the earliest deadline of all peers.
    pub fn deadline(&mut self) -> Option<Instant> {
        for number in self.touched.drain(..) {
            if let Some(member) = self.members.get_mut(number) {
                member.is_touched = false;
                self.deadlines.list(number, member.peer.deadline());
            }
        }
        self.deadlines.earliest()
    }

    /// Does what is due; returns a datagram to send to a peer. Call again while [`Responder::deadline`] is not after `now`.
    pub fn on_deadline<'a>(&mut self, out: &'a mut [u8], now: Instant) -> Option<(usize, &'a [u8])> {
        self.deadline();
        while let Some(number) = self.deadlines.take_due(now) {
            let Some(Member { peer, .. }) = self.touch(number) else { continue };
            if peer.deadline().is_some_and(|deadline| deadline <= now)
                && let Some(length) = peer.act(out, now)
            {
                return Some((number, out.get(..length)?));
            }
        }
        None
    }

    /// A peer that may have another deadline afterwards.
    fn touch(&mut self, number: usize) -> Option<&mut Member> {
        let member = self.members.get_mut(number)?;
        if !member.is_touched {
            member.is_touched = true;
            self.touched.push(number);
        }
        Some(member)
    }

    fn add(
        &mut self,
        private_key: PrivateKey,
        peer: ResponderPeer,
        now: Instant,
    ) -> Result<(), ResponderError> {
        let number = self.members.len();
        if peer.public_key.0 == self.public.to_bytes() {
            return Err(ResponderError::OwnKey(peer.public_key));
        }
        if self.by_key.insert(peer.public_key.0, number).is_some() {
            return Err(ResponderError::DuplicateKey(peer.public_key));
        }
        let index = self.free_index()?;
        self.by_index.push((index, number));
        let config = PeerConfig {
            private_key,
            peer_public_key: peer.public_key,
            preshared_key: peer.preshared_key,
            keepalive: peer.keepalive,
            index,
            mtu: peer.mtu,
        };
        let mut peer = Peer::with_limiter(config, self.limiter.clone(), now);
        peer.set_underlay(false, now);
        self.members.push(Member { peer, endpoint: None, is_touched: false });
        Ok(())
    }

    /// 24 random bits that no other peer has.
    fn free_index(&self) -> Result<u32, ResponderError> {
        loop {
            let random = getrandom::u32().map_err(|error| ResponderError::Random(error.to_string()))?;
            let index = random >> 8;
            if self.by_index.iter().all(|(taken, _)| *taken != index) {
                return Ok(index);
            }
        }
    }

    /// Who sent this initiation; the costly part is done only for senders within the limit or with a valid cookie.
    fn identify(&self, datagram: &[u8], from: SocketAddr, out: &mut [u8]) -> Result<Sender, OpenError> {
        self.limiter.reset_count();
        let initiation = match self.limiter.verify_packet(Some(from.ip()), datagram, out) {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Err(TunnResult::WriteToNetwork(cookie)) => return Ok(Sender::Cookie(cookie.len())),
            Err(TunnResult::Err(error)) => return Err(error.into()),
            _ => return Err(OpenError::NotWireGuard),
        };
        let identity = parse_handshake_anon(&self.secret, &self.public, &initiation)
            .map_err(|error: WireGuardError| OpenError::from(error))?;
        let number = self.by_key.get(&identity.peer_static_public).ok_or(OpenError::UnknownPeer)?;
        Ok(Sender::Known(*number))
    }

    fn by_index(&self, receiver: u32) -> Result<usize, OpenError> {
        // The low 8 bits count a peer's sessions.
        let place = self.by_index.binary_search_by_key(&(receiver >> 8), |(index, _)| *index);
        place
            .ok()
            .and_then(|place| self.by_index.get(place))
            .map(|(_, number)| *number)
            .ok_or(OpenError::NoSession)
    }
}

enum Sender {
    Known(usize),
    /// A cookie of this length was written for it.
    Cookie(usize),
}

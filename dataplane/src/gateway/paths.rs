use std::collections::BTreeMap;
use std::mem::take;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use packet::Packet;
use tunnel::{Deadlines, Peer, Responder, State};

use crate::path_mtu::PathMtu;
use crate::path_mtu::probe::{self, Ends};

/// The paths to a gateway's peers, each with its own MTU.
pub(super) struct Paths {
    /// As large as packets come out of the TUN.
    ceiling: u16,
    peers: Vec<Path>,
    deadlines: Deadlines,
    /// Peers whose path is another than when it was applied last.
    changed: Vec<usize>,
    /// Where packets must be let fragmented, and to what outer size if that is known.
    fragmenting: BTreeMap<usize, (SocketAddr, Option<u16>)>,
    /// Since these were asked last.
    sizes_changed: bool,
    fragmenting_changed: bool,
}

struct Path {
    /// `None`: never heard.
    there: Option<(SocketAddr, PathMtu)>,
    /// `None`: nobody to probe is known.
    ends: Option<Ends>,
}

impl Paths {
    /// `own` are the gateway's addresses inside the tunnel.
    pub(super) fn new(responder: &Responder, own: &[IpAddr], ceiling: u16) -> Self {
        let ends = |peer| {
            responder.addresses(peer).find_map(|destination| {
                let source = own.iter().find(|own| own.is_ipv4() == destination.is_ipv4())?;
                Some((*source, destination))
            })
        };
        let peers = (0..responder.peers()).map(|peer| Path { there: None, ends: ends(peer) }).collect();
        Self {
            ceiling,
            peers,
            deadlines: Deadlines::default(),
            changed: Vec::new(),
            fragmenting: BTreeMap::new(),
            sizes_changed: false,
            fragmenting_changed: false,
        }
    }

    /// The largest packet for a peer.
    pub(super) fn mtu(&self, peer: usize) -> u16 {
        let path = self.peers.get(peer).and_then(|path| path.there.as_ref());
        path.map_or(self.ceiling, |(_, mtu)| mtu.mtu())
    }

    /// The peer was heard from here.
    pub(super) fn heard(&mut self, peer: usize, from: SocketAddr, now: Instant) {
        let Some(path) = self.peers.get_mut(peer) else { return };
        match &mut path.there {
            Some((endpoint, _)) if *endpoint == from => {}
            Some((endpoint, mtu)) => {
                *endpoint = from;
                mtu.peer_moved(from.is_ipv4(), now);
            }
            None => {
                let mtu = PathMtu::below(self.ceiling, from.is_ipv4(), probe::secret(), now);
                path.there = Some((from, mtu));
            }
        }
        self.follow(peer);
    }

    /// Large packets pass to or from the peer.
    pub(super) fn used(&mut self, peer: usize, now: Instant) {
        if let Some((_, mtu)) = self.peers.get_mut(peer).and_then(|path| path.there.as_mut()) {
            mtu.used(now);
            self.follow(peer);
        }
    }

    /// A router says that outer packets to this endpoint may have no more than `outer` bytes.
    pub(super) fn told(&mut self, endpoint: SocketAddr, outer: u32, now: Instant) {
        for peer in 0..self.peers.len() {
            if let Some((at, mtu)) = self.peers.get_mut(peer).and_then(|path| path.there.as_mut())
                && *at == endpoint
            {
                mtu.told(outer, now);
                self.follow(peer);
            }
        }
    }

    /// Takes in what a packet from the peer says of its path, if it answers a probe.
    pub(super) fn is_answer(&mut self, peer: usize, packet: &Packet<'_>, now: Instant) -> bool {
        let Some(Path { there: Some((_, mtu)), ends }) = self.peers.get_mut(peer) else { return false };
        let is_answer = packet.answered_echo().is_some_and(|echo| {
            *ends == Some((echo.source, echo.destination)) && mtu.answered((echo.id, echo.sequence), now)
        });
        self.follow(peer);
        is_answer
    }

    /// When [`Paths::on_deadline`] wants to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// A probe to send, and where; to be called until it gives none.
    pub(super) fn on_deadline(
        &mut self,
        responder: &mut Responder,
        now: Instant,
    ) -> Option<(Vec<u8>, SocketAddr)> {
        while let Some(peer) = self.deadlines.take_due(now) {
            // Who is not up is listed again when he is heard.
            let probe = is_up(responder, peer, now).then(|| self.probe(peer, responder, now)).flatten();
            if let Some(probe) = probe {
                return Some(probe);
            }
        }
        None
    }

    /// Has peers pad by what their paths carry. Whether any carries another size than when this was asked last.
    pub(super) fn apply(&mut self, responder: &mut Responder) -> bool {
        for peer in self.changed.drain(..) {
            let Some((endpoint, mtu)) = self.peers.get(peer).and_then(|path| path.there.as_ref()) else {
                continue;
            };
            if let Some(member) = responder.peer_mut(peer) {
                self.sizes_changed |= adopt(mtu, *endpoint, member);
            }
            let wanted = mtu.lets_routers_fragment().then(|| (*endpoint, mtu.fragments()));
            if self.fragmenting.get(&peer) != wanted.as_ref() {
                self.fragmenting_changed = true;
                match wanted {
                    Some(wanted) => self.fragmenting.insert(peer, wanted),
                    None => self.fragmenting.remove(&peer),
                };
            }
        }
        take(&mut self.sizes_changed)
    }

    /// To whom packets must be let fragmented on their way, and the least outer size that any of them is known to get; `None` if that is as
    /// when this was asked last.
    pub(super) fn fragmenting(&mut self) -> Option<(Vec<SocketAddr>, Option<u16>)> {
        take(&mut self.fragmenting_changed).then(|| {
            let least = self.fragmenting.values().filter_map(|(_, outer)| *outer).min();
            (self.fragmenting.values().map(|(endpoint, _)| *endpoint).collect(), least)
        })
    }

    fn probe(
        &mut self,
        peer: usize,
        responder: &mut Responder,
        now: Instant,
    ) -> Option<(Vec<u8>, SocketAddr)> {
        let Path { there, ends } = self.peers.get_mut(peer)?;
        let (endpoint, mtu) = there.as_mut()?;
        let size = mtu.on_deadline(now);
        let member = responder.peer_mut(peer)?;
        // A probe is padded by no more than the size in use.
        self.sizes_changed |= adopt(mtu, *endpoint, member);
        let probe = size.zip(*ends).and_then(|(size, ends)| probe::seal(mtu, size, ends, member, now));
        let probe = probe.map(|probe| (probe, *endpoint));
        self.follow(peer);
        probe
    }

    /// To be called of each path that may have another deadline or another size.
    fn follow(&mut self, peer: usize) {
        let path = self.peers.get_mut(peer).and_then(|path| path.there.as_mut());
        let Some((_, mtu)) = path else { return };
        self.deadlines.list(peer, mtu.deadline());
        if mtu.take_change() {
            self.changed.push(peer);
        }
    }
}

/// Whether that is another size than before.
fn adopt(mtu: &PathMtu, endpoint: SocketAddr, peer: &mut Peer) -> bool {
    if peer.mtu() == mtu.mtu() {
        return false;
    }
    peer.set_mtu(mtu.mtu());
    tracing::info!(%endpoint, mtu = mtu.mtu(), known = %mtu, "the path's MTU is another");
    true
}

fn is_up(responder: &Responder, peer: usize, now: Instant) -> bool {
    responder.peer(peer).is_some_and(|peer| matches!(peer.state(now), State::Up { .. }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tunnel::{Opened, PeerConfig, PrivateKey, ResponderPeer, Sealed};

    use super::*;

    const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 254));

    /// A gateway with two peers, of which those answer that are asked to.
    struct Scene {
        responder: Responder,
        paths: Paths,
        peers: Vec<Peer>,
        answers: Vec<bool>,
        now: Instant,
    }

    impl Scene {
        fn new(answers: &[bool]) -> Self {
            let (now, key) = (Instant::now(), PrivateKey::generate().unwrap());
            let own: Vec<_> = answers.iter().map(|_| PrivateKey::generate().unwrap()).collect();
            let configured = own.iter().enumerate().map(|(number, own)| ResponderPeer {
                public_key: own.public_key(),
                preshared_key: None,
                allowed_ips: vec![format!("{}/32", inside(number)).parse().unwrap()],
                mtu: 1420,
                keepalive: None,
            });
            let responder = Responder::new(key.clone(), configured.collect(), now).unwrap();
            let peer = |(number, own): (usize, PrivateKey)| {
                let (preshared_key, keepalive) = (None, None);
                let (peer_public_key, index) = (key.public_key(), number as u32);
                let config = PeerConfig {
                    private_key: own,
                    peer_public_key,
                    preshared_key,
                    keepalive,
                    index,
                    mtu: 1420,
                };
                Peer::new(config, now)
            };
            let peers = own.into_iter().enumerate().map(peer).collect();
            let paths = Paths::new(&responder, &[GATEWAY], 1420);
            Self { responder, paths, peers, answers: answers.to_vec(), now }
        }

        /// From its handshake on.
        fn connect(&mut self, number: usize) {
            let (mut there, mut back) = ([0; 2048], [0; 2048]);
            let mut packet = [0; 48];
            packet[..4].copy_from_slice(&[0x45, 0, 0, 40]);
            let Ok(Sealed::Queued { handshake: Some(initiation) }) =
                self.peers[number].seal(&mut packet, 40, &mut there, self.now)
            else {
                panic!("no initiation")
            };
            let from = endpoint(number);
            let Ok((_, Opened::Reply(response))) = self.responder.open(initiation, from, &mut back, self.now)
            else {
                panic!("no response")
            };
            let mut confirmation = [0; 2048];
            let Ok(Opened::Reply(keepalive)) = self.peers[number].open(response, &mut confirmation, self.now)
            else {
                panic!("no confirmation")
            };
            self.responder.open(keepalive, from, &mut there, self.now).unwrap();
            self.paths.heard(number, from, self.now);
        }

        /// Lets `time` pass; returns how many probes went to each peer.
        fn pass(&mut self, time: Duration) -> Vec<usize> {
            let (end, mut probes) = (self.now + time, vec![0; self.peers.len()]);
            while let Some(due) = self.paths.deadline().filter(|due| *due <= end) {
                self.now = self.now.max(due);
                while let Some((probe, to)) = self.paths.on_deadline(&mut self.responder, self.now) {
                    let number = usize::from(to.port());
                    probes[number] += 1;
                    if self.answers[number] {
                        self.answer(number, &probe);
                    }
                }
                self.paths.apply(&mut self.responder);
            }
            self.now = end;
            probes
        }

        fn answer(&mut self, number: usize, probe: &[u8]) {
            let (mut out, mut reply) = ([0; 2048], [0; 28]);
            let Ok(Opened::Packet(asked)) = self.peers[number].open(probe, &mut out, self.now) else {
                panic!("no packet")
            };
            let asked = Packet::parse(asked).unwrap();
            let echo = probe::asked(&asked, &[inside(number)]).expect("a probe");
            assert!(echo.reply(64, &mut reply));
            let reply = Packet::parse(&reply).unwrap();
            assert!(self.paths.is_answer(number, &reply, self.now));
        }
    }

    fn inside(number: usize) -> IpAddr {
        IpAddr::from([10, 99, 0, number as u8 + 1])
    }

    fn endpoint(number: usize) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number as u16))
    }

    #[test]
    fn only_a_path_without_any_answer_is_let_fragment() {
        let mut scene = Scene::new(&[true, false]);
        (0..2).for_each(|number| scene.connect(number));
        assert_eq!(scene.pass(Duration::from_secs(3)), [1, 4]);
        assert_eq!(scene.paths.fragmenting(), Some((vec![endpoint(1)], None)));
        assert_eq!(scene.paths.fragmenting(), None, "as before");

        scene.answers[1] = true;
        scene.paths.used(1, scene.now);
        scene.pass(Duration::from_secs(601));
        scene.connect(1);
        scene.pass(Duration::from_secs(1));
        assert_eq!(scene.paths.fragmenting(), Some((Vec::new(), None)));
    }

    #[test]
    fn who_is_not_up_is_asked_nothing_until_he_is() {
        let mut scene = Scene::new(&[true]);
        scene.paths.heard(0, endpoint(0), scene.now);
        assert!(scene.paths.deadline().is_some_and(|due| due <= scene.now));
        assert_eq!(scene.pass(Duration::from_secs(3)), [0]);
        assert_eq!(scene.paths.deadline(), None, "nobody is looked at in vain");
        scene.connect(0);
        assert_eq!(scene.pass(Duration::from_secs(3)), [1]);
    }
}

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use packet::Packet;
use tunnel::{Peer, Responder, State};

use crate::io::sockets::Discover;
use crate::path_mtu::probe::{self, Ends};
use crate::path_mtu::{LEAST_LINK_MTU, PathMtu};

/// The paths to a gateway's peers, each with its own MTU.
pub(super) struct Paths {
    /// As large as packets come out of the TUN.
    ceiling: u16,
    peers: Vec<Path>,
    /// Since this was asked last.
    has_changed: bool,
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
        Self { ceiling, peers, has_changed: false }
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
    }

    /// Large packets pass to or from the peer.
    pub(super) fn used(&mut self, peer: usize, now: Instant) {
        if let Some((_, mtu)) = self.peers.get_mut(peer).and_then(|path| path.there.as_mut()) {
            mtu.used(now);
        }
    }

    /// A router says that outer packets to this endpoint may have no more than `outer` bytes.
    pub(super) fn told(&mut self, endpoint: SocketAddr, outer: u32, now: Instant) {
        let there = self.peers.iter_mut().filter_map(|path| path.there.as_mut());
        there.filter(|(at, _)| *at == endpoint).for_each(|(_, mtu)| mtu.told(outer, now));
    }

    /// Takes in what a packet from the peer says of its path, if it answers a probe.
    pub(super) fn is_answer(&mut self, peer: usize, packet: &Packet<'_>, now: Instant) -> bool {
        let Some(Path { there: Some((_, mtu)), ends }) = self.peers.get_mut(peer) else { return false };
        packet.answered_echo().is_some_and(|echo| {
            *ends == Some((echo.source, echo.destination)) && mtu.answered((echo.id, echo.sequence), now)
        })
    }

    /// When [`Paths::on_deadline`] wants to be called.
    pub(super) fn deadline(&self, responder: &Responder, now: Instant) -> Option<Instant> {
        let up = self.peers.iter().enumerate().filter(|(peer, _)| is_up(responder, *peer, now));
        up.filter_map(|(_, path)| path.there.as_ref()?.1.deadline()).min()
    }

    /// A probe to send, and where; to be called until it gives none.
    pub(super) fn on_deadline(
        &mut self,
        responder: &mut Responder,
        now: Instant,
    ) -> Option<(Vec<u8>, SocketAddr)> {
        let Self { peers, has_changed, .. } = self;
        for (peer, path) in peers.iter_mut().enumerate() {
            let Path { there: Some((endpoint, mtu)), ends } = path else { continue };
            while is_up(responder, peer, now) && mtu.deadline().is_some_and(|due| due <= now) {
                let size = mtu.on_deadline(now);
                let member = responder.peer_mut(peer)?;
                // A probe is padded by no more than the size in use.
                *has_changed |= adopt(mtu, *endpoint, member);
                if let Some(size) = size
                    && let Some(ends) = *ends
                    && let Some(probe) = probe::seal(mtu, size, ends, member, now)
                {
                    return Some((probe, *endpoint));
                }
            }
        }
        None
    }

    /// Has peers pad by what their paths carry. Whether any path is another than when this was asked last.
    pub(super) fn apply(&mut self, responder: &mut Responder) -> bool {
        for (peer, path) in self.peers.iter().enumerate() {
            if let (Some((endpoint, mtu)), Some(member)) = (&path.there, responder.peer_mut(peer)) {
                self.has_changed |= adopt(mtu, *endpoint, member);
            }
        }
        std::mem::take(&mut self.has_changed)
    }

    /// Where only we know that a path is narrower than what has to be carried, that may be fragmented: by routers, or over IPv6 by the kernel
    /// to this size.
    pub(super) fn fragments(&self) -> (Discover, Option<u16>) {
        let small = self.peers.iter().filter_map(|path| path.there.as_ref());
        let small = small.filter(|(_, mtu)| mtu.is_silent() && mtu.mtu() < LEAST_LINK_MTU);
        let least = small.map(|(_, mtu)| mtu.outer()).min();
        (if least.is_some() { Discover::Off } else { Discover::On }, least)
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

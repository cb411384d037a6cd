use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::Tell;
use super::core::{Core, Tunnel};
use super::sealer::Sealer;
use crate::io::error_queue;
use crate::io::sockets::{self, Discover};
use crate::path_mtu::probe::Probes;
use crate::path_mtu::segments::{Pair, SegmentCheck};
use crate::path_mtu::{LEAST_LINK_MTU, PathMtu, probe};

/// A deadline that stays where it is does not keep the thread here.
const MAX_STEPS: usize = 16;
/// More than a socket's buffer of 4 MiB (what the kernel makes of `TUNNEL_BUFFER`) holds, each counts as 768 bytes or more.
const MAX_ERRORS: usize = 8192;

/// Sends the probes that the path's discovery asks for, hears what routers say, and applies what was found.
pub(super) struct Prober {
    /// Told of each other size.
    tell: Tell,
}

impl Prober {
    pub(super) fn new(tell: Tell) -> Self {
        Self { tell }
    }

    /// To be called when the tunnel's deadlines are met and it wants that.
    pub(super) fn follow(&self, gateway: u8, core: &Core, sealer: &mut Sealer, now: Instant) {
        for _ in 0..MAX_STEPS {
            let mut tunnel = core.tunnel(gateway).lock();
            let is_due = tunnel.is_probe_due(now) && tunnel.is_up(now);
            let size = if is_due { tunnel.path.on_deadline(now) } else { None };
            apply(&mut tunnel);
            let pair = size.and_then(|size| begin_pair(&mut tunnel, size));
            let Tunnel { peer, path, probed, .. } = &mut *tunnel;
            let probes = size.zip(*probed).and_then(|(size, ends)| match pair {
                Some(pair) => probe::seal_pair(pair, path, size, ends, peer, now),
                None => probe::seal(path, size, ends, peer, now).map(Probes::one),
            });
            tunnel.set_alarm(now);
            let (socket, endpoint) = (Arc::clone(&tunnel.socket), tunnel.endpoint);
            let otherwise = marks(&tunnel.path, endpoint.ip());
            drop(tunnel);
            if let Some(probes) = probes {
                let mut failed = 0;
                let send =
                    || failed = sealer.send_probes(&probes, pair == Some(Pair::AsOne), endpoint, &socket);
                if let Err(error) = sockets::probing(&socket, endpoint.ip(), otherwise, send) {
                    tracing::debug!(%error, "no probe of the path's MTU");
                }
                if failed > 0 {
                    // What has not left says nothing of what becomes of it.
                    core.tunnel(gateway).lock().segments = SegmentCheck::default();
                }
            }
            if !is_due {
                break;
            }
        }
        self.follow_mtu(core, now);
    }

    /// Empties the error queue of the socket to a gateway.
    pub(super) fn hear_errors(&self, gateway: u8, core: &Core, now: Instant) {
        let socket = Arc::clone(&core.tunnel(gateway).lock().socket);
        for _ in 0..MAX_ERRORS {
            // What is quoted says nothing that the kernel has not looked at.
            let Some(error) = error_queue::take(socket.as_fd(), &mut []) else { return };
            let mut tunnel = core.tunnel(gateway).lock();
            if let Some(mtu) = error.path_mtu()
                && error.destination == tunnel.endpoint
            {
                tunnel.path.told(mtu, now);
            }
        }
    }

    /// Packets are judged by what all paths in use carry. To be called when another one is used, too.
    pub(super) fn follow_mtu(&self, core: &Core, now: Instant) {
        if let Some(mtu) = core.least_mtu(now).filter(|mtu| *mtu != core.mtu()) {
            core.set_mtu(mtu);
            (self.tell)(mtu);
        }
    }
}

/// How the probe that is due is sent with another, if it is to show whether segmented sends arrive. Where they are lost on their way, and no
/// error says so, there are no more from now on.
fn begin_pair(tunnel: &mut Tunnel, size: u16) -> Option<Pair> {
    if !tunnel.path.begins_round() {
        return None;
    }
    if !tunnel.segmentation.is_on() || tunnel.path.lets_routers_fragment() || !SegmentCheck::fits(size) {
        tunnel.segments = SegmentCheck::default();
        return None;
    }
    let pair = tunnel.segments.begin_round();
    if pair.is_none() {
        tunnel.segmentation.lost();
    }
    pair
}

fn apply(tunnel: &mut Tunnel) {
    if !tunnel.path.take_change() {
        return;
    }
    mark_socket(tunnel);
    let mtu = tunnel.path.mtu();
    if mtu != tunnel.peer.mtu() {
        tunnel.peer.set_mtu(mtu);
        // A path that is too narrow refuses large sends in one call.
        tunnel.segmentation.forget_refusal();
    }
    let (endpoint, path) = (tunnel.endpoint, tunnel.path.outer());
    tracing::info!(%endpoint, mtu, path, known = %tunnel.path, "what the path carries");
}

/// Has the tunnel's socket send as its path asks for. To be called of each other socket, too.
pub(super) fn mark_socket(tunnel: &Tunnel) {
    if let Err(error) = mark(&tunnel.socket, &tunnel.path, tunnel.endpoint.ip()) {
        tracing::warn!(%error, "large packets may be lost on the way to the gateway");
    }
}

fn mark(socket: &Socket, path: &PathMtu, like: IpAddr) -> io::Result<()> {
    let (mode, cut) = marks(path, like);
    sockets::discover(socket, mode, like)?;
    if like.is_ipv4() {
        return Ok(());
    }
    sockets::fragment_v6(socket, cut)
}

/// Whether DF is set, and what IPv6 packets are cut to.
fn marks(path: &PathMtu, like: IpAddr) -> (Discover, Option<u16>) {
    let cut = path.fragments().filter(|_| like.is_ipv6()).map(|outer| outer.max(LEAST_LINK_MTU));
    let is_fragmented = if like.is_ipv4() { path.lets_routers_fragment() } else { cut.is_some() };
    let mode = if path.discovers() && !is_fragmented { Discover::On } else { Discover::Off };
    (mode, cut)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use super::*;

    /// A path of which probes have found that it carries next to nothing.
    fn narrow(v4: bool) -> PathMtu {
        let mut now = Instant::now();
        let mut path = PathMtu::begin(Some(1500), v4, 0, now);
        while path.mtu() > 1200 {
            match path.on_deadline(now) {
                Some(control @ ..100) => assert!(path.answered(path.name(control), now)),
                Some(_) => {}
                None => now += Duration::from_millis(100),
            }
        }
        path
    }

    #[test]
    fn another_socket_fragments_what_a_narrow_path_has_to_carry() {
        let like = Ipv4Addr::LOCALHOST.into();
        let socket = sockets::tunnel(like, 0, Discover::On).unwrap();
        let path = narrow(true);
        assert_eq!(marks(&path, like), (Discover::Off, None));
        mark(&socket, &path, like).unwrap();

        let like = Ipv6Addr::LOCALHOST.into();
        let socket = sockets::tunnel(like, 0, Discover::On).unwrap();
        let path = narrow(false);
        mark(&socket, &path, like).unwrap();

        // A larger probe leaves nevertheless.
        let listener = std::net::UdpSocket::bind((like, 0)).unwrap();
        let to = listener.local_addr().unwrap().into();
        let send = || assert_eq!(socket.send_to(&[0; 1400], &to).unwrap(), 1400);
        sockets::probing(&socket, like, marks(&path, like), send).unwrap();
        sockets::discover(&socket, Discover::On, like).unwrap();
        assert_eq!(socket.send_to(&[0; 1400], &to).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn a_narrow_path_of_ipv4_asks_ipv6_for_no_less_than_its_least() {
        let like = Ipv6Addr::LOCALHOST.into();
        let socket = sockets::tunnel(like, 0, Discover::On).unwrap();
        let mut path = narrow(true);
        path.peer_moved(false, Instant::now());
        assert!(path.fragments().is_some_and(|outer| outer < LEAST_LINK_MTU), "{}", path.outer());
        mark(&socket, &path, like).unwrap();
    }
}

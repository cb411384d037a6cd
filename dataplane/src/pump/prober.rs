use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::Tell;
use super::core::{Core, Tunnel};
use super::sealer::Sealer;
use crate::io::error_queue;
use crate::io::sockets::{self, Discover};
use crate::path_mtu::{LEAST_LINK_MTU, probe};

/// A deadline that stays where it is does not keep the thread here.
const MAX_STEPS: usize = 16;
/// More than a socket's buffer holds, each counts as 768 bytes or more.
const MAX_ERRORS: usize = 4096;

/// Sends the probes that the path's discovery asks for, hears what routers say, and applies what was found.
pub(super) struct Prober {
    /// Told of each other size.
    tell: Tell,
}

impl Prober {
    pub(super) fn new(tell: Tell) -> Self {
        Self { tell }
    }

    /// To be called when [`Tunnel::wants_prober`] says so.
    pub(super) fn follow(&self, core: &Core, sealer: &mut Sealer, now: Instant) {
        for _ in 0..MAX_STEPS {
            let mut tunnel = core.tunnel.lock();
            let is_due = tunnel.is_probe_due(now) && tunnel.is_up(now);
            let size = if is_due { tunnel.path.on_deadline(now) } else { None };
            self.apply(&mut tunnel, core);
            let Tunnel { peer, path, probed, .. } = &mut *tunnel;
            let probe = size.zip(*probed).and_then(|(size, ends)| probe::seal(path, size, ends, peer, now));
            tunnel.set_alarm(now);
            let (socket, endpoint) = (Arc::clone(&tunnel.socket), tunnel.endpoint);
            let mode = mode(&tunnel);
            drop(tunnel);
            if let Some(probe) = probe {
                let send = || sealer.send_probe(&probe, endpoint, &socket);
                if let Err(error) = sockets::probing(&socket, endpoint.ip(), mode, send) {
                    tracing::debug!(%error, "no probe of the path's MTU");
                }
            }
            if !is_due {
                return;
            }
        }
    }

    /// Empties the socket's error queue.
    pub(super) fn hear_errors(&self, core: &Core, now: Instant) {
        let socket = Arc::clone(&core.tunnel.lock().socket);
        for _ in 0..MAX_ERRORS {
            // What is quoted says nothing that the kernel has not looked at.
            let Some(error) = error_queue::take(socket.as_fd(), &mut []) else { return };
            let mut tunnel = core.tunnel.lock();
            if let Some(mtu) = error.path_mtu()
                && error.destination == tunnel.endpoint
            {
                tunnel.path.told(mtu, now);
            }
        }
    }

    fn apply(&self, tunnel: &mut Tunnel, core: &Core) {
        let mtu = tunnel.path.mtu();
        if mtu == core.mtu() {
            return;
        }
        core.set_mtu(mtu);
        tunnel.peer.set_mtu(mtu);
        // A path that is too narrow refuses large sends in one call.
        tunnel.segmentation.offer_again();
        let like = tunnel.endpoint.ip();
        let marked =
            sockets::discover(&tunnel.socket, mode(tunnel), like).and_then(|()| match like.is_ipv6() {
                true => {
                    let fragments = tunnel.path.is_silent() && mtu < LEAST_LINK_MTU;
                    sockets::fragment_v6(&tunnel.socket, fragments.then(|| tunnel.path.outer()))
                }
                false => Ok(()),
            });
        if let Err(error) = marked {
            tracing::warn!(%error, "large packets may be lost on the way to the gateway");
        }
        tracing::info!(mtu, path = tunnel.path.outer(), known = %tunnel.path, "the path's MTU is another");
        (self.tell)(mtu);
    }
}

/// Where only we know that a path is narrower than what has to be carried, routers must be let fragment that.
fn mode(tunnel: &Tunnel) -> Discover {
    let fragments = tunnel.path.is_silent() && tunnel.path.mtu() < LEAST_LINK_MTU;
    match tunnel.path.discovers() && !(fragments && tunnel.endpoint.is_ipv4()) {
        true => Discover::On,
        false => Discover::Off,
    }
}

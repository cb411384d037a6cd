use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use packet::Packet;
use socket2::Socket;
use tunnel::{Peer, State};

use super::fast_tier::FastTier;
use crate::clock::{Alarm, Clock};
use crate::engine::{Engine, MappingId};
use crate::lock::PiMutex;
use crate::path_mtu::PathMtu;
use crate::wire::UdpSegmentation;
use crate::{Counters, TunnelReport};

/// What the pump's threads share. Who takes both locks takes the tunnel's first.
pub(super) struct Core {
    pub(super) clock: Clock,
    pub(super) engine: PiMutex<Judge>,
    pub(super) tunnel: PiMutex<Tunnel>,
    pub(super) counters: Arc<Counters>,
    /// The largest packet the tunnel carries, in bytes; the TUN itself takes at least IPv6's 1280.
    mtu: AtomicU16,
    /// The TUN's own.
    pub(super) addresses: Vec<IpAddr>,
    /// SO_MARK of our own sockets.
    pub(super) fwmark: u32,
    stopped: AtomicBool,
}

/// The engine, its cache in the kernel, and the alarm that wakes the voice thread for them.
pub(super) struct Judge {
    pub(super) engine: Engine,
    /// An error: why there is none.
    pub(super) fast: Result<FastTier, String>,
    pub(super) alarm: Alarm,
}

/// The WireGuard peer, where it is, and the alarm that wakes the bulk thread for it.
pub(super) struct Tunnel {
    pub(super) peer: Peer,
    pub(super) endpoint: SocketAddr,
    pub(super) path: PathMtu,
    /// From which address of ours to whom probes of the path are sent; `None`: none are.
    pub(super) probed: Option<(IpAddr, IpAddr)>,
    pub(super) socket: Arc<Socket>,
    pub(super) segmentation: Arc<UdpSegmentation>,
    pub(super) alarm: Alarm,
}

impl Core {
    pub(super) fn new(
        clock: Clock,
        engine: Judge,
        tunnel: Tunnel,
        counters: Arc<Counters>,
        addresses: Vec<IpAddr>,
        fwmark: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            engine: PiMutex::new(engine),
            mtu: AtomicU16::new(tunnel.path.mtu()),
            tunnel: PiMutex::new(tunnel),
            counters,
            addresses,
            fwmark,
            stopped: AtomicBool::new(false),
        })
    }

    pub(super) fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Packets that were judged before may still be sealed.
    pub(super) fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

impl Judge {
    /// To be called before the lock is given back: whoever changed the deadline, the voice thread meets it.
    pub(super) fn set_alarm(&mut self, now: Instant) {
        let settle = self.fast.as_ref().ok().and_then(FastTier::deadline);
        self.alarm.ring_at(self.engine.deadline().into_iter().chain(settle).min(), now);
    }

    /// As [`Engine::judge_again`]; what that has cut is no longer the kernel's.
    pub(super) fn judge_again(&mut self) -> Option<usize> {
        let cut = self.engine.judge_again();
        if let Ok(fast) = &mut self.fast {
            fast.forget_ended(&mut self.engine);
        }
        cut
    }

    /// Flows go the way that the routes show now.
    pub(super) fn routes_changed(&mut self, now: Instant) {
        self.engine.routes_changed(now);
        if let Ok(fast) = &mut self.fast {
            fast.hand_all_back();
            fast.prepare(self.engine.underlay());
        }
    }

    /// Ends what has been idle too long.
    pub(super) fn sweep(&mut self, now: Instant, closed: impl FnMut(MappingId)) {
        if self.engine.deadline().is_some_and(|due| due <= now) {
            self.hear_of_moved(now);
        }
        let mut gone = Vec::new();
        self.engine.sweep(now, |mapping| gone.push(mapping));
        // Before its port is anybody's again.
        if let Ok(fast) = &mut self.fast {
            fast.forget_ended(&mut self.engine);
        }
        gone.into_iter().for_each(closed);
    }

    /// Has the kernel's counts added to the flows'.
    pub(super) fn hear_of_moved(&mut self, now: Instant) {
        if let Ok(fast) = &mut self.fast {
            fast.tell(&mut self.engine, now);
        }
    }
}

impl Tunnel {
    /// To be called before the lock is given back: whoever changed the deadline, the bulk thread meets it.
    pub(super) fn set_alarm(&mut self, now: Instant) {
        let probe = self.path.deadline().filter(|_| self.is_up(now));
        self.alarm.ring_at(self.peer.deadline().into_iter().chain(probe).min(), now);
    }

    /// The peer is heard at `endpoint`: from now on it is answered there.
    pub(super) fn heard_at(&mut self, endpoint: SocketAddr, now: Instant) {
        if self.endpoint != endpoint {
            self.endpoint = endpoint;
            self.path.peer_moved(endpoint.is_ipv4(), now);
        }
    }

    /// Takes in what a packet out of the tunnel says of the path, if it answers one of our probes.
    pub(super) fn is_answer(&mut self, packet: &Packet<'_>, now: Instant) -> bool {
        packet.answered_echo().is_some_and(|echo| {
            self.probed == Some((echo.source, echo.destination))
                && self.path.answered((echo.id, echo.sequence), now)
        })
    }

    pub(super) fn is_probe_due(&self, now: Instant) -> bool {
        self.path.deadline().is_some_and(|due| due <= now)
    }

    /// Whether what is sealed leaves at once.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        matches!(self.peer.state(now), State::Up { .. })
    }

    pub(super) fn report(&self, now: Instant) -> TunnelReport {
        let stats = self.peer.stats();
        let ago =
            |at: Option<Instant>| -> Option<Duration> { at.map(|at| now.saturating_duration_since(at)) };
        TunnelReport {
            state: match self.peer.state(now) {
                State::Idle => "idle",
                State::Connecting { .. } => "connecting",
                State::Up { .. } => "up",
                State::Down { .. } => "down",
            },
            endpoint: self.endpoint,
            is_used: true,
            flows: 0,
            round_trip: None,
            last_handshake: ago(stats.last_handshake),
            last_received: ago(stats.last_received),
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.received_bytes,
            mtu: self.path.mtu(),
            path_mtu: self.path.outer(),
            path_mtu_known: self.path.to_string(),
            trouble: self.peer.trouble(now).map(|trouble| trouble.to_string()),
        }
    }
}

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use packet::Packet;
use socket2::Socket;
use tunnel::{Peer, State};

use super::MAX_GATEWAYS;
use super::choice::{Seen, look_at};
use super::fast_tier::FastTier;
use crate::clock::{Alarm, Clock};
use crate::engine::{Engine, MappingId};
use crate::lock::PiMutex;
use crate::path_mtu::PathMtu;
use crate::path_mtu::segments::SegmentCheck;
use crate::wire::UdpSegmentation;
use crate::{Counters, GatewayLeg, TunnelReport};

/// What the pump's threads share. Who takes the engine's lock and a tunnel's takes the tunnel's first; those of two tunnels at once only the
/// bulk thread takes.
pub(super) struct Core {
    pub(super) clock: Clock,
    pub(super) engine: PiMutex<Judge>,
    /// To the first gateway, and to the others in order.
    first: PiMutex<Tunnel>,
    others: Box<[PiMutex<Tunnel>]>,
    pub(super) counters: Arc<Counters>,
    /// The largest packet the tunnel carries, in bytes; the TUN itself takes at least IPv6's 1280.
    mtu: AtomicU16,
    /// The TUN's own.
    pub(super) addresses: Vec<IpAddr>,
    /// SO_MARK of our own sockets.
    pub(super) fwmark: u32,
    /// How often the underlay has changed.
    underlays: AtomicU32,
    stopped: AtomicBool,
}

/// The engine, its cache in the kernel, and the alarm that wakes the voice thread for them.
pub(super) struct Judge {
    pub(super) engine: Engine,
    /// An error: why there is none.
    pub(super) fast: Result<FastTier, String>,
    pub(super) alarm: Alarm,
}

/// The WireGuard peer of a gateway, where it is, and the alarm that wakes the bulk thread for it.
pub(super) struct Tunnel {
    pub(super) peer: Peer,
    pub(super) endpoint: SocketAddr,
    /// Where a handshake was completed last.
    pub(super) proven: Option<SocketAddr>,
    pub(super) path: PathMtu,
    pub(super) segments: SegmentCheck,
    /// From which address of ours to whom probes of the path are sent; `None`: none are.
    pub(super) probed: Option<(IpAddr, IpAddr)>,
    pub(super) socket: Arc<Socket>,
    pub(super) segmentation: Arc<UdpSegmentation>,
    pub(super) alarm: Alarm,
    /// Its place among them.
    pub(super) gateway: u8,
    /// Whether a route to it exists.
    pub(super) reachable: bool,
    /// Whether there are others, to which flows go when it is silent.
    pub(super) has_others: bool,
    pub(super) flows: Flows,
    /// Whether it was down at its last deadline.
    pub(super) was_down: bool,
    pub(super) was_up: bool,
}

/// Which flows go through a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flows {
    None,
    /// New ones.
    New,
    /// Those that began when new ones came here, as long as there are any.
    Old,
    /// All went to this gateway when its own was silent: what was judged before follows them.
    LeftFor(u8),
}

impl Core {
    pub(super) fn new(
        clock: Clock,
        engine: Judge,
        first: Tunnel,
        others: Vec<Tunnel>,
        counters: Arc<Counters>,
        addresses: Vec<IpAddr>,
        fwmark: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            engine: PiMutex::new(engine),
            mtu: AtomicU16::new(first.path.mtu()),
            first: PiMutex::new(first),
            others: others.into_iter().map(PiMutex::new).collect(),
            counters,
            addresses,
            fwmark,
            underlays: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
        })
    }

    /// The places of the gateways, in order of preference.
    pub(super) fn gateways(&self) -> impl Iterator<Item = u8> + use<> {
        0..=self.others.len() as u8
    }

    /// To a gateway, by its place, which is one of [`Core::gateways`].
    pub(super) fn tunnel(&self, gateway: u8) -> &PiMutex<Tunnel> {
        debug_assert!(usize::from(gateway) <= self.others.len());
        usize::from(gateway).checked_sub(1).and_then(|place| self.others.get(place)).unwrap_or(&self.first)
    }

    /// How many flows go to each gateway. No tunnel may be locked.
    pub(super) fn count_flows(&self) -> [usize; MAX_GATEWAYS] {
        let mut flows = [0; MAX_GATEWAYS];
        let _ = (0..).take_while(|part| self.engine.lock().engine.count_flows(*part, &mut flows)).count();
        flows
    }

    /// Of gateways whose old flows have all ended the path is of no interest any more. No tunnel may be locked.
    pub(super) fn forget_old_flows(&self) {
        for (gateway, _) in self.gateways().zip(self.count_flows()).filter(|(_, flows)| *flows == 0) {
            let mut tunnel = self.tunnel(gateway).lock();
            if tunnel.flows == Flows::Old {
                tunnel.flows = Flows::None;
            }
        }
    }

    /// What the paths to all gateways that flows go to carry. No tunnel may be locked.
    pub(super) fn least_mtu(&self, now: Instant) -> Option<u16> {
        let tunnels = self.gateways().map(|gateway| self.tunnel(gateway).lock());
        tunnels.filter(|tunnel| tunnel.has_flows(now)).map(|tunnel| tunnel.path.mtu()).min()
    }

    pub(super) fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Packets that were judged before may still be sealed.
    pub(super) fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// How often the underlay has changed: whoever keeps something of it looks again.
    pub(super) fn underlays(&self) -> u32 {
        self.underlays.load(Ordering::Acquire)
    }

    /// The engine knows another underlay.
    pub(super) fn underlay_changed(&self) {
        self.underlays.fetch_add(1, Ordering::Release);
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
            fast.follow_routes(self.engine.underlay());
            fast.prepare(self.engine.underlay());
        }
    }

    /// Ends what has been idle too long.
    pub(super) fn sweep(&mut self, now: Instant, closed: impl FnMut(MappingId)) {
        if self.engine.deadline().is_some_and(|due| due <= now) {
            self.hear_of_moved(now);
            self.fast.iter_mut().for_each(|fast| fast.follow_routers(self.engine.underlay()));
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
        let probe = self.path.deadline().filter(|_| self.is_up(now) && self.has_flows(now));
        let look = self.look_at(now);
        self.alarm.ring_at(self.peer.deadline().into_iter().chain(probe).chain(look).min(), now);
    }

    /// The way to the gateway is another.
    pub(super) fn network_changed(&mut self, leg: GatewayLeg, now: Instant) {
        self.reachable = leg.reachable;
        self.segmentation.offer_again();
        self.segments = SegmentCheck::default();
        self.path.network_changed(leg.mtu, now);
        self.try_again(now);
    }

    /// Tries at once whether the gateway is there: what it said before says nothing.
    pub(super) fn try_again(&mut self, now: Instant) {
        self.peer.set_underlay(self.reachable, now);
        // That its session lives is all that is known of it.
        if self.is_up(now) {
            self.peer.ask(now);
        }
        self.set_alarm(now);
    }

    /// The peer is heard at `endpoint`: from now on it is answered there.
    pub(super) fn heard_at(&mut self, endpoint: SocketAddr, now: Instant) {
        if self.endpoint != endpoint {
            self.endpoint = endpoint;
            self.segments = SegmentCheck::default();
            self.path.peer_moved(endpoint.is_ipv4(), now);
        }
    }

    /// Takes in what a packet out of the tunnel says of the path, if it answers one of our probes.
    pub(super) fn is_answer(&mut self, packet: &Packet<'_>, now: Instant) -> bool {
        packet.answered_echo().is_some_and(|echo| {
            self.probed == Some((echo.source, echo.destination))
                && self.segments.answered(&mut self.path, (echo.id, echo.sequence), now)
        })
    }

    /// Only where flows go is the path of any interest.
    pub(super) fn is_probe_due(&self, now: Instant) -> bool {
        self.path.deadline().is_some_and(|due| due <= now) && self.has_flows(now)
    }

    /// Whether flows go here, or may still: old ones have ended, or wait for a session, where there is none.
    fn has_flows(&self, now: Instant) -> bool {
        match self.flows {
            Flows::New => true,
            Flows::Old => !matches!(self.peer.state(now), State::Idle | State::Down { .. }),
            Flows::None | Flows::LeftFor(_) => false,
        }
    }

    /// What the choice among several gateways depends on.
    pub(super) fn seen(&self, now: Instant) -> Seen {
        let stats = self.peer.stats();
        Seen {
            reachable: self.reachable,
            has_session: self.is_up(now),
            answers_probes: self.path.is_answered() && self.probed.is_some(),
            waits_since: self.peer.waits_since(),
            answered: stats.round_trip_at,
            is_wanted: self.peer.is_wanted(now),
            round_trip: stats.round_trip_at.zip(stats.round_trip),
        }
    }

    /// When the choice among several gateways wants to hear of this one if it says nothing until then.
    fn look_at(&self, now: Instant) -> Option<Instant> {
        let since = self.peer.waits_since().filter(|_| self.has_others)?;
        look_at(since, self.is_up(now), now)
    }

    /// Whether the gateway has stopped answering since this was asked last.
    pub(super) fn has_gone_down(&mut self, now: Instant) -> bool {
        let is_down = matches!(self.peer.state(now), State::Down { .. });
        !std::mem::replace(&mut self.was_down, is_down) && is_down
    }

    /// Whether packets flow since this was asked last, and did not before.
    pub(super) fn has_come_up(&mut self, now: Instant) -> bool {
        let is_up = self.is_up(now);
        !std::mem::replace(&mut self.was_up, is_up) && is_up
    }

    /// Whether what is sealed leaves at once.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        matches!(self.peer.state(now), State::Up { .. })
    }

    /// `flows` go there.
    pub(super) fn report(&self, is_used: bool, flows: usize, now: Instant) -> TunnelReport {
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
            proven: self.proven,
            is_used,
            flows,
            round_trip: stats.round_trip,
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

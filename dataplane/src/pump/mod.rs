//! The pump: a thread for voice, one for everything else, and the control plane's hold on them.

mod bulk;
mod bypass;
mod choice;
mod core;
mod fast_tier;
mod gateway_set;
mod gateways;
mod intake;
mod looks;
mod opener;
mod prober;
mod sealer;
mod to_tun;
mod voice;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use packet::OuterDscp;
use policy::{Fail, FastPathUse, Snapshot};
use tunnel::Peer;

use crate::clock::{Alarm, Clock};
use crate::engine::{Engine, Limits};
use crate::fast_path::Unavailable;
use crate::io::realtime::RealTime;
use crate::io::sockets;
use crate::path_mtu::PathMtu;
use crate::path_mtu::probe::secret;
use crate::path_mtu::segments::SegmentCheck;
use crate::wire::UdpSegmentation;
use crate::{Counters, Feature, FlowReport, Tun, TunnelReport, Underlay};
use bulk::Bulk;
use core::{Core, Flows, Judge, Tunnel};
use fast_tier::FastTier;
use gateways::Gateways;
use opener::Opener;
use prober::Prober;
use sealer::Sealer;
use voice::Voice;

/// What the pump needs to run.
pub struct Setup {
    pub tun: Tun,
    /// The TUN's own addresses.
    pub addresses: Vec<IpAddr>,
    pub mtu: Mtu,
    /// In order of preference, 1 to [`MAX_GATEWAYS`].
    pub gateways: Vec<Gateway>,
    pub prefer: Prefer,
    pub snapshot: Arc<Snapshot>,
    /// SO_MARK of our own sockets, which the routing rules let pass.
    pub fwmark: u32,
    pub underlay: Underlay,
    pub offload: Offload,
    pub fast_path: FastPathUse,
    /// Of the tunnel's own packets.
    pub outer_dscp: OuterDscp,
    pub on_gateway: OnGateway,
    /// Called once, by a thread of the pump, when it has ended and the TUN is gone: `Ok` after [`Handle::stop`].
    pub on_exit: OnExit,
}

/// A far end of the tunnel. All have the same addresses behind them, but each is a NAT of its own: a live connection cannot move.
pub struct Gateway {
    pub peer: Peer,
    pub endpoint: SocketAddr,
}

/// Which gateway new flows go to, of those that answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// The first.
    Order,
    /// The one whose handshake took the shortest time, at the start, at each fail-over, and when the underlay has changed.
    RoundTrip,
}

/// A gateway fell silent, or lost its route, and another answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failover {
    /// Their places among [`Setup::gateways`].
    pub from: usize,
    pub to: usize,
    pub cause: FailoverCause,
    /// `from`'s live TCP connections: the next packet of each gets a reset. Its other flows go on through `to`.
    pub cut_flows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverCause {
    /// Nothing authentic came back for what was sent.
    Silence,
    NoRoute,
}

/// What becomes of a gateway, told by its place among [`Setup::gateways`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayEvent {
    /// It has answered, and packets flow.
    Up(usize),
    /// It has stopped answering.
    Down(usize),
    FailedOver(Failover),
    /// New flows go there from now on, all others stay where they are.
    Used(usize),
}

/// Called by a thread of the pump, which waits for it: it should only pass on what it is told.
pub type OnGateway = Box<dyn Fn(GatewayEvent) + Send>;

/// More would be as many handshakes at once, and say little of the machine's own network.
pub const MAX_GATEWAYS: usize = 8;

/// The largest packet that the tunnel carries, in bytes.
pub enum Mtu {
    Fixed(u16),
    /// What the paths to the gateways in use carry, at first [`tunnel_mtu`](crate::tunnel_mtu) of the first one's leg; a thread of the pump
    /// tells of each other size.
    Discovered(Tell),
}

pub type Tell = Box<dyn Fn(u16) + Send>;

/// Which offloads may be used, where the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// TCP and UDP super-packets on the TUN.
    pub tun: bool,
    /// Several datagrams in one call on the tunnel's socket (UDP_SEGMENT, UDP_GRO).
    pub udp: bool,
}

/// The pump answers between two batches of packets. Whoever asks waits, and may have more to do than to hear of a pump that hangs.
const ANSWER: Duration = Duration::from_secs(5);

pub type OnExit = Box<dyn FnOnce(Result<(), PumpError>) + Send>;

#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    #[error("the pump has stopped")]
    Stopped,
    #[error("the pump has not answered within {} s", ANSWER.as_secs())]
    Stuck,
    #[error("a thread of the pump has panicked; what it said is on the standard error output")]
    Panicked,
    #[error("a tunnel has 1 to {MAX_GATEWAYS} gateways, this one {0}")]
    Gateways(usize),
    #[error("there is no gateway {0}: they are counted from 0")]
    NoSuchGateway(usize),
    #[error("the kernel fast path is required, but cannot be: {0}")]
    FastPath(Unavailable),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// The pump's threads.
pub struct Pump;

/// The control plane's hold on a running pump; dropping it stops the pump.
pub struct Handle {
    counters: Arc<Counters>,
    commands: Sender<Command>,
    waker: Arc<mio::Waker>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    alive: Receiver<()>,
}

pub(crate) enum Command {
    Swap(Arc<Snapshot>, Sender<usize>),
    Underlay(Underlay, Sender<()>),
    TryAgain,
    Routes,
    Count(Sender<()>),
    Endpoint(usize, SocketAddr, Sender<Result<(), PumpError>>),
    Flows(Sender<Vec<FlowReport>>),
    Destinations(Sender<BTreeSet<IpAddr>>),
    Tunnels(Sender<Vec<TunnelReport>>),
    Features(Sender<Vec<Feature>>),
    Stop,
}

impl Pump {
    /// Starts the threads; returns once they are ready to move packets.
    pub fn start(mut setup: Setup) -> Result<Handle, PumpError> {
        let count = setup.gateways.len();
        if count == 0 || count > MAX_GATEWAYS {
            return Err(PumpError::Gateways(count));
        }
        let counters = Arc::new(Counters::default());
        let (commands, inbox) = unbounded();
        let offload = setup.offload;
        let clock = Clock::start();
        let mut tunnels = open_tunnels(&mut setup, clock)?.into_iter();
        let first = tunnels.next().ok_or(PumpError::Gateways(0))?;
        let (socket, segmentation) = (Arc::clone(&first.socket), Arc::clone(&first.segmentation));
        let tell: Tell = match setup.mtu {
            Mtu::Fixed(_) => Box::new(|_| {}),
            Mtu::Discovered(tell) => tell,
        };
        let mut tun = setup.tun;
        if offload.tun {
            tun.offer_segmentation(segmentation.is_on());
        }
        let only = || tun.queue().try_clone().map_err(io_error("sharing the TUN"));
        let (voice_queue, bulk_queue, own_queue) = match tun.voice_queue() {
            Ok(queue) => (queue, Some(only()?), Ok(())),
            Err(error) => (only()?, None, Err(error)),
        };

        let mut engine = Engine::new(
            setup.snapshot,
            setup.addresses.clone(),
            setup.underlay.clone(),
            limits(),
            Arc::clone(&counters),
            clock.origin(),
        );
        let fast = match setup.fast_path {
            FastPathUse::Off => Err("switched off in the configuration".to_owned()),
            wanted => match FastTier::open(tun.index(), setup.fwmark, clock) {
                Err(error) if wanted == FastPathUse::Require => return Err(PumpError::FastPath(error)),
                opened => opened.map_err(|error| error.to_string()).map(|mut fast| {
                    fast.prepare(&setup.underlay);
                    fast
                }),
            },
        };
        if fast.is_ok() {
            engine.take_notes();
        }
        let core = Core::new(
            clock,
            Judge { engine, fast, alarm: Alarm::new(clock).map_err(io_error("opening a timer"))? },
            first,
            tunnels.collect(),
            Arc::clone(&counters),
            setup.addresses,
            setup.fwmark,
        );
        let sealer = || Sealer::new(Arc::clone(&segmentation), setup.outer_dscp);
        let voice = Voice::new(Arc::clone(&core), voice_queue, sealer(), Arc::clone(&segmentation))?;
        let voice_waker = voice.waker();
        let opener = Opener::new(&socket, offload.udp);
        let prober = Prober::new(tell);
        let (mut bulk, waker) = Bulk::new(
            Arc::clone(&core),
            (inbox, setup.on_gateway),
            tun,
            bulk_queue,
            sealer(),
            opener,
            prober,
        )?;
        if count > 1 {
            let alarm = Alarm::new(clock).map_err(io_error("opening a timer"))?;
            bulk.choose_among(Gateways::new(setup.prefer, count, alarm, clock.now()))?;
        }

        let (voice, features) = start_voice(voice, own_queue, Arc::clone(&core), Arc::clone(&waker))?;
        let end = EndsWithMe { core, other: voice_waker };
        let (living, alive) = bounded(0);
        let thread = start_bulk(bulk, features, voice, (end, living), setup.on_exit)?;
        Ok(Handle { counters, commands, waker, thread: Some(thread), alive })
    }
}

impl Handle {
    /// What was counted until now, by the kernel too.
    pub fn counters(&self) -> &Counters {
        let _ = self.ask(Command::Count);
        &self.counters
    }

    /// Swaps the policy in: it judges every packet from now on, and on return every live flow; those that it forbids are cut. Returns how many were.
    pub fn swap(&self, snapshot: Arc<Snapshot>) -> Result<usize, PumpError> {
        self.ask(|reply| Command::Swap(snapshot, reply))
    }

    /// Takes note of the physical side as it is now; on return every packet is judged by it.
    pub fn set_underlay(&self, underlay: Underlay) -> Result<(), PumpError> {
        self.ask(|reply| Command::Underlay(underlay, reply))
    }

    /// Has the gateways tried at once, as where another network has come: what was in their way is gone.
    pub fn try_again(&self) -> Result<(), PumpError> {
        self.tell(Command::TryAgain)
    }

    /// To be told when routes or interfaces changed in whatever way: flows that the kernel moves are led anew.
    pub fn routes_changed(&self) -> Result<(), PumpError> {
        self.tell(Command::Routes)
    }

    /// Moves the tunnel to another address of a gateway, by its place in [`Setup::gateways`]; on an error (no IPv6 here, say) it stays where
    /// it was.
    pub fn set_endpoint(&self, gateway: usize, endpoint: SocketAddr) -> Result<(), PumpError> {
        self.ask(|reply| Command::Endpoint(gateway, endpoint, reply))?
    }

    pub fn flows(&self) -> Result<Vec<FlowReport>, PumpError> {
        self.ask(Command::Flows)
    }

    /// Where applications' packets go: each flow's destination, and those of what was refused since this was asked last, 1024 at most.
    pub fn destinations(&self) -> Result<BTreeSet<IpAddr>, PumpError> {
        self.ask(Command::Destinations)
    }

    /// The tunnel to each gateway, in the order of [`Setup::gateways`].
    pub fn tunnels(&self) -> Result<Vec<TunnelReport>, PumpError> {
        self.ask(Command::Tunnels)
    }

    /// The optional features as they are now: one that fails in use is turned off.
    pub fn features(&self) -> Result<Vec<Feature>, PumpError> {
        self.ask(Command::Features)
    }

    /// Stops the threads and waits for them, for 5 s at most. The TUN goes with them.
    pub fn stop(mut self) -> Result<(), PumpError> {
        self.end()
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, PumpError> {
        let (reply, answer) = bounded(1);
        self.tell(command(reply))?;
        answer.recv_timeout(ANSWER).map_err(|error| match error {
            RecvTimeoutError::Timeout => PumpError::Stuck,
            RecvTimeoutError::Disconnected => PumpError::Stopped,
        })
    }

    fn tell(&self, command: Command) -> Result<(), PumpError> {
        self.commands.send(command).map_err(|_| PumpError::Stopped)?;
        self.waker.wake().map_err(io_error("waking the pump"))
    }

    fn end(&mut self) -> Result<(), PumpError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let _ = self.tell(Command::Stop);
        if self.alive.recv_timeout(ANSWER) == Err(RecvTimeoutError::Timeout) {
            return Err(PumpError::Stuck);
        }
        thread.join().map_err(|_| PumpError::Stopped)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The tunnels to all gateways, in order. New flows go to the first.
fn open_tunnels(setup: &mut Setup, clock: Clock) -> Result<Vec<Tunnel>, PumpError> {
    let now = clock.now();
    let probed = probed(&setup.addresses, &setup.snapshot);
    let gateways = std::mem::take(&mut setup.gateways);
    let count = gateways.len();
    let mut tunnels: Vec<Tunnel> = Vec::with_capacity(count);
    for (place, Gateway { mut peer, endpoint }) in gateways.into_iter().enumerate() {
        let leg = setup.underlay.leg(place);
        let path = match setup.mtu {
            Mtu::Fixed(mtu) => PathMtu::fixed(mtu, endpoint.is_ipv4(), now),
            Mtu::Discovered(_) => PathMtu::begin(leg.mtu, endpoint.is_ipv4(), secret(), now),
        };
        let socket = Arc::new(bulk::open_socket(endpoint, setup.fwmark, bulk::discover(&path))?);
        let segmentation = match tunnels.first() {
            Some(first) => Arc::clone(&first.segmentation),
            None => UdpSegmentation::new(&socket, setup.offload.udp),
        };
        peer.set_mtu(path.mtu());
        if count > 1 {
            peer.wait_for_underlay(choice::ROUTE_GRACE);
        }
        peer.set_underlay(leg.reachable, now);
        let mut tunnel = Tunnel {
            peer,
            endpoint,
            proven: None,
            path,
            segments: SegmentCheck::default(),
            probed,
            socket,
            segmentation,
            alarm: Alarm::new(clock).map_err(io_error("opening a timer"))?,
            gateway: place as u8,
            reachable: leg.reachable,
            has_others: count > 1,
            flows: if place == 0 { Flows::New } else { Flows::None },
            was_down: false,
            was_up: false,
        };
        tunnel.set_alarm(now);
        tunnels.push(tunnel);
    }
    Ok(tunnels)
}

/// Ends the pump's other thread with the one that holds this, also when that panics or does not even start.
struct EndsWithMe {
    core: Arc<Core>,
    other: Arc<mio::Waker>,
}

impl Drop for EndsWithMe {
    fn drop(&mut self) {
        self.core.stop();
        let _ = self.other.wake();
    }
}

type VoiceThread = (JoinHandle<Result<(), PumpError>>, Vec<Feature>);

/// Returns once the thread runs, with what it can do. `own_queue`: whether nothing but voice is in its queue.
fn start_voice(
    mut voice: Voice,
    own_queue: io::Result<()>,
    core: Arc<Core>,
    other: Arc<mio::Waker>,
) -> Result<VoiceThread, PumpError> {
    let (ready, started) = bounded(1);
    let thread = thread::Builder::new()
        .name("voice".to_owned())
        .spawn(move || {
            // Bulk in the same queue would run at voice's priority.
            let real_time = match &own_queue {
                Ok(()) => RealTime::enter(core.clock.now()),
                Err(_) => Err(io::Error::other("bulk comes through the same queue")),
            };
            let mut features = voice.features();
            features.push(match &own_queue {
                Ok(()) => ("tun-voice-queue", true, "UDP has a queue of its own".to_owned()),
                Err(error) => ("tun-voice-queue", false, format!("all packets share one queue: {error}")),
            });
            features.push(match &real_time {
                Ok(_) => ("voice-real-time", true, "the voice thread runs before ordinary work".to_owned()),
                Err(error) => ("voice-real-time", false, format!("the voice thread waits its turn: {error}")),
            });
            let _ = ready.send(features);
            let _end = EndsWithMe { core, other };
            voice.run(real_time.ok())
        })
        .map_err(io_error("starting the voice thread"))?;
    let features = started.recv().map_err(|_| PumpError::Stopped)?;
    Ok((thread, features))
}

fn start_bulk(
    mut bulk: Bulk,
    voice_features: Vec<Feature>,
    voice: JoinHandle<Result<(), PumpError>>,
    (end, living): (EndsWithMe, Sender<()>),
    on_exit: OnExit,
) -> Result<JoinHandle<()>, PumpError> {
    thread::Builder::new()
        .name("bulk".to_owned())
        .spawn(move || {
            let ended = outcome(|| bulk.run(voice_features));
            drop(end);
            let voice_ended = voice.join().unwrap_or(Err(PumpError::Panicked));
            // The TUN is gone when that is told.
            drop(bulk);
            on_exit(ended.and(voice_ended));
            drop(living);
        })
        .map_err(io_error("starting the bulk thread"))
}

/// How a thread's work ended, also when it panicked.
pub(crate) fn outcome(work: impl FnOnce() -> Result<(), PumpError>) -> Result<(), PumpError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(PumpError::Panicked))
}

/// Between whom the path is probed: from an address of ours to one that the gateway would forward to, of what fails closed if there is such.
fn probed(addresses: &[IpAddr], snapshot: &Snapshot) -> Option<(IpAddr, IpAddr)> {
    let captured = || snapshot.captured().iter();
    let (closed, open) =
        (captured().filter(|it| it.fail == Fail::Closed), captured().filter(|it| it.fail != Fail::Closed));
    closed.chain(open).find_map(|captured| {
        let destination = captured.prefix.hosts().next()?;
        let source = addresses.iter().find(|own| own.is_ipv4() == destination.is_ipv4())?;
        Some((*source, destination))
    })
}

/// Each mapping holds a descriptor; some are left to the rest of the process.
fn limits() -> Limits {
    const OTHERS: usize = 128;
    let (default, descriptors) = (Limits::default(), sockets::raise_descriptor_limit());
    Limits { mappings: default.mappings.min(descriptors.saturating_sub(OTHERS)), ..default }
}

pub(crate) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> PumpError {
    move |source| PumpError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "that is what is tried")]
    fn a_panic_is_an_outcome_too() {
        assert!(outcome(|| Ok(())).is_ok());
        assert!(matches!(outcome(|| panic!("as a test")), Err(PumpError::Panicked)));
    }

    #[test]
    fn a_pump_that_hangs_is_waited_for_no_longer_than_it_may_take() {
        let poll = mio::Poll::new().unwrap();
        let (commands, _inbox) = unbounded();
        let (_living, alive) = bounded(0);
        let hanging = Handle {
            counters: Arc::new(Counters::default()),
            commands,
            waker: Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap()),
            thread: Some(thread::spawn(thread::park)),
            alive,
        };
        assert!(matches!(hanging.flows(), Err(PumpError::Stuck)));
        assert!(matches!(hanging.stop(), Err(PumpError::Stuck)));
    }
}

//! The pump: one thread that moves packets, and the control plane's hold on it.

mod bypass;
mod refusal;
mod shared;
mod tunnel_side;
mod worker;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use packet::OuterDscp;
use policy::Snapshot;
use tunnel::Peer;

use crate::{Counters, Feature, FlowReport, Tun, TunnelReport, Underlay};
use worker::Worker;

/// What the pump needs to run.
pub struct Setup {
    pub tun: Tun,
    /// The TUN's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The largest packet the tunnel carries, in bytes.
    pub mtu: u16,
    pub peer: Peer,
    pub endpoint: SocketAddr,
    pub snapshot: Arc<Snapshot>,
    /// SO_MARK of our own sockets, which the routing rules let pass.
    pub fwmark: u32,
    pub underlay: Underlay,
    pub offload: Offload,
    /// Of the tunnel's own packets.
    pub outer_dscp: OuterDscp,
    /// Called once, by the pump's thread, when it ends: `Ok` after [`Handle::stop`].
    pub on_exit: OnExit,
}

/// Which offloads may be used, where the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// TCP and UDP super-packets on the TUN.
    pub tun: bool,
    /// Several datagrams in one call on the tunnel's socket (UDP_SEGMENT, UDP_GRO).
    pub udp: bool,
}

pub type OnExit = Box<dyn FnOnce(Result<(), PumpError>) + Send>;

#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    #[error("the pump has stopped")]
    Stopped,
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// The pump's thread.
pub struct Pump;

/// The control plane's hold on a running pump; dropping it stops the pump.
pub struct Handle {
    counters: Arc<Counters>,
    commands: Sender<Command>,
    waker: Arc<mio::Waker>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) enum Command {
    Swap(Arc<Snapshot>, Sender<usize>),
    Underlay(Underlay),
    Endpoint(SocketAddr, Sender<Result<(), PumpError>>),
    Flows(Sender<Vec<FlowReport>>),
    Tunnel(Sender<TunnelReport>),
    Features(Sender<Vec<Feature>>),
    Stop,
}

impl Pump {
    /// Starts the thread; returns once it is ready to move packets.
    pub fn start(setup: Setup) -> Result<Handle, PumpError> {
        let counters = Arc::new(Counters::default());
        let (commands, inbox) = unbounded();
        let (ready, started) = bounded(1);
        let thread = {
            let counters = Arc::clone(&counters);
            thread::Builder::new()
                .name("pump".to_owned())
                .spawn(move || run(setup, counters, inbox, ready))
                .map_err(io_error("starting the pump's thread"))?
        };
        let waker = started.recv().map_err(|_| PumpError::Stopped)??;
        Ok(Handle { counters, commands, waker, thread: Some(thread) })
    }
}

impl Handle {
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Swaps the policy in; live flows that it forbids are cut. Returns how many were.
    pub fn swap(&self, snapshot: Arc<Snapshot>) -> Result<usize, PumpError> {
        self.ask(|reply| Command::Swap(snapshot, reply))
    }

    pub fn set_underlay(&self, underlay: Underlay) -> Result<(), PumpError> {
        self.tell(Command::Underlay(underlay))
    }

    /// Moves the tunnel to another address of the gateway; on an error (no IPv6 here, say) it stays where it was.
    pub fn set_endpoint(&self, endpoint: SocketAddr) -> Result<(), PumpError> {
        self.ask(|reply| Command::Endpoint(endpoint, reply))?
    }

    pub fn flows(&self) -> Result<Vec<FlowReport>, PumpError> {
        self.ask(Command::Flows)
    }

    pub fn tunnel(&self) -> Result<TunnelReport, PumpError> {
        self.ask(Command::Tunnel)
    }

    /// The optional features as they are now: one that fails in use is turned off.
    pub fn features(&self) -> Result<Vec<Feature>, PumpError> {
        self.ask(Command::Features)
    }

    /// Stops the thread and waits for it. The TUN goes with it.
    pub fn stop(mut self) -> Result<(), PumpError> {
        self.end()
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, PumpError> {
        let (reply, answer) = bounded(1);
        self.tell(command(reply))?;
        answer.recv().map_err(|_| PumpError::Stopped)
    }

    fn tell(&self, command: Command) -> Result<(), PumpError> {
        self.commands.send(command).map_err(|_| PumpError::Stopped)?;
        self.waker.wake().map_err(io_error("waking the pump"))
    }

    fn end(&mut self) -> Result<(), PumpError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let _ = self.tell(Command::Stop);
        thread.join().map_err(|_| PumpError::Stopped)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

type Ready = Sender<Result<Arc<mio::Waker>, PumpError>>;

fn run(mut setup: Setup, counters: Arc<Counters>, inbox: Receiver<Command>, ready: Ready) {
    let on_exit = std::mem::replace(&mut setup.on_exit, Box::new(|_| ()));
    let mut worker = match Worker::new(setup, counters, inbox) {
        Ok((worker, waker)) => {
            let _ = ready.send(Ok(waker));
            worker
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    on_exit(worker.run());
}

pub(crate) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> PumpError {
    move |source| PumpError::Io { what, source }
}

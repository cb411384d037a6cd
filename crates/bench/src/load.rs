use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use lab::{During, Host, LabError};

use crate::plan::Plan;
use crate::report::Load;
use crate::throughput::{Direction, Moved, Protocol, Transfer, Watch};

/// What goes through a path while voice is measured.
#[derive(Debug)]
pub struct Running {
    watch: Arc<Watch>,
    thread: JoinHandle<io::Result<Moved>>,
}

/// What [`Load::UdpUpload`] offers.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Of each, in bytes.
    pub payload: u16,
    /// In bit/s of payload.
    pub rate: u64,
}

/// Starts a load that ends when it is told to, `most` after its start at the latest, and returns when it has come up to speed: `None`
/// for [`Load::Idle`]. It runs in `host`, or else in the namespace of this thread.
pub fn start(
    host: Option<&Host>,
    to: SocketAddr,
    load: Load,
    datagrams: Datagrams,
    most: Duration,
) -> Result<Option<Running>, LabError> {
    let udp = Protocol::Udp(datagrams.payload);
    let (protocol, direction, rate) = match load {
        Load::Idle => return Ok(None),
        Load::Upload => (Protocol::Tcp, Direction::Up, None),
        Load::Download => (Protocol::Tcp, Direction::Down, None),
        Load::UdpUpload => (udp, Direction::Up, Some(datagrams.rate)),
    };
    let transfer = Transfer { to, protocol, direction, streams: 1, duration: most, rate };
    let watch = Arc::new(Watch::default());
    let inner = watch.clone();
    let body = move || transfer.run_watched(&inner);
    let thread = match host {
        Some(host) => host.thread("load", body)?,
        None => thread::spawn(body),
    };
    sleep(Plan::lead(load));
    Ok(Some(Running { watch, thread }))
}

impl Running {
    /// Bytes that have passed this end of it so far.
    pub fn moved(&self) -> u64 {
        self.watch.moved()
    }

    /// That it still runs: what is measured beside it would otherwise not be measured beside a load.
    pub fn check(&self) -> Result<(), LabError> {
        let is_over =
            if self.thread.is_finished() { Err("it was over before the voice was") } else { Ok(()) };
        is_over.during(|| "load the path beside voice".to_owned())
    }

    /// Ends it, and returns its rate in bit/s.
    ///
    /// # Errors
    /// If it failed or was over before.
    pub fn finish(self) -> Result<f64, LabError> {
        let what = || "load the path beside voice".to_owned();
        let still_runs = self.check();
        self.watch.end();
        let joined = self.thread.join().map_err(|_| "its thread panicked".to_owned());
        let moved = joined.during(what)?.during(what)?;
        still_runs?;
        Ok(moved.bit_rate())
    }
}

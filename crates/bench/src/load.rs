use std::io;
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use lab::{During, LabError};

use crate::plan::Plan;
use crate::report::{Load, Path};
use crate::site::Site;
use crate::throughput::{Direction, Moved, Protocol, Transfer};

/// One TCP stream that fills the tunnel while voice is measured.
#[derive(Debug)]
pub struct Running(Option<JoinHandle<io::Result<Moved>>>);

/// Voice must be over before the load is.
const TAIL: Duration = Duration::from_millis(500);

/// Starts a load that lasts for `voice`, and returns when it has come up to speed.
pub fn start(site: &Site, load: Load, voice: Duration) -> Result<Running, LabError> {
    let direction = match load {
        Load::Idle => return Ok(Running(None)),
        Load::Upload => Direction::Up,
        Load::Download => Direction::Down,
    };
    let transfer = Transfer {
        to: site.bulk(Path::Tunnel),
        protocol: Protocol::Tcp,
        direction,
        streams: 1,
        duration: Plan::LOAD_LEAD + voice + TAIL,
        rate: None,
    };
    let thread = site.agent.thread("load", move || transfer.run())?;
    sleep(Plan::LOAD_LEAD);
    Ok(Running(Some(thread)))
}

impl Running {
    /// Waits for its end, and returns its rate in bit/s; `None` if there was none.
    pub fn finish(self) -> Result<Option<f64>, LabError> {
        let Some(thread) = self.0 else { return Ok(None) };
        let what = || "load the tunnel".to_owned();
        let moved = thread.join().map_err(|_| "its thread panicked".to_owned()).during(what)?.during(what)?;
        Ok(Some(moved.bit_rate()))
    }
}

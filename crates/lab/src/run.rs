use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::enter::clean_up_on_signals;
use crate::judge::{self, Driven};
use crate::report::{Report, Verdict};
use crate::traffic::{self, Kind};
use crate::{Captures, Daemon, During, Gateway, Lab, LabError, Wiring, neighbour};

/// What [`run`] shall do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The `breakout` program.
    pub exe: PathBuf,
    pub gateway: Gateway,
    /// No daemon: the agent sends everything directly, and the lab must say so.
    pub break_split: bool,
    /// [`Run::keep`] will follow, so the daemon is started again after it was killed.
    pub keep: bool,
    pub wiring: Wiring,
}

/// A lab that has been judged and still stands; it is gone when this is dropped.
#[derive(Debug)]
pub struct Run {
    pub report: Report,
    pub lab: Lab,
}

/// Time for the last packets to reach the captures.
const SETTLE: Duration = Duration::from_millis(200);

/// Builds the lab, drives every kind of traffic through it and judges what captures saw. Progress goes to standard error.
/// [`crate::enter`] must have been called first.
pub fn run(options: &Options) -> Result<Run, LabError> {
    clean_up_on_signals()?;
    let begun = Instant::now();
    let progress = Progress::new();
    progress.say("building a small internet");
    let mut lab = Lab::build(options.wiring)?;
    let captures = Captures::start(&lab.internet)?;
    if !options.break_split {
        progress.say(&format!("starting the gateway ({})", options.gateway));
        lab.start_gateway(options.gateway, &options.exe)?;
        progress.say("starting the daemon");
        lab.start_daemon(&options.exe, "")?;
    }

    progress.say("sending every kind of traffic, for five seconds");
    let tls: Arc<ClientConfig> = lab.identity.client.clone();
    let mut kinds = traffic::kinds(&tls);
    let mut attempt = None;
    if !options.break_split {
        kinds.push(traffic::from_tun_address());
        attempt = Some(neighbour::start(&lab.internet)?);
    }
    let mut driven = drive(&lab, kinds)?;
    let attempt = attempt.map(|attempt| join(attempt, "neighbour")).transpose()?;

    let daemon_ended = lab.daemon.as_mut().map(Daemon::ended).transpose()?.flatten();
    if !options.break_split {
        progress.say("killing the daemon, to see that signaling stays closed");
        lab.kill_daemon()?;
        driven.extend(drive(&lab, traffic::after_kill())?);
    }
    std::thread::sleep(SETTLE);
    let wires = captures.finish()?;
    if options.keep && !options.break_split {
        progress.say("starting the daemon again");
        lab.start_daemon(&options.exe, "")?;
    }
    progress.done();
    let gateway = (!options.break_split).then(|| options.gateway.to_string());
    let more = attempt.map(|attempt| attempt.judge(&wires)).into_iter().collect();
    let mut report = judge::report(&driven, more, &wires, gateway, begun.elapsed());
    if daemon_ended.is_some() {
        report.verdict = Verdict::Red;
        report.daemon_ended = daemon_ended;
    }
    Ok(Run { report, lab })
}

/// Drives all kinds at once, each in a thread of the agent.
fn drive(lab: &Lab, kinds: Vec<Kind>) -> Result<Vec<Driven>, LabError> {
    let threads: Vec<(&str, JoinHandle<Driven>)> = kinds
        .into_iter()
        .map(|kind| {
            let name = kind.name;
            Ok((name, lab.internet.agent.thread(name, move || Driven::new(kind))?))
        })
        .collect::<Result<_, LabError>>()?;
    threads.into_iter().map(|(name, thread)| join(thread, name)).collect()
}

fn join<T>(thread: JoinHandle<T>, name: &str) -> Result<T, LabError> {
    thread.join().map_err(|_| "its thread panicked".to_owned()).during(|| format!("drive `{name}`"))
}

/// One line that is written over on a terminal, plain lines elsewhere.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: stderr().is_terminal() }
    }

    fn say(&self, what: &str) {
        if self.terminal { eprint!("\r\x1b[2K{what} …") } else { eprintln!("{what}") }
    }

    fn done(&self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // An error is about to be printed.
        self.done();
    }
}

//! The run in the lab: every section in turn, every contender in turn within each round.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab::{During, Gateway, LabError};

use crate::error::BenchError;
use crate::forwarding::{Sent, Way};
use crate::machine::Busy;
use crate::plan::{Plan, Section};
use crate::progress::Progress;
use crate::report::{Better, Key, Mode, Path, Report, SCHEMA, judge};
use crate::scenario::Scenario;
use crate::schedule::{Lane, Sites, Step, Talk, Turn, schedule};
use crate::site::{Client, Site, tos};
use crate::throughput::{Protocol, Transfer};
use crate::usage::{Usage, peak_memory, reset_peak_memory};
use crate::{ceiling, forwarding, idle, machine, metric, roaming, scheduling, startup};

/// What [`run`] shall do.
#[derive(Clone, Debug)]
pub struct Options {
    pub plan: Plan,
    /// The `breakout` program.
    pub exe: PathBuf,
    /// Its version.
    pub version: String,
    /// The far end of every client's tunnel.
    pub gateway: Gateway,
    /// Measured beside Breakout.
    pub against: Vec<Client>,
    /// The command line, for the report.
    pub command: Vec<String>,
}

pub const GIGA: f64 = 1e9;
const MEBIBYTE: f64 = (1 << 20) as f64;

/// Measures in namespaces of this machine. Progress goes to standard error. [`lab::enter`] must have been called first. A step that
/// fails is noted in the report, and the next one is taken.
///
/// # Errors
/// If what is measured cannot be built.
pub fn run(options: &Options) -> Result<Report, BenchError> {
    let begun = Instant::now();
    let plan = &options.plan;
    let (mut all, sites) = build(options)?;
    let mut report = Report {
        schema: SCHEMA,
        mode: Mode::Lab,
        taken_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        seconds: 0.0,
        version: options.version.clone(),
        command: options.command.clone(),
        machine: machine::describe(),
        realtime: scheduling::realtime_is_permitted(),
        plan: plan.clone(),
        contenders: all.iter_mut().take(sites.clients).map(Site::describe).collect::<Result<_, _>>()?,
        notes: Vec::new(),
        cells: Vec::new(),
        failed: Vec::new(),
        bars: Vec::new(),
    };
    report.notes = notes(&report, sites);

    let turns = schedule(plan, sites);
    let mut progress = Progress::new(turns.len(), turns.iter().map(|turn| turn.step.length(plan)).sum());
    let mut bench = Bench { plan, sites, all, report, round: 0, quiet: 0.0 };
    for Turn { round, step } in &turns {
        progress.step(&bench.name(step), step.length(plan));
        bench.round = *round;
        if let Err(error) = bench.take(step) {
            let what = bench.name(step);
            progress.failed(&what);
            bench.report.fail(*round, what, &error);
        }
    }
    let mut report = bench.report;
    report.fill_rounds();
    report.seconds = begun.elapsed().as_secs_f64();
    report.bars = judge(&report);
    Ok(report)
}

/// Builds all sites, in the order of [`Sites`].
fn build(options: &Options) -> Result<(Vec<Site>, Sites), LabError> {
    let build = |client| Site::build(client, options.gateway, &options.exe);
    let clients = std::iter::once(Client::Breakout).chain(options.against.iter().cloned());
    let mut all: Vec<Site> = clients.map(build).collect::<Result<_, _>>()?;
    let clients = all.len();
    all.push(build(Client::Nobody)?);
    let has_fast_path = all.first().map_or(Ok(false), Site::has_fast_path)?;
    if has_fast_path {
        all.push(build(Client::BreakoutWithoutFastPath)?);
    }
    Ok((all, Sites { clients, has_fast_path }))
}

pub(crate) struct Bench<'a> {
    plan: &'a Plan,
    pub(crate) sites: Sites,
    pub(crate) all: Vec<Site>,
    pub(crate) report: Report,
    /// That is being measured.
    pub(crate) round: usize,
    /// CPU seconds that the machine spends in a second by itself.
    pub(crate) quiet: f64,
}

impl Bench<'_> {
    fn take(&mut self, step: &Step) -> Result<(), BenchError> {
        match step {
            Step::Ceiling => self.ceiling(),
            Step::Transfer { section, scenario, lane } => self.transfer(*section, scenario, *lane)?,
            Step::Quiet => {
                let busy = Busy::watch();
                std::thread::sleep(machine::QUIET);
                let (seconds, used) = busy.so_far();
                self.quiet = used / seconds;
            }
            Step::Voice { load, loaded, talks } => self.voice(*load, *loaded, talks)?,
            Step::PingPong(lane) => self.ping_pong(*lane)?,
            Step::PacketRate(lane) => self.packet_rate(*lane)?,
            Step::Idle => self.idle()?,
            Step::Roaming(lane) => self.roaming(*lane)?,
            Step::Startup(lane) => self.startup(*lane)?,
        }
        Ok(())
    }

    /// For people who wait.
    fn name(&self, step: &Step) -> String {
        let of = |lane: &Lane| self.lane_name(lane);
        match step {
            Step::Ceiling => "what the cipher allows".to_owned(),
            Step::Transfer { section, scenario, lane } => format!("{section} {} {}", scenario.name, of(lane)),
            Step::Quiet => "what the machine does by itself".to_owned(),
            Step::Voice { load, talks, .. } => {
                let talks: Vec<String> = talks.iter().map(|talk| self.talk_name(talk)).collect();
                format!("voice, load {load}: {}", talks.join(", "))
            }
            Step::PingPong(lane) => format!("back-to-back round trips, {}", of(lane)),
            Step::PacketRate(lane) => format!("small packets, {}", of(lane)),
            Step::Idle => "idle".to_owned(),
            Step::Roaming(lane) => format!("roaming, {}", of(lane)),
            Step::Startup(lane) => format!("start-up, {}", of(lane)),
        }
    }

    pub(crate) fn talk_name(&self, talk: &Talk) -> String {
        let lanes: Vec<String> = talk.lanes.iter().map(|lane| self.lane_name(lane)).collect();
        format!("{} × {}", talk.calls, lanes.join(" + "))
    }

    fn lane_name(&self, lane: &Lane) -> String {
        let client = self.all.get(lane.site).map_or("", |site| site.client().name());
        format!("{} {client}", lane.path).trim().to_owned()
    }

    pub(crate) fn site(&self, index: usize) -> Result<&Site, LabError> {
        self.all.get(index).ok_or_else(|| LabError::HostGone(format!("of site {index}")))
    }

    fn key(&self, section: Section, scenario: &str, lane: Lane) -> Key {
        let client = self.all.get(lane.site).map(|site| site.client().name().to_owned()).unwrap_or_default();
        Key { path: Some(lane.path), client, ..Key::new(section, scenario) }
    }

    fn ceiling(&mut self) {
        let rate = ceiling::cipher_ceiling(self.plan.transfer()) / GIGA;
        let key = Key::new(Section::Ceiling, "chacha20-poly1305");
        self.report.record(self.round, &key, metric::RATE, "Gbit/s", Better::Higher, rate);
    }

    fn transfer(&mut self, section: Section, scenario: &Scenario, lane: Lane) -> Result<(), BenchError> {
        let Scenario { name, protocol, direction, streams, rate } = *scenario;
        let key = self.key(section, name, lane);
        let what = || format!("{name} by {} {}", lane.path, key.client);
        let pid = self.all.get_mut(lane.site).and_then(Site::pid);
        if let Some(pid) = pid {
            reset_peak_memory(pid).during(what)?;
        }
        let site = self.site(lane.site)?;
        let to = site.bulk(lane.path);
        let transfer = Transfer { to, protocol, direction, streams, duration: self.plan.transfer(), rate };
        let before = pid.map(Usage::of).transpose().during(what)?;
        let thread = site.agent.thread("transfer", move || transfer.run())?;
        let moved = thread.join().map_err(|_| "its thread panicked".to_owned()).during(what)?.during(what)?;
        let after = pid.map(Usage::of).transpose().during(what)?;

        let mut record = |name: &str, unit: &str, better, value| {
            self.report.record(self.round, &key, name, unit, better, value)
        };
        let rate_matters = if rate.is_some() { Better::Neither } else { Better::Higher };
        record(metric::RATE, "Gbit/s", rate_matters, moved.bit_rate() / GIGA);
        if let (Some(up), Some(down)) = (moved.up, moved.down) {
            for (name, count) in [(metric::RATE_UP, up), (metric::RATE_DOWN, down)] {
                record(name, "Gbit/s", rate_matters, count.bit_rate() / GIGA);
            }
        }
        if protocol != Protocol::Tcp {
            record(metric::PACKETS, "1000/s", Better::Higher, moved.packet_rate() / 1e3);
        }
        let (Some(pid), Some(before), Some(after)) = (pid, before, after) else { return Ok(()) };
        if moved.total_bytes() == 0 {
            return Ok(());
        }
        let (used, gigabytes) = (after - before, moved.total_bytes() as f64 / GIGA);
        record(metric::CPU, "s/GB", Better::Lower, used.cpu.as_secs_f64() / gigabytes);
        record(metric::WAKEUPS, "1/GB", Better::Neither, used.wakeups as f64 / gigabytes);
        record(metric::PREEMPTIONS, "1/GB", Better::Neither, used.preemptions as f64 / gigabytes);
        let memory = peak_memory(pid).during(what)? as f64 / MEBIBYTE;
        record(metric::MEMORY, "MiB", Better::Lower, memory);
        Ok(())
    }

    fn ping_pong(&mut self, lane: Lane) -> Result<(), BenchError> {
        let way = self.way(lane)?;
        let usage = || way.carrier.map(Usage::of).transpose().during(|| "see how often it ran".to_owned());
        let before = usage()?;
        let trips = forwarding::ping_pong(&way)?;
        let after = usage()?;
        self.check_forwarded(lane, &trips)?;
        if let (Some(before), Some(after)) = (before, after) {
            self.site(lane.site)?.check_mover(lane.path, (after - before).switches(), trips.packets)?;
        }
        let key = self.key(Section::Forwarding, "ping-pong", lane);
        for (name, part) in [(metric::RTT_P50, 0.5), (metric::RTT_P99, 0.99)] {
            let us = trips.found.value_at_quantile(part) as f64 / 1e3;
            self.report.record(self.round, &key, name, "µs", Better::Lower, us);
        }
        self.report.record_delays(self.round, &key, metric::ROUND_TRIP, &trips.found);
        Ok(())
    }

    fn packet_rate(&mut self, lane: Lane) -> Result<(), BenchError> {
        let rate = forwarding::packet_rate(&self.way(lane)?)?;
        self.check_forwarded(lane, &rate)?;
        let key = self.key(Section::Forwarding, "packet-rate", lane);
        self.report.record(self.round, &key, metric::PACKETS, "1000/s", Better::Higher, rate.found / 1e3);
        Ok(())
    }

    fn way(&mut self, lane: Lane) -> Result<Way<'_>, LabError> {
        let carrier = self.all.get_mut(lane.site).and_then(Site::pid);
        let site = self.site(lane.site)?;
        let (to, tos) = (site.small(lane.path), tos(lane.path));
        Ok(Way { near: &site.agent, far: &site.far, to, tos, carrier })
    }

    fn check_forwarded<T>(&self, lane: Lane, sent: &Sent<T>) -> Result<(), LabError> {
        let site = self.site(lane.site)?;
        site.check_way(lane.path, site.small(lane.path), &[sent.port], sent.packets)
    }

    fn idle(&mut self) -> Result<(), BenchError> {
        let mut lives = Vec::new();
        for site in 0..self.sites.clients {
            match self.open_session(site) {
                Ok(pid) => lives.extend(pid.map(|pid| (site, pid))),
                Err(error) => {
                    let client = self.site(site)?.client();
                    let what = format!("idle, {client}");
                    self.report.fail(self.round, what, &error.into());
                }
            }
        }
        std::thread::sleep(Duration::from_secs(1));
        let pids: Vec<u32> = lives.iter().map(|(_, pid)| *pid).collect();
        let duration = Duration::from_secs_f64(self.plan.idle_seconds);
        for (window, all) in idle::measure(&pids, duration, self.plan.rounds)?.into_iter().enumerate() {
            for ((site, _), idle) in lives.iter().zip(all) {
                let key = self.key(Section::Idle, "idle", Lane { site: *site, path: Path::Tunnel });
                let mut record = |name: &str, unit: &str, value| {
                    self.report.record(window, &key, name, unit, Better::Lower, value);
                };
                record(metric::WAKEUPS_PER_SECOND, "1/s", idle.wakeups_per_second);
                record(metric::CPU_PER_SECOND, "ms/s", idle.cpu_ms_per_second);
                record(metric::MEMORY, "MiB", idle.memory_bytes as f64 / MEBIBYTE);
            }
        }
        Ok(())
    }

    /// Lets a client have a session that lives, and returns its process.
    fn open_session(&mut self, site: usize) -> Result<Option<u32>, LabError> {
        self.site(site)?.open_calls(Path::Tunnel, 1, 0)?;
        Ok(self.all.get_mut(site).and_then(Site::pid))
    }

    fn roaming(&mut self, lane: Lane) -> Result<(), BenchError> {
        let key = self.key(Section::Roaming, "roaming-gap", lane);
        let Some(site) = self.all.get_mut(lane.site) else { return Ok(()) };
        let gap = roaming::measure(site, lane.path)?;
        self.report.record(self.round, &key, metric::MILLISECONDS, "ms", Better::Lower, gap);
        Ok(())
    }

    fn startup(&mut self, lane: Lane) -> Result<(), BenchError> {
        let key = self.key(Section::Startup, "start-up", lane);
        let Some(site) = self.all.get_mut(lane.site) else { return Ok(()) };
        let took = startup::measure(site, lane.path)?;
        self.report.record(self.round, &key, metric::MILLISECONDS, "ms", Better::Lower, took);
        Ok(())
    }
}

fn notes(report: &Report, sites: Sites) -> Vec<String> {
    let voice = if report.realtime {
        "Voice endpoints ran SCHED_FIFO, so that their own wake-up is not what is measured."
    } else {
        "Voice endpoints were not permitted to run SCHED_FIFO: receive times are the kernel's, send times include the sender's wake-up."
    };
    let tiers = if sites.has_fast_path {
        "The bypass was measured in both tiers: a daemon with `fast_path = \"auto\"`, and beside it one with \"off\", whose pump carries everything."
    } else {
        "The daemon does not say that the kernel's fast path is on: the bypass is the pump's."
    };
    vec![
        voice.to_owned(),
        tiers.to_owned(),
        "Voice delay counts from when a packet was due, so that a late send counts as delay, and the table says how late they were. One-way delays are exact: both ends have one clock.".to_owned(),
        "`direct` is a wire of its own without any VPN; `direct again` is the same once more, and by how much the two differ is how far ratios can be trusted. Under load it is heard beside each tier, while that daemon's tunnel is full.".to_owned(),
        "With up to 10 calls, direct and the bypass are heard at the same time, their packets evenly apart.".to_owned(),
        "A wake-up is a voluntary context switch, or idle any. CPU is the client process's own; what the kernel does in interrupts on its behalf is not in it, but is in the whole machine's.".to_owned(),
    ]
}

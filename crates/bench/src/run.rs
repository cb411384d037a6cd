//! The run in the lab: every section in turn, every contender in turn within each round.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lab::{During, Gateway};

use crate::error::BenchError;
use crate::plan::{Plan, Section};
use crate::progress::Progress;
use crate::report::{Better, Key, Load, Mode, Path, Report, SCHEMA};
use crate::site::{Client, Site};
use crate::throughput::{Direction, Protocol, Transfer};
use crate::usage::{Usage, peak_memory, reset_peak_memory};
use crate::voice::{Calls, EF_TOS, INTERVAL, Quality};
use crate::{ceiling, idle, load, machine, metric, roaming, scheduling, startup};

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

struct Scenario {
    name: &'static str,
    protocol: Protocol,
    direction: Direction,
    streams: u16,
}

const MEBIBYTE: f64 = (1 << 20) as f64;
const GIGABYTE: f64 = 1e9;
/// Offered in the fixed-load section, in bit/s.
const FIXED: u64 = 300_000_000;

const fn tcp(name: &'static str, direction: Direction, streams: u16) -> Scenario {
    Scenario { name, protocol: Protocol::Tcp, direction, streams }
}

const fn udp(name: &'static str, direction: Direction, payload: u16) -> Scenario {
    Scenario { name, protocol: Protocol::Udp(payload), direction, streams: 1 }
}

const THROUGHPUT: [Scenario; 10] = [
    tcp("tcp-up-1", Direction::Up, 1),
    tcp("tcp-down-1", Direction::Down, 1),
    tcp("tcp-both-1", Direction::Both, 1),
    tcp("tcp-up-4", Direction::Up, 4),
    tcp("tcp-down-4", Direction::Down, 4),
    tcp("tcp-both-4", Direction::Both, 4),
    udp("udp-up", Direction::Up, 1400),
    udp("udp-down", Direction::Down, 1400),
    udp("udp-small-up", Direction::Up, 200),
    udp("udp-small-down", Direction::Down, 200),
];
const FIXED_LOAD: [Scenario; 2] = [tcp("fixed-up", Direction::Up, 1), tcp("fixed-down", Direction::Down, 1)];

/// Measures in namespaces of this machine. Progress goes to standard error. [`lab::enter`] must have been called first.
pub fn run(options: &Options) -> Result<Report, BenchError> {
    let begun = Instant::now();
    let plan = &options.plan;
    let mut progress = Progress::new(steps(plan, 1 + options.against.len()));
    progress.say("building a site for each client");
    let clients = std::iter::once(Client::Breakout).chain(options.against.iter().cloned());
    let sites = clients.map(|client| Site::build(client, options.gateway, &options.exe));
    let sites: Vec<Site> = sites.collect::<Result<_, _>>()?;
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
        contenders: sites.iter().map(Site::describe).collect::<Result<_, _>>()?,
        notes: Vec::new(),
        cells: Vec::new(),
    };
    report.notes = notes(&report);

    let mut bench = Bench { plan, sites, report, progress: &mut progress };
    for section in Section::ALL.into_iter().filter(|section| plan.has(*section)) {
        match section {
            // In the rounds of throughput, where there are any.
            Section::Ceiling if plan.has(Section::Throughput) => {}
            Section::Ceiling => (0..plan.rounds).for_each(|_| bench.ceiling()),
            Section::Throughput => bench.throughput()?,
            Section::FixedLoad => bench.fixed_load()?,
            Section::Voice => bench.voice()?,
            Section::Idle => bench.idle()?,
            Section::Roaming => bench.roaming()?,
            Section::Startup => bench.startup()?,
        }
    }
    let mut report = bench.report;
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

struct Bench<'a> {
    plan: &'a Plan,
    sites: Vec<Site>,
    report: Report,
    progress: &'a mut Progress,
}

impl Bench<'_> {
    fn ceiling(&mut self) {
        self.progress.step("what the cipher allows");
        let rate = ceiling::cipher_ceiling(self.plan.transfer()) / 1e9;
        let key = Key::new(Section::Ceiling, "chacha20-poly1305");
        self.report.record(&key, metric::RATE, "Gbit/s", Better::Higher, rate);
    }

    fn throughput(&mut self) -> Result<(), BenchError> {
        for _ in 0..self.plan.rounds {
            if self.plan.has(Section::Ceiling) {
                self.ceiling();
            }
            for scenario in &THROUGHPUT {
                if scenario.protocol == Protocol::Tcp && scenario.streams == 1 {
                    self.transfer(Section::Throughput, scenario, 0, Path::Direct)?;
                }
                for site in 0..self.sites.len() {
                    self.transfer(Section::Throughput, scenario, site, Path::Tunnel)?;
                }
            }
        }
        Ok(())
    }

    fn fixed_load(&mut self) -> Result<(), BenchError> {
        for _ in 0..self.plan.rounds {
            for scenario in &FIXED_LOAD {
                for site in 0..self.sites.len() {
                    self.transfer(Section::FixedLoad, scenario, site, Path::Tunnel)?;
                }
            }
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        section: Section,
        scenario: &Scenario,
        site: usize,
        path: Path,
    ) -> Result<(), BenchError> {
        let Scenario { name, protocol, direction, streams } = *scenario;
        let Some(site) = self.sites.get_mut(site) else { return Ok(()) };
        let client = if path == Path::Tunnel { site.client().name() } else { "" };
        self.progress
            .step(&format!("{section} {name} {}", if client.is_empty() { path.name() } else { client }));
        let transfer = Transfer {
            to: site.bulk(path),
            protocol,
            direction,
            streams,
            duration: self.plan.transfer(),
            rate: (section == Section::FixedLoad).then_some(FIXED),
        };
        let what = || format!("{name} through {client}");
        let pid = site.pid().unwrap_or(0);
        reset_peak_memory(pid).during(what)?;
        let before = Usage::of(pid).during(what)?;
        let thread = site.agent.thread("transfer", move || transfer.run())?;
        let moved = thread.join().map_err(|_| "its thread panicked".to_owned()).during(what)?.during(what)?;
        let used = Usage::of(pid).during(what)? - before;

        let key = Key { path: Some(path), client: client.to_owned(), ..Key::new(section, name) };
        let mut record =
            |name: &str, unit: &str, better, value| self.report.record(&key, name, unit, better, value);
        let rate_matters = if section == Section::FixedLoad { Better::Neither } else { Better::Higher };
        record(metric::RATE, "Gbit/s", rate_matters, moved.bit_rate() / 1e9);
        if protocol != Protocol::Tcp {
            record(metric::PACKETS, "1000/s", Better::Higher, moved.packet_rate() / 1e3);
        }
        if path == Path::Tunnel && moved.total_bytes() > 0 {
            let gigabytes = moved.total_bytes() as f64 / GIGABYTE;
            record(metric::CPU, "s/GB", Better::Lower, used.cpu.as_secs_f64() / gigabytes);
            record(metric::WAKEUPS, "1/GB", Better::Neither, used.wakeups as f64 / gigabytes);
            record(metric::PREEMPTIONS, "1/GB", Better::Neither, used.preemptions as f64 / gigabytes);
            let memory = peak_memory(pid).during(what)? as f64 / MEBIBYTE;
            record(metric::MEMORY, "MiB", Better::Lower, memory);
        }
        Ok(())
    }

    fn voice(&mut self) -> Result<(), BenchError> {
        for _ in 0..self.plan.rounds {
            for calls in self.plan.calls.clone() {
                for load in Load::ALL {
                    for (site, path) in lanes(self.sites.len()) {
                        self.talk(calls, load, site, path)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn talk(&mut self, calls: u16, load: Load, site: usize, path: Path) -> Result<(), BenchError> {
        let Some(site) = self.sites.get(site) else { return Ok(()) };
        let client = site.client().name();
        self.progress.step(&format!("voice, {calls} calls, load {load}, {path} {client}"));
        let what = || format!("voice by {path} beside {client}");
        let call = Calls {
            to: site.voice(path),
            calls,
            packets: self.plan.packets(calls, load, Some(path)),
            tos: EF_TOS,
        };
        let load_runs = load::start(site, load, INTERVAL * call.packets)?;
        let thread = site.agent.thread("voice", move || call.run())?;
        let heard = thread.join().map_err(|_| "its thread panicked".to_owned()).during(what)?;
        let load_rate = load_runs.finish();
        let quality = Quality::new(&heard.during(what)?, 0);

        let (load, path, client) = (Some(load), Some(path), client.to_owned());
        let key = Key { load, path, client, ..Key::new(Section::Voice, format!("calls-{calls}")) };
        record_quality(&mut self.report, &key, &quality);
        if let Some(rate) = load_rate? {
            self.report.record(&key, metric::LOAD_RATE, "Gbit/s", Better::Neither, rate / 1e9);
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<(), BenchError> {
        self.progress.step("idle");
        for site in &self.sites {
            // A session that lives.
            let ping = Calls { to: site.voice(Path::Tunnel), calls: 1, packets: 1, tos: EF_TOS };
            let thread = site.agent.thread("ping", move || ping.run())?;
            let what = || "open a session".to_owned();
            thread.join().map_err(|_| "its thread panicked".to_owned()).during(what)?.during(what)?;
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
        let duration = std::time::Duration::from_secs_f64(self.plan.idle_seconds);
        let all = idle::measure(&mut self.sites, duration)?;
        for (site, idle) in self.sites.iter().zip(all) {
            let client = site.client().name().to_owned();
            let key = Key { path: Some(Path::Tunnel), client, ..Key::new(Section::Idle, "idle") };
            let mut record = |name: &str, unit: &str, value| {
                self.report.record(&key, name, unit, Better::Lower, value);
            };
            record(metric::WAKEUPS_PER_SECOND, "1/s", idle.wakeups_per_second);
            record(metric::CPU_PER_SECOND, "ms/s", idle.cpu_ms_per_second);
            record(metric::MEMORY, "MiB", idle.memory_bytes as f64 / MEBIBYTE);
        }
        Ok(())
    }

    fn roaming(&mut self) -> Result<(), BenchError> {
        for _ in 0..self.plan.rounds {
            for (site, path) in carried(self.sites.len()) {
                let Some(site) = self.sites.get(site) else { continue };
                let client = site.client().name().to_owned();
                self.progress.step(&format!("roaming, {path} {client}"));
                let gap = roaming::measure(site, path)?;
                let key = Key { path: Some(path), client, ..Key::new(Section::Roaming, "roaming-gap") };
                self.report.record(&key, metric::MILLISECONDS, "ms", Better::Lower, gap);
            }
        }
        Ok(())
    }

    fn startup(&mut self) -> Result<(), BenchError> {
        for _ in 0..self.plan.rounds {
            for (site, path) in carried(self.sites.len()) {
                let Some(site) = self.sites.get_mut(site) else { continue };
                let client = site.client().name().to_owned();
                self.progress.step(&format!("start-up, {path} {client}"));
                let key = Key { path: Some(path), client, ..Key::new(Section::Startup, "start-up") };
                match startup::measure(site, path)? {
                    Some(took) => {
                        self.report.record(&key, metric::MILLISECONDS, "ms", Better::Lower, took);
                    }
                    None => self.report.notes.push(format!(
                        "{} did not carry a packet by {path} within 10 s of a start.",
                        key.client
                    )),
                }
            }
        }
        Ok(())
    }
}

/// Records what some calls sounded like.
pub fn record_quality(report: &mut Report, key: &Key, quality: &Quality) {
    use Better::{Higher, Lower, Neither};
    let us = |ns: u64| ns as f64 / 1e3;
    let (round_trip, one_way) = (&quality.delays.round_trip, &quality.delays.one_way);
    let at = |histogram: &hdrhistogram::Histogram<u64>, part| us(histogram.value_at_quantile(part));
    let mut record = |name: &str, unit: &str, better, value| report.record(key, name, unit, better, value);
    record(metric::RTT_P50, "µs", Lower, at(round_trip, 0.5));
    record(metric::RTT_P99, "µs", Lower, at(round_trip, 0.99));
    record(metric::RTT_P999, "µs", Lower, at(round_trip, 0.999));
    record(metric::RTT_MAX, "µs", Neither, us(round_trip.max()));
    record(metric::ONE_WAY_P50, "µs", Lower, at(one_way, 0.5));
    record(metric::ONE_WAY_P99, "µs", Lower, at(one_way, 0.99));
    record(metric::ONE_WAY_P999, "µs", Lower, at(one_way, 0.999));
    record(metric::ONE_WAY_MAX, "µs", Neither, us(one_way.max()));
    record(metric::JITTER, "µs", Lower, quality.jitter_ms * 1e3);
    record(metric::LOSS, "%", Lower, quality.loss * 100.0);
    record(metric::REORDERED, "packets", Lower, quality.reordered as f64);
    record(metric::MOS, "", Higher, quality.mos);
    record(metric::GENESYS_MOS, "", Higher, quality.genesys_mos);
    report.record_delays(key, metric::ROUND_TRIP, round_trip);
    report.record_delays(key, metric::ONE_WAY, one_way);
}

/// Whose voice is measured, and where: everything at the first site, which is ours, and the tunnel at the others.
fn lanes(sites: usize) -> Vec<(usize, Path)> {
    let ours = [Path::Direct, Path::Bypass, Path::Tunnel, Path::DirectAgain].map(|path| (0, path));
    ours.into_iter().chain((1..sites).map(|site| (site, Path::Tunnel))).collect()
}

/// The lanes that a client carries.
fn carried(sites: usize) -> Vec<(usize, Path)> {
    lanes(sites).into_iter().filter(|(_, path)| matches!(path, Path::Bypass | Path::Tunnel)).collect()
}

fn steps(plan: &Plan, sites: usize) -> usize {
    let rounds = plan.rounds as usize;
    let single = THROUGHPUT.iter().filter(|s| s.protocol == Protocol::Tcp && s.streams == 1).count();
    let of = |section: &Section| match section {
        Section::Ceiling => rounds,
        Section::Throughput => rounds * (THROUGHPUT.len() * sites + single),
        Section::FixedLoad => rounds * FIXED_LOAD.len() * sites,
        Section::Voice => rounds * plan.calls.len() * Load::ALL.len() * lanes(sites).len(),
        Section::Idle => 1,
        Section::Roaming | Section::Startup => rounds * carried(sites).len(),
    };
    plan.sections.iter().map(of).sum()
}

fn notes(report: &Report) -> Vec<String> {
    let voice = if report.realtime {
        "Voice endpoints ran SCHED_FIFO, so that their own wake-up is not what is measured."
    } else {
        "Voice endpoints were not permitted to run SCHED_FIFO: receive times are the kernel's, send times include the sender's wake-up."
    };
    vec![
        voice.to_owned(),
        "Voice delay counts from when a packet was due, so that a late send counts as delay. One-way delays are exact: both ends have one clock.".to_owned(),
        "`direct` is what nobody captures; `direct again` is the same once more, and by how much the two differ is how far ratios can be trusted.".to_owned(),
        "A wake-up is a voluntary context switch. CPU is the client process's own; what the kernel does in interrupts on its behalf is not in it.".to_owned(),
    ]
}

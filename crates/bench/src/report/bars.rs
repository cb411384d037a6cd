//! What must hold, set beside what this run measured.

use serde::{Deserialize, Serialize};

use super::{Better, Key, Load, Metric, Path, Report};
use crate::metric;
use crate::plan::Section;

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    pub what: String,
    pub limit: Limit,
    pub bar: f64,
    pub unit: String,
    pub measured: f64,
    /// How `measured` comes of the rounds.
    pub by: Judged,
    pub rounds: Vec<Option<f64>>,
    /// `None`: reported, not judged; the note says why.
    pub met: Option<bool>,
    pub note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judged {
    Median,
    /// Of a time that is only divided into rounds.
    Mean,
    /// A single exception counts.
    Worst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    AtLeast,
    AtMost,
}
use Limit::{AtLeast, AtMost};

const OURS: &str = "breakout";
/// A bar is judged by at least so many rounds.
const ROUNDS: usize = 5;
/// Packets in a voice cell that is judged.
const SAMPLES: u64 = 30_000;
/// An offered load was carried if no less than this part of it arrived.
const CARRIED: f64 = 0.97;

/// All bars for which this run has figures.
pub fn judge(report: &Report) -> Vec<Bar> {
    [throughput(report), cost(report), pump(report), in_tunnel(report), idle(report), fast_path(report)]
        .into_iter()
        .flatten()
        .collect()
}

fn throughput(report: &Report) -> Vec<Bar> {
    let rate = |scenario: &str, client: &str| {
        report.of_client(Section::Throughput, scenario, client)?.metrics.get(metric::RATE)
    };
    let mut bars = Vec::new();
    for (scenario, client, bar) in [
        ("tcp-up-1", "boringtun-cli", 3.0),
        ("tcp-up-1", "gotatun", 3.0),
        ("tcp-down-1", "boringtun-cli", 3.0),
        ("tcp-down-1", "gotatun", 2.0),
    ] {
        let found = ratio(rate(scenario, OURS), rate(scenario, client));
        let what = format!("{scenario} through the gateway {}, by {client}'s", gateway(report));
        bars.extend(found.map(|found| Bar::new(what, AtLeast, bar, found)));
    }
    // The ceiling is that of two ends of ours on one machine.
    if gateway(report) == OURS {
        let ceiling = Key::new(Section::Ceiling, "chacha20-poly1305");
        let ceiling = report.cell(&ceiling).and_then(|cell| cell.metrics.get(metric::RATE));
        for scenario in ["tcp-up-1", "tcp-down-1"] {
            let found = ratio(rate(scenario, OURS), ceiling);
            let what = format!("{scenario}, ours at both ends, by the cipher ceiling");
            bars.extend(found.map(|found| Bar::new(what, AtLeast, 0.35, found)));
        }
    }
    bars
}

fn cost(report: &Report) -> Vec<Bar> {
    let of = |scenario: &str, client: &str, name: &str| {
        report.of_client(Section::FixedLoad, scenario, client)?.metrics.get(name)
    };
    let bar = |scenario: &str| {
        let cpu = |client| of(scenario, client, metric::CPU);
        let found = ratio(cpu(OURS), cpu("boringtun-cli"))?;
        let what = format!("{scenario}: CPU seconds of the client per GB at 300 Mbit/s, by boringtun-cli's");
        let mut bar = Bar::new(what, AtMost, 0.4, found);
        let offered = crate::scenario::FIXED as f64 / 1e9 * CARRIED;
        let short =
            |client: &&&str| of(scenario, client, metric::RATE).is_none_or(|rate| rate.median() < offered);
        if let Some(client) = [OURS, "boringtun-cli"].iter().find(short) {
            bar.only_report(&format!("{client} did not carry the load that was offered"));
        }
        Some(bar)
    };
    ["fixed-up", "fixed-down"].into_iter().filter_map(bar).collect()
}

fn pump(report: &Report) -> Vec<Bar> {
    let path = Path::BypassPump;
    let mut bars = Vec::new();
    for (calls, most) in [(1, 2.0), (10, 2.6), (50, 2.6)] {
        bars.extend(voice(report, path, calls, Load::Idle, metric::RTT_P50, most));
    }
    let calls = loaded_calls(report);
    let realtime = report.contenders.first().is_some_and(|ours| ours.realtime);
    for load in [Load::Upload, Load::Download] {
        let mut found = voice(report, path, calls, load, metric::RTT_P99, 2.0);
        if let Some(bar) = found.as_mut().filter(|_| !realtime) {
            bar.only_report("no thread of the client runs real-time");
        }
        bars.extend(found);
        bars.extend(loss(report, path, calls, load));
    }
    bars
}

fn in_tunnel(report: &Report) -> Vec<Bar> {
    let calls = loaded_calls(report);
    let mut bars = Vec::new();
    for load in [Load::Upload, Load::Download] {
        let p99 = |client: &str| {
            let key = voice_key(Path::Tunnel, calls, load, client);
            report.cell(&key)?.metrics.get(metric::RTT_P99)
        };
        for client in ["wireguard-go", "gotatun"] {
            let what =
                format!("voice inside the tunnel, {calls} calls during {}: p99 by {client}'s", during(load));
            let found = ratio(p99(OURS), p99(client)).map(|found| Bar::new(what, AtMost, 0.25, found));
            bars.extend(found.map(|mut bar| {
                bar.want_samples(report, &voice_key(Path::Tunnel, calls, load, OURS));
                bar
            }));
        }
    }
    bars
}

fn idle(report: &Report) -> Vec<Bar> {
    let mut bars = Vec::new();
    if let Some(cell) = report.of_client(Section::Idle, "idle", OURS) {
        let long_enough = report.plan.idle_seconds >= 60.0;
        for (name, what, by, most) in [
            (
                metric::WAKEUPS_PER_SECOND,
                "idle with a live session and keepalive 25: wake-ups",
                Judged::Mean,
                1.0,
            ),
            (metric::MEMORY, "idle with a live session: resident memory", Judged::Worst, 16.0),
        ] {
            let Some(found) = cell.metrics.get(name) else { continue };
            let mut bar = Bar::whole(what.to_owned(), AtMost, most, found, by);
            if !long_enough {
                bar.only_report("watched for less than 60 s");
            }
            bars.push(bar);
        }
    }
    let loaded =
        [Section::Throughput, Section::FixedLoad].into_iter().flat_map(|section| report.section(section));
    let ours =
        loaded.filter(|cell| cell.key.client == OURS).filter_map(|cell| cell.metrics.get(metric::MEMORY));
    let peaks: Vec<f64> = ours.map(Metric::max).collect();
    if !peaks.is_empty() {
        let rounds = peaks.into_iter().map(Some).collect();
        let found = Metric { unit: "MiB".to_owned(), better: Better::Lower, rounds };
        let what = "peak resident memory under full load".to_owned();
        bars.push(Bar::whole(what, AtMost, 48.0, &found, Judged::Worst));
    }
    bars
}

fn fast_path(report: &Report) -> Vec<Bar> {
    let path = Path::BypassFastPath;
    let mut bars = Vec::new();
    bars.extend(voice(report, path, 1, Load::Idle, metric::RTT_P50, 1.25));
    bars.extend(voice(report, path, 1, Load::Idle, metric::RTT_P99, 1.3));
    let forwarding = |scenario: &str, path: Path, name: &str| {
        let client = if path == Path::Direct { "" } else { OURS };
        let key =
            Key { path: Some(path), client: client.to_owned(), ..Key::new(Section::Forwarding, scenario) };
        report.cell(&key)?.metrics.get(name)
    };
    let beside = |scenario: &str, name: &str| {
        ratio(forwarding(scenario, path, name), forwarding(scenario, Path::Direct, name))
    };
    let hot = beside("ping-pong", metric::RTT_P50);
    let what = "fast path, back-to-back round trips: median by direct's".to_owned();
    bars.extend(hot.map(|found| Bar::new(what, AtMost, 1.10, found)));
    let calls = loaded_calls(report);
    for load in [Load::Upload, Load::Download] {
        bars.extend(voice(report, path, calls, load, metric::RTT_P99, 1.3));
        bars.extend(loss(report, path, calls, load));
    }
    bars.extend(wakeups(report));
    let cpu = |path, client| {
        report.cell(&voice_key(path, calls, Load::Idle, client))?.metrics.get(metric::MACHINE_CPU)
    };
    let what = format!("fast path, {calls} calls: CPU of the whole machine per packet, by direct's");
    let found = ratio(cpu(path, OURS), cpu(Path::Direct, ""));
    bars.extend(found.map(|found| Bar::new(what, AtMost, 1.25, found)));
    let what = "fast path: 200 B packets per second on one core, by direct's".to_owned();
    let rate = beside("packet-rate", metric::PACKETS);
    bars.extend(rate.map(|found| Bar::new(what, AtLeast, 0.85, found)));
    bars
}

/// How often the daemon ran while it carried one call, beyond what it does when idle.
fn wakeups(report: &Report) -> Option<Bar> {
    /// Timers fall differently into each round: this many are none.
    const NONE: f64 = 0.005;
    let cell = report.cell(&voice_key(Path::BypassFastPath, 1, Load::Idle, OURS))?;
    let (all, seconds) =
        (cell.metrics.get(metric::SWITCHES_PER_PACKET)?, cell.metrics.get(metric::SWITCHES_PER_SECOND)?);
    let idle = report.of_client(Section::Idle, "idle", OURS)?.metrics.get(metric::WAKEUPS_PER_SECOND)?.mean();
    let beyond_idle = |(packet, second): (&Option<f64>, &Option<f64>)| {
        let (packet, second) = ((*packet)?, (*second)?);
        Some(if second > 0.0 { (packet * (second - idle) / second).max(0.0) } else { 0.0 })
    };
    let rounds = all.rounds.iter().zip(&seconds.rounds).map(beyond_idle).collect();
    let found = Metric { unit: "per packet".to_owned(), better: Better::Lower, rounds };
    let what = "fast path, one call: wake-ups of the daemon, beyond those when idle".to_owned();
    Some(Bar::new(what, AtMost, NONE, found))
}

fn voice(report: &Report, path: Path, calls: u16, load: Load, name: &str, most: f64) -> Option<Bar> {
    let key = voice_key(path, calls, load, OURS);
    let direct = voice_key(Path::Direct, calls, load, "");
    let of = |key: &Key| report.cell(key)?.metrics.get(name);
    let found = ratio(of(&key), of(&direct))?;
    let figure = if name == metric::RTT_P50 { "median" } else { "p99" };
    let calls = if calls == 1 { "1 call".to_owned() } else { format!("{calls} calls") };
    let when = if load == Load::Idle { "idle".to_owned() } else { format!("during {}", during(load)) };
    let mut bar = Bar::new(
        format!("voice by {path}, {calls} {when}: round trip's {figure} by direct's"),
        AtMost,
        most,
        found,
    );
    bar.want_samples(report, &key);
    bar.want_samples(report, &direct);
    if load != Load::Idle && !report.realtime {
        bar.only_report("voice endpoints were not permitted to run real-time");
    }
    Some(bar)
}

fn loss(report: &Report, path: Path, calls: u16, load: Load) -> Option<Bar> {
    let found = report.cell(&voice_key(path, calls, load, OURS))?.metrics.get(metric::LOSS)?;
    let what = format!("voice by {path}, {calls} calls during {}: loss in the worst round", during(load));
    Some(Bar::whole(what, AtMost, 0.0, found, Judged::Worst))
}

fn during(load: Load) -> &'static str {
    match load {
        Load::Idle => "silence",
        Load::Upload => "a saturating upload",
        Load::Download => "a saturating download",
    }
}

fn voice_key(path: Path, calls: u16, load: Load, client: &str) -> Key {
    let (load, path, client) = (Some(load), Some(path), client.to_owned());
    Key { load, path, client, ..Key::new(Section::Voice, format!("calls-{calls}")) }
}

/// The number of calls that is judged under load.
fn loaded_calls(report: &Report) -> u16 {
    report.plan.calls.iter().copied().max().unwrap_or(0)
}

fn gateway(report: &Report) -> &str {
    report.contenders.first().map_or("", |ours| ours.gateway.as_str())
}

fn ratio(this: Option<&Metric>, other: Option<&Metric>) -> Option<Metric> {
    this?.ratio(other?)
}

impl Bar {
    /// Judged by the median of rounds, of which there must be enough.
    fn new(what: String, limit: Limit, bar: f64, found: Metric) -> Self {
        let mut this = Self::whole(what, limit, bar, &found, Judged::Median);
        if found.values().count() < ROUNDS {
            this.only_report(&format!("fewer than {ROUNDS} rounds"));
        }
        this
    }

    /// Judged however few the rounds are.
    fn whole(what: String, limit: Limit, bar: f64, found: &Metric, by: Judged) -> Self {
        let measured = match (by, limit) {
            (Judged::Median, _) => found.median(),
            (Judged::Mean, _) => found.mean(),
            (Judged::Worst, AtLeast) => found.min(),
            (Judged::Worst, AtMost) => found.max(),
        };
        let holds = match limit {
            AtLeast => measured >= bar,
            AtMost => measured <= bar,
        };
        let (unit, rounds) = (found.unit.clone(), found.rounds.clone());
        Self { what, limit, bar, unit, measured, by, rounds, met: Some(holds), note: String::new() }
    }

    fn only_report(&mut self, why: &str) {
        if self.met.take().is_some() {
            self.note = format!("not judged: {why}");
        }
    }

    fn want_samples(&mut self, report: &Report, key: &Key) {
        let all = report.cell(key).and_then(|cell| cell.distributions.get(metric::ROUND_TRIP));
        // A lost packet has no delay; it is loss, which has a bar of its own.
        let heard = all.map_or(0, super::Distribution::count);
        let wanted = (SAMPLES as f64 * 0.9) as u64;
        if heard < wanted {
            self.only_report(&format!("{heard} packets came back, too few"));
        }
    }

    /// In a word.
    pub const fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "–",
        }
    }
}

impl Limit {
    pub const fn sign(self) -> &'static str {
        match self {
            AtLeast => "≥",
            AtMost => "≤",
        }
    }
}

//! What voice feels, beside the tunnel and in it.

use super::Limit::{AtLeast, AtMost};
use super::{Bar, Found, Limit, OURS};
use crate::metric;
use crate::plan::Section;
use crate::report::{Better, Cell, Key, Load, Metric, Path, Report};

/// Packets in a voice cell that is judged.
const SAMPLES: u64 = 30_000;
/// A load fills the tunnel if in each round it moves no less than this part of what one stream moves alone, or if that is not known, of what it
/// moves in the middle of the rounds; and no less than so many Gbit/s.
const FULL: f64 = 0.5;
const LEAST_LOAD: f64 = 0.1;

pub fn pump(report: &Report) -> Vec<Bar> {
    let path = Path::BypassPump;
    let mut bars = Vec::new();
    for (calls, most) in [(1, 2.0), (10, 2.6), (50, 2.6)] {
        bars.extend(median(report, path, calls, most));
    }
    let calls = loaded_calls(report);
    let realtime = report.contenders.first().is_some_and(|ours| ours.realtime);
    for load in [Load::Upload, Load::Download] {
        let mut found = p99(report, path, calls, load, 2.0);
        if let Some(bar) = found.as_mut().filter(|_| !realtime) {
            bar.only_report("no thread of the client runs real-time");
        }
        bars.extend(found);
        bars.extend(loss(report, path, calls, load));
    }
    bars
}

pub fn in_tunnel(report: &Report) -> Vec<Bar> {
    let calls = loaded_calls(report);
    let bar = |load: Load, client: &str| {
        let [ours, theirs] = [OURS, client].map(|client| key(Path::Tunnel, calls, load, client));
        let what =
            format!("voice inside the tunnel, {calls} calls during {}: p99 by {client}'s", during(load));
        let mut bar = Bar::new(what, AtMost, 0.25, Found::pooled_p99(report, &ours, &theirs)?);
        bar.want_samples(report, &ours);
        for loaded in [&ours, &theirs] {
            bar.want_load(report, loaded);
        }
        bar.tell_lost(report, &ours, &theirs);
        Some(bar)
    };
    let loads = [Load::Upload, Load::Download].into_iter();
    loads.flat_map(|load| ["wireguard-go", "gotatun"].map(|client| bar(load, client))).flatten().collect()
}

pub fn fast_path(report: &Report) -> Vec<Bar> {
    let (path, calls) = (Path::BypassFastPath, loaded_calls(report));
    let mut bars = Vec::new();
    bars.extend(median(report, path, 1, 1.25));
    bars.extend(p99(report, path, 1, Load::Idle, 1.3));
    let forwarding = |scenario: &str| {
        let client = OURS.to_owned();
        Key { path: Some(path), client, ..Key::new(Section::Forwarding, scenario) }
    };
    let ratio = |name: &'static str| move |this: &Key, other: &Key| Found::ratio(report, name, this, other);
    let what = "fast path, back-to-back round trips: median by direct's".to_owned();
    bars.extend(by_direct(what, AtMost, 1.10, &forwarding("ping-pong"), ratio(metric::RTT_P50)));
    for load in [Load::Upload, Load::Download] {
        bars.extend(p99(report, path, calls, load, 1.3));
        bars.extend(loss(report, path, calls, load));
    }
    bars.extend(wakeups(report));
    let what = format!("fast path, {calls} calls: CPU of the whole machine per packet, by direct's");
    let idle = key(path, calls, Load::Idle, OURS);
    bars.extend(by_direct(what, AtMost, 1.25, &idle, ratio(metric::MACHINE_CPU)));
    let what = "fast path: 200 B packets per second on one core, by direct's".to_owned();
    bars.extend(by_direct(what, AtLeast, 0.85, &forwarding("packet-rate"), ratio(metric::PACKETS)));
    bars
}

/// The idle round trip's median by direct's.
fn median(report: &Report, path: Path, calls: u16, most: f64) -> Option<Bar> {
    let ours = key(path, calls, Load::Idle, OURS);
    let what = format!("voice by {path}, {} idle: round trip's median by direct's", count(calls));
    let found = |this: &Key, other: &Key| Found::ratio(report, metric::RTT_P50, this, other);
    let mut bar = by_direct(what, AtMost, most, &ours, found)?;
    bar.want_samples(report, &ours);
    bar.want_samples(report, &bare(&ours, Path::Direct));
    Some(bar)
}

/// The round trip's p99 by direct's.
fn p99(report: &Report, path: Path, calls: u16, load: Load, most: f64) -> Option<Bar> {
    let ours = key(path, calls, load, OURS);
    let when = if load == Load::Idle { "idle".to_owned() } else { format!("during {}", during(load)) };
    let what = format!("voice by {path}, {} {when}: round trip's p99 by direct's", count(calls));
    let found = |this: &Key, other: &Key| Found::pooled_p99(report, this, other);
    let mut bar = by_direct(what, AtMost, most, &ours, found)?;
    bar.want_samples(report, &ours);
    bar.want_samples(report, &bare(&ours, Path::Direct));
    if load != Load::Idle {
        if !report.realtime {
            bar.only_report("voice endpoints were not permitted to run real-time");
        }
        for loaded in [&ours, &bare(&ours, Path::Direct)] {
            bar.want_load(report, loaded);
        }
    }
    bar.tell_lost(report, &ours, &bare(&ours, Path::Direct));
    Some(bar)
}

/// What `found` makes of a cell and direct's, with what it makes of direct and direct again beside it.
fn by_direct(
    what: String,
    limit: Limit,
    bar: f64,
    ours: &Key,
    found: impl Fn(&Key, &Key) -> Option<Found>,
) -> Option<Bar> {
    let [direct, again] = [Path::Direct, Path::DirectAgain].map(|path| bare(ours, path));
    let mut bar = Bar::new(what, limit, bar, found(ours, &direct)?);
    bar.weigh(found(&again, &direct).map(|again| again.measured));
    Some(bar)
}

fn loss(report: &Report, path: Path, calls: u16, load: Load) -> Option<Bar> {
    let ours = key(path, calls, load, OURS);
    let found = report.cell(&ours)?.metrics.get(metric::LOSS)?;
    let what = format!("voice by {path}, {calls} calls during {}: loss in the worst round", during(load));
    let mut bar = Bar::new(what, AtMost, 0.0, Found::worst(found));
    // What is lost is lost, of however few and beside whatever load.
    if bar.met == Some(true) {
        let sent = report.cell(&ours).and_then(Cell::lost).map_or(0, |(_, sent)| sent);
        if sent < enough_samples() {
            bar.only_report(&format!("{sent} packets were sent, too few"));
        }
        bar.want_load(report, &ours);
    }
    Some(bar)
}

/// How often the daemon ran while it carried one call, beyond what it does when idle.
fn wakeups(report: &Report) -> Option<Bar> {
    /// Timers fall differently into each round: this many are none.
    const NONE: f64 = 0.005;
    let cell = report.cell(&key(Path::BypassFastPath, 1, Load::Idle, OURS))?;
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
    Some(Bar::new(what, AtMost, NONE, Found::median(found)))
}

/// A cell's packets are divided into rounds and calls, and a few may be missing.
const fn enough_samples() -> u64 {
    SAMPLES / 10 * 9
}

fn during(load: Load) -> &'static str {
    match load {
        Load::Idle => "silence",
        Load::Upload => "a saturating upload",
        Load::Download => "a saturating download",
        Load::UdpUpload => "an upload of datagrams",
    }
}

fn count(calls: u16) -> String {
    if calls == 1 { "1 call".to_owned() } else { format!("{calls} calls") }
}

fn key(path: Path, calls: u16, load: Load, client: &str) -> Key {
    let (load, path, client) = (Some(load), Some(path), client.to_owned());
    Key { load, path, client, ..Key::new(Section::Voice, format!("calls-{calls}")) }
}

/// What a cell is judged by: the bare path in the same load, at the same moment.
fn bare(ours: &Key, path: Path) -> Key {
    let is_loaded = ours.load.is_some_and(|load| load != Load::Idle);
    let beside = ours.path.filter(|_| is_loaded);
    Key { path: Some(path), beside, client: String::new(), ..ours.clone() }
}

/// The number of calls that is judged under load.
fn loaded_calls(report: &Report) -> u16 {
    report.plan.calls.iter().copied().max().unwrap_or(0)
}

impl Bar {
    fn want_samples(&mut self, report: &Report, key: &Key) {
        let rounds = 0..report.plan.rounds as usize;
        let sent = report.cell(key).map_or(0, |cell| rounds.map(|round| cell.lost_in(round).1).sum::<u64>());
        if sent < enough_samples() {
            self.only_report(&format!("{sent} packets were sent, too few"));
        }
    }

    /// A p99 of packets that never came back meets no bar, however few they are and beside whatever load.
    fn tell_lost(&mut self, report: &Report, ours: &Key, theirs: &Key) {
        let [ours_lost, theirs_lost] = Found::p99_is_lost(report, ours, theirs);
        let mut notes = vec![std::mem::take(&mut self.note)];
        if ours_lost {
            self.met = Some(false);
            notes = vec!["more than 1 % of ours never came back: the p99 is longer than said".to_owned()];
        }
        if theirs_lost {
            notes.push("theirs lost more than 1 %: their p99 is that of what came back".to_owned());
        }
        notes.retain(|note| !note.is_empty());
        self.note = notes.join("; ");
    }

    /// What was heard beside a load that stood still was not heard beside a load.
    fn want_load(&mut self, report: &Report, key: &Key) {
        let rates = report.cell(key).and_then(|cell| cell.metrics.get(metric::LOAD_RATE));
        let Some(rates) = rates else { return self.only_report("what the load moved is not known") };
        let alone = match key.load {
            Some(Load::Upload) => "tcp-up-1",
            _ => "tcp-down-1",
        };
        let client = if key.client.is_empty() { OURS } else { &key.client };
        let alone = report.of_client(Section::Throughput, alone, client);
        let usual = alone.and_then(|cell| cell.metrics.get(metric::RATE)).unwrap_or(rates).median();
        let least = (usual * FULL).max(LEAST_LOAD);
        if rates.min() < least {
            let slowest = rates.min();
            self.only_report(&format!("in a round the load moved {slowest:.2} Gbit/s, less than {least:.2}"));
        }
    }
}

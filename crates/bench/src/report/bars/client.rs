//! What the client gives and costs.

use super::Limit::{AtLeast, AtMost};
use super::{Bar, Found, OURS, gateway};
use crate::metric;
use crate::plan::Section;
use crate::report::{Better, Key, Metric, Report};

/// An offered load was carried if no less than this part of it arrived.
const CARRIED: f64 = 0.97;

pub fn throughput(report: &Report) -> Vec<Bar> {
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

pub fn cost(report: &Report) -> Vec<Bar> {
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

pub fn idle(report: &Report) -> Vec<Bar> {
    let mut bars = Vec::new();
    if let Some(cell) = report.of_client(Section::Idle, "idle", OURS) {
        let wakeups = cell.metrics.get(metric::WAKEUPS_PER_SECOND).map(|found| {
            let what = "idle with a live session and keepalive 25: wake-ups";
            Bar::new(what.to_owned(), AtMost, 1.0, Found::mean(found))
        });
        let memory = cell.metrics.get(metric::MEMORY).map(|found| {
            Bar::new(
                "idle with a live session: resident memory".to_owned(),
                AtMost,
                16.0,
                Found::worst(found),
            )
        });
        bars.extend(wakeups.into_iter().chain(memory));
    }
    if report.plan.idle_seconds < 60.0 {
        bars.iter_mut().for_each(|bar| bar.only_report("watched for less than 60 s"));
    }
    let loaded =
        [Section::Throughput, Section::FixedLoad].into_iter().flat_map(|section| report.section(section));
    let ours =
        loaded.filter(|cell| cell.key.client == OURS).filter_map(|cell| cell.metrics.get(metric::MEMORY));
    let rounds: Vec<Option<f64>> = ours.map(|peaks| Some(peaks.max())).collect();
    if !rounds.is_empty() {
        let peaks = Metric { unit: "MiB".to_owned(), better: Better::Lower, rounds };
        let what = "peak resident memory under full load".to_owned();
        bars.push(Bar::new(what, AtMost, 48.0, Found::worst(&peaks)));
    }
    bars
}

fn ratio(this: Option<&Metric>, other: Option<&Metric>) -> Option<Found> {
    Some(Found::median(this?.ratio(other?)?))
}

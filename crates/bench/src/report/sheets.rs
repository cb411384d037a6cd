use std::collections::BTreeSet;

use super::sheet::{Sheet, number};
use super::{Cell, Failed, Key, Load, Metric, Path, Report};
use crate::metric;
use crate::plan::Section;
use crate::voice::{e_model_mos, genesys_mos};

/// What to look at first, as tables.
pub fn findings(report: &Report) -> Vec<Sheet> {
    [failed(report), bars(report)].into_iter().filter(|sheet| !sheet.rows.is_empty()).collect()
}

/// All that was measured, as tables; sections that were left out have none.
pub fn figures(report: &Report) -> Vec<Sheet> {
    let sheets = [
        ceiling(report),
        throughput(report),
        cost(report),
        voice(report),
        forwarding(report),
        idle(report),
        changes(report),
    ];
    sheets.into_iter().filter(|sheet| !sheet.rows.is_empty()).collect()
}

fn failed(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "Failed",
        "what could not be measured, and has no figures of that round",
        &["round", "what", "why"],
    );
    for Failed { what, round, why } in &report.failed {
        sheet.rows.push(vec![(round + 1).to_string(), what.clone(), why.replace('\n', " ")]);
    }
    sheet
}

fn bars(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "Bars",
        "what must hold; medians (ranges) of the rounds, ratios taken round by round; p99s of all rounds' packets together (where nine of ten such runs lie)",
        &["what", "bar", "measured", "direct again", "met?", ""],
    );
    for bar in &report.bars {
        let rounds = || bar.rounds.iter().copied().flatten();
        let range = [rounds().fold(bar.measured, f64::min), rounds().fold(bar.measured, f64::max)];
        let [low, high] = bar.interval.unwrap_or(range);
        sheet.rows.push(vec![
            bar.what.clone(),
            format!("{} {} {}", bar.limit.sign(), number(bar.bar), bar.unit),
            spread_of(bar.measured, low, high),
            bar.again.map_or_else(String::new, number),
            bar.verdict().to_owned(),
            bar.note.clone(),
        ]);
    }
    sheet
}

fn ceiling(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "Cipher ceiling",
        "half the rate at which two threads seal packets of 1420 B with ChaCha20-Poly1305",
        &["Gbit/s"],
    );
    let rates = report.section(Section::Ceiling).filter_map(|cell| cell.metrics.get(metric::RATE));
    sheet.rows.extend(rates.map(|rate| vec![spread(rate)]));
    sheet
}

fn throughput(report: &Report) -> Sheet {
    let others: Vec<&str> = report.clients().skip(1).collect();
    let mut sheet = Sheet::new(
        "Throughput",
        "payload that arrives: Gbit/s, or 1000 packets/s for udp-small; medians (ranges) of the rounds; × is Breakout's by that client's, round by round",
        &["scenario", "no tunnel"],
    );
    sheet.columns.extend(report.clients().map(str::to_owned));
    sheet.columns.extend(others.iter().map(|other| format!("× {other}")));
    for scenario in scenarios(report, Section::Throughput) {
        for (name, suffix) in
            [(headline(scenario), ""), (metric::RATE_UP, ", up"), (metric::RATE_DOWN, ", down")]
        {
            let of =
                |client: &str| report.of_client(Section::Throughput, scenario, client)?.metrics.get(name);
            let direct = Key { path: Some(Path::Direct), ..Key::new(Section::Throughput, scenario) };
            let direct = report.cell(&direct).and_then(|cell| cell.metrics.get(name));
            if direct.is_none() && report.clients().all(|client| of(client).is_none()) {
                continue;
            }
            let ours = report.clients().next().and_then(of);
            let mut row = vec![format!("{scenario}{suffix}"), cell_of(direct)];
            row.extend(report.clients().map(|client| cell_of(of(client))));
            row.extend(others.iter().map(|other| {
                let ratio = ours.zip(of(other)).and_then(|(ours, theirs)| ours.ratio(theirs));
                cell_of(ratio.as_ref())
            }));
            sheet.rows.push(row);
        }
    }
    sheet
}

/// The figure that a throughput scenario is about.
pub fn headline(scenario: &str) -> &'static str {
    if scenario.starts_with("udp-small") { metric::PACKETS } else { metric::RATE }
}

fn cost(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "What the client costs",
        "its own process, per GB of payload; fixed-… is offered 300 Mbit/s",
        &["scenario", "client", "Gbit/s", "CPU s/GB", "wake-ups/GB", "preemptions/GB", "peak MiB"],
    );
    for section in [Section::FixedLoad, Section::Throughput] {
        for cell in report.section(section).filter(|cell| cell.key.path == Some(Path::Tunnel)) {
            let of = |name: &str| cell_of(cell.metrics.get(name));
            sheet.rows.push(vec![
                cell.key.scenario.clone(),
                cell.key.client.clone(),
                of(metric::RATE),
                of(metric::CPU),
                of(metric::WAKEUPS),
                of(metric::PREEMPTIONS),
                of(metric::MEMORY),
            ]);
        }
    }
    sheet
}

fn voice(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "Voice",
        "RTP of 172 B, 50 packets/s for each call; µs from when a packet was due; all rounds' packets together, × is the round trip by direct's in the same load (range of the rounds); sent late: by how much the bench itself sent after packets were due, p99 of the worst round",
        &[
            "calls",
            "tunnel's load",
            "path",
            "client",
            "rtt p50",
            "p99",
            "p99.9",
            "max",
            "× p50",
            "× p99",
            "one-way p50",
            "p99",
            "jitter",
            "lost",
            "reordered",
            "MOS",
            "Genesys MOS",
            "sent",
            "sent late",
            "switches/packet",
            "machine µs/packet",
        ],
    );
    for scenario in scenarios(report, Section::Voice) {
        for load in Load::ALL.map(Some).into_iter().chain([None]) {
            let mut cells: Vec<&Cell> = report
                .section(Section::Voice)
                .filter(|cell| cell.key.scenario == scenario && cell.key.load == load)
                .filter(|cell| cell.distributions.contains_key(metric::ROUND_TRIP))
                .collect();
            cells.sort_by_key(|cell| (cell.key.path, cell.key.beside));
            sheet.rows.extend(cells.iter().map(|cell| voice_row(cell, direct_of(&cells, cell))));
        }
    }
    sheet
}

/// Direct's cell that was heard beside the same load: of a tunnel the one of our first daemon's.
fn direct_of<'a>(cells: &[&'a Cell], cell: &Cell) -> Option<&'a Cell> {
    let beside = cell.key.beside.or(cell.key.path);
    let directs = || cells.iter().copied().filter(|cell| cell.key.path == Some(Path::Direct));
    directs().find(|direct| direct.key.beside == beside).or_else(|| directs().next_back())
}

fn voice_row(cell: &Cell, direct: Option<&Cell>) -> Vec<String> {
    let dash = || "–".to_owned();
    let middle = |name: &str| cell.metrics.get(name).map_or_else(dash, |metric| number(metric.median()));
    let us = |name: &str, part: f64| cell.quantile_us(name, part).map_or_else(dash, number);
    let ratio = |name: &str, part: f64| {
        let pooled = cell.quantile_us(metric::ROUND_TRIP, part)?
            / direct?.quantile_us(metric::ROUND_TRIP, part).filter(|us| *us > 0.0)?;
        let rounds = cell.metrics.get(name)?.ratio(direct?.metrics.get(name)?)?;
        Some(spread_of(pooled, rounds.min(), rounds.max()))
    };
    let (loss, jitter_us) = (cell.loss().unwrap_or(0.0), cell.metrics.get(metric::JITTER).map(Metric::mean));
    let mos = cell.quantile_us(metric::ONE_WAY, 0.99).map(|us| e_model_mos(us / 1e3, loss));
    let genesys_mos = cell
        .quantile_us(metric::ROUND_TRIP, 0.5)
        .zip(jitter_us)
        .map(|(us, jitter)| genesys_mos(us / 1e3, jitter / 1e3, loss));
    vec![
        cell.key.scenario.trim_start_matches("calls-").to_owned(),
        cell.key.load.map_or_else(dash, |load| load.to_string()),
        Some(cell.key.way()).filter(|way| !way.is_empty()).unwrap_or_else(dash),
        cell.key.client.clone(),
        us(metric::ROUND_TRIP, 0.5),
        us(metric::ROUND_TRIP, 0.99),
        us(metric::ROUND_TRIP, 0.999),
        us(metric::ROUND_TRIP, 1.0),
        ratio(metric::RTT_P50, 0.5).unwrap_or_else(dash),
        ratio(metric::RTT_P99, 0.99).unwrap_or_else(dash),
        us(metric::ONE_WAY, 0.5),
        us(metric::ONE_WAY, 0.99),
        jitter_us.map_or_else(dash, number),
        cell.lost().map_or_else(dash, |(lost, sent)| lost_of(lost, sent)),
        cell.metrics.get(metric::REORDERED).map_or_else(dash, |all| format!("{:.0}", all.sum())),
        mos.map_or_else(dash, number),
        genesys_mos.map_or_else(dash, number),
        cell.lost().map_or_else(dash, |(_, sent)| sent.to_string()),
        cell.metrics.get(metric::LATE_P99).map_or_else(dash, |late| number(late.max())),
        middle(metric::SWITCHES_PER_PACKET),
        middle(metric::MACHINE_CPU),
    ]
}

/// `3 (0.010 %)`.
fn lost_of(lost: u64, sent: u64) -> String {
    if lost == 0 {
        "0".to_owned()
    } else {
        format!("{lost} ({} %)", number(lost as f64 * 100.0 / sent as f64))
    }
}

fn forwarding(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "Beside the tunnel, packet by packet",
        "back-to-back round trips in µs, all rounds together (range of the rounds); 1000 packets/s of 200 B on one core; × is by direct's in the same round",
        &["what", "path", "p50 or 1000/s", "×", "p99"],
    );
    for scenario in scenarios(report, Section::Forwarding) {
        let name = if scenario == "ping-pong" { metric::RTT_P50 } else { metric::PACKETS };
        let cells: Vec<&Cell> =
            report.section(Section::Forwarding).filter(|cell| cell.key.scenario == scenario).collect();
        let direct = cells.iter().find(|cell| cell.key.path == Some(Path::Direct)).copied();
        for cell in cells {
            let ratio = cell.metrics.get(name).zip(direct.and_then(|direct| direct.metrics.get(name)));
            let pooled = |name: &str, part: f64| {
                let (metric, us) = (cell.metrics.get(name)?, cell.quantile_us(metric::ROUND_TRIP, part)?);
                Some(spread_of(us, metric.min(), metric.max()))
            };
            sheet.rows.push(vec![
                scenario.to_owned(),
                cell.key.path.map(|path| path.to_string()).unwrap_or_default(),
                pooled(metric::RTT_P50, 0.5).unwrap_or_else(|| cell_of(cell.metrics.get(name))),
                cell_of(ratio.and_then(|(this, direct)| this.ratio(direct)).as_ref()),
                pooled(metric::RTT_P99, 0.99).unwrap_or_else(|| "–".to_owned()),
            ]);
        }
    }
    sheet
}

fn idle(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "Idle",
        "a live session with keepalive 25 and nothing to do; means (ranges) of windows, memory's is the peak; a wake-up is whenever a thread is put on a processor",
        &["client", "wake-ups/s", "CPU ms/s", "MiB"],
    );
    for cell in report.section(Section::Idle) {
        let mean = |name: &str| {
            let mean = |metric: &Metric| spread_of(metric.mean(), metric.min(), metric.max());
            cell.metrics.get(name).map_or_else(|| "–".to_owned(), mean)
        };
        let peak = cell.metrics.get(metric::MEMORY).map_or_else(|| "–".to_owned(), |peak| number(peak.max()));
        let client = cell.key.client.clone();
        sheet.rows.push(vec![client, mean(metric::WAKEUPS_PER_SECOND), mean(metric::CPU_PER_SECOND), peak]);
    }
    sheet
}

fn changes(report: &Report) -> Sheet {
    let mut sheet = Sheet::new(
        "Start-up and roaming",
        "from exec to the first packet that arrives; longest silence after the agent's address changes, 4000 if it does not end",
        &["what", "path", "client", "ms"],
    );
    for cell in report.section(Section::Startup).chain(report.section(Section::Roaming)) {
        sheet.rows.push(vec![
            cell.key.scenario.clone(),
            cell.key.path.map(|path| path.to_string()).unwrap_or_default(),
            cell.key.client.clone(),
            cell_of(cell.metrics.get(metric::MILLISECONDS)),
        ]);
    }
    sheet
}

/// In the order in which they were measured.
pub fn scenarios(report: &Report, section: Section) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let names = report.section(section).map(|cell| cell.key.scenario.as_str());
    names.filter(|name| seen.insert(*name)).collect()
}

fn cell_of(metric: Option<&Metric>) -> String {
    metric.map_or_else(|| "–".to_owned(), spread)
}

fn spread(metric: &Metric) -> String {
    spread_of(metric.median(), metric.min(), metric.max())
}

fn spread_of(median: f64, low: f64, high: f64) -> String {
    let [median, low, high] = [median, low, high].map(number);
    if low == high { median } else { format!("{median} ({low}–{high})") }
}

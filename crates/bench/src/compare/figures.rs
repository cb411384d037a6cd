use crate::metric;
use crate::plan::{Plan, Section};
use crate::report::{Bar, Better, Cell, Judged, Key, Limit, Metric, Path, Report, headline, judge, median};

/// One of the figures that decide whether a run is worse than another.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub what: String,
    pub unit: String,
    pub better: Better,
    /// Of the rounds that have one.
    pub values: Vec<f64>,
}

/// Few figures, and of our own client only: of many, chance alone would move some. `by_ceiling`: throughput as a part of what the cipher
/// allowed in the same round, so that a machine that is slower today is no regression.
pub fn figures(report: &Report, by_ceiling: bool) -> Vec<Figure> {
    let ours = report.clients().next().unwrap_or_default();
    let cells = report.cells.iter().filter(|cell| cell.key.client == ours);
    let ceiling = cipher_ceiling(report).filter(|_| by_ceiling);
    let of_cell = |cell: &Cell| -> Vec<Figure> {
        let names = counted(&report.plan, &cell.key);
        let figure = |name: &&str| {
            let (what, metric) = (what(&cell.key, name), cell.metrics.get(*name)?);
            match ceiling.filter(|_| cell.key.section == Section::Throughput) {
                None => Some(Figure::new(what, metric.better, metric)),
                Some(ceiling) => {
                    let what = format!("{what} by the cipher ceiling");
                    Some(Figure::new(what, metric.better, &metric.ratio(ceiling)?))
                }
            }
        };
        names.iter().filter_map(figure).collect()
    };
    cells.flat_map(of_cell).chain(of_bars(report)).collect()
}

/// What `after` should have of `before`: what its plan asks for, of clients that it had.
pub fn expected(before: &Report, after: &Report) -> Report {
    let cells = before.cells.iter().filter(|cell| before.mode == after.mode && is_planned(after, &cell.key));
    let (plan, contenders) = (after.plan.clone(), after.contenders.clone());
    let mut expected = Report { plan, contenders, cells: cells.cloned().collect(), ..before.clone() };
    let is_there = |bar: &Bar, bars: &[Bar]| bars.iter().any(|other| other.what == bar.what);
    if !before.bars.iter().all(|bar| is_there(bar, &after.bars)) {
        let possible = judge(&expected);
        expected.bars.retain(|bar| is_there(bar, &after.bars) || is_there(bar, &possible));
    }
    expected
}

fn is_planned(report: &Report, key: &Key) -> bool {
    let plan = &report.plan;
    let is_asked_for = match key.section {
        Section::Throughput => plan.transfers.contains(&key.scenario),
        Section::Voice => {
            calls(key).is_none_or(|calls| plan.calls.contains(&calls))
                && key.load.is_none_or(|load| plan.loads.contains(&load))
        }
        _ => true,
    };
    let has_client = key.client.is_empty() || report.clients().any(|client| client == key.client);
    plan.has(key.section) && is_asked_for && has_client
}

pub fn cipher_ceiling(report: &Report) -> Option<&Metric> {
    let rate = report.cell(&Key::new(Section::Ceiling, "chacha20-poly1305"))?.metrics.get(metric::RATE);
    rate.filter(|rate| rate.values().next().is_some())
}

/// A cell's figure in words.
pub fn what(key: &Key, name: &str) -> String {
    let load = key.load.map(|load| load.to_string()).unwrap_or_default();
    let place = [key.section.to_string(), key.scenario.clone(), load, key.way(), key.client.clone()];
    let place: Vec<String> = place.into_iter().filter(|part| !part.is_empty()).collect();
    format!("{}: {name}", place.join(" / "))
}

/// Which of a cell's figures decide.
pub fn counted(plan: &Plan, key: &Key) -> Vec<&'static str> {
    match key.section {
        Section::Throughput => vec![headline(&key.scenario), metric::RATE_UP, metric::RATE_DOWN],
        Section::FixedLoad => vec![metric::CPU],
        // What is lost beside the tunnel has a bar of its own.
        Section::Voice if is_barred(plan, key) && matches!(key.path, None | Some(Path::Tunnel)) => {
            vec![metric::RTT_P99, metric::LOSS]
        }
        Section::Voice if is_barred(plan, key) => vec![metric::RTT_P99],
        Section::Idle => vec![metric::MEMORY, metric::WAKEUPS_PER_SECOND],
        Section::Roaming | Section::Startup => vec![metric::MILLISECONDS],
        Section::Ceiling | Section::Voice | Section::Forwarding => Vec::new(),
    }
}

fn is_barred(plan: &Plan, key: &Key) -> bool {
    let Some((calls, load)) = calls(key).zip(key.load) else { return false };
    // Against a far end elsewhere there is one path, and nobody knows which.
    key.path.is_none_or(|path| plan.is_barred(calls, load, path))
}

fn calls(key: &Key) -> Option<u16> {
    key.scenario.strip_prefix("calls-")?.parse().ok()
}

/// What bars are about; where a single exception decides, the bar itself is looked at.
fn of_bars(report: &Report) -> impl Iterator<Item = Figure> {
    report.bars.iter().filter(|bar| bar.by != Judged::Worst).map(|bar| {
        let better = match bar.limit {
            Limit::AtLeast => Better::Higher,
            Limit::AtMost => Better::Lower,
        };
        let values = bar.rounds.iter().copied().flatten().collect();
        Figure { what: bar.what.clone(), unit: bar.unit.clone(), better, values }
    })
}

impl Figure {
    fn new(what: String, better: Better, metric: &Metric) -> Self {
        Self { what, unit: metric.unit.clone(), better, values: metric.values().collect() }
    }

    pub fn median(&self) -> f64 {
        median(self.values.iter().copied())
    }
}

use crate::metric;
use crate::plan::{Plan, Section};
use crate::report::{Better, Cell, Judged, Key, Limit, Metric, Report, headline, median};

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

pub fn cipher_ceiling(report: &Report) -> Option<&Metric> {
    report.cell(&Key::new(Section::Ceiling, "chacha20-poly1305"))?.metrics.get(metric::RATE)
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
        Section::Voice if is_barred(plan, key) => vec![metric::RTT_P99],
        Section::Idle => vec![metric::MEMORY, metric::WAKEUPS_PER_SECOND],
        Section::Roaming | Section::Startup => vec![metric::MILLISECONDS],
        Section::Ceiling | Section::Voice | Section::Forwarding => Vec::new(),
    }
}

fn is_barred(plan: &Plan, key: &Key) -> bool {
    let calls = key.scenario.strip_prefix("calls-").and_then(|calls| calls.parse().ok());
    let Some((calls, load)) = calls.zip(key.load) else { return false };
    // Against a far end elsewhere there is one path, and nobody knows which.
    key.path.is_none_or(|path| plan.is_barred(calls, load, path))
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

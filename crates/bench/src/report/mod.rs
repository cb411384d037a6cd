//! What was measured: the schema of `--json`, and how it is shown.

mod bars;
mod bootstrap;
mod chart;
mod distribution;
pub mod html;
mod sentences;
mod sheet;
mod sheets;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::metric;
use crate::plan::{Plan, Section};
pub use bars::{Bar, Judged, Limit, judge};
pub use distribution::Distribution;
pub(crate) use sheets::headline;

/// The version of the schema; a reader refuses others.
pub const SCHEMA: u32 = 3;

/// Everything of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    pub mode: Mode,
    /// Seconds since 1970.
    pub taken_at: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Breakout's version.
    pub version: String,
    /// The command line.
    pub command: Vec<String>,
    pub machine: Machine,
    /// Whether voice endpoints ran SCHED_FIFO; otherwise their receive times are the kernel's.
    pub realtime: bool,
    pub plan: Plan,
    pub contenders: Vec<Contender>,
    /// What a reader of the figures has to know.
    pub notes: Vec<String>,
    pub cells: Vec<Cell>,
    /// What could not be measured; its cells have no figures of that round.
    #[serde(default)]
    pub failed: Vec<Failed>,
    /// What must hold, judged by the cells.
    pub bars: Vec<Bar>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Namespaces of this machine.
    Lab,
    /// A far end somewhere else.
    Live,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: u64,
    pub is_virtual: bool,
    pub memory_bytes: u64,
    pub kernel: String,
    pub system: String,
    /// Over the minute before the run.
    pub load_average: f64,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub what: String,
    /// From 0.
    pub round: usize,
    pub why: String,
}

/// A client and its gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contender {
    pub client: String,
    pub version: String,
    pub gateway: String,
    pub gateway_version: String,
    /// Inside the tunnel, in bytes.
    pub mtu: u32,
    /// Whether a thread of the client runs real-time.
    pub realtime: bool,
    /// As `breakout status --json` has them; null for others' clients.
    pub features: serde_json::Value,
}

/// Which way packets took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// What nobody captures: the physical limit.
    Direct,
    /// The same once more: the spread beside which ratios are read.
    DirectAgain,
    /// Carried by the pump, in userspace.
    BypassPump,
    /// Carried by the kernel's fast path.
    BypassFastPath,
    Tunnel,
}

/// What goes through the tunnel meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    Idle,
    /// One TCP stream that fills it.
    Upload,
    Download,
    /// Datagrams at a fixed rate: they take another way through a client than TCP.
    UdpUpload,
}

/// What a cell is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub section: Section,
    /// Such as `tcp-up-1` or `calls-10`.
    pub scenario: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub load: Option<Load>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<Path>,
    /// Of the bare path under load: the tier of the daemon whose tunnel is full, and which is judged by this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub beside: Option<Path>,
    /// Empty where it is no client's figure.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub client: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    #[serde(flatten)]
    pub key: Key,
    pub metrics: BTreeMap<String, Metric>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub distributions: BTreeMap<String, Distribution>,
}

/// One figure, once for each round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub unit: String,
    pub better: Better,
    /// `None`: that round has no figure, such as the delay of packets none of which came back.
    pub rounds: Vec<Option<f64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    Higher,
    Lower,
    /// Not compared.
    Neither,
}

impl Report {
    pub fn cell(&self, key: &Key) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.key == *key)
    }

    /// A client's own cell: of its tunnel, or of whatever path was taken where that is not known.
    pub fn of_client(&self, section: Section, scenario: &str, client: &str) -> Option<&Cell> {
        self.section(section).find(|cell| {
            let key = &cell.key;
            key.scenario == scenario && key.client == client && matches!(key.path, None | Some(Path::Tunnel))
        })
    }

    pub fn section(&self, section: Section) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(move |cell| cell.key.section == section)
    }

    /// The clients in the order in which they were given, Breakout first.
    pub fn clients(&self) -> impl Iterator<Item = &str> {
        self.contenders.iter().map(|contender| contender.client.as_str())
    }

    /// Sets a round's figure.
    pub fn record(&mut self, round: usize, key: &Key, name: &str, unit: &str, better: Better, value: f64) {
        let metric = self.cell_mut(key).metrics.entry(name.to_owned()).or_insert_with(|| Metric {
            unit: unit.to_owned(),
            better,
            rounds: Vec::new(),
        });
        metric.rounds.resize(metric.rounds.len().max(round + 1), None);
        if let Some(figure) = metric.rounds.get_mut(round) {
            *figure = Some(value);
        }
    }

    /// Adds a round's histogram of nanoseconds.
    pub fn record_delays(&mut self, round: usize, key: &Key, name: &str, delays: &Histogram<u64>) {
        self.cell_mut(key).distributions.entry(name.to_owned()).or_default().add(round, delays);
    }

    /// Notes that a step failed.
    pub(crate) fn fail(&mut self, round: usize, what: String, error: &BenchError) {
        self.failed.push(Failed { what, round, why: error.to_string() });
    }

    /// Gives every figure as many rounds as the plan has.
    pub(crate) fn fill_rounds(&mut self) {
        let rounds = self.plan.rounds as usize;
        for metric in self.cells.iter_mut().flat_map(|cell| cell.metrics.values_mut()) {
            metric.rounds.resize(rounds, None);
        }
    }

    fn cell_mut(&mut self, key: &Key) -> &mut Cell {
        let at = self.cells.iter().position(|cell| cell.key == *key).unwrap_or_else(|| {
            let (metrics, distributions) = Default::default();
            self.cells.push(Cell { key: key.clone(), metrics, distributions });
            self.cells.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "found or just added")]
        &mut self.cells[at]
    }
}

impl Key {
    /// Its path and what that was heard beside, in words; empty where nobody knows it.
    pub fn way(&self) -> String {
        let path = self.path.map(Path::name).unwrap_or_default();
        let beside = self.beside.map(|tier| format!(" beside {tier}")).unwrap_or_default();
        format!("{path}{beside}")
    }

    pub fn new(section: Section, scenario: impl Into<String>) -> Self {
        Self {
            section,
            scenario: scenario.into(),
            load: None,
            path: None,
            beside: None,
            client: String::new(),
        }
    }
}

impl Cell {
    /// The quantile of a distribution, all rounds together, in microseconds.
    pub fn quantile_us(&self, name: &str, part: f64) -> Option<f64> {
        Some(self.distributions.get(name)?.quantile(part) as f64 / 1e3)
    }

    /// Packets that never came back, and packets that were sent, in all rounds.
    pub fn lost(&self) -> Option<(u64, u64)> {
        let sent = self.metrics.get(metric::SENT)?.sum() as u64;
        let came = self.distributions.get(metric::ROUND_TRIP).map_or(0, Distribution::count);
        Some((sent.saturating_sub(came), sent))
    }

    /// … in one round. 0 and 0 if it has none.
    pub fn lost_in(&self, round: usize) -> (u64, u64) {
        let came = self.distributions.get(metric::ROUND_TRIP).map_or(0, |all| all.of_round(round));
        let sent = self.metrics.get(metric::SENT).and_then(|sent| *sent.rounds.get(round)?);
        let sent = sent.map_or(came, |sent| sent as u64);
        (sent.saturating_sub(came), sent)
    }

    /// The part of them that is lost, 0 to 1.
    pub fn loss(&self) -> Option<f64> {
        let (lost, sent) = self.lost()?;
        (sent > 0).then(|| lost as f64 / sent as f64)
    }
}

impl Metric {
    /// The figures of the rounds that have one.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.rounds.iter().copied().flatten()
    }

    pub fn median(&self) -> f64 {
        median(self.values())
    }

    pub fn sum(&self) -> f64 {
        self.values().sum()
    }

    /// 0 if there is nothing.
    pub fn mean(&self) -> f64 {
        self.sum() / self.values().count().max(1) as f64
    }

    pub fn min(&self) -> f64 {
        self.values().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.values().fold(f64::NEG_INFINITY, f64::max)
    }

    /// By how much this is larger than `other`, round by round: what was measured at the same time is set against each other.
    /// `None` if no round has both.
    pub fn ratio(&self, other: &Self) -> Option<Metric> {
        let by = |(this, other): (&Option<f64>, &Option<f64>)| {
            let (this, other) = ((*this)?, other.filter(|other| *other != 0.0)?);
            Some(this / other)
        };
        let rounds: Vec<Option<f64>> = self.rounds.iter().zip(&other.rounds).map(by).collect();
        let (unit, better) = ("×".to_owned(), Better::Neither);
        rounds.iter().any(Option::is_some).then_some(Metric { unit, better, rounds })
    }
}

/// 0 if there is nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    if sorted.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 }
}

impl Path {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectAgain => "direct again",
            Self::BypassPump => "bypass (pump)",
            Self::BypassFastPath => "bypass (fast path)",
            Self::Tunnel => "tunnel",
        }
    }
}

impl Load {
    pub const ALL: [Self; 4] = [Self::Idle, Self::Upload, Self::Download, Self::UdpUpload];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Upload => "upload",
            Self::Download => "download",
            Self::UdpUpload => "udp-upload",
        }
    }
}

/// Not one of the names that [`Load::name`] gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no load: give idle, upload, download or udp-upload")]
pub struct UnknownLoad(String);

impl FromStr for Load {
    type Err = UnknownLoad;

    fn from_str(name: &str) -> Result<Self, UnknownLoad> {
        Self::ALL.into_iter().find(|load| load.name() == name).ok_or_else(|| UnknownLoad(name.to_owned()))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!((median([3.0, 1.0, 2.0]), median([4.0, 1.0, 2.0, 3.0]), median([])), (2.0, 2.5, 0.0));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let metric = |rounds: &[Option<f64>]| Metric {
            unit: "s".into(),
            better: Better::Lower,
            rounds: rounds.to_vec(),
        };
        let this = metric(&[Some(2.0), Some(9.0), None, Some(5.0), Some(8.0)]);
        let other = metric(&[Some(1.0), None, Some(3.0), Some(0.0), Some(2.0)]);
        let ratio = this.ratio(&other).unwrap();
        assert_eq!(ratio.rounds, [Some(2.0), None, None, None, Some(4.0)]);
        assert_eq!((ratio.median(), ratio.min(), ratio.max()), (3.0, 2.0, 4.0));
        assert!(metric(&[Some(1.0)]).ratio(&metric(&[None])).is_none());
    }

    #[test]
    fn loads_are_called_by_their_names() {
        for load in Load::ALL {
            assert_eq!(load.name().parse(), Ok(load));
            assert_eq!(serde_json::to_value(load).unwrap(), load.name());
        }
        assert!("full".parse::<Load>().is_err());
    }
}

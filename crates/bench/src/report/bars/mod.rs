//! What must hold, set beside what this run measured.

mod client;
mod found;
mod voice;

use serde::{Deserialize, Serialize};

use super::Report;
use found::Found;

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
    /// Where the middle 90 % of runs would lie whose rounds are drawn from these; of what is judged by all rounds together.
    pub interval: Option<[f64; 2]>,
    /// The direct path by itself, measured once more in the same way: how far the figure can be trusted.
    pub again: Option<f64>,
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
    /// All rounds' packets together: a single round has too few slow ones.
    Pooled,
    /// A single exception counts.
    Worst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    AtLeast,
    AtMost,
}

const OURS: &str = "breakout";
/// A bar that the middle of rounds decides is judged by at least so many.
const ROUNDS: usize = 5;

/// All bars for which this run has figures.
pub fn judge(report: &Report) -> Vec<Bar> {
    let bars = [
        client::throughput(report),
        client::cost(report),
        voice::pump(report),
        voice::in_tunnel(report),
        client::idle(report),
        voice::fast_path(report),
    ];
    bars.into_iter().flatten().collect()
}

fn gateway(report: &Report) -> &str {
    report.contenders.first().map_or("", |ours| ours.gateway.as_str())
}

impl Bar {
    fn new(what: String, limit: Limit, bar: f64, found: Found) -> Self {
        let Found { measured, by, rounds, interval } = found;
        let holds = match limit {
            Limit::AtLeast => measured >= bar,
            Limit::AtMost => measured <= bar,
        };
        let enough = rounds.values().count() >= ROUNDS || matches!(by, Judged::Mean | Judged::Worst);
        let (unit, rounds, again) = (rounds.unit, rounds.rounds, None);
        let (met, note) = (Some(holds), String::new());
        let mut this = Self { what, limit, bar, unit, measured, by, rounds, interval, again, met, note };
        if !enough {
            this.only_report(&format!("fewer than {ROUNDS} rounds"));
        }
        this
    }

    fn only_report(&mut self, why: &str) {
        if self.met.take().is_some() {
            self.note = format!("not judged: {why}");
        }
    }

    /// Sets the direct path's difference from itself beside the figure, which says nothing where that is as large as what the bar allows.
    fn weigh(&mut self, again: Option<f64>) {
        let factor = |ratio: f64| ratio.max(1.0 / ratio);
        self.again = again;
        let Some(spread) = again.map(factor) else { return };
        if spread >= factor(self.bar) {
            self.only_report(&format!("direct differs from itself by {spread:.2} ×"));
        } else if self.met.is_some() && spread > factor(self.measured / self.bar) {
            self.note =
                format!("direct differs from itself by {spread:.2} ×: more than lies between figure and bar");
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
            Self::AtLeast => "≥",
            Self::AtMost => "≤",
        }
    }
}

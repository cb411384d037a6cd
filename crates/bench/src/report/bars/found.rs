use super::Judged;
use crate::metric;
use crate::report::{Better, Cell, Distribution, Key, Metric, Report, bootstrap};

/// What a bar is judged by.
#[derive(Clone, Debug)]
pub struct Found {
    pub measured: f64,
    pub by: Judged,
    pub rounds: Metric,
    pub interval: Option<[f64; 2]>,
}

const P99: f64 = 0.99;

impl Found {
    pub fn median(rounds: Metric) -> Self {
        Self { measured: rounds.median(), by: Judged::Median, rounds, interval: None }
    }

    pub fn mean(rounds: &Metric) -> Self {
        Self { measured: rounds.mean(), by: Judged::Mean, rounds: rounds.clone(), interval: None }
    }

    /// The largest.
    pub fn worst(rounds: &Metric) -> Self {
        Self { measured: rounds.max(), by: Judged::Worst, rounds: rounds.clone(), interval: None }
    }

    /// The median of what one cell's figure is by another's in the same round.
    pub fn ratio(report: &Report, name: &str, this: &Key, other: &Key) -> Option<Self> {
        let of = |key: &Key| report.cell(key)?.metrics.get(name);
        Some(Self::median(of(this)?.ratio(of(other)?)?))
    }

    /// What one cell's p99 of the round trip is by another's, over all packets of the rounds that both have. What never came back is slower
    /// than all that did.
    pub fn pooled_p99(report: &Report, this: &Key, other: &Key) -> Option<Self> {
        let (rounds, this, other) = pooled(report, this, other)?;
        let ratio = |times: &[u64]| {
            let of = [this.p99(times), other.heard_p99(times)].map(|p99| p99 as f64);
            (of[0] > 0.0 && of[1] > 0.0).then(|| of[0] / of[1])
        };
        let alone = |round| {
            let is_it: Vec<u64> = rounds.iter().map(|other| u64::from(*other == round)).collect();
            ratio(&is_it)
        };
        let each = (0..report.plan.rounds as usize).map(alone).collect();
        Some(Self {
            measured: ratio(&vec![1; rounds.len()])?,
            by: Judged::Pooled,
            rounds: Metric { unit: "×".to_owned(), better: Better::Neither, rounds: each },
            interval: bootstrap::interval(rounds.len(), ratio),
        })
    }

    /// Whether the packets that [`Found::pooled_p99`] is about never came back: then it is of the slowest that did of `this`, and of what did
    /// of `other`.
    pub fn p99_is_lost(report: &Report, this: &Key, other: &Key) -> [bool; 2] {
        pooled(report, this, other).map_or([false; 2], |(_, this, other)| [this.is_lost(), other.is_lost()])
    }
}

/// The rounds that both have, and what they have in those.
fn pooled(report: &Report, this: &Key, other: &Key) -> Option<(Vec<usize>, Pooled, Pooled)> {
    let (this, other) = (report.cell(this)?, report.cell(other)?);
    let has_both = |round: &usize| this.lost_in(*round).1 > 0 && has_answers(other, *round);
    let both: Vec<usize> = (0..report.plan.rounds as usize).filter(has_both).collect();
    let (this, other) = (Pooled::new(this, &both)?, Pooled::new(other, &both)?);
    Some((both, this, other))
}

fn has_answers(cell: &Cell, round: usize) -> bool {
    let (lost, sent) = cell.lost_in(round);
    sent > lost
}

/// A cell's round trips in some rounds, and how many packets of each never came back.
struct Pooled {
    trips: Distribution,
    lost: Vec<u64>,
}

impl Pooled {
    fn new(cell: &Cell, rounds: &[usize]) -> Option<Self> {
        let trips = cell.distributions.get(metric::ROUND_TRIP)?.of_rounds(rounds);
        Some(Self { trips, lost: rounds.iter().map(|round| cell.lost_in(*round).0).collect() })
    }

    /// If it never came back, the slowest that did.
    fn p99(&self, times: &[u64]) -> u64 {
        self.trips.weighted_quantile(P99, times, &self.lost).unwrap_or_else(|slowest| slowest)
    }

    /// If it never came back, that of what did.
    fn heard_p99(&self, times: &[u64]) -> u64 {
        let of_all = self.trips.weighted_quantile(P99, times, &self.lost);
        of_all.or_else(|_| self.trips.weighted_quantile(P99, times, &[])).unwrap_or_default()
    }

    fn is_lost(&self) -> bool {
        self.trips.weighted_quantile(P99, &vec![1; self.lost.len()], &self.lost).is_err()
    }
}

use super::Judged;
use crate::metric;
use crate::report::{Key, Metric, Report, bootstrap};

/// What a bar is judged by.
#[derive(Clone, Debug)]
pub struct Found {
    pub measured: f64,
    pub by: Judged,
    pub rounds: Metric,
    pub interval: Option<[f64; 2]>,
}

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

    /// What one cell's p99 of the round trip is by another's, over all packets of the rounds that both have.
    pub fn pooled_p99(report: &Report, this: &Key, other: &Key) -> Option<Self> {
        let of = |key: &Key| report.cell(key)?.distributions.get(metric::ROUND_TRIP);
        let (this_one, other_one) = (of(this)?, of(other)?);
        let has_both = |round: &usize| this_one.has_round(*round) && other_one.has_round(*round);
        let both: Vec<usize> = (0..report.plan.rounds as usize).filter(has_both).collect();
        let (this_one, other_one) = (this_one.of_rounds(&both), other_one.of_rounds(&both));
        let p99 = |times: &[u64]| {
            let of = [&this_one, &other_one].map(|one| one.weighted_quantile(0.99, times) as f64);
            (of[1] > 0.0).then(|| of[0] / of[1])
        };
        let interval = bootstrap::interval(both.len(), p99);
        let rounds = Self::ratio(report, metric::RTT_P99, this, other)?.rounds;
        Some(Self { measured: p99(&vec![1; both.len()])?, by: Judged::Pooled, rounds, interval })
    }
}

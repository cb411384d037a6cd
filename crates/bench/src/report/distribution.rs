use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A histogram of nanoseconds with three significant digits: each value that occurred, and how often in each round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    pub ns: Vec<(u64, Vec<u64>)>,
}

impl Distribution {
    pub(super) fn add(&mut self, round: usize, delays: &Histogram<u64>) {
        let mut all: BTreeMap<u64, Vec<u64>> = std::mem::take(&mut self.ns).into_iter().collect();
        for recorded in delays.iter_recorded() {
            let counts = all.entry(recorded.value_iterated_to()).or_default();
            counts.resize(counts.len().max(round + 1), 0);
            if let Some(count) = counts.get_mut(round) {
                *count += recorded.count_at_value();
            }
        }
        self.ns = all.into_iter().collect();
    }

    /// Each value with how often it occurred in all rounds together.
    pub fn pooled(&self) -> impl Iterator<Item = (u64, u64)> + Clone {
        self.ns.iter().map(|(value, counts)| (*value, counts.iter().sum()))
    }

    pub fn count(&self) -> u64 {
        self.pooled().map(|(_, count)| count).sum()
    }

    /// The smallest value that at least this part (0 to 1) of all rounds' does not exceed, in nanoseconds; 0 if there is none.
    pub fn quantile(&self, part: f64) -> u64 {
        quantile(self.pooled(), part)
    }

    /// As [`Distribution::quantile`], as if each round had been heard so many times, and with it so many that never came back, each slower than
    /// all that did. `Err`: it is one of those; the largest that did come back.
    pub fn weighted_quantile(&self, part: f64, times: &[u64], lost: &[u64]) -> Result<u64, u64> {
        let weigh =
            |counts: &[u64]| counts.iter().zip(times).map(|(count, times)| count * times).sum::<u64>();
        let heard = self.ns.iter().map(|(value, counts)| (*value, weigh(counts)));
        let largest = quantile(heard.clone(), 1.0);
        match quantile(heard.chain([(u64::MAX, weigh(lost))]), part) {
            u64::MAX => Err(largest),
            value => Ok(value),
        }
    }

    /// Only these rounds of it, in this order.
    pub fn of_rounds(&self, rounds: &[usize]) -> Self {
        let only = |counts: &[u64]| -> Vec<u64> {
            rounds.iter().map(|round| counts.get(*round).copied().unwrap_or(0)).collect()
        };
        let ns = self.ns.iter().map(|(value, counts)| (*value, only(counts)));
        Self { ns: ns.filter(|(_, counts)| counts.iter().any(|count| *count > 0)).collect() }
    }

    /// How many a round heard.
    pub fn of_round(&self, round: usize) -> u64 {
        self.ns.iter().filter_map(|(_, counts)| counts.get(round)).sum()
    }
}

fn quantile(all: impl Iterator<Item = (u64, u64)> + Clone, part: f64) -> u64 {
    let count: u64 = all.clone().map(|(_, count)| count).sum();
    let wanted = (count as f64 * part).ceil().max(1.0) as u64;
    let mut seen = 0;
    let mut reaches = all.filter(|(_, count)| *count > 0).map(|(value, count)| {
        seen += count;
        (value, seen >= wanted)
    });
    reaches.find(|(_, is_enough)| *is_enough).map_or(0, |(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_the_histogram() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        for value in 1..=1000_u64 {
            histogram.record(value * 1000).unwrap();
        }
        let mut distribution = Distribution::default();
        distribution.add(0, &histogram);
        assert_eq!(distribution.count(), 1000);
        for part in [0.0, 0.5, 0.99, 0.999, 1.0] {
            assert_eq!(distribution.quantile(part), histogram.value_at_quantile(part), "{part}");
        }
        distribution.add(2, &histogram);
        assert_eq!((distribution.count(), &distribution.ns[0].1), (2000, &vec![1, 0, 1]));
        assert_eq!([0, 1, 2].map(|round| distribution.of_round(round)), [1000, 0, 1000]);
        histogram.reset();
        histogram.record_n(5_000_000, 1000).unwrap();
        distribution.add(1, &histogram);
        let p50 = |times: &[u64]| distribution.weighted_quantile(0.5, times, &[0, 0, 400]);
        assert_eq!((p50(&[1, 0, 0]), p50(&[0, 1, 0])), (Ok(500_223), Ok(5_001_215)));
        assert_eq!(p50(&[0, 0, 1]), Ok(700_415), "and 400 that are slower");
        assert_eq!(p50(&[0, 0, 0]), Ok(0));
        let lost = |lost: u64| distribution.weighted_quantile(0.99, &[1], &[lost]);
        assert_eq!((lost(5), lost(11)), (Ok(995_327), Err(1_000_447)));
        assert_eq!(distribution.of_rounds(&[1]).ns, [(5_001_215, vec![1000])]);
        assert_eq!(Distribution::default().quantile(0.5), 0);
    }
}

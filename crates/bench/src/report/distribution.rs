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
    pub fn pooled(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ns.iter().map(|(value, counts)| (*value, counts.iter().sum()))
    }

    pub fn count(&self) -> u64 {
        self.pooled().map(|(_, count)| count).sum()
    }

    /// The smallest value that at least this part (0 to 1) of all rounds' does not exceed, in nanoseconds; 0 if there is none.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (value, count) in self.pooled() {
            seen += count;
            if seen >= wanted {
                return value;
            }
        }
        self.ns.last().map_or(0, |(value, _)| *value)
    }
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
        assert_eq!(Distribution::default().quantile(0.5), 0);
    }
}

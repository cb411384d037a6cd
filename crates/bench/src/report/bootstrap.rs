//! How far a figure of all rounds together would have swung if other rounds like these had been measured.

const RESAMPLES: usize = 1000;

/// Where the middle 90 % lie of what `figure` is of rounds drawn from `rounds` with replacement; it is given how often each of them was drawn.
/// The same each time. `None` if it is nothing for all of them.
pub fn interval(rounds: usize, figure: impl Fn(&[u64]) -> Option<f64>) -> Option<[f64; 2]> {
    let mut chance = Chance(0);
    let mut figures: Vec<f64> =
        (0..RESAMPLES).filter_map(|_| figure(&resample(rounds, &mut chance))).collect();
    figures.sort_by(f64::total_cmp);
    let at =
        |part: f64| figures.get((figures.len().saturating_sub(1) as f64 * part).round() as usize).copied();
    Some([at(0.05)?, at(0.95)?])
}

fn resample(rounds: usize, chance: &mut Chance) -> Vec<u64> {
    let mut drawn = vec![0; rounds];
    for _ in 0..rounds {
        if let Some(times) = drawn.get_mut(chance.below(rounds)) {
            *times += 1;
        }
    }
    drawn
}

/// Numbers that look drawn by chance (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % most as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_rounds_swings_as_theory_says() {
        let rounds = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        let mean = |drawn: &[u64]| {
            let sum: f64 = rounds.iter().zip(drawn).map(|(value, times)| value * *times as f64).sum();
            Some(sum / rounds.len() as f64)
        };
        let [low, high] = interval(rounds.len(), mean).unwrap();
        // The mean 5.5, its deviation 2.872 by the root of 10, of which 1.645 hold 90 %.
        assert!((low - 4.0).abs() < 0.15 && (high - 7.0).abs() < 0.15, "{low} to {high}");
    }

    #[test]
    fn nothing_has_no_interval() {
        assert_eq!(interval(5, |_| None), None);
        assert_eq!(interval(0, |_| None), None);
        assert_eq!(interval(1, |drawn| drawn.first().map(|times| *times as f64)), Some([1.0, 1.0]));
    }
}

//! Whether rounds of two runs differ by more than chance.

use std::f64::consts::FRAC_2_PI;

/// Two runs of one build differ by as much (a part of the figure) though the rounds of each agree among themselves.
const BETWEEN_RUNS: f64 = 0.03;

/// How likely chance alone makes `after` larger than `before` by as much or more: Student's t test with the pooled variance, over logarithms
/// where all values have one. `None` with fewer than two values on a side.
pub fn chance_of_larger(before: &[f64], after: &[f64]) -> Option<f64> {
    if before.len() < 2 || after.len() < 2 {
        return None;
    }
    let has_logarithms = before.iter().chain(after).all(|value| *value > 0.0);
    let scaled = |values: &[f64]| -> Vec<f64> {
        if has_logarithms { values.iter().map(|value| value.ln()).collect() } else { values.to_vec() }
    };
    let (before, after) = (scaled(before), scaled(after));
    let least =
        if has_logarithms { BETWEEN_RUNS } else { BETWEEN_RUNS * (mean(&before) + mean(&after)).abs() / 2.0 };
    let degrees = before.len() + after.len() - 2;
    let deviation = ((squares(&before) + squares(&after)) / degrees as f64).sqrt().max(least);
    let error = deviation * (1.0 / before.len() as f64 + 1.0 / after.len() as f64).sqrt();
    let difference = mean(&after) - mean(&before);
    Some(if error > 0.0 { student_tail(difference / error, degrees) } else { 0.5 })
}

/// The largest of these chances that still counts as a finding, so that of all findings no more than the part `rate` is expected to be false
/// (Benjamini and Hochberg 1995); below 0 if none counts.
pub fn largest_finding(chances: &[f64], rate: f64) -> f64 {
    let mut sorted = chances.to_vec();
    sorted.sort_by(f64::total_cmp);
    let counts = |(place, chance): &(usize, f64)| *chance <= rate * *place as f64 / chances.len() as f64;
    (1..).zip(sorted).filter(counts).last().map_or(-1.0, |(_, chance)| chance)
}

/// The probability that Student's t with so many degrees of freedom exceeds `t` (Abramowitz and Stegun 26.7.3 and 26.7.4).
fn student_tail(t: f64, degrees: usize) -> f64 {
    let angle = (t / (degrees as f64).sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    let is_odd = degrees % 2 == 1;
    let mut term = if is_odd { cosine } else { 1.0 };
    let mut sum = if degrees == 1 { 0.0 } else { term };
    for n in (if is_odd { 3 } else { 2 }..degrees).step_by(2) {
        term *= (n - 1) as f64 / n as f64 * cosine * cosine;
        sum += term;
    }
    let within = if is_odd { FRAC_2_PI * (angle + sine * sum) } else { sine * sum };
    (1.0 - within) / 2.0
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sum of the squared distances from the mean.
fn squares(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_that_of_the_tables() {
        for (degrees, t, tail) in [
            (1, 6.3138, 0.05),
            (2, 4.3027, 0.025),
            (3, 3.1824, 0.025),
            (5, 2.0150, 0.05),
            (8, 2.3060, 0.025),
            (8, 4.5008, 0.001),
            (9, 4.2968, 0.001),
            (30, 1.6973, 0.05),
        ] {
            let found = student_tail(t, degrees);
            assert!((found - tail).abs() < tail * 1e-3, "{degrees} {t}: {found}, not {tail}");
            assert!((student_tail(-t, degrees) + found - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn findings_are_those_of_the_procedures_own_example() {
        // Benjamini and Hochberg 1995, section 4: four of these fifteen.
        let chances = [
            0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
            0.6528, 0.7590, 1.0,
        ];
        assert_eq!(largest_finding(&chances, 0.05), 0.0095);
        assert!(largest_finding(&[0.5, 0.9], 0.05) < 0.0);
        assert!(largest_finding(&[], 0.05) < 0.0);
    }

    #[test]
    fn steady_rounds_and_zeros_are_judged_too() {
        let chance = |before: &[f64], after: &[f64]| chance_of_larger(before, after).unwrap();
        assert!(chance(&[14.0; 5], &[40.0; 5]) < 1e-6);
        assert!(chance(&[14.0; 5], &[14.1; 5]) > 0.3, "two runs differ by so much");
        assert!(chance(&[0.0; 5], &[1.0; 5]) < 1e-6);
        assert_eq!(chance(&[0.0; 5], &[0.0; 5]), 0.5);
        assert!(chance(&[0.0, 0.1, 0.2, 0.0, 0.1], &[0.1, 0.2, 0.1, 0.0, 0.1]) > 0.1);
        assert_eq!(chance_of_larger(&[1.0], &[9.0, 9.0]), None);
    }
}

use std::fmt;
use std::fs;
use std::path::Path as File;

use crate::error::BenchError;
use crate::report::{Bar, Better, Key, Metric, Report, SCHEMA};

/// What counts as a difference.
pub const RULE: &str = "A figure is better or worse if the ranges of its rounds do not touch and its medians differ by more than 5 %; \
with fewer than five rounds the ranges must lie further apart than the wider of them is, with a single round nothing is said.";

const LEAST: f64 = 0.05;
const ENOUGH_ROUNDS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Better,
    Worse,
    /// Within the noise.
    Same,
}

/// One figure that both reports have.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub key: Key,
    pub name: String,
    pub unit: String,
    pub before: f64,
    pub after: f64,
    pub verdict: Verdict,
}

/// What differs between two reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub changes: Vec<Change>,
    /// Figures that only one of the two has.
    pub unmatched: usize,
    /// What the two were measured on or with differs in this.
    pub cautions: Vec<String>,
    /// Bars that were met before and are not, and the other way round.
    pub lost: Vec<String>,
    pub won: Vec<String>,
}

/// Sets `after` against `before`, by [`RULE`].
pub fn compare(before: &Report, after: &Report) -> Comparison {
    let mut changes = Vec::new();
    let mut matched = 0;
    for cell in &after.cells {
        let Some(old) = before.cell(&cell.key) else { continue };
        for (name, metric) in &cell.metrics {
            let Some(was) = old.metrics.get(name) else { continue };
            matched += 1;
            if metric.better == Better::Neither {
                continue;
            }
            changes.push(Change {
                key: cell.key.clone(),
                name: name.clone(),
                unit: metric.unit.clone(),
                before: was.median(),
                after: metric.median(),
                verdict: judge(was, metric),
            });
        }
    }
    let count = |report: &Report| report.cells.iter().map(|cell| cell.metrics.len()).sum::<usize>();
    let unmatched = count(before) + count(after) - 2 * matched;
    let (lost, won) = (moved(before, after, true), moved(before, after, false));
    Comparison { changes, unmatched, cautions: cautions(before, after), lost, won }
}

/// Bars that were met (or not) before, and are the opposite after.
fn moved(before: &Report, after: &Report, was_met: bool) -> Vec<String> {
    let old = |bar: &Bar| before.bars.iter().find(|old| old.what == bar.what);
    let is_moved =
        |bar: &&Bar| bar.met == Some(!was_met) && old(bar).is_some_and(|old| old.met == Some(was_met));
    let say = |bar: &Bar| {
        let was = old(bar).map_or(0.0, |old| old.measured);
        let sign = bar.limit.sign();
        format!("{}: {was:.3} → {:.3}, the bar is {sign} {} {}", bar.what, bar.measured, bar.bar, bar.unit)
    };
    after.bars.iter().filter(is_moved).map(say).collect()
}

fn judge(before: &Metric, after: &Metric) -> Verdict {
    let rounds = before.values().count().min(after.values().count());
    let gap = (after.min() - before.max()).max(before.min() - after.max());
    let needed = if rounds < ENOUGH_ROUNDS {
        (before.max() - before.min()).max(after.max() - after.min())
    } else {
        0.0
    };
    let difference = after.median() - before.median();
    if rounds < 2 || gap <= needed || difference.abs() <= LEAST * before.median().abs() {
        return Verdict::Same;
    }
    let is_better = (after.better == Better::Higher) == (difference > 0.0);
    if is_better { Verdict::Better } else { Verdict::Worse }
}

fn cautions(before: &Report, after: &Report) -> Vec<String> {
    let mut cautions = Vec::new();
    let mut note = |what: &str, was: String, is: String| {
        if was != is {
            cautions.push(format!("{what} differs: {was} before, {is} after"));
        }
    };
    note("the processor", before.machine.processor.clone(), after.machine.processor.clone());
    note("the number of cores", before.machine.cores.to_string(), after.machine.cores.to_string());
    note("the kernel", before.machine.kernel.clone(), after.machine.kernel.clone());
    note("real-time scheduling of voice", before.realtime.to_string(), after.realtime.to_string());
    note(
        "the length of a transfer",
        before.plan.transfer_seconds.to_string(),
        after.plan.transfer_seconds.to_string(),
    );
    for contender in &after.contenders {
        let Some(old) = before.contenders.iter().find(|old| old.client == contender.client) else { continue };
        let gateway = |of: &crate::Contender| format!("{} ({})", of.gateway, of.gateway_version);
        note(&format!("the gateway of {}", contender.client), gateway(old), gateway(contender));
        if contender.client != "breakout" {
            note(&contender.client, old.version.clone(), contender.version.clone());
        }
    }
    cautions
}

impl Comparison {
    pub fn is_worse(&self) -> bool {
        self.changes.iter().any(|change| change.verdict == Verdict::Worse)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for caution in &self.cautions {
            writeln!(f, "caution: {caution}")?;
        }
        let of = |verdict: Verdict| self.changes.iter().filter(move |change| change.verdict == verdict);
        for (title, bars) in [("no longer met", &self.lost), ("met now", &self.won)] {
            for bar in bars {
                writeln!(f, "{title}: {bar}")?;
            }
        }
        for (title, verdict) in [("worse", Verdict::Worse), ("better", Verdict::Better)] {
            for change in of(verdict) {
                writeln!(f, "{title:<7} {change}")?;
            }
        }
        writeln!(
            f,
            "{} worse, {} better, {} within the noise, {} in one report only",
            of(Verdict::Worse).count(),
            of(Verdict::Better).count(),
            of(Verdict::Same).count(),
            self.unmatched
        )?;
        writeln!(f, "{RULE}")
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { section, scenario, load, path, client } = &self.key;
        let mut place = vec![section.to_string(), scenario.clone()];
        place.extend(load.map(|load| load.to_string()));
        place.extend(path.map(|path| path.to_string()));
        place.extend(Some(client.clone()).filter(|client| !client.is_empty()));
        let (before, after) = (self.before, self.after);
        write!(f, "{}: {} {before:.3} → {after:.3} {}", place.join(" / "), self.name, self.unit)?;
        // Nothing is so many percent of nothing.
        if before == 0.0 {
            return Ok(());
        }
        write!(f, " ({:+.0} %)", (after / before - 1.0) * 100.0)
    }
}

impl Report {
    /// Reads what `--json` wrote.
    pub fn read(path: &File) -> Result<Self, BenchError> {
        let failed = |problem: String| BenchError::Report { path: path.to_owned(), problem };
        let text = fs::read(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| failed(format!("is no JSON: {error}")))?;
        let schema = value.get("schema").and_then(serde_json::Value::as_u64);
        if schema != Some(u64::from(SCHEMA)) {
            let found = schema.map_or_else(|| "none".to_owned(), |schema| schema.to_string());
            return Err(failed(format!(
                "has the schema {found}, not {SCHEMA}: measure again with this version's `breakout bench --json`"
            )));
        }
        serde_json::from_value(value).map_err(|error| failed(format!("is no report of the bench: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(better: Better, rounds: &[f64]) -> Metric {
        Metric { unit: "x".into(), better, rounds: rounds.iter().copied().map(Some).collect() }
    }

    fn verdict(better: Better, before: &[f64], after: &[f64]) -> Verdict {
        judge(&metric(better, before), &metric(better, after))
    }

    #[test]
    fn ranges_that_touch_are_noise() {
        let before = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(verdict(Better::Higher, &before, &[5.0, 6.0, 7.0, 8.0, 9.0]), Verdict::Same);
        assert_eq!(verdict(Better::Higher, &before, &[5.1, 6.0, 7.0, 8.0, 9.0]), Verdict::Better);
        assert_eq!(verdict(Better::Lower, &before, &[5.1, 6.0, 7.0, 8.0, 9.0]), Verdict::Worse);
        assert_eq!(verdict(Better::Lower, &[5.1, 6.0, 7.0, 8.0, 9.0], &before), Verdict::Better);
    }

    #[test]
    fn few_rounds_need_a_wider_gap_and_one_says_nothing() {
        assert_eq!(verdict(Better::Higher, &[1.0, 2.0], &[2.5, 3.5]), Verdict::Same);
        assert_eq!(verdict(Better::Higher, &[1.0, 2.0], &[3.5, 4.0]), Verdict::Better);
        assert_eq!(verdict(Better::Higher, &[1.0], &[9.0]), Verdict::Same);
    }

    #[test]
    fn small_differences_are_noise_however_steady() {
        let (before, after) = ([100.0; 5], [104.0; 5]);
        assert_eq!(verdict(Better::Lower, &before, &after), Verdict::Same);
        assert_eq!(verdict(Better::Lower, &before, &[106.0; 5]), Verdict::Worse);
        assert_eq!(verdict(Better::Lower, &[0.0; 5], &[1.0; 5]), Verdict::Worse);
        assert_eq!(verdict(Better::Lower, &[0.0; 5], &[0.0; 5]), Verdict::Same);
    }
}

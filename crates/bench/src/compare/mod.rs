//! What differs between two reports, and whether that is more than chance.

mod figures;
mod statistics;

use std::fmt;
use std::fs;
use std::path::Path as File;

use crate::error::BenchError;
use crate::plan::Plan;
use crate::report::{Bar, Better, Judged, Metric, Report, SCHEMA};
use figures::{Figure, cipher_ceiling, counted, expected, figures, what};
use statistics::{chance_of_larger, largest_finding};

/// What counts as a difference.
pub const RULE: &str = "Counted are what bars are about, our own throughput, CPU at 300 Mbit/s, p99s of barred voice and what of it is lost in the tunnel, memory and wake-ups \
when idle, start-up and roaming. One of them is worse or better if its medians differ by more than 5 % and a t test over its rounds says so, \
with a rate of false findings of 5 % over all of them; it is gone if it should have been measured and fewer rounds have it, which counts too. A \
bar of which a single round decides counts as soon as it is no longer met, and like one of all rounds' packets as soon as it is no longer judged, \
unless the plan asks for less. Any other figure has moved if the ranges of its rounds do not touch and its medians differ by more than 5 %.";

/// Smaller differences of medians, as a part, are none.
const LEAST: f64 = 0.05;
const FALSE_FINDINGS: f64 = 0.05;
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
    pub what: String,
    pub unit: String,
    /// Medians.
    pub before: f64,
    pub after: f64,
    pub verdict: Verdict,
}

/// A bar that was met before and is not, or the other way round.
#[derive(Clone, Debug, PartialEq)]
pub struct Turned {
    pub said: String,
    /// A single round decides about it.
    pub by_worst: bool,
}

/// What differs between two reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What decides.
    pub counted: Vec<Change>,
    /// What does not: others' figures, and those that swing.
    pub others: Vec<Change>,
    /// Figures that only one of the two has.
    pub unmatched: usize,
    /// What the two were measured on or with differs in this.
    pub cautions: Vec<String>,
    /// What decides and was measured before, but not, or in fewer rounds, after.
    pub gone: Vec<Gone>,
    pub lost: Vec<Turned>,
    pub won: Vec<Turned>,
    /// Bars that were met and are no longer judged.
    pub unjudged: Vec<Unjudged>,
}

/// A figure that decides, without rounds to decide by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    pub what: String,
    /// How many rounds have it.
    pub before: usize,
    pub after: usize,
}

/// A bar that was met before and of which nobody can say that it still is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unjudged {
    pub said: String,
    pub counts: bool,
}

/// Sets `after` against `before`, by [`RULE`].
pub fn compare(before: &Report, after: &Report) -> Comparison {
    let mut others = Vec::new();
    let mut matched = 0;
    let ours = after.clients().next().unwrap_or_default();
    for cell in &after.cells {
        let Some(old) = before.cell(&cell.key) else { continue };
        let counts = if cell.key.client == ours { counted(&after.plan, &cell.key) } else { Vec::new() };
        for (name, metric) in &cell.metrics {
            let Some(was) = old.metrics.get(name) else { continue };
            matched += 1;
            if metric.better == Better::Neither || counts.contains(&name.as_str()) {
                continue;
            }
            others.push(Change {
                what: what(&cell.key, name),
                unit: metric.unit.clone(),
                before: was.median(),
                after: metric.median(),
                verdict: by_ranges(was, metric),
            });
        }
    }
    let count = |report: &Report| report.cells.iter().map(|cell| cell.metrics.len()).sum::<usize>();
    let unmatched = count(before) + count(after) - 2 * matched;
    let expected = expected(before, after);
    let (pairs, gone) = pairs(&expected, after);
    Comparison {
        counted: by_chance(&pairs),
        others,
        unmatched,
        cautions: cautions(before, after),
        gone,
        lost: turned(before, after, true),
        won: turned(before, after, false),
        unjudged: unjudged(&expected, after, asks_no_less(&after.plan, &before.plan)),
    }
}

/// The verdicts on all figures that count, by how likely chance alone makes them.
fn by_chance(pairs: &[Pair]) -> Vec<Change> {
    let most = |verdict: Verdict| {
        let chances: Vec<f64> = pairs.iter().filter_map(|pair| pair.chance_of(verdict)).collect();
        largest_finding(&chances, FALSE_FINDINGS)
    };
    let (most_worse, most_better) = (most(Verdict::Worse), most(Verdict::Better));
    let change = |pair: &Pair| {
        let (before, after) = (pair.was.median(), pair.is.median());
        let towards = direction(pair.is.better, before, after);
        let most = if towards == Verdict::Worse { most_worse } else { most_better };
        let counts = pair.chance_of(towards).is_some_and(|chance| chance <= most);
        let verdict = if counts { towards } else { Verdict::Same };
        let (what, unit) = (pair.is.what.clone(), pair.is.unit.clone());
        Change { what, unit, before, after, verdict }
    };
    pairs.iter().map(change).collect()
}

/// A figure that counts, of both runs.
struct Pair {
    was: Figure,
    is: Figure,
    /// How likely chance alone makes it so much larger; `None`: there are too few rounds to say.
    larger: Option<f64>,
}

/// What both runs have, and what the second one should have and has not, or in fewer rounds than it was to have.
fn pairs(before: &Report, after: &Report) -> (Vec<Pair>, Vec<Gone>) {
    let by_ceiling = cipher_ceiling(before).is_some() && cipher_ceiling(after).is_some();
    let mut new = figures(after, by_ceiling);
    let (mut pairs, mut gone) = (Vec::new(), Vec::new());
    for was in figures(before, by_ceiling) {
        let is = new.iter().position(|is| is.what == was.what).map(|at| new.swap_remove(at));
        let (before, rounds) = (was.values.len(), is.as_ref().map_or(0, |is| is.values.len()));
        if before >= 2 && rounds < before.min(after.plan.rounds as usize) {
            gone.push(Gone { what: was.what.clone(), before, after: rounds });
        }
        if let Some(is) = is.filter(|_| rounds > 0) {
            let larger = chance_of_larger(&was.values, &is.values);
            pairs.push(Pair { was, is, larger });
        }
    }
    (pairs, gone)
}

impl Pair {
    /// How likely chance alone moves it as far towards the verdict.
    fn chance_of(&self, verdict: Verdict) -> Option<f64> {
        match (verdict, self.is.better) {
            (Verdict::Better, Better::Higher) | (Verdict::Worse, Better::Lower) => self.larger,
            (Verdict::Worse, Better::Higher) | (Verdict::Better, Better::Lower) => {
                self.larger.map(|larger| 1.0 - larger)
            }
            _ => None,
        }
    }
}

fn by_ranges(before: &Metric, after: &Metric) -> Verdict {
    let rounds = before.values().count().min(after.values().count());
    let gap = (after.min() - before.max()).max(before.min() - after.max());
    let needed = if rounds < ENOUGH_ROUNDS {
        (before.max() - before.min()).max(after.max() - after.min())
    } else {
        0.0
    };
    if rounds < 2 || gap <= needed {
        return Verdict::Same;
    }
    direction(after.better, before.median(), after.median())
}

fn direction(better: Better, before: f64, after: f64) -> Verdict {
    if (after - before).abs() <= LEAST * before.abs() {
        return Verdict::Same;
    }
    if (better == Better::Higher) == (after > before) { Verdict::Better } else { Verdict::Worse }
}

/// Bars that were met (or not) before, and are the opposite after.
fn turned(before: &Report, after: &Report, was_met: bool) -> Vec<Turned> {
    let old = |bar: &Bar| before.bars.iter().find(|old| old.what == bar.what);
    let has_turned =
        |bar: &&Bar| bar.met == Some(!was_met) && old(bar).is_some_and(|old| old.met == Some(was_met));
    let say = |bar: &Bar| {
        let was = old(bar).map_or(0.0, |old| old.measured);
        let sign = bar.limit.sign();
        let said = format!(
            "{}: {was:.3} → {:.3}, the bar is {sign} {} {}",
            bar.what, bar.measured, bar.bar, bar.unit
        );
        Turned { said, by_worst: bar.by == Judged::Worst }
    };
    after.bars.iter().filter(has_turned).map(say).collect()
}

/// Whether a bar that is judged by the one plan has to be judged by the other.
fn asks_no_less(this: &Plan, other: &Plan) -> bool {
    this.rounds >= other.rounds
        && this.voice_samples >= other.voice_samples
        && this.idle_seconds >= other.idle_seconds
}

fn unjudged(before: &Report, after: &Report, comparable: bool) -> Vec<Unjudged> {
    let say = |old: &Bar| {
        let new = after.bars.iter().find(|bar| bar.what == old.what);
        let why = match new {
            Some(bar) if bar.met.is_some() => return None,
            Some(bar) => bar.note.as_str(),
            None => "not measured",
        };
        let counts = comparable && matches!(old.by, Judged::Worst | Judged::Pooled);
        Some(Unjudged { said: format!("{}: {why}", old.what), counts })
    };
    before.bars.iter().filter(|bar| bar.met == Some(true)).filter_map(say).collect()
}

fn cautions(before: &Report, after: &Report) -> Vec<String> {
    let mut cautions = Vec::new();
    let mut note = |what: &str, was: String, is: String| {
        if was != is {
            cautions.push(format!("{what} differs: {was} before, {is} after"));
        }
    };
    note("the build of Breakout", before.version.clone(), after.version.clone());
    note("the processor", before.machine.processor.clone(), after.machine.processor.clone());
    note("the number of cores", before.machine.cores.to_string(), after.machine.cores.to_string());
    note("the kernel", before.machine.kernel.clone(), after.machine.kernel.clone());
    note("real-time scheduling of voice", before.realtime.to_string(), after.realtime.to_string());
    note("how many steps failed", before.failed.len().to_string(), after.failed.len().to_string());
    let (was, is) = (asked(&before.plan), asked(&after.plan));
    for ((name, was), (_, is)) in was.into_iter().zip(is) {
        note(&format!("`{name}` of the plan"), was.to_string(), is.to_string());
    }
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

/// What a plan says, by the names that its fields have in the file.
fn asked(plan: &Plan) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(plan) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    }
}

impl Comparison {
    /// Whether a figure that counts is worse or gone, or a bar that counts by itself is no longer met or judged.
    pub fn is_worse(&self) -> bool {
        self.counted.iter().any(|change| change.verdict == Verdict::Worse)
            || !self.gone.is_empty()
            || self.lost.iter().any(|bar| bar.by_worst)
            || self.unjudged.iter().any(|bar| bar.counts)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for caution in &self.cautions {
            writeln!(f, "caution: {caution}")?;
        }
        for (title, bars) in [("no longer met", &self.lost), ("met now", &self.won)] {
            for bar in bars {
                writeln!(f, "{title}: {}", bar.said)?;
            }
        }
        for bar in &self.unjudged {
            writeln!(f, "no longer judged: {}", bar.said)?;
        }
        for Gone { what, before, after } in &self.gone {
            writeln!(f, "{:<7} {what}: {before} rounds have it before, {after} after", "gone")?;
        }
        let counted = |verdict: Verdict| self.counted.iter().filter(move |change| change.verdict == verdict);
        for (title, verdict) in [("worse", Verdict::Worse), ("better", Verdict::Better)] {
            for change in counted(verdict) {
                writeln!(f, "{title:<7} {change}")?;
            }
        }
        let moved = || self.others.iter().filter(|change| change.verdict != Verdict::Same);
        for change in moved() {
            writeln!(f, "{:<7} {change}", "moved")?;
        }
        writeln!(
            f,
            "{} worse, {} gone, {} better, {} within the noise; not counted: {} moved, {} within the noise; {} in one report only",
            counted(Verdict::Worse).count(),
            self.gone.len(),
            counted(Verdict::Better).count(),
            counted(Verdict::Same).count(),
            moved().count(),
            self.others.len() - moved().count(),
            self.unmatched
        )?;
        writeln!(f, "{RULE}")
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (self.before, self.after);
        write!(f, "{} {before:.3} → {after:.3} {}", self.what, self.unit)?;
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
        by_ranges(&metric(better, before), &metric(better, after))
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

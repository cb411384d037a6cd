//! What `bench compare` makes of a run like the one before, and of one that is worse. Runs are drawn from the rounds of one on two
//! cores of a virtual machine, `data/run.json`: its report without distributions.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy's exception for tests does not reach their helpers"
)]

use bench::{Bar, Better, Judged, Key, Load, Path, Report, Section, compare};

/// A run of five rounds. What it measured but once, idle, has as many here.
fn measured() -> Report {
    let mut run: Report = serde_json::from_str(include_str!("data/run.json")).unwrap();
    for cell in run.cells.iter_mut().filter(|cell| cell.key.section == Section::Idle) {
        for metric in cell.metrics.values_mut() {
            let once = metric.rounds[0].unwrap();
            metric.rounds = [0.98, 1.0, 1.0, 1.01, 1.02].map(|part| Some(once * part)).to_vec();
        }
    }
    run
}

/// Repeatable chance (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }

    /// Of a normal distribution with the deviation 1, nearly.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.next() as f64 / u64::MAX as f64).sum::<f64>() - 6.0
    }

    /// As many rounds as there are, each like one of them: two draws never share a value, as two runs do not.
    fn rounds(&mut self, rounds: &[Option<f64>]) -> Vec<Option<f64>> {
        let values: Vec<f64> = rounds.iter().copied().flatten().collect();
        let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
        let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        let squares: f64 = logarithms.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (logarithms.len() as f64 - 1.0).max(1.0)).sqrt();
        let blur = 0.65 * deviation;
        let narrowed = if deviation > 0.0 { (1.0 + (blur / deviation).powi(2)).sqrt().recip() } else { 1.0 };
        let draw = |_| {
            let at = self.below(values.len());
            if values.iter().any(|value| *value <= 0.0) {
                return Some(values[at]);
            }
            Some((mean + narrowed * (logarithms[at] - mean + blur * self.normal())).exp())
        };
        (0..values.len()).map(draw).collect()
    }

    /// A run as `like` might have been.
    fn run(&mut self, like: &Report) -> Report {
        let mut run = like.clone();
        for metric in run.cells.iter_mut().flat_map(|cell| cell.metrics.values_mut()) {
            metric.rounds = self.rounds(&metric.rounds);
        }
        for bar in &mut run.bars {
            bar.rounds = self.rounds(&bar.rounds);
        }
        run
    }
}

/// How many of so many comparisons say that something is worse, if `change` befell the second run.
fn found(comparisons: usize, change: impl Fn(&mut Report)) -> usize {
    let (like, mut chance) = (measured(), Chance(7));
    let mut is_worse = || {
        let (before, mut after) = (chance.run(&like), chance.run(&like));
        change(&mut after);
        compare(&before, &after).is_worse()
    };
    (0..comparisons).filter(|_| is_worse()).count()
}

#[test]
fn a_run_of_the_same_build_is_hardly_ever_worse() {
    let found = found(300, |_| {});
    assert!(found <= 24, "{found} of 300 were called worse");
}

#[test]
fn tcp_that_is_15_percent_slower_is_found() {
    let found = found(100, |run| {
        for cell in &mut run.cells {
            if cell.key.client == "breakout" && cell.key.scenario.starts_with("tcp-") {
                slow_down(&mut cell.metrics.get_mut("rate").unwrap().rounds, 0.85);
            }
        }
        for bar in run.bars.iter_mut().filter(|bar| bar.what.starts_with("tcp-")) {
            slow_down(&mut bar.rounds, 0.85);
        }
    });
    assert!(found >= 85, "only {found} of 100 were found");
}

#[test]
fn a_costlier_client_is_found() {
    let found = found(100, |run| {
        for cell in run.cells.iter_mut().filter(|cell| cell.key.client == "breakout") {
            if let (Section::FixedLoad, Some(cpu)) = (cell.key.section, cell.metrics.get_mut("cpu")) {
                slow_down(&mut cpu.rounds, 1.15);
            }
        }
    });
    assert!(found >= 85, "only {found} of 100 were found");
}

fn slow_down(rounds: &mut [Option<f64>], factor: f64) {
    for value in rounds.iter_mut().flatten() {
        *value *= factor;
    }
}

#[test]
fn idle_memory_that_grows_is_worse() {
    let (before, mut after) = (measured(), measured());
    let idle =
        Key { path: Some(Path::Tunnel), client: "breakout".to_owned(), ..Key::new(Section::Idle, "idle") };
    for round in 0..5 {
        after.record(round, &idle, "memory", "MiB", Better::Lower, 40.0);
    }
    let comparison = compare(&before, &after);
    assert!(comparison.is_worse(), "{comparison}");
    assert!(
        comparison.to_string().contains("worse   idle / idle / tunnel / breakout: memory"),
        "{comparison}"
    );
}

#[test]
fn a_lost_packet_where_none_may_be_lost_is_worse_and_a_bar_at_its_edge_is_not() {
    let (before, mut after) = (measured(), measured());
    let bar = after.bars.iter_mut().find(|bar| bar.what.contains("loss")).unwrap();
    bar.rounds[2] = Some(0.02);
    (bar.measured, bar.met) = (0.02, Some(false));
    let comparison = compare(&before, &after);
    assert!(
        comparison.is_worse() && comparison.to_string().contains("no longer met: voice by"),
        "{comparison}"
    );

    let mut after = measured();
    let bar = after.bars.iter_mut().find(|bar| bar.what.contains("CPU of the whole machine")).unwrap();
    (bar.measured, bar.met) = (1.26, Some(false));
    let comparison = compare(&before, &after);
    assert!(!comparison.is_worse(), "its rounds are those of before: {comparison}");
    assert!(comparison.to_string().contains("no longer met: fast path, 50 calls"), "{comparison}");
}

#[test]
fn voice_that_is_lost_in_the_tunnel_is_worse() {
    let (before, mut after) = (measured(), measured());
    let key = Key {
        load: Some(Load::Upload),
        path: Some(Path::Tunnel),
        client: "breakout".to_owned(),
        ..Key::new(Section::Voice, "calls-50")
    };
    for (round, lost) in [0.4, 0.5, 0.3, 0.6, 0.4].into_iter().enumerate() {
        after.record(round, &key, "loss", "%", Better::Lower, lost);
    }
    let comparison = compare(&before, &after);
    let said = "worse   voice / calls-50 / upload / tunnel / breakout: loss 0.000 → 0.400 %";
    assert!(comparison.is_worse() && comparison.to_string().contains(said), "{comparison}");
}

#[test]
fn what_is_another_clients_has_moved_and_does_not_count() {
    let (before, mut after) = (measured(), measured());
    for cell in after.cells.iter_mut().filter(|cell| cell.key.client == "gotatun") {
        if let (Section::Throughput, Some(rate)) = (cell.key.section, cell.metrics.get_mut("rate")) {
            slow_down(&mut rate.rounds, 0.5);
        }
    }
    let comparison = compare(&before, &after);
    assert!(!comparison.is_worse(), "{comparison}");
    assert!(
        comparison.to_string().contains("moved   throughput / tcp-up-1 / tunnel / gotatun"),
        "{comparison}"
    );
}

#[test]
fn what_is_gone_is_worse() {
    let before = measured();
    let ours = |cell: &bench::Cell| cell.key.client == "breakout";

    let mut after = measured();
    for metric in after.cells.iter_mut().filter(|cell| ours(cell)).flat_map(|cell| cell.metrics.values_mut())
    {
        metric.rounds.fill(None);
    }
    let said = gone(&before, &after);
    assert!(
        said.contains("idle / idle / tunnel / breakout: memory: 5 rounds have it before, 0 after"),
        "{said}"
    );

    let mut after = measured();
    after.cells.retain(|cell| !matches!(cell.key.section, Section::Startup | Section::Roaming));
    let said = gone(&before, &after);
    assert!(said.contains("gone    roaming") && said.contains("gone    startup"), "{said}");
    after.plan.sections.retain(|section| !matches!(section, Section::Startup | Section::Roaming));
    let comparison = compare(&before, &after);
    assert!(!comparison.is_worse(), "it was not to be measured: {comparison}");

    let mut after = measured();
    let start =
        after.cells.iter_mut().find(|cell| ours(cell) && cell.key.section == Section::Startup).unwrap();
    start.metrics.get_mut("milliseconds").unwrap().rounds[1] = None;
    let said = gone(&before, &after);
    assert!(said.contains(": milliseconds: 5 rounds have it before, 4 after"), "{said}");
}

fn gone(before: &Report, after: &Report) -> String {
    let comparison = compare(before, after);
    assert!(comparison.is_worse(), "{comparison}");
    comparison.to_string()
}

#[test]
fn a_bar_that_is_no_longer_judged_counts_where_nothing_else_looks_at_it() {
    let mut before = measured();
    let p99 = before.bars.iter_mut().find(|bar| bar.what.contains("p99 by direct's")).unwrap();
    p99.by = Judged::Pooled;
    for (by, is_worse) in [(Judged::Worst, true), (Judged::Pooled, true), (Judged::Median, false)] {
        let mut after = before.clone();
        let met = |bar: &&mut Bar| bar.by == by && bar.met == Some(true);
        let bar = after.bars.iter_mut().find(met).unwrap();
        (bar.met, bar.note) = (None, "not judged: direct differs from itself".to_owned());
        let said = format!("no longer judged: {}: not judged: direct differs", bar.what);
        let comparison = compare(&before, &after);
        assert_eq!(comparison.is_worse(), is_worse, "{by:?}: {comparison}");
        assert!(comparison.to_string().contains(&said), "{comparison}");

        after.plan.voice_samples /= 2;
        let comparison = compare(&before, &after);
        assert!(!comparison.is_worse(), "{by:?}, and less was asked for: {comparison}");
    }
}

#[test]
fn a_bar_that_is_missing_counts_unless_its_client_was_not_measured() {
    let before = measured();
    let of_other = |bar: &Bar| bar.what.ends_with("by gotatun's") && bar.by == Judged::Median;
    assert!(before.bars.iter().any(of_other));
    let mut after = measured();
    after.bars.retain(|bar| !of_other(bar));
    gone(&before, &after);

    after.contenders.retain(|contender| contender.client != "gotatun");
    after.cells.retain(|cell| cell.key.client != "gotatun");
    after.bars.retain(|bar| !bar.what.contains("gotatun"));
    let comparison = compare(&before, &after);
    assert!(!comparison.is_worse(), "{comparison}");
}

//! What a verdict and the bypass's step cost for each packet, as ratios to sealing one of 1420 B in the same run: `cargo bench -p benches --bench
//! bars`. The three take turns, round after round, so that drift meets all alike. Fails if a bar is missed.

#[allow(dead_code, reason = "shared with the bench of the engine")]
mod flows;
#[allow(dead_code, reason = "shared with the bench of verdicts")]
mod prefixes;
mod session;

use std::hint::black_box;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::Criterion;
use flows::scenario::MEDIA;
use flows::{BATCH, Flows};
use prefixes::{Family, facts, prefixes, snapshot};
use session::{ROOM, connected, packet};

const ROUNDS: usize = 5;
const SAMPLES: usize = 30;
const PREFIXES: usize = 10_000;
/// Addresses to look up, more than the nearest caches hold.
const ADDRESSES: usize = 4096;
const SIZE: usize = 1420;
/// At most so many times what sealing costs.
const CLASSIFY: f64 = 0.05;
const BYPASS: f64 = 0.1;

fn main() -> ExitCode {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .sample_size(SAMPLES)
        .configure_from_args();
    let Some((mut agent, _gateway, now)) = connected() else {
        eprintln!("no session");
        return ExitCode::FAILURE;
    };
    let (mut packet, mut out) = (packet(SIZE), [0; ROOM]);
    let prefixes = prefixes(Family::V4, PREFIXES);
    let (snapshot, facts) = (snapshot(&prefixes), facts(Family::V4, &prefixes, true, ADDRESSES));
    let mut turn = facts.iter().cycle();
    let mut flows = Flows::new(SocketAddr::new(MEDIA, 20_000), 0xb8, 172);

    let (mut classify, mut bypass) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let seal = measure(&mut criterion, "seal", || {
            black_box(agent.seal(black_box(&mut packet), SIZE, &mut out, now).is_ok());
        });
        let verdict = measure(&mut criterion, "classify", || {
            black_box(turn.next().map(|facts| snapshot.classify(black_box(facts))));
        });
        let batch = measure(&mut criterion, "bypass-batch", || flows.step());
        let (Some(seal), Some(verdict), Some(batch)) = (seal, verdict, batch) else {
            println!("nothing measured, so nothing judged");
            return ExitCode::SUCCESS;
        };
        classify.push(verdict / seal);
        bypass.push(batch / BATCH as f64 / seal);
    }
    let classify = holds(&format!("IPv4 classify at {PREFIXES} prefixes"), classify, CLASSIFY);
    let bypass = holds(&format!("bypass step in a batch of {BATCH}"), bypass, BYPASS);
    if classify && bypass { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nanoseconds, the median of the samples; `None` where the command line has functions tried only, or left out.
fn measure(criterion: &mut Criterion, name: &str, mut step: impl FnMut()) -> Option<f64> {
    let mut samples = Vec::new();
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let began = Instant::now();
            (0..iterations).for_each(|_| step());
            let spent = began.elapsed();
            samples.push(spent.as_nanos() as f64 / iterations as f64);
            spent
        });
    });
    // Those before were to warm up.
    let first = samples.len().checked_sub(SAMPLES)?;
    Some(median(samples.split_off(first)))
}

fn holds(what: &str, ratios: Vec<f64>, bar: f64) -> bool {
    let ratio = median(ratios);
    let holds = ratio <= bar;
    println!(
        "{what}: {ratio:.4} x the seal of {SIZE} B (bar {bar}): {}",
        if holds { "holds" } else { "MISSED" }
    );
    holds
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

use std::thread::sleep;
use std::time::Duration;

use lab::addresses::AGENT;
use lab::{During, LabError};

use crate::clock;
use crate::forwarding::OPENING;
use crate::probe::{Begin, Probe};
use crate::report::Path;
use crate::site::{AGENT_2, Site, roam};
use crate::usage::Usage;
use crate::voice::Sample;

pub const BEFORE: Duration = Duration::from_millis(500);
/// A gap of this length means that the path did not come back in time.
pub const AFTER: Duration = Duration::from_secs(4);
/// Answers, one each millisecond, after which the path is taken to carry again: more than are under way when the address changes.
const STEADY: u64 = 300;
/// The last packets' answers are still under way when the probe ends, in nanoseconds.
const UNDER_WAY: u64 = 50_000_000;

/// Changes the agent's address while packets flow every millisecond by `path`, and returns the longest time without an answer, in
/// milliseconds. Puts the old address back.
///
/// # Errors
/// Also if the packets before that did not go by `path`.
pub fn measure(site: &mut Site, path: Path) -> Result<f64, LabError> {
    let carrier = site.pid();
    let site = &*site;
    let probe = Probe::start(&site.agent, site.voice(path), Begin::WithPauses)?;
    let flows = probe.wait_for_answers(u64::from(OPENING) + 1, AFTER);
    let checked = if flows { check(site, path, carrier, &probe) } else { Ok(()) };
    if let Err(error) = checked {
        probe.finish()?;
        return Err(error);
    }
    let roamed = roam(&site.agent, AGENT, AGENT_2);
    probe.wait_for_answers(STEADY, AFTER);
    let end = clock::now_ns();
    let samples = probe.finish();
    roamed?;
    roam(&site.agent, AGENT_2, AGENT)?;
    let mut samples = samples?;
    // The opening's pauses are no silence.
    samples.retain(|sample| sample.number > OPENING);
    sleep(BEFORE);
    let longest = if flows { longest_silence(&samples, end) } else { Duration::MAX };
    Ok(longest.min(AFTER).as_secs_f64() * 1e3)
}

/// Listens for a while, and holds what was heard against what the daemon says and did.
fn check(site: &Site, path: Path, carrier: Option<u32>, probe: &Probe) -> Result<(), LabError> {
    let usage = || carrier.map(Usage::of).transpose().during(|| "see how often the client ran".to_owned());
    let before = (usage()?, probe.answers());
    sleep(BEFORE);
    let after = (usage()?, probe.answers());
    if let (Some(was), Some(is)) = (before.0, after.0) {
        site.check_mover(path, (is - was).switches(), after.1.count - before.1.count)?;
    }
    site.check_way(path, site.voice(path), &[after.1.port], after.1.count)
}

/// Between two answers, or between the last one and `end`.
fn longest_silence(samples: &[Sample], end: u64) -> Duration {
    let between = samples.windows(2).filter_map(|pair| match pair {
        [earlier, later] => Some(later.back.saturating_sub(earlier.back)),
        _ => None,
    });
    let last = samples.last().map_or(u64::MAX, |last| end.saturating_sub(last.back));
    let last = if last > UNDER_WAY { last } else { 0 };
    Duration::from_nanos(between.max().unwrap_or(0).max(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(back: &[u64]) -> Vec<Sample> {
        let sample = |ms: &u64| Sample { call: 0, number: 0, due: 0, far: 0, back: ms * 1_000_000 };
        back.iter().map(sample).collect()
    }

    #[test]
    fn the_longest_silence_is_found_wherever_it_is() {
        let silence = |back: &[u64], end: u64| longest_silence(&samples(back), end * 1_000_000).as_millis();
        assert_eq!(silence(&[1, 2, 30, 31], 32), 28);
        assert_eq!(silence(&[1, 2, 30], 4030), 4000);
        assert_eq!(silence(&[1, 2, 3], 40), 1, "answers may be under way");
        assert!(longest_silence(&[], 1) > AFTER);
    }
}

use std::thread::sleep;
use std::time::Duration;

use lab::LabError;

use crate::probe::Probe;
use crate::report::Path;
use crate::site::{
    Site,
    addresses::{AGENT, AGENT_2},
    roam,
};

const BEFORE: Duration = Duration::from_millis(500);
/// A gap of this length means that the path did not come back in time.
pub const AFTER: Duration = Duration::from_secs(4);

/// Changes the agent's address while packets flow every millisecond by `path`, and returns the longest time without an answer, in
/// milliseconds. Puts the old address back.
pub fn measure(site: &Site, path: Path) -> Result<f64, LabError> {
    let probe = Probe::start(&site.agent, site.voice(path))?;
    let flows = probe.wait_for_answer(AFTER);
    sleep(BEFORE);
    let roamed = roam(&site.agent, AGENT, AGENT_2);
    sleep(AFTER);
    let samples = probe.finish()?;
    roamed?;
    roam(&site.agent, AGENT_2, AGENT)?;
    sleep(BEFORE);
    let most = AFTER.as_nanos() as u64;
    let gap = samples.windows(2).filter_map(|pair| match pair {
        [earlier, later] => Some(later.back.saturating_sub(earlier.back)),
        _ => None,
    });
    let sent_for = BEFORE.as_nanos() as u64 + most;
    let last = samples.last().map_or(most, |last| {
        let first = samples.first().map_or(last.back, |first| first.back);
        sent_for.saturating_sub(last.back.saturating_sub(first))
    });
    // The last packets' answers are still under way when the probe ends.
    const UNDER_WAY: u64 = 50_000_000;
    let tail = if last > UNDER_WAY { last } else { 0 };
    let longest = gap.max().unwrap_or(most).max(tail).min(most);
    Ok(if flows { longest } else { most } as f64 / 1e6)
}

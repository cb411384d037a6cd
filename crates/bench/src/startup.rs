use std::thread::sleep;
use std::time::Duration;

use lab::LabError;

use crate::clock;
use crate::probe::Probe;
use crate::report::Path;
use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);
const LEAD: Duration = Duration::from_millis(50);

/// Ends the client, starts it anew, and returns how long after its exec the first packet reached the far end by `path`, in
/// milliseconds; `None` if none did within 10 s. Other authors' programs are configured in that time, as a script would do it.
pub fn measure(site: &mut Site, path: Path) -> Result<Option<f64>, LabError> {
    site.stop_client()?;
    let probe = Probe::start(&site.agent, site.voice(path))?;
    sleep(LEAD);
    let begun = clock::now_ns();
    let started = site.start_client();
    let answered = started.is_ok() && probe.wait_for_answers(1, PATIENCE);
    let samples = probe.finish()?;
    started?;
    let first = samples.iter().map(|sample| sample.far).min().filter(|_| answered);
    Ok(first.map(|first| first.saturating_sub(begun) as f64 / 1e6))
}

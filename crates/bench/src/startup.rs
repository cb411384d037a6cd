use std::thread::sleep;
use std::time::Duration;

use lab::{During, LabError};

use crate::clock;
use crate::probe::{Begin, Probe};
use crate::report::Path;
use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);
const LEAD: Duration = Duration::from_millis(50);

/// Ends the client, starts it anew, and returns how long after its exec the first packet reached the far end by `path`, in
/// milliseconds. Other authors' programs are configured in that time, as a script would do it.
///
/// # Errors
/// If none did within 10 s.
pub fn measure(site: &mut Site, path: Path) -> Result<f64, LabError> {
    site.stop_client()?;
    let probe = Probe::start(&site.agent, site.voice(path), Begin::AtOnce)?;
    sleep(LEAD);
    let begun = clock::now_ns();
    let started = site.start_client();
    let answered = started.is_ok() && probe.wait_for_answers(1, PATIENCE);
    let samples = probe.finish()?;
    started?;
    let first = samples.iter().map(|sample| sample.far).min().filter(|_| answered);
    let first = first.ok_or("no packet came back within 10 s");
    let first = first.during(|| format!("start {} and send by {path}", site.client()))?;
    Ok(first.saturating_sub(begun) as f64 / 1e6)
}

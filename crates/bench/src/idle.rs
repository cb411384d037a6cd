use std::thread::sleep;
use std::time::Duration;

use lab::{During, LabError};

use crate::usage::{Usage, peak_memory, reset_peak_memory};

/// What a client uses with a live session and nothing to do.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// How often a thread was put on a processor.
    pub wakeups_per_second: f64,
    pub cpu_ms_per_second: f64,
    pub memory_bytes: u64,
}

/// Watches all processes at once for `duration`, divided into windows: none of them does anything that could disturb the others. Each
/// window's figures, in the order of the processes.
pub fn measure(pids: &[u32], duration: Duration, windows: u32) -> Result<Vec<Vec<Idle>>, LabError> {
    (0..windows).map(|_| watch(pids, duration / windows)).collect()
}

fn watch(pids: &[u32], duration: Duration) -> Result<Vec<Idle>, LabError> {
    let usage = |pid: &u32| Usage::of(*pid).during(|| format!("read what process {pid} has used"));
    for pid in pids {
        reset_peak_memory(*pid).during(|| format!("reset the peak memory of process {pid}"))?;
    }
    let before: Vec<Usage> = pids.iter().map(usage).collect::<Result<_, _>>()?;
    sleep(duration);
    pids.iter()
        .zip(before)
        .map(|(pid, before)| {
            let used = usage(pid)? - before;
            let seconds = duration.as_secs_f64();
            Ok(Idle {
                wakeups_per_second: used.switches() as f64 / seconds,
                cpu_ms_per_second: used.cpu.as_secs_f64() * 1e3 / seconds,
                memory_bytes: peak_memory(*pid).during(|| format!("read the memory of process {pid}"))?,
            })
        })
        .collect()
}

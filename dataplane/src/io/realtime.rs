use std::io;
use std::time::{Duration, Instant};

/// Above all ordinary work, below whatever else on the machine is real-time.
const PRIORITY: libc::c_int = 1;
/// How often the thread's share of a core is looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// Fifty calls need under a tenth of a core. A flood that needs half of one must not keep others off it.
const TOO_MUCH: f64 = 0.5;
const LITTLE: f64 = 0.25;

/// The calling thread's real-time scheduling (SCHED_FIFO, sched(7)), which it loses while it uses much of a core.
pub(crate) struct RealTime {
    on: bool,
    looked_at: Instant,
    used: Duration,
}

impl RealTime {
    /// Needs CAP_SYS_NICE or RLIMIT_RTPRIO.
    pub(crate) fn enter(now: Instant) -> io::Result<Self> {
        schedule(libc::SCHED_FIFO, PRIORITY)?;
        Ok(Self { on: true, looked_at: now, used: cpu_used() })
    }

    /// To be called each time the thread has worked; looks at its share every tenth of a second. What it slept before the first work
    /// counts for that alone, so a burst after silence is measured from its beginning.
    pub(crate) fn keep_modest(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.looked_at);
        if passed < PERIOD {
            return;
        }
        let used = cpu_used();
        let share = used.saturating_sub(self.used).as_secs_f64() / passed.as_secs_f64();
        (self.looked_at, self.used) = (now, used);
        let on = share < if self.on { TOO_MUCH } else { LITTLE };
        if on == self.on {
            return;
        }
        let (policy, priority) = if on { (libc::SCHED_FIFO, PRIORITY) } else { (libc::SCHED_OTHER, 0) };
        match schedule(policy, priority) {
            Ok(()) => self.on = on,
            Err(error) => tracing::warn!(%error, "the voice thread's priority cannot be changed"),
        }
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sched_param.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: 0 is the calling thread; the kernel only reads the parameters.
    match unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn cpu_used() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_never_rests_loses_its_priority_and_gets_it_back_once_it_rests() {
        let refused = thread::spawn(|| {
            let began = Instant::now();
            let mut real_time = match RealTime::enter(began) {
                Ok(real_time) => real_time,
                Err(error) => return Some(error),
            };
            while real_time.on {
                real_time.keep_modest(Instant::now());
            }
            assert_eq!(policy(), libc::SCHED_OTHER);
            while !real_time.on {
                thread::sleep(PERIOD);
                real_time.keep_modest(Instant::now());
            }
            assert_eq!(policy(), libc::SCHED_FIFO);
            None
        });
        if let Some(error) = refused.join().unwrap() {
            assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "no real-time scheduling: {error}");
            eprintln!("skipped, because real-time scheduling is not permitted: {error}");
        }
    }

    fn policy() -> libc::c_int {
        // SAFETY: 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK }
    }
}

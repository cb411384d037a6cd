//! What a process has used, from its clock and /proc (proc_pid_status).

use std::fs;
use std::io;
use std::ops::Sub;
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// What a process has used since it started: processor time of all its threads that ever were, switches of those that live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// On a processor, in user and kernel mode. Work that the kernel does for it in interrupts is not in here.
    pub cpu: Duration,
    /// Voluntary context switches: each is a sleep, and what ends a sleep is a wake-up.
    pub wakeups: u64,
    /// Involuntary context switches: the scheduler took the processor away.
    pub preemptions: u64,
}

impl Usage {
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut sum = Self { cpu: processor_time(pid)?, ..Self::default() };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // The thread may have ended since the directory was read.
            let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
            sum.wakeups += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
            sum.preemptions += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(sum)
    }

    /// How often a thread was put on a processor.
    pub fn switches(&self) -> u64 {
        self.wakeups + self.preemptions
    }
}

/// By the process's own clock: exact to the nanosecond also for a thread that runs at this moment, and with the threads that have ended.
fn processor_time(pid: u32) -> io::Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    Ok(clock_gettime(clock_getcpuclockid(pid)?)?.into())
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            wakeups: self.wakeups.saturating_sub(earlier.wakeups),
            preemptions: self.preemptions.saturating_sub(earlier.preemptions),
        }
    }
}

/// The largest resident set since the process began or [`reset_peak_memory`], in bytes.
pub fn peak_memory(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    field(&status, "VmHWM:")
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no VmHWM")))
}

/// Lets [`peak_memory`] begin anew.
pub fn reset_peak_memory(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let status =
            "Name:\tx\nVmHWM:\t    1234 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "VmHWM:"), Some(1234));
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(7));
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), Some(3));
        assert_eq!(field(status, "VmRSS:"), None);
    }

    #[test]
    fn the_time_of_a_thread_that_has_ended_still_counts() {
        let pid = std::process::id();
        let before = Usage::of(pid).unwrap();
        let thread = std::thread::spawn(|| {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            Usage::of(std::process::id()).unwrap().cpu
        });
        let within = thread.join().unwrap();
        assert!(within > before.cpu, "a running thread's time is up to date");
        assert!(Usage::of(pid).unwrap().cpu >= within);
    }

    #[test]
    fn a_busy_thread_is_seen_to_have_used_the_processor() {
        let pid = std::process::id();
        let before = Usage::of(pid).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        std::thread::sleep(Duration::from_millis(1));
        let used = Usage::of(pid).unwrap() - before;
        assert!(used.cpu > Duration::ZERO && used.wakeups > 0, "{used:?}");
        assert!(peak_memory(pid).unwrap() > 100_000);
    }
}

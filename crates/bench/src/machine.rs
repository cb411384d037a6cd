use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::report::Machine;

/// Describes the machine this runs on; what cannot be found out is empty or 0.
pub fn describe() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let value = |text: &str, name: &str, separator: char| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(separator)
            .map(|(_, value)| value.trim().trim_matches('"').to_owned())
            .unwrap_or_default()
    };
    let kib: u64 = value(&read("/proc/meminfo"), "MemTotal", ':')
        .split_whitespace()
        .next()
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0);
    let is_virtual = value(&cpuinfo, "flags", ':').split_whitespace().any(|flag| flag == "hypervisor");
    Machine {
        processor: value(&cpuinfo, "model name", ':'),
        cores: std::thread::available_parallelism().map_or(0, |cores| cores.get() as u64),
        is_virtual,
        memory_bytes: kib * 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        system: value(&read("/etc/os-release"), "PRETTY_NAME", '='),
        load_average: read("/proc/loadavg")
            .split_whitespace()
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or(0.0),
    }
}

/// How long the machine is watched to see what it does by itself.
pub const QUIET: Duration = Duration::from_secs(5);
/// Of the counters in /proc/stat, in seconds (USER_HZ, proc_stat(5)). What is idle is known exactly and shown in these.
const TICK: f64 = 0.01;

/// How busy all processors together are, interrupts included.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    begun: Instant,
    processors: usize,
    idle: f64,
}

impl Busy {
    /// Begins to watch.
    pub fn watch() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { begun: Instant::now(), processors: processors(&stat), idle: idle_seconds(&stat) }
    }

    /// For how many seconds, and how many CPU seconds processors were not idle in them, give or take 0.02 for each processor.
    pub fn so_far(&self) -> (f64, f64) {
        let now = Self::watch();
        let seconds = (now.begun - self.begun).as_secs_f64();
        (seconds, (seconds * self.processors as f64 - (now.idle - self.idle)).max(0.0))
    }
}

/// How many the line of all processors is about: this process may be allowed fewer.
fn processors(stat: &str) -> usize {
    let is_one = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(is_one).count()
}

/// Of all processors: fields `idle` and `iowait`.
fn idle_seconds(stat: &str) -> f64 {
    let fields =
        stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default().split_whitespace();
    fields.skip(3).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() * TICK
}

/// The first line that a program says with `--version`; empty if it says none.
pub fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let said = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_read_from_the_line_of_all_processors() {
        let stat = "cpu  10 20 30 400 50 6 7 8 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\ncpu1 9 18 27 396 45 0 0 0 0 0\nintr 1\n";
        assert!((idle_seconds(stat) - 4.5).abs() < 1e-9);
        assert_eq!((idle_seconds(""), processors(stat), processors("")), (0.0, 2, 0));
    }

    #[test]
    fn a_process_that_may_use_one_processor_still_sees_all_of_them() {
        let alone = std::thread::spawn(|| {
            crate::scheduling::pin_this_thread(0).unwrap();
            Busy::watch().processors
        });
        let permitted = std::thread::available_parallelism().unwrap().get();
        assert!(alone.join().unwrap() >= permitted);
    }
}

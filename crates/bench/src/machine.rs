use std::fs;
use std::path::Path;
use std::process::Command;

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

/// The first line that a program says with `--version`; empty if it says none.
pub fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let said = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().trim().to_owned()
}

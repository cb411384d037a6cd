//! What of a machine's network a program can change, by other programs' account, and how names are resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_link, read_to_string, symlink_metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::Host;

use crate::common::{eventually, ok, program, said};

/// Each thing's name and what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine(BTreeMap<String, String>);

/// Programs and their arguments; `ip` without statistics, `nft` without handles.
const QUESTIONS: [(&str, &[&str]); 7] = [
    ("ip", &["-details", "link"]),
    ("ip", &["address"]),
    ("ip", &["-4", "route", "show", "table", "all"]),
    ("ip", &["-6", "route", "show", "table", "all"]),
    ("ip", &["-4", "rule"]),
    ("ip", &["-6", "rule"]),
    ("nft", &["list", "ruleset"]),
];
/// What says how names are resolved.
const NAMES: [&str; 4] = [
    "/run/resolvconf",
    "/run/systemd/resolve/netif",
    "/run/systemd/resolve/resolv.conf",
    "/run/systemd/resolve/stub-resolv.conf",
];
const SYSCTLS: &str = "/proc/sys/net";
/// Sysctls that count something.
const COUNTERS: [&str; 1] = ["/proc/sys/net/netfilter/nf_conntrack_count"];
/// Duplicate address detection takes a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

impl Machine {
    /// `None`, said on standard error, without `ip` or `nft`.
    pub fn look(host: &Host) -> Option<Self> {
        program("ip", "iproute2")?;
        program("nft", "nftables")?;
        let all = eventually(PATIENCE, || {
            let all = ask(host);
            let is_settled = !all.values().any(|answer| answer.contains("tentative"));
            if is_settled { Ok(all) } else { Err("an address stays tentative".to_owned()) }
        });
        Some(Self(all))
    }

    /// What is different, a line each: byte for byte, so that order counts too.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let differ = |name: &&String| self.0.get(*name) != other.0.get(*name);
        names.into_iter().filter(differ).flat_map(|name| self.difference(other, name)).collect()
    }

    fn difference(&self, other: &Self, name: &str) -> Vec<String> {
        let lines = |machine: &Self| -> Vec<String> {
            machine.0.get(name).map(|text| text.lines().map(str::to_owned).collect()).unwrap_or_default()
        };
        let (old, new) = (lines(self), lines(other));
        let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("{name}: - {line}"));
        let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("{name}: + {line}"));
        let differences: Vec<_> = gone.chain(come).collect();
        if differences.is_empty() { vec![format!("{name}: was {old:?}, is {new:?}")] } else { differences }
    }
}

#[test]
fn order_and_number_count_among_differences() {
    let machine = |text: &str| Machine([("ip rule".to_owned(), text.to_owned())].into());
    let before = machine("a\nb\n");
    assert!(before.differences(&before).is_empty());
    for other in ["b\na\n", "a\nb\nb\n", "a\nb", "a\n", ""] {
        assert!(!before.differences(&machine(other)).is_empty(), "{other:?}");
    }
    assert_eq!(before.differences(&Machine(BTreeMap::new())).len(), 2);
    assert_eq!(Machine(BTreeMap::new()).differences(&machine("")).len(), 1);
}

fn ask(host: &Host) -> BTreeMap<String, String> {
    let mut all = ok(host.run(sysctls));
    assert!(all.keys().any(|name| name.ends_with("/eth0/rp_filter")), "no sysctls were read");
    all.extend(ok(host.run(names)));
    assert!(all.contains_key("/etc/resolv.conf"));
    for (program, arguments) in QUESTIONS {
        let mut command = Command::new(program);
        command.args(arguments);
        all.insert(format!("{program} {}", arguments.join(" ")), said(&ok(host.output(command))));
    }
    all
}

/// Each with its kind, mode and owner.
fn names() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut paths: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    let in_etc = read_dir("/etc").unwrap().flatten().map(|entry| entry.path());
    paths.extend(in_etc.filter(|path| path.to_string_lossy().contains("resolv.conf")));
    while let Some(path) = paths.pop() {
        let Ok(metadata) = symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            paths.extend(read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
            continue;
        }
        let target = read_link(&path).map(|target| format!("-> {}", target.display())).unwrap_or_default();
        let content = read_to_string(&path).unwrap_or_default();
        let kind = format!("{:o} {}:{} {target}", metadata.mode(), metadata.uid(), metadata.gid());
        found.insert(path.display().to_string(), format!("{kind}\n{content}"));
    }
    found
}

fn sysctls() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![PathBuf::from(SYSCTLS)];
    while let Some(directory) = directories.pop() {
        for entry in read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(path);
            } else if let Some(value) = read(&path) {
                found.insert(path.display().to_string(), value);
            }
        }
    }
    found
}

/// Some can only be written, some are unset.
fn read(path: &Path) -> Option<String> {
    if COUNTERS.iter().any(|counter| path == Path::new(counter)) {
        return None;
    }
    read_to_string(path).ok()
}

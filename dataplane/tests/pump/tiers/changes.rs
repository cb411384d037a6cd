//! What changes beneath a call ends its entry in the kernel. With BREAKOUT_LONG ten times each, to see how soon.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use policy::{Config, Snapshot};

use super::call::{Call, PATIENCE, STUN, machine_with_fast_path};
use super::capture::{Capture, Seen};
use crate::machine::{CONFIG, Machine, V6, ip, underlay, wait_for_carrier};

const OTHER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 78, 10));
/// Between two packets of a call.
const PACE: Duration = Duration::from_millis(1);
/// Without a packet for so long, a way is no longer taken.
const SILENCE: Duration = Duration::from_millis(200);
/// What is idle is looked for every 30 s.
const SWEPT: Duration = Duration::from_secs(35);

#[derive(Clone, Copy, Debug)]
enum Change {
    LinkDown,
    AddressReplaced,
    Forbidden,
    RouteMoved,
}

#[test]
fn the_kernel_moves_nothing_by_what_was_before_a_change() {
    let rounds = if std::env::var_os("BREAKOUT_LONG").is_some() { 10 } else { 1 };
    for change in [Change::LinkDown, Change::AddressReplaced, Change::Forbidden, Change::RouteMoved] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            let Some(machine) = machine_with_fast_path() else { return };
            times.push(outlived(&machine, change));
        }
        times.sort_unstable();
        let (median, most) = (times[rounds / 2], times[rounds - 1]);
        eprintln!("{change:?}: an entry outlives it by {median:?} (median of {rounds}), at most {most:?}");
    }
}

/// Over IPv6 the kernel leaves a router that is silent, and tells nobody.
#[test]
fn a_way_that_changes_without_a_word_is_followed_when_idle_flows_are_ended() {
    let Some(machine) = machine_with_fast_path() else { return };
    add_cable(&machine);
    machine.far.run(|| ip("address add 2001:db8:88::1/64 dev other nodad"));
    ip("address add 2001:db8:88::10/64 dev cable nodad");
    let mut call = Call::new(&machine, V6.tun, V6);
    call.there_and_back();
    call.wait_for_kernel(&machine);
    let other = machine.far.run(|| Capture::start("other"));
    ip("route replace default via 2001:db8:88::1");
    let begun = Instant::now();
    while !other.waiting().any(|seen| seen.destination == call.remote) {
        assert!(begun.elapsed() < SWEPT, "it goes by the old router");
        call.there_and_back();
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How long after the change began the call's last packet was moved by what had been before.
fn outlived(machine: &Machine, change: Change) -> Duration {
    change.prepare(machine);
    let (call, external) = Call::in_kernel(machine);
    let pump = Capture::start(&machine.tun);
    let (_on, off) = channel::<()>();
    let (app, remote) = (call.app.try_clone().unwrap(), call.remote);
    std::thread::spawn(move || {
        while off.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
            // What is refused is told to the application.
            let _ = app.send_to(&STUN, remote);
        }
    });
    std::thread::sleep(SILENCE);
    let is_pumped = |seen: &Seen| seen.outgoing && seen.destination == remote;
    assert_eq!(pump.waiting().filter(is_pumped).count(), 0, "the call is the kernel's");

    let wire = machine.far.run(|| Capture::start("wan"));
    let changed = since_1970();
    change.make(machine);
    let last = match change {
        // The wire is cut: the pump's first packet tells that the entry has ended.
        Change::LinkDown => first(&pump, is_pumped),
        _ => last(&wire, changed, |seen| seen.source == external),
    };
    last.saturating_sub(changed)
}

fn first(capture: &Capture, is_it: impl Fn(&Seen) -> bool) -> Duration {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "the entry lives on");
        if let Some(seen) = capture.next(SILENCE).filter(&is_it) {
            return seen.at;
        }
    }
}

/// When the last one passed, before others alone did, or none.
fn last(capture: &Capture, mut last: Duration, is_it: impl Fn(&Seen) -> bool) -> Duration {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "the entry lives on");
        match capture.next(SILENCE) {
            Some(seen) if is_it(&seen) => last = last.max(seen.at),
            Some(seen) if seen.at < last + SILENCE => {}
            _ => return last,
        }
    }
}

impl Change {
    /// What is to be there before.
    fn prepare(self, machine: &Machine) {
        match self {
            Self::LinkDown | Self::Forbidden => {}
            Self::AddressReplaced => {
                machine.far.run(|| ip("address add 192.168.78.1/24 dev wan"));
                ip(&format!("address add {OTHER_ADDRESS}/24 dev wifi"));
            }
            Self::RouteMoved => add_cable(machine),
        }
    }

    /// Makes the change and tells the pump, as the daemon does.
    fn make(self, machine: &Machine) {
        match self {
            Self::LinkDown => {
                ip("link set wifi down");
                machine.pump.routes_changed().unwrap();
            }
            Self::AddressReplaced => {
                ip("address delete 192.168.77.10/24 dev wifi");
                machine.pump.routes_changed().unwrap();
                ip("route replace default via 192.168.78.1");
                machine.pump.set_underlay(underlay(Some(OTHER_ADDRESS))).unwrap();
            }
            Self::Forbidden => {
                assert_eq!(machine.pump.swap(without_media()).unwrap(), 1);
            }
            Self::RouteMoved => {
                ip("route replace default via 192.168.88.1");
                machine.pump.routes_changed().unwrap();
            }
        }
    }
}

/// A second way to the far end, by its router 192.168.88.1 on `cable`; there it is `other`.
pub fn add_cable(machine: &Machine) {
    let thread = machine.far.thread;
    ip(&format!("link add cable type veth peer name other netns {thread}"));
    ip("link set cable up");
    machine.far.run(|| {
        ip("link set other up");
        wait_for_carrier("other");
        ip("address add 192.168.88.1/24 dev other");
    });
    wait_for_carrier("cable");
    ip("address add 192.168.88.10/24 dev cable");
}

pub fn without_media() -> Arc<Snapshot> {
    let config =
        CONFIG.replace("52.129.96.0/20", "52.129.112.0/20").replace("2001:db8:96::/64", "2001:db8:97::/64");
    let (config, _) = Config::parse(&config, "test.toml").unwrap();
    Arc::new(Snapshot::compile(&config))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

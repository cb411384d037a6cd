//! What keeps signaling closed when the daemon cannot go on, in a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use std::process::Command;

use common::Place;

/// Runs a shell script in a fresh network namespace; returns what it printed. `$B` is the program.
fn in_namespace(place: &Place, script: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        lab::skip("this needs root");
        return None;
    }
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .current_dir(place.path(""))
        .env("B", env!("CARGO_BIN_EXE_breakout"))
        .env("BREAKOUT_STATE_DIR", place.state())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Waits until the daemon is up, at most 10 s.
const UP: &str = r#"
    up() {
        $B up --config agent.toml > log 2>&1 &
        daemon=$!
        for _ in $(seq 100); do grep -q 'is up' log && return; sleep 0.1; done
        cat log
        exit 1
    }
    ip link set lo up
"#;

#[test]
fn a_failed_start_leaves_closed_what_a_crash_left_closed() {
    let place = Place::new();
    place.write_config("");
    let script = r#"
        up
        kill -9 $daemon
        wait $daemon
        rm state/control
        mkdir -p state/control/in-the-way
        $B up --config agent.toml; echo "exit $?"
        ip rule | grep -c 'proto 181'
        ip route show table 51821 | grep prohibit
        rm -r state/control
        $B down
        ip rule | grep -c 'proto 181'
        mkdir -p state/control/in-the-way
        $B up --config agent.toml; echo "exit $?"
        ip rule | grep -c 'proto 181'
        true
    "#;
    let Some(out) = in_namespace(&place, &format!("{UP}{script}")) else { return };
    let lines: Vec<&str> = out.lines().filter(|line| !line.starts_with("removed")).map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "exit 3",
            "2",
            "prohibit 203.0.113.0/24 proto 181 metric 200",
            "no daemon was running; a crash had left something behind",
            "0",
            "exit 3",
            "0"
        ]
    );
}

/// By another configuration, with other prefixes and no kill switch.
#[test]
fn a_failed_start_opens_nothing_that_a_crash_left_closed() {
    if let Err(missing) = lab::find_program("nft", "Install it: apt install nftables.") {
        lab::skip(missing);
        return;
    }
    let place = Place::new();
    place.write_config("[routes]\nkill_switch = true\n");
    let script = r#"
        up
        kill -9 $daemon
        wait $daemon
        sed -i 's#203.0.113.0/24#198.51.100.0/24#; s/kill_switch = true/kill_switch = false/' agent.toml
        rm state/control
        mkdir -p state/control/in-the-way
        for attempt in 1 2; do
            $B up --config agent.toml; echo "exit $?"
            ip route show table 51821 | grep prohibit
            nft list tables | grep -c 'breakout-kill-switch$'
        done
        rm -r state/control log
        up
        ip route show table 51821 | grep prohibit
        nft list tables | grep -c 'breakout-kill-switch$'
        $B down
    "#;
    let Some(out) = in_namespace(&place, &format!("{UP}{script}")) else { return };
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    let [new, old] =
        ["198.51.100.0/24", "203.0.113.0/24"].map(|prefix| format!("prohibit {prefix} proto 181 metric 200"));
    let failed = ["exit 3", &new, &old, "1"];
    assert_eq!(lines, [failed.as_slice(), &failed, &[&new, "0", "breakout is down"]].concat());
}

#[test]
fn a_signal_that_comes_early_is_no_crash() {
    let place = Place::new();
    place.write_config("");
    // Each of them at another moment of the start; before there is anything to undo, it just ends.
    let script = r#"
        for delay in 0 0.002 0.004 0.006 0.008 0.01 0.015 0.02 0.03; do
            $B up --config agent.toml > log 2>&1 &
            daemon=$!
            sleep $delay
            kill -TERM $daemon
            wait $daemon
            ip rule | grep 'proto 181' && echo "left after $delay s"
        done
        true
    "#;
    let Some(out) = in_namespace(&place, &format!("{UP}{script}")) else { return };
    assert_eq!(out, "");
}

#[test]
fn a_full_standard_output_does_not_end_the_daemon() {
    let place = Place::new();
    place.write_config("");
    let script = r#"
        $B up --config agent.toml > /dev/full 2> log &
        daemon=$!
        for _ in $(seq 100); do grep -q 'cannot write to standard output' log && break; sleep 0.1; done
        kill -TERM $daemon
        wait $daemon
        echo "exit $?"
        ip rule | grep -c 'proto 181'
        true
    "#;
    let Some(out) = in_namespace(&place, &format!("{UP}{script}")) else { return };
    assert_eq!(out.lines().collect::<Vec<_>>(), ["exit 0", "0"]);
}

#[test]
fn a_daemon_that_was_started_in_its_place_is_not_taken_for_the_one_that_ended() {
    let place = Place::new();
    place.write_config("");
    // Whoever waits for the lock has it the moment it is free, as a service manager's next daemon may.
    let script = r#"
        up
        flock state/lock sh -c 'echo $$ > state/lock; exec sleep 60' &
        sleep 0.2
        $B down 2> err; echo "exit $?"
        holder=$(cat state/lock)
        tr -d '\n│' < err | tr -s ' ' | grep -o "another one was started in its place (pid $holder)"
        tr -d '\n│' < err | tr -s ' ' | grep -o 'service manager'
        $B down 2> err; echo "exit $?"
        tr -d '\n│' < err | tr -s ' ' | grep -o "the daemon (pid $holder) cannot be asked to end"
        kill $holder
        wait
        $B down
    "#;
    let Some(out) = in_namespace(&place, &format!("{UP}{script}")) else { return };
    let lines: Vec<&str> = out.lines().map(|line| line.split(" (pid").next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            "exit 3",
            "another one was started in its place",
            "service manager",
            "exit 3",
            "the daemon",
            "no daemon was running, and none has left anything behind"
        ]
    );
}

//! The leak matrix: what leaves the agent for signaling in each situation, with and without the kill switch. docs/security.md has the
//! table; the judge is the access router's wire. The same attempts without a daemon are the control, and within each capture datagrams to
//! somebody whom no set has show that attempts were made.

pub mod cell;
pub mod knock;
pub mod others;
mod sockets;

use std::thread::sleep;
use std::time::Duration;

use cell::{Cell, of_the_agents};
use knock::{Knocking, PATIENCE, ROUTED, Way, connect};
use lab::addresses::SIGNALING;
use nix::sys::signal::Signal;
use others::{
    foreign_ruleset_flush, foreign_ruleset_flush_while_dead, forwarded, network_changing,
    other_rules_come_first, other_rules_come_first_while_dead, routing_taken_away,
    routing_taken_away_while_dead,
};
use sockets::{
    connection_from_a_gap, connection_from_before_a_reload, connection_from_before_up, ipv6,
    socket_bound_to_a_device,
};

use crate::common::{ok, said};

/// A tunnel whose gateway is silent is known to be down after 5 s.
pub const SILENCE: Duration = Duration::from_secs(7);

macro_rules! cells {
    ($($situation:ident),* $(,)?) => { $(
        mod $situation {
            #[test]
            fn with_kill_switch() {
                super::Cell::run(true, super::$situation);
            }

            #[test]
            fn without_kill_switch() {
                super::Cell::run(false, super::$situation);
            }
        }
    )* };
}

cells!(
    tunnel_up,
    tunnel_down,
    gateway_dead,
    daemon_killed,
    killed_and_restarted,
    ended_and_restarted,
    reloading,
    suspended,
    network_changing,
    connection_from_before_up,
    connection_from_before_a_reload,
    connection_from_a_gap,
    socket_bound_to_a_device,
    foreign_ruleset_flush,
    foreign_ruleset_flush_while_dead,
    routing_taken_away,
    routing_taken_away_while_dead,
    other_rules_come_first,
    other_rules_come_first_while_dead,
    forwarded,
    ipv6,
);

fn tunnel_up(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    cell.scene.reaches_signaling().unwrap();
    let (wire, ()) = cell.scene.on_wire(|| cell.knock());
    cell.assert_none(&wire);
}

fn tunnel_down(cell: &mut Cell) {
    cell.up();
    let (wire, ()) = cell.scene.on_wire(|| cell.while_knocking(|_| sleep(SILENCE)));
    cell.assert_none(&wire);
}

fn gateway_dead(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    cell.scene.reaches_signaling().unwrap();
    cell.scene.gateway = None;
    let (wire, ()) = cell.scene.on_wire(|| cell.while_knocking(|_| sleep(SILENCE)));
    cell.assert_none(&wire);
}

fn daemon_killed(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    let daemon = cell.scene.daemon.take().unwrap();
    let (wire, ()) = cell.scene.on_wire(|| {
        cell.while_knocking(|_| daemon.kill().unwrap());
        cell.knock();
    });
    cell.assert_none(&wire);
}

fn killed_and_restarted(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    let capture = ok(lab::Capture::start(&cell.scene.internet.router, "lan0"));
    let knocking = Knocking::on(&cell.scene.internet.agent, cell.targets, cell.ways());
    for _ in 0..5 {
        ok(cell.scene.kill_daemon());
        sleep(PATIENCE);
        cell.up();
    }
    knocking.stop();
    let wire = ok(capture.finish());
    cell.assert_none(&wire);
    cell.scene.reaches_signaling().unwrap();
}

/// In between signaling leaves, as without a daemon; what was connected then is ended, and nothing of it goes on.
fn ended_and_restarted(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    for _ in 0..3 {
        let knocking = Knocking::on(&cell.scene.internet.agent, cell.targets, ROUTED);
        ok(cell.scene.stop_daemon());
        let reach = || connect((SIGNALING, 80).into(), Way::Routed);
        let open =
            ok(cell.scene.internet.agent.run(reach)).expect("signaling is reached directly after the end");
        cell.up();
        open.send(b"GET /secret HTTP/1.1\r\n\r\n").unwrap_err();
        // The round that `up` came in the middle of.
        sleep(2 * PATIENCE);
        let (wire, ()) = cell.scene.on_wire(|| {
            cell.knock();
            sleep(Duration::from_secs(1));
        });
        knocking.stop();
        cell.assert_none(&of_the_agents(wire));
    }
    cell.scene.reaches_signaling().unwrap();
}

fn reloading(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    let text = cell.config();
    let halves =
        text.replace("\"203.0.113.0/24\"", "\"203.0.113.0/25\", \"203.0.113.128/25\", \"198.51.99.0/24\"");
    assert_ne!(text, halves);
    let (wire, ()) = cell.scene.on_wire(|| {
        cell.while_knocking(|cell| {
            for config in [&halves, &text].into_iter().cycle().take(10) {
                ok(cell.scene.directory.write("breakout.toml", config));
                said(&cell.scene.breakout(&["reload"]));
            }
        });
    });
    cell.assert_none(&wire);
}

/// As far as applications can tell: they run, the daemon does not. A machine that sleeps runs neither.
fn suspended(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    cell.scene.reaches_signaling().unwrap();
    let signal = |cell: &mut Cell, signal| ok(cell.scene.daemon.as_mut().unwrap().process().signal(signal));
    signal(cell, Signal::SIGSTOP);
    let (wire, ()) = cell.scene.on_wire(|| cell.while_knocking(|_| sleep(Duration::from_secs(1))));
    signal(cell, Signal::SIGCONT);
    cell.assert_none(&wire);
    cell.scene.reaches_signaling().unwrap();
}

//! A machine that sleeps. Nothing here can put one to sleep, nor make its clock jump: a daemon that does not run for as long as a session
//! lasts finds itself where one is that wakes up, with the time that has passed and the packets that wait. That the clock counts suspension
//! is dataplane's to test.

use std::io::{Read, Write};
use std::thread::sleep;
use std::time::Duration;

use lab::addresses::{GATEWAY, SIGNALING};
use lab::traffic::stream::connect;
use lab::{Record, Wiring};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Scene, assert_hidden, is_long, is_tunnel, ok, shared};

/// WireGuard's REJECT_AFTER_TIME, and some.
const ASLEEP: Duration = Duration::from_secs(185);
/// The first byte of WireGuard's messages.
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;

#[test]
fn a_session_that_has_aged_asleep_is_renewed_before_the_first_packet() {
    if !is_long() {
        return;
    }
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    let pid = Pid::from_raw(scene.daemon.as_mut().unwrap().process().pid() as i32);
    let mut open = ok(scene.internet.agent.run(|| connect((SIGNALING, 80).into()))).unwrap();
    let request = b"GET / HTTP/1.1\r\n\r\n";
    let (wire, ()) = scene.on_wire(|| {
        open.write_all(request).unwrap();
        open.read_exact(&mut [0; 12]).unwrap();
    });
    assert_eq!(kinds(&wire.records)[0], (true, DATA), "the control");

    kill(pid, Signal::SIGSTOP).unwrap();
    sleep(ASLEEP);
    let (wire, ()) = scene.on_wire(|| {
        open.write_all(request).unwrap();
        kill(pid, Signal::SIGCONT).unwrap();
        open.read_exact(&mut [0; 12]).unwrap();
    });
    assert_hidden(&wire);
    let kinds = kinds(&wire.records);
    let first = |wanted| kinds.iter().position(|kind| *kind == wanted).expect("no such message");
    assert!(first((true, INITIATION)) < first((false, RESPONSE)), "{kinds:?}");
    assert!(first((false, RESPONSE)) < first((true, DATA)), "data in a session that is too old: {kinds:?}");
}

/// Of the tunnel's messages, whether they go to the gateway, and their kind.
fn kinds(records: &[Record]) -> Vec<(bool, u8)> {
    let tunnel = records.iter().filter(|record| is_tunnel(record));
    tunnel.filter_map(|record| Some((record.destination.ip() == GATEWAY, *record.head.first()?))).collect()
}

//! How long the addresses that names were found to have count.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::Process;
use lab::addresses::AGENT;

use crate::common::{Scene, eventually, exe, is_long, ok, said, shared};
use crate::names::{
    FIRST, NAMES, OTHER_PORT, PATIENCE, PORT, STILL, assert_kept_in, call, connect, is_of, names, raise_with,
    scene, start_gateway, write_config,
};
use crate::resolvers::getent;

/// What is in use is kept, also where each use is short and refused; what is not ends.
#[test]
fn an_address_that_is_used_now_and_then_does_not_end() {
    const GRACE: u64 = 4;
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let _dns = start_gateway(&mut scene, STILL);
    let _daemon = start_with_grace(&mut scene, GRACE);

    // The tunnel does not take this source, so that there is no flow.
    let use_it = |scene: &Scene| {
        let send =
            || UdpSocket::bind((AGENT, 0)).and_then(|socket| socket.send_to(b"REGISTER", (FIRST, PORT)));
        // The refusal of the one before may come here.
        let _ = ok(scene.internet.agent.run(send));
    };
    let (wire, ()) = scene.on_wire(|| {
        for _ in 0..6 * GRACE {
            use_it(&scene);
            sleep(Duration::from_millis(500));
        }
        connect(&scene, (FIRST, OTHER_PORT)).unwrap();
    });
    assert!(
        wire.records.iter().any(|record| record.destination == (FIRST, OTHER_PORT).into()),
        "the control"
    );
    assert_kept_in("used all the while", &wire, FIRST);

    eventually(PATIENCE, || if is_known(&scene) { Err("it does not end".to_owned()) } else { Ok(()) });
    let (wire, ()) = scene.on_wire(|| use_it(&scene));
    assert!(wire.records.iter().any(|record| is_of(record, FIRST)), "it has not ended");

    // A flow is a use for longer than that.
    assert_eq!(call(&scene, 1).greeted, 1);
    sleep(Duration::from_secs(3 * GRACE));
    assert!(is_known(&scene));
    said(&scene.breakout(&["down"]));
}

/// A softphone that registers anew every six minutes: the pump has forgotten its flow by then, and it is seen no more when the grace ends.
#[test]
fn a_use_is_seen_though_its_flow_has_ended() {
    const GRACE: u64 = 360;
    if !is_long() {
        return;
    }
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let _dns = start_gateway(&mut scene, STILL);
    let _daemon = start_with_grace(&mut scene, GRACE);
    let use_it = |scene: &Scene| {
        let send = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"REGISTER", (FIRST, PORT));
        ok(scene.internet.agent.run(send)).unwrap();
    };
    sleep(Duration::from_secs(20));
    use_it(&scene);
    sleep(Duration::from_secs(GRACE - 10));
    let (wire, ()) = scene.on_wire(|| {
        use_it(&scene);
        connect(&scene, (FIRST, OTHER_PORT)).unwrap();
    });
    assert!(
        wire.records.iter().any(|record| record.destination == (FIRST, OTHER_PORT).into()),
        "the control"
    );
    assert_kept_in("used every six minutes", &wire, FIRST);
    said(&scene.breakout(&["down"]));
}

/// However many addresses names have had: those that are past their TTL make room.
#[test]
fn there_is_always_room_for_the_addresses_of_now() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let _dns = raise_with(&mut scene, STILL, false);
    let count = || names(&scene).addresses.iter().map(|found| found.address).collect::<Vec<IpAddr>>().len();
    for number in 0..80 {
        let name = format!("many-{number}.usw2.pure.cloud");
        assert!(getent(&scene, &name).contains("45.0."), "{name} has no answer, with {} known", count());
    }
    assert!((4000..=4096).contains(&count()), "{}", count());
    assert_eq!(call(&scene, NAMES.len()).greeted, NAMES.len());
}

/// How long an address counts beyond its TTL, in seconds. The usual names are known when this returns.
fn start_with_grace(scene: &mut Scene, seconds: u64) -> Process {
    let config = write_config(scene, false, |config| config);
    let mut up = Command::new(exe());
    up.args(["up", "--config"]).arg(config).env("BREAKOUT_STATE_DIR", scene.directory.file("state"));
    up.env("BREAKOUT_GRACE_SECONDS", seconds.to_string());
    let log = scene.directory.file("daemon.log");
    let mut daemon = ok(Process::spawn(&scene.internet.agent, "breakout up", up, &log));
    ok(daemon.wait_for_line("breakout is up", PATIENCE));
    eventually(PATIENCE, || if is_known(scene) { Ok(()) } else { Err("it is not learned".to_owned()) });
    daemon
}

fn is_known(scene: &Scene) -> bool {
    names(scene).addresses.iter().any(|found| found.address == FIRST)
}

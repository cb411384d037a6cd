//! How long the addresses that names were found to have count, and what is told of them.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::Process;
use lab::addresses::AGENT;

use crate::common::{Scene, eventually, exe, is_long, is_signaling, ok, said, shared};
use crate::names::{
    DOMAINS, FIRST, NAMES, OTHER_PORT, PATIENCE, PORT, STILL, assert_kept_in, call, client, connect,
    install_resolvconf, is_of, names, raise_with, scene, sh, start_daemon_as, start_gateway,
    start_gateway_with, write_config,
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

/// While names are being led here for a reload, what is asked for waits; where nothing comes of it, nothing stays.
#[test]
fn names_of_a_reload_wait_for_it_and_are_forgotten_with_it() {
    const SERVICE: &str = "_sip._tcp.usw2.pure.cloud";
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    install_resolvconf(&scene);
    let dns = start_gateway_with(&mut scene, &[&format!("{SERVICE}=sip.example.net")]);
    start_daemon_as(&mut scene, false, |config| config);
    assert_eq!(call(&scene, 1).greeted, 1);
    assert_eq!(ask_for_service(&scene, SERVICE), (2, 0), "its target is not the policy's");
    let config = std::fs::read_to_string(scene.directory.file("breakout.toml")).unwrap();
    let added = config.replace(DOMAINS, "domains = [\"*.usw2.pure.cloud\", \"example.net\"]");

    let reload = |config: &str| {
        ok(scene.directory.write("breakout.toml", config));
        sh(&scene, "touch /run/wait");
        let mut reload = Command::new(exe());
        reload.arg("reload").env("BREAKOUT_STATE_DIR", scene.directory.file("state"));
        let log = scene.directory.file("reload.log");
        let reload = ok(Process::spawn(&scene.internet.agent, "breakout reload", reload, &log));
        // The target is the policy's then.
        eventually(PATIENCE, || match ask_for_service(&scene, SERVICE) {
            (0, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        reload
    };
    let go_on = |mut reload: Process| {
        sh(&scene, "rm /run/wait");
        ok(reload.wait(3 * PATIENCE)).expect("the reload has no end").success()
    };

    // Refused in the end: whom its socket is for cannot be changed.
    let refused = reload(&added);
    let socket = scene.directory.file("state").join("control");
    std::fs::rename(&socket, socket.with_extension("away")).unwrap();
    assert!(!go_on(refused));
    std::fs::rename(socket.with_extension("away"), &socket).unwrap();
    assert_eq!(ask_for_service(&scene, SERVICE), (2, 0), "what the other policy let pass is still there");

    let taken = reload(&added);
    let is_asked = || dns.output().contains("phone.example.net");
    let (wire, told) = scene.on_wire(|| {
        std::thread::scope(|scope| {
            let told = scope.spawn(|| client(&scene, 1, &["phone.example.net"]));
            eventually(PATIENCE, || if is_asked() { Ok(()) } else { Err("nobody asks".to_owned()) });
            sleep(Duration::from_millis(300));
            assert!(go_on(taken));
            told.join().unwrap()
        })
    });
    assert_eq!((told.greeted, told.failures.len()), (1, 0), "{told:?}");
    assert!(!wire.records.iter().any(is_signaling));
}

/// What is told of a name agrees with what becomes of its packets, also where a prefix holds an address of its.
#[test]
fn a_name_is_explained_by_all_of_its_addresses() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let given = ["media.usw2.pure.cloud=52.129.96.9", "both.usw2.pure.cloud=52.129.96.9,203.0.113.131"];
    let _dns = start_gateway_with(&mut scene, &given);
    start_daemon_as(&mut scene, false, |config| config);
    let explain = |to: &str| -> serde_json::Value {
        let arguments = ["explain", "--json", "--proto", "udp", "--payload", "stun", "--dst"];
        serde_json::from_str(&said(&scene.breakout(&[arguments.as_slice(), &[to]].concat()))).unwrap()
    };
    let told = |explained: &serde_json::Value| {
        let text = |key: &str| explained[key].as_str().unwrap().to_owned();
        (text("path"), text("rule"))
    };
    let own = |pair: (&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
    assert_eq!(told(&explain("media.usw2.pure.cloud:443")), own(("tunnel", "signaling")), "not known yet");
    for name in ["media.usw2.pure.cloud", "both.usw2.pure.cloud"] {
        assert!(getent(&scene, name).contains("52.129.96.9"), "{name}");
    }
    for to in ["52.129.96.9:3478", "media.usw2.pure.cloud:3478"] {
        assert_eq!(told(&explain(to)), own(("bypass", "media")), "{to}");
    }
    let both = explain("both.usw2.pure.cloud:443");
    assert_eq!(told(&both).0, "differs", "{both}");
    for address in
        ["52.129.96.9 is in genesys-media by 52.129.96.0/20", "203.0.113.131 is in genesys-signaling"]
    {
        let steps = both["steps"].as_array().unwrap();
        assert!(steps.iter().any(|step| step["found"].as_str().unwrap().contains(address)), "{both}");
    }
    let held =
        names(&scene).addresses.into_iter().find(|found| found.name == "media.usw2.pure.cloud").unwrap();
    assert_eq!((held.set.as_str(), held.known.as_str()), ("genesys-media", "told"));
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

/// The answer's code, and how many records there are, for a question for SRV records.
fn ask_for_service(scene: &Scene, name: &str) -> (u8, u8) {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 33, 0, 1]);
    let ask = move || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&query, "127.51.82.53:53")?;
        let mut answer = vec![0; 512];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    let answer = ok(scene.internet.agent.run(ask)).unwrap();
    (answer[3] & 15, answer[7])
}

//! The leak matrix where signaling is known by name alone: what leaves for the addresses that names have, or had. docs/security.md has the
//! table; the judge is the access router's wire, and the control in each capture is what has to leave.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use lab::{Daemon, Process, Record};
use nix::sys::signal::Signal;

use crate::common::{Scene, eventually, exe, is_long, is_signaling, is_tunnel, ok, program, said, shared};
use crate::leaks::SILENCE;
use crate::leaks::cell::answer_for_others;
use crate::leaks::knock::{BOTH, Knocking, ROUTED, Ways, knock};
use crate::leaks::others::{change_network, flush_ruleset};
use crate::names::{
    BEFORE, COUNT, DOMAINS, FIRST, NAMES, OTHER_PORT, PATIENCE, PORT, STILL, V6, assert_kept_in, assert_none,
    call, client, client_command, connect, names, raise_with, resolv_conf, scene, start_daemon_as,
};

/// Time for the last packets to reach a capture.
const AT_LAST: Duration = Duration::from_millis(300);

macro_rules! cells {
    ($($situation:ident),* $(,)?) => { $(
        mod $situation {
            #[test]
            fn with_kill_switch() {
                super::$situation(true);
            }

            #[test]
            fn without_kill_switch() {
                super::$situation(false);
            }
        }
    )* };
}

cells!(learned, names_that_move, without_a_tunnel, after_a_crash, ipv6);

/// What a name has led to is kept in whatever happens.
fn learned(kill_switch: bool) {
    let _turn = shared();
    let Some(_) = program("nft", "nftables") else { return };
    let Some(mut scene) = scene() else { return };
    answer_for_others(&scene.internet.router);
    let ways = if kill_switch { BOTH } else { ROUTED };
    let (wire, ()) = scene.on_wire(|| knock_at(&scene, FIRST, BOTH));
    for port in [PORT, 5060] {
        assert!(wire.records.iter().any(|record| record.destination == (FIRST, port).into()), "the control");
    }
    let _dns = raise_with(&mut scene, STILL, kill_switch);
    assert_eq!(call(&scene, NAMES.len()).greeted, NAMES.len());

    let config = std::fs::read_to_string(scene.directory.file("breakout.toml")).unwrap();
    let wider = config.replace(DOMAINS, "domains = [\"*.usw2.pure.cloud\", \"*.example.net\"]");
    let signal = |scene: &mut Scene, signal| ok(scene.daemon.as_mut().unwrap().process().signal(signal));
    let mut kept_in = |what: &str, ways: Ways, situation: &mut dyn FnMut(&mut Scene)| {
        let capture = ok(lab::Capture::start(&scene.internet.router, "lan0"));
        let knocking = Knocking::on(&scene.internet.agent, targets(FIRST), ways);
        situation(&mut scene);
        knocking.stop();
        knock_at(&scene, FIRST, ways);
        // Another port of the same address goes as before.
        eventually(PATIENCE, || connect(&scene, (FIRST, OTHER_PORT)).map_err(|error| error.to_string()));
        sleep(AT_LAST);
        let wire = ok(capture.finish());
        assert!(
            wire.records.iter().any(|record| record.destination == (FIRST, OTHER_PORT).into()),
            "{what}: the control"
        );
        assert_kept_in(what, &wire, FIRST);
    };
    kept_in("tunnel up", ways, &mut |_| {});
    kept_in("reloading", ways, &mut |scene| {
        for config in [&wider, &config, &wider, &config] {
            ok(scene.directory.write("breakout.toml", config));
            said(&scene.breakout(&["reload"]));
        }
    });
    kept_in("suspended", ways, &mut |scene| {
        signal(scene, Signal::SIGSTOP);
        sleep(Duration::from_secs(1));
        signal(scene, Signal::SIGCONT);
    });
    kept_in("network changing", ways, &mut |scene| change_network(&scene.internet.agent));
    // What routes lead into the tunnel does not depend on the firewall; what is bound to a device does.
    kept_in("foreign ruleset flush", ROUTED, &mut |scene| flush_ruleset(&scene.internet.agent, kill_switch));
    kept_in("restarting", ways, &mut |scene| {
        for _ in 0..3 {
            ok(scene.kill_daemon());
            start_again(scene);
        }
    });
    kept_in("gateway dead", ways, &mut |scene| {
        scene.gateway = None;
        sleep(SILENCE);
    });
    kept_in("daemon killed", ways, &mut |scene| ok(scene.kill_daemon()));
}

/// Every name moves to another address now and then; each connection asks anew, and each answer races the first packet to its addresses.
fn names_that_move(kill_switch: bool) {
    let _turn = shared();
    let (period, count) = if is_long() { ("2", 10_000) } else { ("0.5", 400) };
    let Some(mut scene) = scene() else { return };
    answer_for_others(&scene.internet.router);
    let (wire, direct) = scene.on_wire(|| connect(&scene, (FIRST, PORT)));
    direct.unwrap();
    assert!(wire.records.iter().any(is_signaling), "the control");

    let dns = raise_with(&mut scene, (period, COUNT, "1"), kill_switch);
    let log = scene.directory.file("bound.log");
    let mut bound = client_command(count, &NAMES);
    bound.env("DEVICE", "eth0");
    let (wire, told) = scene.on_wire(|| {
        let _bound =
            kill_switch.then(|| ok(Process::spawn(&scene.internet.agent, "names_client.py", bound, &log)));
        let told = call(&scene, count);
        connect(&scene, (told.addresses[0], OTHER_PORT)).unwrap();
        told
    });
    assert_eq!((told.greeted, &told.failures), (count, &Vec::new()), "{:?}", told.addresses);
    assert!(told.addresses.len() > 3, "they did not move: {:?}", told.addresses);
    // Another port of an address that is shared goes as before, and is the control.
    let shared_address = told.addresses[0];
    assert!(wire.records.iter().any(|record| record.destination == (shared_address, OTHER_PORT).into()));
    assert_none(&wire);
    assert!(wire.records.iter().any(is_tunnel));
    // Nor does anybody on the way hear a name.
    assert!(!wire.records.iter().any(is_question), "a question in the clear");

    let names = names(&scene);
    let known: Vec<IpAddr> = names.addresses.iter().map(|found| found.address).collect();
    assert!(told.addresses.iter().all(|address| known.contains(address)), "{names:?}");
    assert_eq!(names.resolver.unwrap().mode, "/etc/resolv.conf");

    ok(dns.signal(Signal::SIGKILL));
    said(&scene.breakout(&["down"]));
    assert_eq!(resolv_conf(&scene), BEFORE);
    let (wire, direct) = scene.on_wire(|| connect(&scene, (shared_address, PORT)));
    direct.unwrap();
    assert!(wire.records.iter().any(is_signaling), "`down` left something");
}

/// A crash keeps what was learned closed, and the next daemon knows it before anybody asks.
fn after_a_crash(kill_switch: bool) {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    answer_for_others(&scene.internet.router);
    let ways = if kill_switch { BOTH } else { ROUTED };
    let _dns = raise_with(&mut scene, STILL, kill_switch);
    let told = call(&scene, NAMES.len());
    assert_eq!((told.greeted, told.failures.len()), (NAMES.len(), 0), "{told:?}");

    ok(scene.kill_daemon());
    let (wire, lost) = scene.on_wire(|| {
        knock_at(&scene, FIRST, ways);
        connect(&scene, (FIRST, OTHER_PORT)).unwrap();
        call(&scene, 1)
    });
    assert!(
        wire.records.iter().any(|record| record.destination == (FIRST, OTHER_PORT).into()),
        "the control"
    );
    assert_kept_in("after a crash", &wire, FIRST);
    assert_eq!(lost.greeted, 0, "names have no answer while nobody is there to ask the tunnel");

    start_again(&mut scene);
    let (wire, told) = scene.on_wire(|| {
        eventually(PATIENCE, || greeted(&scene, FIRST));
        knock_at(&scene, FIRST, ways);
        connect(&scene, (FIRST, OTHER_PORT)).unwrap();
        call(&scene, NAMES.len())
    });
    assert!(
        wire.records.iter().any(|record| record.destination == (FIRST, OTHER_PORT).into()),
        "the control"
    );
    assert_kept_in("started again", &wire, FIRST);
    assert_eq!((told.greeted, told.failures.len()), (NAMES.len(), 0), "{told:?}");
    said(&scene.breakout(&["down"]));
    assert_eq!(resolv_conf(&scene), BEFORE);
}

/// Without a tunnel a name has no answer, and a question is not asked elsewhere.
fn without_a_tunnel(kill_switch: bool) {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    start_daemon_as(&mut scene, kill_switch, |config| config);
    let capture = ok(lab::Capture::start(&scene.internet.router, "lan0"));
    assert_eq!(call(&scene, 1).greeted, 0);
    sleep(AT_LAST);
    let wire = ok(capture.finish());
    assert_none(&wire);
    assert!(!wire.records.iter().any(is_question), "a question in the clear");
    // Another name goes where it went before.
    let networks: SocketAddr = "192.0.2.53:53".parse().unwrap();
    let is_passed_on = |name| {
        let (wire, _) = scene.on_wire(|| client(&scene, 1, &[name]));
        wire.records.iter().any(|record| record.destination == networks)
    };
    let asks_the_system = || scene.status().features.into_iter().find(|feature| feature.name == "system-dns");
    assert!(is_passed_on("www.example.net"), "the control");
    assert!(asks_the_system().unwrap().on);

    // So does that of a server of DNS over HTTPS, and is told of.
    assert!(is_passed_on("dns.google"));
    let told = asks_the_system().unwrap();
    assert!(!told.on && told.why.contains("dns.google") && told.why.contains("docs/names.md"), "{told:?}");
    assert_eq!(names(&scene).resolver.unwrap().doh[0].name, "dns.google");
    let log = std::fs::read_to_string(scene.directory.file("daemon.log")).unwrap();
    assert_eq!(log.matches("asks for a server of DNS over HTTPS").count(), 1, "{log}");
}

/// Through a tunnel that carries IPv4 alone: nobody is told of the address, and an application may know it from before.
fn ipv6(kill_switch: bool) {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    scene.give_ipv6();
    let to = |port: u16| SocketAddr::from((V6, port));
    let (wire, unanswered) = scene.on_wire(|| connect(&scene, to(PORT)));
    unanswered.unwrap_err();
    assert!(wire.records.iter().any(|record| record.destination == to(PORT)), "the control");

    let ways = if kill_switch { BOTH } else { ROUTED };
    let _dns = raise_with(&mut scene, STILL, kill_switch);
    let told = call(&scene, NAMES.len());
    assert_eq!((told.greeted, told.failures.len()), (NAMES.len(), 0), "{told:?}");
    assert!(told.addresses.iter().all(IpAddr::is_ipv4), "{told:?}");
    for is_dead in [false, true] {
        if is_dead {
            ok(scene.kill_daemon());
        }
        let (wire, refused) = scene.on_wire(|| {
            let knock = move || knock([to(PORT), to(5060)], ways);
            ok(scene.internet.agent.thread("knock", knock)).join().unwrap();
            connect(&scene, to(OTHER_PORT)).unwrap_err();
            connect(&scene, to(PORT))
        });
        assert_ne!(refused.unwrap_err().kind(), std::io::ErrorKind::TimedOut, "dead: {is_dead}");
        let seen = |port| wire.records.iter().any(|record| record.destination == to(port));
        assert!(seen(OTHER_PORT), "the control");
        assert!(!seen(PORT) && !seen(5060), "dead: {is_dead}");
    }
    said(&scene.breakout(&["down"]));
}

fn start_again(scene: &mut Scene) {
    let config = scene.directory.file("breakout.toml");
    scene.daemon = Some(ok(Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));
}

fn greeted(scene: &Scene, address: Ipv4Addr) -> Result<(), String> {
    let to = SocketAddr::from((address, PORT));
    let attempt = move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.read_exact(&mut [0; 2])
    };
    ok(scene.internet.agent.run(attempt)).map_err(|error| error.to_string())
}

/// Signaling's, over TCP and UDP each.
fn targets(address: Ipv4Addr) -> [SocketAddr; 2] {
    [PORT, 5060].map(|port| (address, port).into())
}

fn knock_at(scene: &Scene, address: Ipv4Addr, ways: Ways) {
    let knock = move || knock(targets(address), ways);
    ok(scene.internet.agent.thread("knock", knock)).join().unwrap();
}

fn is_question(record: &Record) -> bool {
    record.destination.port() == 53
}

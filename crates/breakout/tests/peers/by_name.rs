//! The leak matrix where signaling is known by name alone: what leaves for the addresses that names have, or had. docs/security.md has the
//! table; the judge is the access router's wire, and the control in each capture is what has to leave.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::addresses::ROUTER;
use lab::service::{Connection, listen_tcp};
use lab::{Captured, Daemon, Process, Record};
use nix::sys::signal::Signal;

use crate::common::{Scene, eventually, exe, is_long, is_signaling, is_tunnel, ok, program, said, shared};
use crate::leaks::SILENCE;
use crate::leaks::cell::answer_for_others;
use crate::leaks::knock::{BOTH, Knocking, ROUTED, Ways, knock};
use crate::leaks::others::{change_network, flush_ruleset};
use crate::names::{
    BEFORE, COUNT, DOMAINS, FIRST, HELD_PORT, NAMES, OTHER_PORT, PATIENCE, PORT, STILL, V6, assert_kept_in,
    assert_none, call, client, client_command, connect, is_of, names, open_scene, raise_with, resolv_conf,
    scene, serve_dns, serve_dns_with, start_daemon_as, start_gateway, write_config,
};
use crate::resolvers::Keeper;

/// What the network's own DNS servers have for a domain, for one of the usual hosts below one, and for another name there.
const EXACT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 231);
const WELL_KNOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 232);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 233);
const NETWORKS: [&str; 3] = [
    "sip.example.net=203.0.113.231",
    "streaming.usw2.pure.cloud=203.0.113.232",
    "wss.usw2.pure.cloud=203.0.113.233",
];
/// And for all else.
const ELSE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 240);
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

cells!(learned, names_that_move, without_a_tunnel, after_a_crash, ipv6, from_before_up, from_before_a_reload,);

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

/// An application has addresses, and connections to them, that the network's own DNS servers gave it. The tunnel's have another one.
fn from_before_up(kill_switch: bool) {
    let _turn = shared();
    let Some(mut scene) = open_scene() else { return };
    answer_for_others(&scene.internet.router);
    let _network = serve_networks(&scene);
    let (wire, mut open) = scene.on_wire(|| [EXACT, WELL_KNOWN, OTHER].map(|address| hold(&scene, address)));
    for address in [EXACT, WELL_KNOWN, OTHER] {
        assert!(wire.records.iter().any(|record| is_of(record, address)), "the control: {address}");
    }

    // While there is no tunnel, what is known is refused.
    let devices = if kill_switch { BOTH } else { ROUTED };
    let capture = ok(lab::Capture::start(&scene.internet.router, "lan0"));
    start_daemon_as(&mut scene, kill_switch, |config| {
        config.replace(DOMAINS, "domains = [\"*.usw2.pure.cloud\", \"sip.example.net\"]")
    });
    let [exact, well_known, other] = &mut open;
    exact.write_all(b"secret").unwrap_err();
    well_known.write_all(b"secret").unwrap_err();
    other.write_all(b"secret").unwrap();
    for address in [EXACT, WELL_KNOWN, OTHER] {
        knock_at(&scene, address, devices);
    }
    sleep(AT_LAST);
    let wire = ok(capture.finish());
    assert_kept_in("exact domain", &wire, EXACT);
    assert_kept_in("well-known name", &wire, WELL_KNOWN);
    let leaves = |wire: &Captured| wire.records.iter().any(|record| is_of(record, OTHER));
    assert!(leaves(&wire), "another name under a domain is known to nobody before it is asked for");
    let known = names(&scene).addresses;
    assert!(known.iter().all(|found| found.address != OTHER && found.seconds_left <= 3600), "{known:?}");

    // And what is right goes through the tunnel as soon as there is one.
    let _dns = start_gateway(&mut scene, STILL);
    let (wire, ()) = scene.on_wire(|| {
        for address in [EXACT, WELL_KNOWN] {
            eventually(PATIENCE, || greeted(&scene, address));
        }
        connect(&scene, (OTHER, PORT)).unwrap();
    });
    assert_kept_in("exact domain", &wire, EXACT);
    assert_kept_in("well-known name", &wire, WELL_KNOWN);
    assert!(leaves(&wire), "another name under a domain is known to nobody before it is asked for");
    said(&scene.breakout(&["down"]));
}

/// The same for names that a reload adds.
fn from_before_a_reload(kill_switch: bool) {
    let _turn = shared();
    let Some(mut scene) = open_scene() else { return };
    answer_for_others(&scene.internet.router);
    let _network = serve_networks(&scene);
    start_daemon_as(&mut scene, kill_switch, |config| {
        config.replace(DOMAINS, "domains = [\"*.example.org\"]")
    });
    let (wire, mut open) = scene.on_wire(|| [WELL_KNOWN, OTHER].map(|address| hold(&scene, address)));
    assert!(wire.records.iter().any(|record| is_of(record, WELL_KNOWN)), "the control");

    let config = std::fs::read_to_string(scene.directory.file("breakout.toml")).unwrap();
    ok(scene.directory.write("breakout.toml", &config.replace("*.example.org", "*.usw2.pure.cloud")));
    let devices = if kill_switch { BOTH } else { ROUTED };
    said(&scene.breakout(&["reload"]));
    let (wire, ()) = scene.on_wire(|| {
        let [well_known, other] = &mut open;
        well_known.write_all(b"secret").unwrap_err();
        other.write_all(b"secret").unwrap();
        for address in [WELL_KNOWN, OTHER] {
            knock_at(&scene, address, devices);
        }
    });
    assert_kept_in("well-known name", &wire, WELL_KNOWN);
    assert!(wire.records.iter().any(|record| is_of(record, OTHER)), "another name under a domain");
}

/// Where it leads names here, before it has closed anything. The next start finds them led, and asks nobody.
#[test]
fn what_applications_had_from_before_a_start_that_crashed_is_closed() {
    let _turn = shared();
    let Some(mut scene) = open_scene() else { return };
    let _network = serve_networks(&scene);
    let networks = resolv_conf(&scene);
    let (wire, ()) = scene.on_wire(|| knock_at(&scene, WELL_KNOWN, ROUTED));
    assert!(wire.records.iter().any(|record| is_of(record, WELL_KNOWN)), "the control");
    let config =
        write_config(&scene, false, |config| config.replace(DOMAINS, "domains = [\"*.usw2.pure.cloud\"]"));
    let leads_names = |step: &u32| {
        let mut up = Command::new(exe());
        up.args(["up", "--config"]).arg(&config).env("BREAKOUT_STATE_DIR", scene.directory.file("state"));
        up.env("BREAKOUT_CRASH_AT", step.to_string());
        assert!(!ok(scene.internet.agent.output(up)).status.success());
        let is_led = resolv_conf(&scene) != networks;
        if !is_led {
            said(&scene.breakout(&["state", "clean"]));
        }
        is_led
    };
    let step = (1..100).find(leads_names);
    start_again(&mut scene);
    let (wire, ()) = scene.on_wire(|| knock_at(&scene, WELL_KNOWN, ROUTED));
    assert_kept_in(&format!("after a crash at step {step:?}"), &wire, WELL_KNOWN);
    said(&scene.breakout(&["down"]));
    assert_eq!(resolv_conf(&scene), networks);
}

/// Also where the network's DNS servers say nothing: the tunnel's are asked before any application asks, as soon as there is a tunnel.
#[test]
fn what_the_tunnels_servers_have_for_the_usual_names_is_closed_before_anybody_asks() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let mut open = hold(&scene, FIRST);
    start_daemon_as(&mut scene, false, |config| config);
    let (wire, ()) = scene.on_wire(|| connect(&scene, (FIRST, PORT)).unwrap());
    assert!(wire.records.iter().any(|record| is_of(record, FIRST)), "the control: nobody knows of it yet");

    // By then it has long been tried in vain, and is tried again when a gateway answers.
    sleep(if is_long() { Duration::from_secs(60) } else { Duration::ZERO });
    let _dns = start_gateway(&mut scene, STILL);
    eventually(2 * PATIENCE, || {
        let known = names(&scene).addresses;
        if known.iter().any(|found| found.address == FIRST) { Ok(()) } else { Err(format!("{known:?}")) }
    });
    let (wire, ()) = scene.on_wire(|| {
        open.write_all(b"secret").unwrap_err();
        eventually(PATIENCE, || greeted(&scene, FIRST));
        connect(&scene, (FIRST, OTHER_PORT)).unwrap();
    });
    assert!(
        wire.records.iter().any(|record| record.destination == (FIRST, OTHER_PORT).into()),
        "the control"
    );
    assert_kept_in("the tunnel's servers have it", &wire, FIRST);
}

/// A captive portal has its own address for every name, and has to be reached.
#[test]
fn a_network_that_has_one_address_for_all_names_captures_nothing() {
    let _turn = shared();
    let Some(mut scene) = open_scene() else { return };
    let Some(_) = Keeper::Nobody.install(&scene, ROUTER) else { return };
    let _portal = serve_dns(&scene, &scene.internet.router, (ROUTER, ELSE), STILL);
    for asks_a_stranger in [false, true] {
        start_daemon_as(&mut scene, true, |config| match asks_a_stranger {
            true => config.replace("portal_check = \"\"", "portal_check = \"http://check.example.org:81/\""),
            false => config,
        });
        let (wire, reached) = scene.on_wire(|| connect(&scene, (ELSE, PORT)));
        assert_eq!(reached.is_ok(), asks_a_stranger, "{reached:?}");
        assert_eq!(wire.records.iter().any(|record| is_of(record, ELSE)), asks_a_stranger);
        assert_eq!(names(&scene).addresses.is_empty(), asks_a_stranger);
        said(&scene.breakout(&["down"]));
    }
}

/// The network's own DNS server, that the agent asks.
fn serve_networks(scene: &Scene) -> Process {
    Keeper::Nobody.install(scene, ROUTER).unwrap();
    serve_dns_with(scene, &scene.internet.router, (ROUTER, ELSE), STILL, &NETWORKS)
}

fn start_again(scene: &mut Scene) {
    let config = scene.directory.file("breakout.toml");
    scene.daemon = Some(ok(Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));
}

/// A connection that stays open.
fn hold(scene: &Scene, address: Ipv4Addr) -> TcpStream {
    let to = SocketAddr::from((address, HELD_PORT));
    let serve = |mut stream: Connection| {
        stream.write_all(b"ok")?;
        while stream.read(&mut [0; 64])? > 0 {}
        Ok(())
    };
    ok(listen_tcp(&scene.internet.signaling, to, serve));
    let open = move || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.read_exact(&mut [0; 2])?;
        Ok(stream)
    };
    ok(scene.internet.agent.run(open)).unwrap()
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

//! Signaling that is known by name alone: its addresses move, and none is ever reached in the clear.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::addresses::GATEWAY_TUNNEL;
use lab::service::listen_tcp;
use lab::{Captured, Gateway, Process, Record, SIGNALING_NET, Wiring};
use serde::Deserialize;

use crate::common::{
    Scene, eventually, exe, file, is_long, is_signaling, is_tunnel, ok, program, said, shared,
};

/// One of the ports that are signaling's.
const PORT: u16 = 8061;
/// One that is not.
const OTHER_PORT: u16 = 9000;
/// The signaling host has all of these.
const POOL: &str = "203.0.113.128/25";
const FIRST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 130);
const COUNT: u8 = 100;
/// Every name has it too.
const V6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f14, 0, 0, 0, 0, 0, 0x10);
const NAMES: [&str; 3] = ["api.usw2.pure.cloud", "login.usw2.pure.cloud", "streaming.usw2.pure.cloud"];
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where other names are asked for: nobody is there, so that what comes by the wrong way fails.
const BEFORE: &str = "# the machine's own\nnameserver 192.0.2.53\noptions timeout:1 attempts:1\n";
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
struct Told {
    greeted: usize,
    addresses: Vec<IpAddr>,
    failures: Vec<String>,
}

/// Every name moves to another address now and then; each connection asks anew.
#[test]
fn connections_to_names_that_move_never_leave_in_the_clear() {
    let _turn = shared();
    let (period, count) = if is_long() { ("2", 10_000) } else { ("0.5", 400) };
    let Some(mut scene) = scene() else { return };
    let (wire, direct) = scene.on_wire(|| connect(&scene, (FIRST, PORT)));
    direct.unwrap();
    assert!(wire.records.iter().any(is_signaling), "the control");

    let dns = raise(&mut scene, period);
    let (wire, told) = scene.on_wire(|| call(&scene, count));
    assert_eq!((told.greeted, &told.failures), (count, &Vec::new()), "{:?}", told.addresses);
    assert!(told.addresses.len() > 3, "they did not move: {:?}", told.addresses);
    assert_none(&wire);
    assert!(wire.records.iter().any(is_tunnel));
    // Nor does anybody on the way hear a name.
    assert!(!wire.records.iter().any(|record| record.destination.port() == 53), "a question in the clear");

    let names = names(&scene);
    let known: Vec<IpAddr> = names.addresses.iter().map(|found| found.address).collect();
    assert!(told.addresses.iter().all(|address| known.contains(address)), "{names:?}");
    assert_eq!(names.resolver.unwrap().mode, "/etc/resolv.conf");

    // Another port of an address that is shared goes as before.
    let shared_address = told.addresses[0];
    let (wire, direct) = scene.on_wire(|| connect(&scene, (shared_address, OTHER_PORT)));
    direct.unwrap();
    assert!(wire.records.iter().any(|record| record.destination == (shared_address, OTHER_PORT).into()));

    ok(dns.signal(nix::sys::signal::Signal::SIGKILL));
    said(&scene.breakout(&["down"]));
    assert_eq!(resolv_conf(&scene), BEFORE);
    let (wire, direct) = scene.on_wire(|| connect(&scene, (shared_address, PORT)));
    direct.unwrap();
    assert!(wire.records.iter().any(is_signaling), "`down` left something");
}

/// A crash keeps what was learned closed, and the next daemon knows it before anybody asks.
#[test]
fn what_was_learned_outlives_a_crash() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let _dns = raise(&mut scene, "1000");
    let told = call(&scene, NAMES.len());
    assert_eq!((told.greeted, told.failures.len()), (NAMES.len(), 0), "{told:?}");
    let address = told.addresses[0];

    ok(scene.kill_daemon());
    let (wire, refused) = scene.on_wire(|| connect(&scene, (address, PORT)));
    refused.unwrap_err();
    assert_none(&wire);
    let lost = call(&scene, 1);
    assert_eq!(lost.greeted, 0, "names have no answer while nobody is there to ask the tunnel");

    start_daemon(&mut scene);
    let (wire, ()) = scene
        .on_wire(|| eventually(PATIENCE, || connect(&scene, (address, PORT)).map_err(|e| e.to_string())));
    assert_none(&wire);
    let (wire, told) = scene.on_wire(|| call(&scene, NAMES.len()));
    assert_eq!((told.greeted, told.failures.len()), (NAMES.len(), 0), "{told:?}");
    assert_none(&wire);
    said(&scene.breakout(&["down"]));
    assert_eq!(resolv_conf(&scene), BEFORE);
}

/// Without a tunnel a name has no answer, and a question is not asked elsewhere.
#[test]
fn without_a_tunnel_names_have_no_answer() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    start_daemon(&mut scene);
    let (wire, told) = scene.on_wire(|| call(&scene, 1));
    assert_eq!(told.greeted, 0);
    assert_none(&wire);
    assert!(!wire.records.iter().any(|record| record.destination.port() == 53), "a question in the clear");
    // Another name goes where it went before.
    let (wire, _) = scene.on_wire(|| client(&scene, 1, &["www.example.net"]));
    assert!(wire.records.iter().any(|record| record.destination == "192.0.2.53:53".parse().unwrap()));
}

/// Through a tunnel that carries IPv4 alone. An application may know the address from before.
#[test]
fn an_ipv6_address_that_nobody_is_told_is_closed_too() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    scene.give_ipv6();
    let v6: SocketAddr = (V6, PORT).into();
    let (wire, unanswered) = scene.on_wire(|| connect(&scene, v6));
    unanswered.unwrap_err();
    assert!(wire.records.iter().any(|record| record.destination == v6), "the control");

    let _dns = raise(&mut scene, "1000");
    let told = call(&scene, NAMES.len());
    assert_eq!((told.greeted, told.failures.len()), (NAMES.len(), 0), "{told:?}");
    assert!(told.addresses.iter().all(IpAddr::is_ipv4), "{told:?}");
    for is_dead in [false, true] {
        if is_dead {
            ok(scene.kill_daemon());
        }
        let (wire, refused) = scene.on_wire(|| connect(&scene, v6));
        assert_ne!(refused.unwrap_err().kind(), std::io::ErrorKind::TimedOut, "dead: {is_dead}");
        assert!(!wire.records.iter().any(|record| record.destination == v6), "dead: {is_dead}");
    }
    said(&scene.breakout(&["down"]));
}

/// The internet with signaling at every address of its network, greeting on two ports, and a resolv.conf of the agent's own.
fn scene() -> Option<Scene> {
    program("python3", "python3")?;
    program("ip", "iproute2")?;
    let scene = Scene::new(Wiring::default())?;
    let everywhere = format!("route add local {POOL} dev lo");
    let mut ip = Command::new("ip");
    ip.args(everywhere.split(' '));
    said(&ok(scene.internet.signaling.output(ip)));
    for port in [PORT, OTHER_PORT] {
        let greet = |mut stream: lab::service::Connection| stream.write_all(b"ok");
        ok(listen_tcp(&scene.internet.signaling, (Ipv4Addr::UNSPECIFIED, port).into(), greet));
    }
    let own = ok(scene.directory.write("resolv.conf", BEFORE));
    ok(scene.internet.agent.show_instead(Path::new(RESOLV_CONF), &own));
    Some(scene)
}

/// The gateway with a DNS server behind it, and the daemon.
fn raise(scene: &mut Scene, period: &str) -> Process {
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    let mut server = Command::new("python3");
    server.arg(file("names_server.py")).args([
        &GATEWAY_TUNNEL.to_string(),
        period,
        &FIRST.to_string(),
        &COUNT.to_string(),
    ]);
    let log = scene.directory.file("names_server.log");
    let mut dns = ok(Process::spawn(&scene.internet.gateway, "names_server.py", server, &log));
    ok(dns.wait_for_line("ready", PATIENCE));
    start_daemon(scene);
    dns
}

fn start_daemon(scene: &mut Scene) {
    let config = ok(lab::write_config(&scene.keys, &scene.directory, ""));
    let text = std::fs::read_to_string(&config).unwrap();
    let named = text
        .replace("[tunnel]\n", &format!("[tunnel]\ndns = [\"{GATEWAY_TUNNEL}\"]\n"))
        .replace(&format!("cidrs = [\"{SIGNALING_NET}\"]"), "domains = [\"*.usw2.pure.cloud\"]");
    assert!(named.contains("dns =") && named.contains("domains ="));
    let config = ok(scene.directory.write("breakout.toml", &named));
    scene.daemon = Some(ok(lab::Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));
}

/// Has an application make `count` connections, name after name.
fn call(scene: &Scene, count: usize) -> Told {
    client(scene, count, &NAMES)
}

fn client(scene: &Scene, count: usize, names: &[&str]) -> Told {
    let mut client = Command::new("python3");
    client.arg(file("names_client.py")).args([count.to_string(), PORT.to_string()]).args(names);
    serde_json::from_str(&said(&ok(scene.internet.agent.output(client)))).unwrap()
}

fn connect(scene: &Scene, to: impl Into<SocketAddr>) -> std::io::Result<()> {
    let to = to.into();
    let attempt = move || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)).map(drop);
    ok(scene.internet.agent.run(attempt))
}

fn names(scene: &Scene) -> control::Names {
    serde_json::from_str(&said(&scene.breakout(&["names", "--json"]))).unwrap()
}

fn resolv_conf(scene: &Scene) -> String {
    ok(scene.internet.agent.run(|| std::fs::read_to_string(RESOLV_CONF))).unwrap()
}

#[track_caller]
fn assert_none(wire: &Captured) {
    assert_eq!(wire.lost, 0);
    let leaked: Vec<&Record> = wire.records.iter().filter(|record| is_signaling(record)).take(5).collect();
    assert!(leaked.is_empty(), "signaling in the clear: {leaked:#?}");
}

//! Signaling that is known by name alone: how names come to be asked through the tunnel, and who may say what they lead to.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::addresses::{GATEWAY, GATEWAY_TUNNEL, ROUTER};
use lab::service::listen_tcp;
use lab::{Captured, Gateway, Host, Process, Record, SIGNALING_NET, Wiring};
use routes::PRIORITY_CAPTURED;
use serde::Deserialize;

use crate::common::{Scene, eventually, exe, file, is_signaling, is_tunnel, ok, program, said, shared};
use crate::resolvers::{Keeper, getent};

/// One of the ports that are signaling's.
pub const PORT: u16 = 8061;
/// Another, that keeps connections open.
pub const HELD_PORT: u16 = 443;
/// One that is not.
pub const OTHER_PORT: u16 = 9000;
/// The signaling host has all of these.
const POOL: &str = "203.0.113.128/25";
pub const FIRST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 130);
pub const COUNT: u8 = 100;
/// Every name has it too.
pub const V6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f14, 0, 0, 0, 0, 0, 0x10);
/// What the network's own DNS server answers, where there is one: before `up`, and afterwards.
const AT_FIRST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 241);
const UNLEARNED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 240);
pub const NAMES: [&str; 3] = ["api.usw2.pure.cloud", "login.usw2.pure.cloud", "streaming.usw2.pure.cloud"];
/// Every name has another address after each period, in seconds, and so many in all; each holds for a TTL in seconds.
type Moves = (&'static str, u8, &'static str);
pub const STILL: Moves = ("1000", 1, "1");
/// In the configuration.
pub const DOMAINS: &str = "domains = [\"*.usw2.pure.cloud\"]";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where other names are asked for: nobody is there, so that what comes by the wrong way fails. The C library goes on to the search list
/// with a name that has no answer.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
pub const BEFORE: &str =
    "# the machine's own\nnameserver 192.0.2.53\nsearch corp.example\noptions timeout:1 attempts:1\n";
const AT_ONCE: Duration = Duration::from_secs(1);
pub const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub struct Told {
    pub greeted: usize,
    pub addresses: Vec<IpAddr>,
    pub failures: Vec<String>,
}

/// A crash must not have names asked elsewhere: an address that was not learned before it would be reached in the clear. The network's DNS
/// server has other addresses for them than the tunnel's.
#[test]
fn killed_it_keeps_names_unanswered_whoever_keeps_resolv_conf() {
    let _turn = shared();
    for keeper in Keeper::ALL {
        for kill_switch in [false, true] {
            crash_and_take_over(keeper, kill_switch);
        }
    }
}

fn crash_and_take_over(keeper: Keeper, kill_switch: bool) {
    let what = format!("{keeper:?}, kill switch: {kill_switch}");
    let Some(mut scene) = open_scene() else { return };
    let Some(_kept) = keeper.install(&scene, ROUTER) else { return };
    let network = serve_dns(&scene, &scene.internet.router, (ROUTER, AT_FIRST), STILL);
    let goes_to_networks = |scene: &Scene, name: &str| {
        let found = getent(scene, name);
        assert!(found.starts_with(&UNLEARNED.to_string()), "{what}: {name}: {found}");
    };
    let (wire, told) = scene.on_wire(|| call(&scene, NAMES.len()));
    assert_eq!((told.greeted, &told.addresses), (NAMES.len(), &vec![AT_FIRST.into()]), "{what}: {told:?}");
    let is_question = |record: &Record| record.destination.port() == 53;
    assert!(wire.records.iter().any(is_signaling) && wire.records.iter().any(is_question), "the control");

    let _dns = raise_with(&mut scene, STILL, kill_switch);
    assert_eq!(names(&scene).resolver.unwrap().mode, keeper.mode(), "{what}");
    // What it had before `up` is known by now.
    drop(network);
    let _network = serve_dns(&scene, &scene.internet.router, (ROUTER, UNLEARNED), STILL);
    let told = call(&scene, NAMES.len());
    assert_eq!((told.greeted, &told.addresses), (NAMES.len(), &vec![FIRST.into()]), "{what}: {told:?}");

    ok(scene.kill_daemon());
    let (wire, told) = scene.on_wire(|| call(&scene, 2 * NAMES.len()));
    assert_eq!(told.greeted, 0, "{what}: {told:?}");
    assert_none(&wire);
    assert!(!wire.records.iter().any(is_question), "{what}: asked in the clear");
    if keeper == Keeper::Resolved {
        goes_to_networks(&scene, "www.example.net");
    }

    // The next daemon takes over without a gap.
    let log = scene.directory.file("asking.log");
    let asking =
        ok(Process::spawn(&scene.internet.agent, "asking", client_command(usize::MAX, &NAMES), &log));
    let capture = ok(lab::Capture::start(&scene.internet.router, "lan0"));
    start_daemon_with(&mut scene, kill_switch);
    eventually(PATIENCE, || {
        let told = call(&scene, NAMES.len());
        if told.greeted == NAMES.len() { Ok(()) } else { Err(format!("{what}: {told:?}")) }
    });
    drop(asking);
    assert_none(&ok(capture.finish()));

    said(&scene.breakout(&["down"]));
    goes_to_networks(&scene, NAMES[0]);
}

/// An answer is kept for its TTL, but not into another network.
#[test]
fn in_another_network_names_are_asked_for_again() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let _dns = raise_with(&mut scene, ("1", COUNT, "3600"), false);
    let first = call(&scene, 1);
    assert_eq!(first.greeted, 1, "{first:?}");
    sleep(AT_ONCE * 2);
    assert_eq!(call(&scene, 1).addresses, first.addresses);
    sh(
        &scene,
        "ip address del 192.168.77.10/24 dev eth0
         ip address add 192.168.77.11/24 dev eth0
         ip route replace default via 192.168.77.1",
    );
    eventually(PATIENCE, || match call(&scene, 1) {
        told if told.greeted == 1 && told.addresses != first.addresses => Ok(()),
        told => Err(format!("{told:?}")),
    });
}

/// On a network that has an answer for all names, and completes them.
#[test]
fn no_name_without_an_answer_is_asked_for_with_more_after_it() {
    let _turn = shared();
    for keeper in Keeper::ALL {
        let Some(mut scene) = open_scene() else { return };
        let Some(_kept) = keeper.install(&scene, ROUTER) else { return };
        let _network = serve_dns(&scene, &scene.internet.router, (ROUTER, UNLEARNED), STILL);
        start_daemon(&mut scene);
        assert_eq!(names(&scene).resolver.unwrap().mode, keeper.mode());
        let (wire, told) = scene.on_wire(|| call(&scene, NAMES.len()));
        assert_eq!(told.greeted, 0, "{keeper:?}: {told:?}");
        assert_none(&wire);
        let is_question = |record: &Record| record.destination.port() == 53;
        assert!(!wire.records.iter().any(is_question), "{keeper:?}: asked in the clear");

        let (wire, short) = scene.on_wire(|| getent(&scene, "intranet"));
        assert!(short.starts_with(&UNLEARNED.to_string()), "{keeper:?}: {short}");
        assert!(wire.records.iter().any(is_question), "the control");
        said(&scene.breakout(&["down"]));
    }
}

/// Programs of others may hang: all else goes on, and the end comes all the same.
#[test]
fn a_resolvconf_that_hangs_keeps_nothing_else_from_going_on() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    install_resolvconf(&scene);
    let before = resolv_conf(&scene);
    assert!(before.contains("nameserver 192.0.2.53"), "{before}");
    let _dns = raise(&mut scene, "1000");
    assert_eq!(names(&scene).resolver.unwrap().mode, "resolvconf");

    sh(&scene, "touch /run/hang /run/resolvconf/interfaces/wlan0.dhcp");
    eventually(PATIENCE, || if is_hanging() { Ok(()) } else { Err("nobody asked it".to_owned()) });
    let begun = Instant::now();
    scene.status();
    assert!(begun.elapsed() < AT_ONCE, "status after {:?}", begun.elapsed());
    let told = client(&scene, 1, &["new.usw2.pure.cloud"]);
    assert_eq!((told.greeted, told.failures.len()), (1, 0), "{told:?}");
    sh(&scene, &format!("ip rule del priority {PRIORITY_CAPTURED}"));
    eventually(PATIENCE, || {
        match sh(&scene, &format!("ip rule show priority {PRIORITY_CAPTURED}")).as_str() {
            "" => Err("the rule is not put back".to_owned()),
            _ => Ok(()),
        }
    });
    assert!(is_hanging(), "it was not there all the while");

    let process = scene.daemon.as_mut().unwrap().process();
    ok(process.signal(nix::sys::signal::Signal::SIGTERM));
    let ended = ok(process.wait(Duration::from_secs(15)));
    assert!(ended.is_some(), "it waits for resolvconf");
    // It was killed, and goes by itself.
    eventually(PATIENCE, || if is_hanging() { Err("what it ran is still there".to_owned()) } else { Ok(()) });
    sh(&scene, "rm /run/hang");
    said(&scene.breakout(&["down"]));
    assert_eq!(resolv_conf(&scene), before);
}

/// A reload from prefixes to names, under an application that has an address from before and asks nobody.
#[test]
fn addresses_from_before_a_reload_to_names_stay_in_the_tunnel() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let _dns = raise(&mut scene, "1000");
    let by_name = std::fs::read_to_string(scene.directory.file("breakout.toml")).unwrap();
    let by_prefix =
        by_name.replace("domains = [\"*.usw2.pure.cloud\"]", &format!("cidrs = [\"{SIGNALING_NET}\"]"));
    assert_ne!(by_name, by_prefix);
    let reload = |config: &str| {
        ok(scene.directory.write("breakout.toml", config));
        said(&scene.breakout(&["reload"]))
    };
    let memory = || std::fs::read_to_string(scene.directory.file("state/learned.json")).unwrap();
    assert_eq!(call(&scene, 1).greeted, 1);
    assert!(memory().contains("203.0.113."), "{}", memory());

    assert!(!reload(&by_prefix).contains("stays in the tunnel"));
    assert!(!memory().contains("203.0.113."), "{}", memory());
    let nobodys = Ipv4Addr::new(203, 0, 113, 240);
    connect(&scene, (nobodys, PORT)).unwrap();
    let (wire, told) = scene.on_wire(|| {
        let told = reload(&by_name);
        connect(&scene, (nobodys, PORT)).unwrap();
        told
    });
    assert!(told.contains(&format!("{SIGNALING_NET} (genesys-signaling) stays in the tunnel")), "{told}");
    assert_none(&wire);
    assert!(wire.records.iter().any(is_tunnel));
    // And what names lead to there is known for the time after.
    assert_eq!(call(&scene, 1).greeted, 1);
    assert!(memory().contains("203.0.113."), "{}", memory());
}

/// Whoever is on the path answers for the gateway's name, which is asked for in the clear.
#[test]
fn a_lie_about_the_gateways_name_opens_nothing() {
    let _turn = shared();
    let Some(mut scene) = open_scene() else { return };
    let Some(_) = Keeper::Nobody.install(&scene, ROUTER) else { return };
    let network = serve_dns(&scene, &scene.internet.router, (ROUTER, GATEWAY), STILL);
    let _dns = start_gateway(&mut scene, STILL);
    start_daemon_as(&mut scene, false, |config| {
        let named = config.replace(&format!("\"{GATEWAY}:"), "\"vpn.example.net:");
        assert_ne!(named, config);
        named
    });
    eventually(PATIENCE, || match call(&scene, NAMES.len()).greeted {
        count if count == NAMES.len() => Ok(()),
        count => Err(format!("{count} connections")),
    });

    // The name leads to signaling now, and the tunnel is kept from coming back.
    drop(network);
    scene.gateway = None;
    let _liar = serve_dns(&scene, &scene.internet.router, (ROUTER, FIRST), STILL);
    let log = scene.directory.file("daemon.log");
    let (wire, ()) = scene.on_wire(|| {
        eventually(3 * PATIENCE, || {
            connect(&scene, (FIRST, PORT)).unwrap_err();
            let said = std::fs::read_to_string(&log).unwrap();
            if said.contains("address is not taken") { Ok(()) } else { Err(said) }
        });
        connect(&scene, (FIRST, PORT)).unwrap_err();
    });
    assert_none(&wire);
    let is_question = |record: &Record| record.destination == (ROUTER, 53).into();
    assert!(wire.records.iter().any(is_question), "nobody asked for the gateway");

    ok(scene.kill_daemon());
    let config = scene.directory.file("breakout.toml");
    let (wire, daemon) = scene.on_wire(|| {
        let daemon = ok(lab::Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory));
        connect(&scene, (FIRST, PORT)).unwrap_err();
        daemon
    });
    scene.daemon = Some(daemon);
    assert_eq!(scene.gateway().endpoint, None);
    assert_none(&wire);
    assert!(wire.records.iter().any(is_question), "nobody asked for the gateway");

    said(&scene.breakout(&["down"]));
    let (wire, direct) = scene.on_wire(|| connect(&scene, (FIRST, PORT)));
    direct.unwrap();
    assert!(wire.records.iter().any(is_signaling), "the control");
}

/// All other questions would follow it into the tunnel.
#[test]
fn an_answer_that_leads_to_the_networks_own_dns_server_is_withheld() {
    let _turn = shared();
    let Some(mut scene) = open_scene() else { return };
    let Some(_) = Keeper::Nobody.install(&scene, UNLEARNED) else { return };
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    let dns = serve_dns(&scene, &scene.internet.gateway, (GATEWAY_TUNNEL, UNLEARNED), STILL);
    start_daemon(&mut scene);
    let told = call(&scene, 1);
    assert_eq!((told.greeted, told.failures.len()), (0, 1), "{told:?}");
    assert!(names(&scene).addresses.is_empty());

    drop(dns);
    let _dns = serve_dns(&scene, &scene.internet.gateway, (GATEWAY_TUNNEL, FIRST), STILL);
    eventually(PATIENCE, || match call(&scene, 1) {
        told if told.greeted == 1 => Ok(()),
        told => Err(format!("{told:?}")),
    });
}

/// As where signaling is reached by a private link.
#[test]
fn a_private_address_is_told_where_a_prefix_of_its_set_holds_it() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let private = Ipv4Addr::new(10, 20, 0, 7);
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    let _dns = serve_dns(&scene, &scene.internet.gateway, (GATEWAY_TUNNEL, private), STILL);
    start_daemon_as(&mut scene, false, |config| {
        config.replace(DOMAINS, &format!("{DOMAINS}\ncidrs = [\"10.20.0.0/16\"]"))
    });
    eventually(PATIENCE, || match getent(&scene, NAMES[0]) {
        found if found.starts_with(&private.to_string()) => Ok(()),
        found => Err(found),
    });
    let (wire, _) = scene.on_wire(|| connect(&scene, (private, PORT)));
    assert!(wire.records.iter().any(is_tunnel));
    assert!(!wire.records.iter().any(|record| record.destination.ip() == private), "in the clear");

    let config = std::fs::read_to_string(scene.directory.file("breakout.toml")).unwrap();
    ok(scene.directory.write("breakout.toml", &config.replace("10.20.0.0/16", "10.21.0.0/16")));
    said(&scene.breakout(&["reload"]));
    assert_eq!(getent(&scene, NAMES[0]), "", "rebinding");
}

/// What a crash would forget is told to nobody.
#[test]
fn an_answer_that_cannot_be_written_down_is_withheld() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let in_the_way = scene.directory.file("state/learned.new");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let _dns = raise(&mut scene, "1000");
    let (wire, told) = scene.on_wire(|| call(&scene, 1));
    assert_eq!((told.greeted, told.failures.len()), (0, 1));
    assert_none(&wire);
    let log = std::fs::read_to_string(scene.directory.file("daemon.log")).unwrap();
    assert!(log.contains("the learned addresses could not be changed"), "{log}");
    assert!(names(&scene).addresses.is_empty());

    std::fs::remove_dir(in_the_way).unwrap();
    let (wire, told) = scene.on_wire(|| call(&scene, 1));
    assert_eq!((told.greeted, told.failures.len()), (1, 0), "{told:?}");
    assert_none(&wire);
}

/// Without what the last run learned there is no start, and what that kept closed stays so.
#[test]
fn a_memory_that_cannot_be_read_keeps_closed_what_was_learned() {
    let _turn = shared();
    let Some(mut scene) = scene() else { return };
    let _dns = raise(&mut scene, "1000");
    let address = call(&scene, 1).addresses[0];
    ok(scene.kill_daemon());
    let memory = scene.directory.file("state/learned.json");
    std::fs::write(&memory, "{").unwrap();

    let config = scene.directory.file("breakout.toml");
    let refused = scene.breakout(&["up", "--config", config.to_str().unwrap()]);
    let why: String = String::from_utf8_lossy(&refused.stderr).split_whitespace().collect();
    assert_eq!(refused.status.code(), Some(3), "{why}");
    assert!(why.contains("learned.json") && why.contains("theystayrefused"), "{why}");
    let (wire, closed) = scene.on_wire(|| connect(&scene, (address, PORT)));
    closed.unwrap_err();
    assert_none(&wire);

    said(&scene.breakout(&["down"]));
    assert!(!memory.exists());
    start_daemon(&mut scene);
    eventually(PATIENCE, || match call(&scene, 1) {
        told if told.greeted == 1 => Ok(()),
        told => Err(format!("{told:?}")),
    });
}

/// A scene with a resolv.conf of the agent's own.
pub fn scene() -> Option<Scene> {
    let scene = open_scene()?;
    Keeper::Nobody.install(&scene, NOBODY)?;
    assert_eq!(resolv_conf(&scene), BEFORE);
    Some(scene)
}

/// The internet with signaling at every address of its network, greeting on two ports.
pub fn open_scene() -> Option<Scene> {
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
    Some(scene)
}

/// The gateway with a DNS server behind it, and the daemon.
fn raise(scene: &mut Scene, period: &'static str) -> Process {
    raise_with(scene, (period, COUNT, "1"), false)
}

pub fn raise_with(scene: &mut Scene, moves: Moves, kill_switch: bool) -> Process {
    let dns = start_gateway(scene, moves);
    start_daemon_with(scene, kill_switch);
    dns
}

/// The gateway with a DNS server behind it.
pub fn start_gateway(scene: &mut Scene, moves: Moves) -> Process {
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    serve_dns(scene, &scene.internet.gateway, (GATEWAY_TUNNEL, FIRST), moves)
}

/// The same with names that are given.
pub fn start_gateway_with(scene: &mut Scene, given: &[&str]) -> Process {
    ok(scene.start_gateway(lab::Gateway::Breakout, exe()));
    serve_dns_with(scene, &scene.internet.gateway, (GATEWAY_TUNNEL, FIRST), STILL, given)
}

/// A DNS server at `listen`, for which names have `first` and the addresses after it.
pub fn serve_dns(scene: &Scene, host: &Host, at: (Ipv4Addr, Ipv4Addr), moves: Moves) -> Process {
    serve_dns_with(scene, host, at, moves, &[])
}

/// The same, but for names that are given: `NAME=ADDRESS`, or of an SRV record `NAME=TARGET`.
pub fn serve_dns_with(
    scene: &Scene,
    host: &Host,
    (listen, first): (Ipv4Addr, Ipv4Addr),
    moves: Moves,
    given: &[&str],
) -> Process {
    let (period, count, ttl) = moves;
    let mut server = Command::new("python3");
    server.arg(file("names_server.py")).args([
        &listen.to_string(),
        period,
        &first.to_string(),
        &count.to_string(),
        ttl,
    ]);
    server.args(given);
    let log = scene.directory.file(&format!("names_server-{}.log", host.name()));
    let mut dns = ok(Process::spawn(host, "names_server.py", server, &log));
    ok(dns.wait_for_line("ready", PATIENCE));
    dns
}

/// In place of the machine's, for the agent alone, with what a DHCP client has handed it.
pub fn install_resolvconf(scene: &Scene) {
    ok(scene.internet.agent.cover(Path::new("/run")));
    let directory = scene.directory.file("sbin");
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(file("resolvconf.sh"), directory.join("resolvconf")).unwrap();
    sh(scene, &format!("mount -t overlay -o lowerdir={}:/usr/sbin overlay /usr/sbin", directory.display()));
    sh(scene, "echo nameserver 192.0.2.53 | resolvconf -a eth0.dhcp");
}

/// Whether the resolvconf that hangs does.
fn is_hanging() -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let said = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    said.into_iter().any(|said| said == b"sleep\x001234567\x00")
}

pub fn sh(scene: &Scene, script: &str) -> String {
    let mut sh = Command::new("sh");
    sh.args(["-ec", script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    said(&ok(scene.internet.agent.output(sh)))
}

fn start_daemon(scene: &mut Scene) {
    start_daemon_with(scene, false);
}

pub fn start_daemon_with(scene: &mut Scene, kill_switch: bool) {
    start_daemon_as(scene, kill_switch, |config| config);
}

/// With another configuration than the usual.
pub fn start_daemon_as(scene: &mut Scene, kill_switch: bool, change: impl FnOnce(String) -> String) {
    let config = write_config(scene, kill_switch, change);
    scene.daemon = Some(ok(lab::Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));
}

/// Signaling is known by name alone.
pub fn write_config(scene: &Scene, kill_switch: bool, change: impl FnOnce(String) -> String) -> PathBuf {
    let more = format!("[routes]\nkill_switch = {kill_switch}\n");
    let config = ok(lab::write_config(&scene.keys, &scene.directory, &more));
    let text = std::fs::read_to_string(&config).unwrap();
    let named = text
        .replace("[tunnel]\n", &format!("[tunnel]\ndns = [\"{GATEWAY_TUNNEL}\"]\n"))
        .replace(&format!("cidrs = [\"{SIGNALING_NET}\"]"), DOMAINS);
    assert!(named.contains("dns =") && named.contains("domains ="));
    ok(scene.directory.write("breakout.toml", &change(named)))
}

/// Has an application make `count` connections, name after name.
pub fn call(scene: &Scene, count: usize) -> Told {
    client(scene, count, &NAMES)
}

pub fn client(scene: &Scene, count: usize, names: &[&str]) -> Told {
    let client = client_command(count, names);
    serde_json::from_str(&said(&ok(scene.internet.agent.output(client)))).unwrap()
}

pub fn client_command(count: usize, names: &[&str]) -> Command {
    let mut client = Command::new("python3");
    client.arg(file("names_client.py")).args([count.to_string(), PORT.to_string()]).args(names);
    client
}

pub fn connect(scene: &Scene, to: impl Into<SocketAddr>) -> std::io::Result<()> {
    let to = to.into();
    let attempt = move || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)).map(drop);
    ok(scene.internet.agent.run(attempt))
}

pub fn names(scene: &Scene) -> control::Names {
    serde_json::from_str(&said(&scene.breakout(&["names", "--json"]))).unwrap()
}

pub fn resolv_conf(scene: &Scene) -> String {
    ok(scene.internet.agent.run(|| std::fs::read_to_string(RESOLV_CONF))).unwrap()
}

/// Nothing in the clear, but for the port that is a stranger's.
#[track_caller]
pub fn assert_none(wire: &Captured) {
    assert_eq!(wire.lost, 0);
    let is_strangers =
        |record: &Record| [record.source, record.destination].iter().any(|end| end.port() == OTHER_PORT);
    let is_leak = |record: &&Record| is_signaling(record) && !is_strangers(record);
    let leaked: Vec<&Record> = wire.records.iter().filter(is_leak).take(5).collect();
    assert!(leaked.is_empty(), "signaling in the clear: {leaked:#?}");
}

/// Whether it is signaling with this address.
pub fn is_of(record: &Record, address: Ipv4Addr) -> bool {
    [record.source, record.destination]
        .iter()
        .any(|end| end.ip() == address && [PORT, HELD_PORT, 5060].contains(&end.port()))
}

#[track_caller]
pub fn assert_kept_in(what: &str, wire: &Captured, address: Ipv4Addr) {
    assert_eq!(wire.lost, 0, "{what}");
    let leaked: Vec<&Record> = wire.records.iter().filter(|record| is_of(record, address)).take(5).collect();
    assert!(leaked.is_empty(), "{what}: signaling in the clear: {leaked:#?}");
}

//! The leak matrix: what leaves the agent for signaling in each situation, with and without the kill switch. docs/security.md has the
//! table; the judge is the access router's wire, and the same attempts without a daemon are the control.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use lab::addresses::SIGNALING;
use lab::{Captured, Daemon, Gateway, Host, Record, Wiring, write_config};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::{Scene, eventually, exe, is_signaling, ok, program, said, shared};

const SIGNALING_V6: &str = "2001:db8:5::10";
const DEVICE: &str = "eth0";
/// Which device each socket is bound to, if any.
type Devices = &'static [Option<&'static str>];
const ROUTED: Devices = &[None];
const BOUND: Devices = &[Some(DEVICE)];
const BOTH: Devices = &[None, Some(DEVICE)];
/// For a connection that nobody answers.
const PATIENCE: Duration = Duration::from_millis(150);
/// A tunnel whose gateway is silent is known to be down after 5 s.
const SILENCE: Duration = Duration::from_secs(7);

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
    restarting,
    reloading,
    suspended,
    network_changing,
    connection_from_before_up,
    socket_bound_to_a_device,
    foreign_ruleset_flush,
    ipv6,
);

fn tunnel_up(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    cell.scene.reaches_signaling().unwrap();
    let (wire, ()) = cell.scene.on_wire(|| cell.knock());
    assert_none(&wire);
}

fn tunnel_down(cell: &mut Cell) {
    cell.up();
    let (wire, ()) = cell.scene.on_wire(|| cell.knock_for(SILENCE));
    assert_none(&wire);
}

fn gateway_dead(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    cell.scene.reaches_signaling().unwrap();
    cell.scene.gateway = None;
    let (wire, ()) = cell.scene.on_wire(|| cell.knock_for(SILENCE));
    assert_none(&wire);
}

fn daemon_killed(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    let daemon = cell.scene.daemon.take().unwrap();
    let (wire, ()) = cell.scene.on_wire(|| {
        cell.while_knocking(|_| daemon.kill().unwrap());
        cell.knock();
    });
    assert_none(&wire);
}

fn restarting(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    let capture = ok(lab::Capture::start(&cell.scene.internet.router, "lan0"));
    let knocking = Knocking::start(cell);
    for _ in 0..5 {
        ok(cell.scene.kill_daemon());
        sleep(PATIENCE);
        cell.up();
    }
    knocking.stop();
    let wire = ok(capture.finish());
    assert_none(&wire);
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
    assert_none(&wire);
}

/// As far as applications can tell: they run, the daemon does not. A machine that sleeps runs neither.
fn suspended(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    cell.scene.reaches_signaling().unwrap();
    let signal = |cell: &mut Cell, signal| ok(cell.scene.daemon.as_mut().unwrap().process().signal(signal));
    signal(cell, Signal::SIGSTOP);
    let (wire, ()) = cell.scene.on_wire(|| cell.knock_for(Duration::from_secs(1)));
    signal(cell, Signal::SIGCONT);
    assert_none(&wire);
    cell.scene.reaches_signaling().unwrap();
}

/// The link goes and comes back, the address becomes another, the default route goes and comes back.
fn network_changing(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    cell.start_gateway();
    cell.up();
    let ip = |cell: &Cell, arguments: &str| {
        let mut ip = Command::new("ip");
        ip.args(arguments.split(' '));
        said(&ok(cell.scene.internet.agent.output(ip)));
    };
    let (wire, ()) = cell.scene.on_wire(|| {
        cell.while_knocking(|cell| {
            for change in [
                "link set eth0 down",
                "link set eth0 up",
                "route replace default via 192.168.77.1",
                "address del 192.168.77.10/24 dev eth0",
                "address add 192.168.77.11/24 dev eth0",
                "route replace default via 192.168.77.1",
                "address del 192.168.77.11/24 dev eth0",
                "address add 192.168.77.10/24 dev eth0",
                "route replace default via 192.168.77.1",
                "route del default",
                "route add default via 192.168.77.1",
            ] {
                ip(cell, change);
                sleep(PATIENCE);
            }
        });
    });
    assert_none(&wire);
    eventually(Duration::from_secs(10), || cell.scene.reaches_signaling());
}

fn connection_from_before_up(cell: &mut Cell) {
    let to: SocketAddr = (SIGNALING, 80).into();
    let open = |cell: &Cell, device| ok(cell.scene.internet.agent.run(move || connect(to, device))).unwrap();
    let (mut plain, mut bound) = (open(cell, None), open(cell, Some(DEVICE)));
    let request = b"GET / HTTP/1.1\r\n\r\n";
    let (wire, ()) = cell.scene.on_wire(|| {
        plain.write_all(request).unwrap();
        bound.write_all(request).unwrap();
    });
    assert!(wire.records.iter().filter(|record| says_something(record)).count() >= 2, "the control");

    cell.start_gateway();
    let capture = ok(lab::Capture::start(&cell.scene.internet.router, "lan0"));
    cell.up();
    let ended =
        cell.scene.status().features.into_iter().find(|feature| feature.name == "old-connections").unwrap();
    if !ended.on {
        lab::skip(ended.why);
        return;
    }
    for stream in [&mut plain, &mut bound] {
        stream.write_all(b"GET /secret HTTP/1.1\r\n\r\n").unwrap_err();
    }
    sleep(Duration::from_secs(1));
    let wire = ok(capture.finish());
    // Without a kill switch the kernel's own reset of what is bound to a device leaves, empty.
    let leaked: Vec<&Record> =
        wire.records.iter().filter(|r| is_signaling(r) && (cell.kill_switch || says_something(r))).collect();
    assert!(leaked.is_empty(), "{leaked:#?}");
}

/// The one thing that routes alone do not keep in.
fn socket_bound_to_a_device(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    for is_dead in [false, true] {
        if is_dead {
            ok(cell.scene.kill_daemon());
        }
        let (wire, ()) = cell.scene.on_wire(|| cell.knock_with(BOUND));
        let seen = wire.records.iter().filter(|record| is_signaling(record)).count();
        assert_eq!(seen == 0, cell.kill_switch, "{seen} packets, dead: {is_dead}");
    }
}

fn foreign_ruleset_flush(cell: &mut Cell) {
    let Some(_) = program("nft", "nftables") else { return };
    cell.start_gateway();
    cell.up();
    let nft = |arguments: &[&str]| {
        let mut nft = Command::new("nft");
        nft.args(arguments);
        ok(cell.scene.internet.agent.output(nft))
    };
    for _ in 0..5 {
        // What routes lead into the tunnel does not depend on the firewall; what is bound to a device does.
        let (wire, ()) = cell.scene.on_wire(|| {
            cell.while_knocking_with(ROUTED, |cell| {
                said(&nft(&["flush", "ruleset"]));
                if cell.kill_switch {
                    eventually(Duration::from_secs(5), || {
                        let listed = nft(&["list", "table", "inet", routes::KILL_SWITCH]);
                        if listed.status.success() { Ok(()) } else { Err("it is not put back".to_owned()) }
                    });
                }
            });
            cell.knock();
        });
        assert_none(&wire);
    }
    if cell.kill_switch {
        let told =
            cell.scene.status().features.into_iter().find(|feature| feature.name == "kill-switch").unwrap();
        assert!(told.on && told.why.contains("put back 5 times, last after nft (pid "), "{told:?}");
    }
}

/// Through a tunnel that has none.
fn ipv6(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    cell.scene.give_ipv6();
    let v6: [SocketAddr; 2] = [443, 5060].map(|port| SocketAddr::new(SIGNALING_V6.parse().unwrap(), port));
    cell.targets = v6;
    let is_v6 = |record: &&Record| v6.contains(&record.destination);
    for devices in [ROUTED, BOUND] {
        let (wire, ()) = cell.scene.on_wire(|| cell.knock_with(devices));
        assert!(wire.records.iter().filter(is_v6).count() >= 2, "the control, bound to {devices:?}");
    }

    let text = cell.config().replace("\"203.0.113.0/24\"", "\"203.0.113.0/24\", \"2001:db8:5::/48\"");
    ok(cell.scene.directory.write("breakout.toml", &text));
    cell.start_gateway();
    cell.up();
    for is_dead in [false, true] {
        if is_dead {
            ok(cell.scene.kill_daemon());
        }
        let (wire, ()) = cell.scene.on_wire(|| cell.knock());
        assert_eq!(wire.records.iter().filter(is_v6).count(), 0, "dead: {is_dead}");
        if !cell.kill_switch {
            let (wire, ()) = cell.scene.on_wire(|| cell.knock_with(BOUND));
            assert!(wire.records.iter().any(|record| is_v6(&record)), "routes alone do not keep it in");
        }
    }
}

struct Cell {
    scene: Scene,
    kill_switch: bool,
    /// Over TCP and UDP each.
    targets: [SocketAddr; 2],
}

impl Cell {
    fn run(kill_switch: bool, situation: fn(&mut Self)) {
        let _turn = shared();
        let Some(scene) = Scene::new(Wiring::default()) else { return };
        // A socket bound to a device takes an address that a route refuses for a neighbour's (net/ipv4/route.c,
        // ip_route_output_key_hash_rcu): it gets out where somebody answers for it.
        for (parameter, value) in [("conf/lan0/proxy_arp", "1"), ("neigh/lan0/proxy_delay", "0")] {
            ok(scene.internet.router.sysctl(&format!("net/ipv4/{parameter}"), value));
        }
        let targets = [443, 5060].map(|port| (SIGNALING, port).into());
        let mut cell = Self { scene, kill_switch, targets };
        for devices in [ROUTED, BOUND] {
            let (wire, ()) = cell.scene.on_wire(|| cell.knock_with(devices));
            for to in targets {
                for protocol in [packet::protocol::TCP, packet::protocol::UDP] {
                    let seen = wire.records.iter().any(|r| r.destination == to && r.protocol == protocol);
                    assert!(seen, "the control: {to} by protocol {protocol}, bound to {devices:?}");
                }
            }
        }
        let more = format!("[routes]\nkill_switch = {kill_switch}\n");
        write_config(&cell.scene.keys, &cell.scene.directory, &more).unwrap();
        situation(&mut cell);
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.scene.directory.file("breakout.toml")).unwrap()
    }

    fn start_gateway(&mut self) {
        ok(self.scene.start_gateway(Gateway::Breakout, exe()));
    }

    fn up(&mut self) {
        let config = self.scene.directory.file("breakout.toml");
        self.scene.daemon =
            Some(ok(Daemon::start(&self.scene.internet.agent, exe(), &config, &self.scene.directory)));
    }

    /// All that is guaranteed not to leave.
    fn devices(&self) -> Devices {
        if self.kill_switch { BOTH } else { ROUTED }
    }

    fn knock(&self) {
        self.knock_with(self.devices());
    }

    fn knock_with(&self, devices: Devices) {
        let targets = self.targets;
        ok(self.scene.internet.agent.thread("knock", move || knock(targets, devices))).join().unwrap();
    }

    fn knock_for(&self, time: Duration) {
        self.while_knocking(|_| sleep(time));
    }

    fn while_knocking(&self, body: impl FnOnce(&Self)) {
        self.while_knocking_with(self.devices(), body);
    }

    fn while_knocking_with(&self, devices: Devices, body: impl FnOnce(&Self)) {
        let knocking = Knocking::on(&self.scene.internet.agent, self.targets, devices);
        body(self);
        knocking.stop();
    }
}

/// Attempts, one after another, in a thread of their own; the first ones have been made when this is there.
struct Knocking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Knocking {
    fn start(cell: &Cell) -> Self {
        Self::on(&cell.scene.internet.agent, cell.targets, cell.devices())
    }

    fn on(host: &Host, targets: [SocketAddr; 2], devices: Devices) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (begun, has_begun) = channel();
        let body = move || {
            while !stopped.load(Ordering::Relaxed) {
                knock(targets, devices);
                // Only the first round is waited for.
                let _ = begun.send(());
            }
        };
        let thread = ok(host.thread("knocking", body));
        has_begun.recv().unwrap();
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// A connection and a datagram to each target. Whatever becomes of them is the wire's to tell.
fn knock(targets: [SocketAddr; 2], devices: &[Option<&str>]) {
    for (to, device) in targets.into_iter().flat_map(|to| devices.iter().map(move |device| (to, *device))) {
        if let Ok(mut stream) = connect(to, device) {
            let _ = stream.write_all(b"OPTIONS sip:nobody SIP/2.0\r\n\r\n");
        }
        let socket = open(to, device, Type::DGRAM, Protocol::UDP);
        let _ = socket.send_to(b"OPTIONS sip:nobody SIP/2.0\r\n\r\n", &to.into());
    }
}

fn connect(to: SocketAddr, device: Option<&str>) -> std::io::Result<Socket> {
    let socket = open(to, device, Type::STREAM, Protocol::TCP);
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket)
}

fn open(to: SocketAddr, device: Option<&str>, kind: Type, protocol: Protocol) -> Socket {
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol)).unwrap();
    socket.bind_device(device.map(str::as_bytes)).unwrap();
    socket
}

fn says_something(record: &Record) -> bool {
    is_signaling(record) && !record.head.is_empty()
}

#[track_caller]
fn assert_none(wire: &Captured) {
    assert_eq!(wire.lost, 0);
    let leaked: Vec<&Record> = wire.records.iter().filter(|record| is_signaling(record)).take(5).collect();
    assert!(leaked.is_empty(), "signaling in the clear: {leaked:#?}");
}

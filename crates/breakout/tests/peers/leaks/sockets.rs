//! Sockets that know of a way past the tunnel: they are older than its routes, or bound to a device.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use lab::addresses::{GATEWAY_TUNNEL, SIGNALING, WEB};
use lab::service::listen_tcp;
use lab::{Captured, Daemon, Record, write_config};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use socket2::Socket;

use super::cell::{Cell, is_in_the_clear};
use super::knock::{BOUND, ROUTED, Way, Ways, connect, connect_udp};
use super::others::{Taken, take_away, wait_until_put_back};
use crate::common::{eventually, exe, is_tunnel, ok, program, said, shared};
use crate::names;
use crate::resolvers::{Keeper, getent};

const V6: &str = "2001:db8:5::10";
/// By all that connections can be bound with.
const CONNECTED: Ways = &[Way::Routed, Way::Device];
/// What a connection that is as old as this may still have under way.
const REST: Duration = Duration::from_secs(1);
const CONFIGURED: &str = "\"203.0.113.0/24\"";
const WITH_V6: &str = "\"203.0.113.0/24\", \"2001:db8:5::/48\"";

pub fn connection_from_before_up(cell: &mut Cell) {
    if !give_ipv6(cell) {
        return;
    }
    cell.configure(CONFIGURED, WITH_V6);
    let old = Old::connect(cell, CONNECTED);
    cell.start_gateway();
    old.assert_ended_by(cell, Cell::up);
}

pub fn connection_from_before_a_reload(cell: &mut Cell) {
    if !give_ipv6(cell) {
        return;
    }
    cell.configure(CONFIGURED, "\"198.51.99.0/24\"");
    cell.start_gateway();
    cell.up();
    let old = Old::connect(cell, CONNECTED);
    cell.configure("\"198.51.99.0/24\"", WITH_V6);
    old.assert_ended_by(cell, |cell| {
        said(&cell.scene.breakout(&["reload"]));
    });
}

/// While the daemon cannot put back at once what others take away.
pub fn connection_from_a_gap(cell: &mut Cell) {
    if !give_ipv6(cell) {
        return;
    }
    cell.configure(CONFIGURED, WITH_V6);
    cell.start_gateway();
    cell.up();
    for taken in Taken::ALL {
        let signal =
            |cell: &mut Cell, signal| ok(cell.scene.daemon.as_mut().unwrap().process().signal(signal));
        signal(cell, Signal::SIGSTOP);
        take_away(cell, taken);
        if cell.kill_switch {
            let (wire, ()) = cell.scene.on_wire(|| cell.knock());
            cell.assert_none(&wire);
            signal(cell, Signal::SIGCONT);
            wait_until_put_back(cell);
            continue;
        }
        let old = Old::connect(cell, ROUTED);
        old.assert_ended_by(cell, |cell| {
            signal(cell, Signal::SIGCONT);
            wait_until_put_back(cell);
            // What was connected meanwhile is ended a moment later.
            sleep(REST);
        });
    }
}

/// The one thing that routes alone do not keep in.
pub fn socket_bound_to_a_device(cell: &mut Cell) {
    cell.start_gateway();
    cell.up();
    for is_dead in [false, true] {
        if is_dead {
            ok(cell.scene.kill_daemon());
        }
        if !cell.kill_switch {
            cell.assert_all_leaves(BOUND);
            continue;
        }
        let (wire, ()) = cell.scene.on_wire(|| cell.knock_with(BOUND));
        cell.assert_none_by(&wire, BOUND);
    }
}

/// Through a tunnel that has none.
pub fn ipv6(cell: &mut Cell) {
    if !give_ipv6(cell) {
        return;
    }
    cell.targets = [443, 5060].map(|port| SocketAddr::new(V6.parse().unwrap(), port));
    cell.assert_all_leaves(ROUTED);
    cell.assert_all_leaves(BOUND);

    cell.configure(CONFIGURED, WITH_V6);
    cell.start_gateway();
    cell.up();
    for is_dead in [false, true] {
        if is_dead {
            ok(cell.scene.kill_daemon());
        }
        let (wire, ()) = cell.scene.on_wire(|| cell.knock());
        cell.assert_none(&wire);
        if !cell.kill_switch {
            cell.assert_all_leaves(BOUND);
        }
    }
}

/// Names move on every two seconds: what is connected to their next addresses is not known to be signaling yet.
#[test]
fn what_is_connected_to_an_address_when_it_is_learned_is_ended() {
    for kill_switch in [false, true] {
        connect_and_learn(kill_switch);
    }
}

fn connect_and_learn(kill_switch: bool) {
    const PERIOD: u64 = 2;
    const COUNT: u8 = 100;
    let _turn = shared();
    let Some(mut scene) = names::open_scene() else { return };
    let Some(_kept) = Keeper::Nobody.install(&scene, WEB) else { return };
    let _dns = names::start_gateway(&mut scene, ("2", COUNT, "1"));
    let more = format!("[routes]\nkill_switch = {kill_switch}\n");
    let config = ok(write_config(&scene.keys, &scene.directory, &more));
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text
        .replace("[tunnel]\n", &format!("[tunnel]\ndns = [\"{GATEWAY_TUNNEL}\"]\n"))
        .replace(&format!("cidrs = [{CONFIGURED}]"), "domains = [\"*.usw2.pure.cloud\"]");
    ok(scene.directory.write("breakout.toml", &text));
    scene.daemon = Some(ok(Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));

    let passed = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_secs() / PERIOD;
    let address = |after: u64| {
        let at = ((passed + after) % u64::from(COUNT)) as u8;
        SocketAddr::from(([203, 0, 113, 130 + at], 8061))
    };
    let next: Vec<SocketAddr> = (3..7).map(address).collect();
    let to = next.clone();
    let connected = move || -> Vec<Socket> {
        let both =
            |to: &SocketAddr| [connect(*to, Way::Routed).unwrap(), connect_udp(*to, Way::Routed).unwrap()];
        to.iter().flat_map(both).collect()
    };
    let (wire, old) = scene.on_wire(|| ok(scene.internet.agent.run(connected)));
    assert!(next.iter().all(|to| wire.records.iter().any(|record| record.destination == *to)), "the control");

    let learned = eventually(Duration::from_secs(20), || {
        getent(&scene, "api.usw2.pure.cloud");
        let told = said(&scene.breakout(&["names", "--json"]));
        next.iter().position(|to| told.contains(&format!("\"{}\"", to.ip()))).ok_or(told)
    });
    let (wire, ()) = scene.on_wire(|| {
        for socket in &old[2 * learned..2 * learned + 2] {
            socket.send(b"secret").unwrap_err();
        }
        getent(&scene, "login.usw2.pure.cloud");
    });
    assert!(!wire.records.iter().any(says_something));
    assert!(wire.records.iter().any(is_tunnel), "the capture is blind");
}

/// Sockets that are connected to signaling directly, over TCP and UDP, IPv4 and IPv6.
struct Old(Vec<Socket>);

impl Old {
    fn connect(cell: &Cell, ways: Ways) -> Self {
        let connected = move || -> Vec<Socket> {
            let hosts: [IpAddr; 2] = [SIGNALING.into(), V6.parse().unwrap()];
            let each = hosts.into_iter().flat_map(|host| ways.iter().map(move |way| (host, *way)));
            each.flat_map(|(host, way)| {
                let (tcp, udp) = (connect((host, 80).into(), way), connect_udp((host, 5060).into(), way));
                [tcp.unwrap(), udp.unwrap()]
            })
            .collect()
        };
        let old = Self(ok(cell.scene.internet.agent.run(connected)));
        let (wire, failed) = cell.scene.on_wire(|| old.speak());
        assert_eq!(failed, 0, "the control");
        assert!(
            wire.records.iter().filter(|record| says_something(record)).count() >= old.0.len(),
            "the control"
        );
        old
    }

    /// How many could not.
    fn speak(&self) -> usize {
        self.0.iter().filter(|socket| socket.send(b"GET / HTTP/1.1\r\n\r\n").is_err()).count()
    }

    /// Of a socket that is bound to a device, the kernel's own reset leaves where there is no kill switch, empty.
    fn assert_ended_by(self, cell: &mut Cell, event: impl FnOnce(&mut Cell)) {
        let capture = ok(lab::Capture::start(&cell.scene.internet.router, "lan0"));
        event(cell);
        let told = feature(cell, "old-connections");
        if !told.on {
            lab::skip(told.why);
            return;
        }
        let failed = self.speak();
        cell.knock();
        sleep(REST);
        let mut wire: Captured = ok(capture.finish());
        assert_eq!(failed, self.0.len(), "so many were ended");
        if !cell.kill_switch {
            wire.records.retain(|record| !is_in_the_clear(record) || says_something(record));
        }
        cell.assert_none(&wire);
    }
}

fn says_something(record: &Record) -> bool {
    is_in_the_clear(record) && !record.head.is_empty()
}

fn feature(cell: &Cell, name: &str) -> control::Feature {
    cell.scene.status().features.into_iter().find(|feature| feature.name == name).unwrap()
}

/// The agent has IPv6, and the router is signaling there. `false`, said on standard error, without iproute2.
fn give_ipv6(cell: &Cell) -> bool {
    if program("ip", "iproute2").is_none() {
        return false;
    }
    let router = &cell.scene.internet.router;
    for address in ["2001:db8:77::1/64 dev lan0", "2001:db8:5::10/128 dev lo"] {
        let mut ip = std::process::Command::new("ip");
        ip.args("-6 address add".split(' ')).args(address.split(' ')).arg("nodad");
        said(&ok(router.output(ip)));
    }
    ok(listen_tcp(router, SocketAddr::new(V6.parse().unwrap(), 80), lab::service::http::serve));
    cell.agent("ip -6 address add 2001:db8:77::10/64 dev eth0 nodad");
    cell.agent("ip -6 route add default via 2001:db8:77::1");
    true
}

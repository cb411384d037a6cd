//! What other programs do to the machine's network, while the daemon lives and while it is dead.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::Duration;

use lab::{End, Host, Link, LinkKind};
use routes::{PRIORITY_CAPTURED, TABLE_CAPTURED};

use super::cell::{Cell, of_the_agents};
use super::knock::{BOTH, BOUND, PATIENCE, ROUTED, knock};
use crate::common::{eventually, ok, program, said};

/// Until the daemon has put something back, on a busy machine.
const PUT_BACK: Duration = Duration::from_secs(10);

/// To signaling by the network's router, for each family.
const OTHER_WAYS: [(&str, (&str, &str)); 2] =
    [("-4", ("203.0.113.10", "192.168.77.1")), ("-6", ("2001:db8:5::10", "2001:db8:77::1"))];

/// What others take away, or for themselves.
#[derive(Clone, Copy)]
pub enum Taken {
    Rule,
    Routes,
    /// A route of theirs in our table leads directly.
    Table,
}

impl Taken {
    pub const ALL: [Self; 3] = [Self::Rule, Self::Routes, Self::Table];
}

pub fn network_changing(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    cell.start_gateway();
    cell.up();
    let (wire, ()) =
        cell.scene.on_wire(|| cell.while_knocking(|cell| change_network(&cell.scene.internet.agent)));
    cell.assert_none(&wire);
    eventually(Duration::from_secs(10), || cell.scene.reaches_signaling());
}

pub fn foreign_ruleset_flush(cell: &mut Cell) {
    let Some(_) = program("nft", "nftables") else { return };
    cell.start_gateway();
    cell.up();
    for _ in 0..5 {
        // What routes lead into the tunnel does not depend on the firewall; what is bound to a device does.
        let (wire, ()) = cell.scene.on_wire(|| {
            cell.while_knocking_with(ROUTED, |cell| {
                flush_ruleset(&cell.scene.internet.agent, cell.kill_switch);
            });
            cell.knock();
        });
        cell.assert_none(&wire);
    }
    if cell.kill_switch {
        let told =
            cell.scene.status().features.into_iter().find(|feature| feature.name == "kill-switch").unwrap();
        assert!(told.on && told.why.contains("put back 5 times, last after nft (pid "), "{told:?}");
    }
}

/// Nobody notices.
pub fn foreign_ruleset_flush_while_dead(cell: &mut Cell) {
    let Some(_) = program("nft", "nftables") else { return };
    cell.start_gateway();
    cell.up();
    ok(cell.scene.kill_daemon());
    flush_ruleset(&cell.scene.internet.agent, false);
    let (wire, ()) = cell.scene.on_wire(|| cell.knock_with(ROUTED));
    cell.assert_none_by(&wire, ROUTED);
    cell.assert_all_leaves(BOUND);
    assert_closed_again(cell);
}

/// As systemd-networkd may do with rules and routes that it does not know.
pub fn routing_taken_away(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    cell.start_gateway();
    cell.up();
    let capture = ok(lab::Capture::start(&cell.scene.internet.router, "lan0"));
    cell.while_knocking(|cell| {
        for taken in Taken::ALL.into_iter().cycle().take(9) {
            take_away(cell, taken);
            wait_until_put_back(cell);
        }
    });
    let wire = ok(capture.finish());
    if cell.kill_switch {
        cell.assert_none(&wire);
    }
    let (wire, ()) = cell.scene.on_wire(|| cell.knock());
    cell.assert_none(&of_the_agents(wire));
    cell.scene.reaches_signaling().unwrap();
}

pub fn routing_taken_away_while_dead(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    cell.up();
    for taken in Taken::ALL {
        ok(cell.scene.kill_daemon());
        take_away(cell, taken);
        assert_closed_by_kill_switch_alone(cell);
    }
}

/// As wg-quick leads all addresses into a tunnel of its own, which here is none.
pub fn other_rules_come_first(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    cell.start_gateway();
    cell.up();
    for _ in 0..3 {
        let (wire, ()) = cell.scene.on_wire(|| {
            cell.while_knocking(|cell| {
                come_first(cell);
                wait_until_first(cell);
            });
        });
        if cell.kill_switch {
            cell.assert_none(&wire);
        }
        let (wire, ()) = cell.scene.on_wire(|| {
            cell.while_knocking(|cell| {
                go_away(cell);
                wait_until_put_back(cell);
            });
        });
        cell.assert_none(&of_the_agents(wire));
    }
    cell.scene.reaches_signaling().unwrap();
}

pub fn other_rules_come_first_while_dead(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    cell.start_gateway();
    cell.up();
    ok(cell.scene.kill_daemon());
    come_first(cell);
    assert_closed_by_kill_switch_alone(cell);
    go_away(cell);
}

/// Signaling of a machine behind this one.
pub fn forwarded(cell: &mut Cell) {
    let Some(_) = program("ip", "iproute2") else { return };
    let behind = Behind::new(cell);
    let (wire, ()) = cell.scene.on_wire(|| behind.knock(cell));
    assert!(
        wire.records
            .iter()
            .any(|r| r.source.ip() == Behind::ADDRESS && cell.targets.contains(&r.destination)),
        "the control"
    );

    cell.start_gateway();
    cell.up();
    for is_dead in [false, true] {
        if is_dead {
            ok(cell.scene.kill_daemon());
        }
        let (wire, ()) = cell.scene.on_wire(|| behind.knock(cell));
        cell.assert_none_by(&wire, ROUTED);
    }
    take_away(cell, Taken::Rule);
    let (wire, ()) = cell.scene.on_wire(|| behind.knock(cell));
    if cell.kill_switch {
        cell.assert_none_by(&wire, ROUTED);
    } else {
        assert!(
            wire.records.iter().any(|record| cell.targets.contains(&record.destination)),
            "the kill switch's control"
        );
    }
}

struct Behind {
    host: Host,
    _link: Link,
}

impl Behind {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 10);
    const AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 1);

    fn new(cell: &Cell) -> Self {
        let agent = &cell.scene.internet.agent;
        let host = ok(Host::new("behind"));
        let net = |address: Ipv4Addr| ipnet::Ipv4Net::new_assert(address, 24).into();
        let near = End { host: agent, device: "lan1", address: net(Self::AGENT) };
        let far = End { host: &host, device: "eth0", address: net(Self::ADDRESS) };
        let link = ok(Link::connect(LinkKind::Wire, near, far, 0));
        ok(host.add_route(ipnet::Ipv4Net::default().into(), Self::AGENT.into()));
        ok(agent.sysctl("net/ipv4/ip_forward", "1"));
        Self { host, _link: link }
    }

    fn knock(&self, cell: &Cell) {
        let targets = cell.targets;
        ok(self.host.thread("knock", move || knock(targets, ROUTED))).join().unwrap();
    }
}

/// The link goes and comes back, the address becomes another, the default route goes and comes back.
pub fn change_network(agent: &Host) {
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
        let mut ip = std::process::Command::new("ip");
        ip.args(change.split(' '));
        said(&ok(agent.output(ip)));
        sleep(PATIENCE);
    }
}

/// As others do; a kill switch is back when this returns.
pub fn flush_ruleset(agent: &Host, has_kill_switch: bool) {
    let nft = |arguments: &[&str]| {
        let mut nft = std::process::Command::new("nft");
        nft.args(arguments);
        ok(agent.output(nft))
    };
    said(&nft(&["flush", "ruleset"]));
    if has_kill_switch {
        eventually(PUT_BACK, || {
            let listed = nft(&["list", "table", "inet", routes::KILL_SWITCH]);
            if listed.status.success() { Ok(()) } else { Err("it is not put back".to_owned()) }
        });
    }
}

pub fn take_away(cell: &Cell, taken: Taken) {
    let what = |(signaling, router)| match taken {
        Taken::Rule => format!("rule del priority {PRIORITY_CAPTURED}"),
        Taken::Routes => format!("route flush table {TABLE_CAPTURED}"),
        Taken::Table => format!("route add {signaling} via {router} table {TABLE_CAPTURED}"),
    };
    for (family, way) in OTHER_WAYS {
        let done = cell.agent_tries(&format!("ip {family} {}", what(way)));
        // The agent has IPv6 in some situations only.
        assert!(done.status.success() || family == "-6", "{done:?}");
    }
}

pub fn wait_until_put_back(cell: &Cell) {
    eventually(PUT_BACK, || {
        let is_there = |look: &str| !cell.agent(look).is_empty();
        let all = [
            format!("ip -4 rule show priority {PRIORITY_CAPTURED}"),
            format!("ip -6 rule show priority {PRIORITY_CAPTURED}"),
            format!("ip route show table {TABLE_CAPTURED}"),
        ];
        let is_theirs = |(family, (signaling, _))| {
            let look = format!("ip {family} route show {signaling} table {TABLE_CAPTURED}");
            !cell.agent_tries(&look).stdout.is_empty()
        };
        match all.iter().all(|look| is_there(look)) && !OTHER_WAYS.into_iter().any(is_theirs) {
            true => Ok(()),
            false => Err("it is not put back".to_owned()),
        }
    });
}

fn come_first(cell: &Cell) {
    cell.agent("ip route add default via 192.168.77.1 table 51820");
    cell.agent("ip rule add not fwmark 51820 table 51820");
    cell.agent("ip rule add table main suppress_prefixlength 0");
}

fn go_away(cell: &Cell) {
    cell.agent("ip rule del table main suppress_prefixlength 0");
    cell.agent("ip rule del not fwmark 51820 table 51820");
    cell.agent("ip route flush table 51820");
}

/// All of our rules, each behind the local table's alone.
fn wait_until_first(cell: &Cell) {
    eventually(PUT_BACK, || {
        let rules = cell.agent("ip rule");
        let is_ours: Vec<bool> = rules.lines().skip(1).map(|rule| rule.contains("proto 181")).collect();
        let is_first = is_ours.is_sorted_by(|one, next| one >= next) && is_ours.contains(&true);
        if is_first { Ok(()) } else { Err(rules) }
    });
}

/// Routed signaling leaves, unless there is a kill switch; the next `up` keeps it in.
#[track_caller]
fn assert_closed_by_kill_switch_alone(cell: &mut Cell) {
    if cell.kill_switch {
        let (wire, ()) = cell.scene.on_wire(|| cell.knock_with(BOTH));
        cell.assert_none_by(&wire, BOTH);
    } else {
        cell.assert_all_leaves(ROUTED);
    }
    assert_closed_again(cell);
}

#[track_caller]
fn assert_closed_again(cell: &mut Cell) {
    cell.up();
    let (wire, ()) = cell.scene.on_wire(|| cell.knock());
    cell.assert_none(&of_the_agents(wire));
}

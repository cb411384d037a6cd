//! A cell of the matrix: an agent, its daemon's configuration, and who knocks.

use std::net::SocketAddr;
use std::process::{Command, Output};

use ipnet::Ipv6Net;
use lab::addresses::SIGNALING;
use lab::{Captured, Daemon, Gateway, Host, Record, Wiring, write_config};
use packet::protocol::{TCP, UDP};

use super::knock::{BOTH, Knocking, ROUTED, Ways, knock};
use crate::common::{Scene, exe, is_signaling, ok, said, shared};

pub const SIGNALING_V6: Ipv6Net =
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0), 48);

pub struct Cell {
    pub scene: Scene,
    pub kill_switch: bool,
    /// Over TCP and UDP each.
    pub targets: [SocketAddr; 2],
}

impl Cell {
    pub fn run(kill_switch: bool, situation: fn(&mut Self)) {
        let _turn = shared();
        let Some(scene) = Scene::new(Wiring::default()) else { return };
        answer_for_others(&scene.internet.router);
        let targets = [443, 5060].map(|port| (SIGNALING, port).into());
        let mut cell = Self { scene, kill_switch, targets };
        cell.assert_all_leaves(BOTH);
        let more = format!("[routes]\nkill_switch = {kill_switch}\n");
        write_config(&cell.scene.keys, &cell.scene.directory, &more).unwrap();
        situation(&mut cell);
    }

    pub fn config(&self) -> String {
        std::fs::read_to_string(self.scene.directory.file("breakout.toml")).unwrap()
    }

    /// Another configuration for the next `up` or reload.
    pub fn configure(&self, from: &str, to: &str) {
        let text = self.config();
        assert!(text.contains(from), "no {from} in {text}");
        ok(self.scene.directory.write("breakout.toml", &text.replace(from, to)));
    }

    pub fn start_gateway(&mut self) {
        ok(self.scene.start_gateway(Gateway::Breakout, exe()));
    }

    pub fn up(&mut self) {
        let config = self.scene.directory.file("breakout.toml");
        self.scene.daemon =
            Some(ok(Daemon::start(&self.scene.internet.agent, exe(), &config, &self.scene.directory)));
    }

    /// A command of the agent's that has to succeed.
    pub fn agent(&self, command: &str) -> String {
        said(&self.agent_tries(command))
    }

    pub fn agent_tries(&self, command: &str) -> Output {
        let mut words = command.split(' ');
        let mut program = Command::new(words.next().unwrap());
        program.args(words);
        ok(self.scene.internet.agent.output(program))
    }

    /// All that is guaranteed not to leave.
    pub fn ways(&self) -> Ways {
        if self.kill_switch { BOTH } else { ROUTED }
    }

    pub fn knock(&self) {
        self.knock_with(self.ways());
    }

    pub fn knock_with(&self, ways: Ways) {
        let targets = self.targets;
        ok(self.scene.internet.agent.thread("knock", move || knock(targets, ways))).join().unwrap();
    }

    pub fn while_knocking(&self, body: impl FnOnce(&Self)) {
        self.while_knocking_with(self.ways(), body);
    }

    pub fn while_knocking_with(&self, ways: Ways, body: impl FnOnce(&Self)) {
        let knocking = Knocking::on(&self.scene.internet.agent, self.targets, ways);
        body(self);
        knocking.stop();
    }

    /// Panics if anything of signaling was on the agent's wire, or nothing that shows that it was attempted.
    #[track_caller]
    pub fn assert_none(&self, wire: &Captured) {
        self.assert_none_by(wire, self.ways());
    }

    #[track_caller]
    pub fn assert_none_by(&self, wire: &Captured, ways: Ways) {
        assert_eq!(wire.lost, 0);
        let leaked: Vec<&Record> =
            wire.records.iter().filter(|record| is_in_the_clear(record)).take(5).collect();
        assert!(leaked.is_empty(), "signaling in the clear: {leaked:#?}");
        for way in ways {
            let witness = way.witness(self.targets[0]);
            let is_seen = wire.records.iter().any(|record| record.destination == witness);
            assert!(is_seen, "{way:?} was not attempted, or the capture is blind");
        }
    }

    /// The control: by each of these ways TCP and UDP to each target leave.
    #[track_caller]
    pub fn assert_all_leaves(&self, ways: Ways) {
        for (at, way) in ways.iter().enumerate() {
            let (wire, ()) = self.scene.on_wire(|| self.knock_with(&ways[at..=at]));
            for to in self.targets {
                let seen =
                    |protocol| wire.records.iter().any(|r| r.destination == to && r.protocol == protocol);
                assert!(seen(UDP), "a datagram to {to} by {way:?} stayed here");
                assert!(seen(TCP) || !way.is_for_tcp(), "a connection to {to} by {way:?} stayed here");
            }
        }
    }
}

/// Without what far ends still send on connections that were made directly and are ended here.
pub fn of_the_agents(mut wire: Captured) -> Captured {
    wire.records.retain(|record| !record.outgoing);
    wire
}

/// Whether a packet is signaling's, over IPv4 or IPv6, and not inside the tunnel.
pub fn is_in_the_clear(record: &Record) -> bool {
    let is_v6 = |end: &SocketAddr| matches!(end, SocketAddr::V6(end) if SIGNALING_V6.contains(end.ip()));
    is_signaling(record) || [record.source, record.destination].iter().any(is_v6)
}

/// Has the router answer ARP for others: a socket that is bound to a device takes an address that a route refuses for a neighbour's
/// (net/ipv4/route.c, ip_route_output_key_hash_rcu), and gets out where somebody answers for it.
pub fn answer_for_others(router: &Host) {
    for (parameter, value) in [("conf/lan0/proxy_arp", "1"), ("neigh/lan0/proxy_delay", "0")] {
        ok(router.sysctl(&format!("net/ipv4/{parameter}"), value));
    }
}

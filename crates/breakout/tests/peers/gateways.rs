//! Several gateways: one dies under live traffic, another takes its place, the first comes back. And gateways whose names change.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use lab::addresses::{GATEWAY, GATEWAY_PORT, MEDIA, OTHER_GATEWAY, SIGNALING};
use lab::service::http;
use lab::traffic::datagram::sip_options;
use lab::traffic::stream::{Pace, Tls, connect, connect_tls};
use lab::traffic::voice::Call;
use lab::traffic::{EF_TOS, Outcome, Ports};
use lab::{Daemon, Gateway, Host, Impairment, Keys, Link, LinkKind, Process, Wiring, start_our_own};
use packet::protocol::{TCP, UDP};
use tunnel::PrivateKey;

use crate::common::{
    Scene, assert_hidden, assert_shown, eventually, exe, is_long, is_signaling, ok, program, said, shared,
};

/// From the last answer to the end of a connection whose gateway is gone: 6 s, and what a busy machine adds.
const LOST: Duration = Duration::from_secs(12);
/// An attempt to return is made every 30 s.
const RETURN: Duration = Duration::from_secs(45);
/// A name without an answer is asked for again after 10 s, then after 20 s.
const FOUND: Duration = Duration::from_secs(40);
/// An address on the gateways' network that nobody has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 99);
const HOLE: &str = "table ip hole { chain in { type filter hook prerouting priority -400; policy drop; }; }";
const NO_HOLE: &str = "delete table ip hole";
/// Time to be returned to, and to be left.
const UP: Duration = Duration::from_secs(8);
const DOWN: Duration = Duration::from_secs(9);
const HTTPS: (Ipv4Addr, u16) = (SIGNALING, 443);
const SIP: (Ipv4Addr, u16) = (SIGNALING, 5060);
const MTU: u32 = 1420;

#[test]
fn the_second_takes_the_place_of_one_that_was_killed_until_it_is_back() {
    let _turn = shared();
    let Some(mut both) = Both::start("order", ["near", "far"]) else { return };
    both.fail_over(|scene| scene.gateway = None);
    both.come_back();
}

#[test]
fn the_second_takes_the_place_of_one_whose_wire_is_dead() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(mut both) = Both::start("order", ["near", "far"]) else { return };
    both.fail_over(|scene| run_nft(scene, &nft, HOLE));
}

/// Each fail-over resets all connections; it is returned to after 30 s, then after 60 s and so on.
#[test]
fn one_that_comes_and_goes_is_not_returned_to_each_time() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(both) = Both::start("order", ["near", "far"]) else { return };
    let (cycles, most) = if is_long() { (36, 5) } else { (3, 2) };
    let pass = |time: Duration| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            // A flow of its own, whatever becomes of it.
            drop(both.sip(1));
            sleep(Duration::from_millis(500));
        }
    };
    for _ in 0..cycles {
        pass(UP);
        both.nft(&nft, HOLE);
        pass(DOWN);
        both.nft(&nft, NO_HOLE);
    }
    let fail_overs = both.fail_overs();
    assert!((1..=most).contains(&fail_overs), "{fail_overs} fail-overs in {cycles} cycles:\n{}", both.log());
    both.scene.reaches_signaling().unwrap();
}

#[test]
fn in_another_network_flows_stay_with_their_gateway() {
    let _turn = shared();
    let Some(both) = Both::start("order", ["near", "far"]) else { return };
    let (asking, answers) = both.ask_until_it_ends();
    let sip = both.sip(60);
    for from in [10, 11, 10] {
        (0..5).for_each(|_| answers.recv().unwrap());
        both.shell(&format!(
            "ip address del 192.168.77.{from}/24 dev eth0
             ip address add 192.168.77.{}/24 dev eth0
             ip route replace default via 192.168.77.1",
            21 - from
        ));
        while answers.try_recv().is_ok() {}
        answers.recv_timeout(Duration::from_secs(2)).expect("it goes on within a second or two");
    }
    let sip = sip.join().unwrap();
    assert!(sip.failure.is_none() && sip.sent - sip.answered <= 3, "{sip:?}");
    assert_eq!((both.fail_overs(), both.scene.gateway().name.as_str()), (0, "near"), "{}", both.log());
    drop(asking);
}

#[test]
fn the_shortest_round_trip_is_taken_and_the_longer_one_when_that_is_gone() {
    let _turn = shared();
    let Some(mut both) = Both::start("round-trip", ["far", "near"]) else { return };
    both.fail_over(|scene| scene.gateway = None);
}

#[test]
fn a_gateway_whose_name_moves_is_followed() {
    let _turn = shared();
    let Some(mut both) = Both::build() else { return };
    both.other = None;
    // The same gateway at another address.
    both.other_keys = both.scene.keys.clone();
    both.know("near.example", GATEWAY);
    both.write_config("order", &[("near", "near.example".to_owned(), both.scene.keys.clone())]);
    both.up();
    both.scene.reaches_signaling().unwrap();

    both.scene.gateway = None;
    both.start_other();
    both.know("near.example", SIGNALING);
    eventually(FOUND, || {
        let _ = both.scene.reaches_signaling();
        let refused = "near.example leads to 203.0.113.10, which";
        if both.log().contains(refused) { Ok(()) } else { Err(both.log()) }
    });
    both.know("near.example", OTHER_GATEWAY);
    let (wire, ()) = both.scene.on_wire(|| eventually(FOUND, || both.scene.reaches_signaling()));
    assert_eq!(wire.records.iter().filter(|record| is_signaling(record)).count(), 0);
    let there = SocketAddr::from((OTHER_GATEWAY, GATEWAY_PORT));
    assert!(
        wire.records.iter().any(|record| record.destination == there),
        "the tunnel's own was not captured"
    );
    assert_eq!(both.scene.gateway().endpoint, Some((OTHER_GATEWAY, GATEWAY_PORT).into()));
}

#[test]
fn a_name_that_lies_moves_no_gateway_that_answers_and_none_for_long() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(mut both) = Both::build() else { return };
    both.know("near.example", GATEWAY);
    both.write_config("order", &[("near", "near.example".to_owned(), both.scene.keys.clone())]);
    both.up();
    both.scene.reaches_signaling().unwrap();
    let is_at = |both: &Both, address| match both.scene.gateway().endpoint {
        Some(at) if at == (address, GATEWAY_PORT).into() => Ok(()),
        at => Err(format!("it is looked for at {at:?}")),
    };

    both.know("near.example", NOBODY);
    let lookups = |both: &Both| both.log().matches("resolving the gateway's name").count();
    let before = lookups(&both);
    both.shell(
        "ip address del 192.168.77.10/24 dev eth0
         ip address add 192.168.77.11/24 dev eth0
         ip route replace default via 192.168.77.1",
    );
    eventually(FOUND, || match lookups(&both) {
        more if more > before => Ok(()),
        _ => Err("its name was not asked for".to_owned()),
    });
    // The answer stands in a file.
    sleep(Duration::from_secs(1));
    is_at(&both, GATEWAY).unwrap();
    both.scene.reaches_signaling().unwrap();

    both.nft(&nft, HOLE);
    eventually(FOUND, || {
        let _ = both.scene.reaches_signaling();
        is_at(&both, NOBODY)
    });
    both.nft(&nft, NO_HOLE);
    eventually(FOUND, || both.scene.reaches_signaling());
    is_at(&both, GATEWAY).unwrap();
}

/// Nobody has asked the other one since it moved.
#[test]
fn a_standby_that_has_moved_is_found_when_the_one_in_use_dies() {
    let _turn = shared();
    let Some(mut both) = Both::build() else { return };
    both.know_all(&[("near.example", GATEWAY), ("far.example", NOBODY)]);
    let near = ("near", "near.example".to_owned(), both.scene.keys.clone());
    let far = ("far", "far.example".to_owned(), both.other_keys.clone());
    both.write_config("order", &[near, far]);
    both.up();
    both.scene.reaches_signaling().unwrap();

    both.know_all(&[("near.example", GATEWAY), ("far.example", OTHER_GATEWAY)]);
    both.scene.gateway = None;
    let (wire, ()) = both.scene.on_wire(|| eventually(FOUND, || both.scene.reaches_signaling()));
    assert_hidden(&wire);
    let used = both.scene.gateway();
    assert_eq!((used.name.as_str(), used.endpoint), ("far", Some((OTHER_GATEWAY, GATEWAY_PORT).into())));
}

#[test]
fn a_name_without_an_answer_keeps_nobody_from_starting_and_is_asked_for_again() {
    let _turn = shared();
    let Some(mut both) = Both::build() else { return };
    both.know("unrelated.example", GATEWAY);
    let far = ("far", "far.invalid".to_owned(), both.other_keys.clone());
    let near = ("near", GATEWAY.to_string(), both.scene.keys.clone());
    both.write_config("order", &[far, near]);
    both.up();
    eventually(Duration::from_secs(5), || both.scene.reaches_signaling());
    let status = both.scene.status();
    let [far, near] = status.tunnel.gateways.as_slice() else { panic!("{:?}", status.tunnel) };
    assert_eq!((far.endpoint, far.used, far.reachable), (None, false, false));
    assert!(near.used && far.why.contains("no address"), "{status:?}");

    both.know("far.invalid", OTHER_GATEWAY);
    eventually(FOUND, || {
        both.scene.reaches_signaling()?;
        let used = both.scene.gateway();
        if used.name == "far" { Ok(()) } else { Err(format!("{} is used", used.name)) }
    });
}

/// At boot there may be no network yet, or one that has no answers before a login.
#[test]
fn without_any_answer_signaling_is_closed_until_there_is_one() {
    let _turn = shared();
    let Some(mut both) = Both::build() else { return };
    let (wire, reached) = both.scene.on_wire(|| both.scene.reaches_signaling());
    reached.unwrap();
    assert_shown(&wire, TCP);

    both.know("unrelated.example", GATEWAY);
    both.write_config("order", &[("near", "near.invalid".to_owned(), both.scene.keys.clone())]);
    both.up();
    let (wire, reached) = both.scene.on_wire(|| both.scene.reaches_signaling());
    reached.unwrap_err();
    assert_eq!((wire.lost, wire.records.iter().filter(|record| is_signaling(record)).count()), (0, 0));
    assert_eq!(both.scene.gateway().endpoint, None);

    both.know("near.invalid", GATEWAY);
    eventually(FOUND, || both.scene.reaches_signaling());
}

/// Two gateways, a near one that is the lab's own and one that is further away.
struct Both {
    // In the order in which they are to end.
    other: Option<Process>,
    scene: Scene,
    other_host: Host,
    _link: Link,
    other_keys: Keys,
}

impl Both {
    fn build() -> Option<Self> {
        let mut scene = Scene::new(Wiring::default())?;
        let far = Impairment { delay: Duration::from_millis(20), ..Impairment::default() };
        let (other_host, link) =
            ok(scene.internet.add_gateway("other", OTHER_GATEWAY, LinkKind::Impaired(far)));
        let other_keys = Keys { gateway: PrivateKey::generate().unwrap(), ..scene.keys.clone() };
        ok(scene.start_gateway(Gateway::Breakout, exe()));
        let mut both = Self { other: None, scene, other_host, _link: link, other_keys };
        both.start_other();
        Some(both)
    }

    /// With the daemon up, and the near one used.
    fn start(prefer: &str, order: [&str; 2]) -> Option<Self> {
        let mut both = Self::build()?;
        let (wire, ()) = both.scene.on_wire(|| {
            both.scene.reaches_signaling().unwrap();
            both.sip(1).join().unwrap();
        });
        assert_shown(&wire, TCP);
        assert_shown(&wire, UDP);

        let gateways = order.map(|name| match name {
            "near" => (name, GATEWAY.to_string(), both.scene.keys.clone()),
            _ => (name, OTHER_GATEWAY.to_string(), both.other_keys.clone()),
        });
        both.write_config(prefer, &gateways);
        both.up();
        both.scene.reaches_signaling().unwrap();
        assert_eq!(both.scene.gateway().name, "near", "{:?}", both.scene.status().tunnel);
        Some(both)
    }

    fn start_other(&mut self) {
        let directory = &self.scene.directory;
        self.other =
            Some(ok(start_our_own(&self.other_host, "other", &self.other_keys, exe(), directory, MTU)));
    }

    fn write_config(&self, prefer: &str, gateways: &[(&str, String, Keys)]) {
        let mut tables = String::new();
        for (name, host, keys) in gateways {
            let key = keys.gateway.public_key();
            tables += &format!(
                "[[gateways]]\nname = \"{name}\"\npublic_key = \"{key}\"\npreshared_key_file = \"agent.psk\"\n\
                 endpoint = \"{host}:{GATEWAY_PORT}\"\n"
            );
        }
        let file = ok(lab::write_config(&self.scene.keys, &self.scene.directory, &tables));
        let of_one = ["peer_public_key", "preshared_key_file = \"agent.psk\"\nendpoint", "keepalive"];
        let mut text = std::fs::read_to_string(&file).unwrap();
        for key in of_one {
            let at = text.find(key).unwrap();
            let end = at + key.len() + text[at + key.len()..].find('\n').unwrap() + 1;
            text.replace_range(at..end, "");
        }
        let prefer = if gateways.len() > 1 { format!("prefer = \"{prefer}\"\n") } else { String::new() };
        std::fs::write(&file, text.replacen("[sets", &format!("{prefer}[sets"), 1)).unwrap();
    }

    fn up(&mut self) {
        let config = self.scene.directory.file("breakout.toml");
        let agent = &self.scene.internet.agent;
        self.scene.daemon = Some(ok(Daemon::start(agent, exe(), &config, &self.scene.directory)));
    }

    fn shell(&self, script: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]);
        said(&ok(self.scene.internet.agent.output(shell)));
    }

    fn nft(&self, nft: &Path, rules: &str) {
        run_nft(&self.scene, nft, rules);
    }

    fn fail_overs(&self) -> usize {
        self.log().matches("a gateway's flows go to another").count()
    }

    /// What the daemon has said.
    fn log(&self) -> String {
        std::fs::read_to_string(self.scene.directory.file("daemon.log")).unwrap()
    }

    /// Has the agent find a name at this address, and no other name.
    fn know(&self, name: &str, address: Ipv4Addr) {
        self.know_all(&[(name, address)]);
    }

    fn know_all(&self, names: &[(&str, Ipv4Addr)]) {
        let hosts = self.scene.directory.file("hosts");
        let is_shown = hosts.exists();
        let names = names.iter().map(|(name, address)| format!("{address} {name}\n"));
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{}", names.collect::<String>())).unwrap();
        if !is_shown {
            ok(self.scene.internet.agent.show_instead("/etc/hosts".as_ref(), &hosts));
        }
    }

    /// The near gateway dies under a connection that asks, one that only listens, SIP over UDP and a call.
    fn fail_over(&mut self, die: impl FnOnce(&mut Scene)) {
        let capture = ok(lab::Capture::start(&self.scene.internet.router, "lan0"));
        let (asking, answers) = self.ask_until_it_ends();
        let listening = self.listen_until_it_ends();
        let (sip, call) = (self.sip(80), self.call(12));
        (0..5).for_each(|_| answers.recv().unwrap());
        die(&mut self.scene);

        let asked = asking.join().unwrap();
        let listened = listening.join().unwrap();
        self.scene.reaches_signaling().unwrap();
        let sip = sip.join().unwrap();
        let call = call.join().unwrap();
        let wire = ok(capture.finish());
        assert_eq!(wire.lost, 0, "the capture was too slow");
        assert_hidden(&wire);

        assert!(asked.is_told() && asked.after < LOST, "asking: {asked:?}");
        assert!(listened.is_told() && listened.after < 2 * LOST, "listening: {listened:?}");
        // Each unanswered one took a second.
        assert!(sip.failure.is_none() && sip.sent - sip.answered < LOST.as_secs(), "{sip:?}");
        assert!(call.answered == call.sent && call.sent >= 600, "voice goes on as if nothing were: {call:?}");

        let tunnel = self.scene.status().tunnel;
        assert_eq!(tunnel.used().unwrap().name, "far", "{tunnel:?}");
        let failover = tunnel.failover.unwrap();
        assert_eq!((failover.from.as_str(), failover.to.as_str()), ("near", "far"));
        assert!(failover.cut_flows >= 2, "{failover:?}");
        assert!(
            self.log().contains("a gateway's flows go to another: nothing came back from the one before")
        );
    }

    /// The near gateway answers again: new flows go there, old ones stay.
    fn come_back(&mut self) {
        let tls = self.scene.identity.client.clone();
        let open = move || connect_tls(HTTPS.into(), &tls).unwrap();
        let mut old = ok(self.scene.internet.agent.thread("old", open)).join().unwrap();
        get(&mut old).unwrap();
        ok(self.scene.start_gateway(Gateway::Breakout, exe()));
        eventually(RETURN, || {
            self.scene.reaches_signaling()?;
            let used = self.scene.gateway();
            if used.name == "near" { Ok(()) } else { Err(format!("{} is used", used.name)) }
        });
        self.scene.reaches_signaling().unwrap();
        get(&mut old).unwrap();
        let local = old.sock.local_addr().unwrap();
        let flows = self.scene.flows();
        let old = flows.iter().find(|flow| flow.source == local).unwrap();
        assert_eq!(old.gateway.as_deref(), Some("far"));
        assert!(flows.iter().any(|flow| flow.gateway.as_deref() == Some("near")), "{flows:?}");
    }

    /// A request every tenth of a second over one connection; each answer is told.
    fn ask_until_it_ends(&self) -> (JoinHandle<Ended>, Receiver<()>) {
        let (answer, answers) = channel();
        let tls = self.scene.identity.client.clone();
        let ask = move || {
            let mut stream = connect_tls(HTTPS.into(), &tls).unwrap();
            stream.sock.set_read_timeout(Some(2 * LOST)).unwrap();
            ask(&mut stream, &answer)
        };
        (ok(self.scene.internet.agent.thread("asking", ask)), answers)
    }

    /// A connection on which nothing more is sent.
    fn listen_until_it_ends(&self) -> JoinHandle<Ended> {
        let listen = || {
            let mut stream = connect((SIGNALING, 80).into()).unwrap();
            stream.set_read_timeout(Some(3 * LOST)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            let begun = Instant::now();
            let error =
                stream.read(&mut [0; 1]).map_or_else(|error| error, |_| ErrorKind::UnexpectedEof.into());
            Ended { after: begun.elapsed(), error }
        };
        ok(self.scene.internet.agent.thread("listening", listen))
    }

    fn sip(&self, requests: u64) -> JoinHandle<Outcome> {
        let pace = Pace { requests, pause: Duration::from_millis(100) };
        ok(self.scene.internet.agent.thread("sip", move || sip_options(SIP.into(), pace)))
    }

    fn call(&self, seconds: u16) -> JoinHandle<Outcome> {
        let to = SocketAddr::from((MEDIA, Ports::VOICE_EF));
        let call = Call { to, from: None, tos: EF_TOS, packets: 50 * seconds };
        ok(self.scene.internet.agent.thread("call", move || call.run()))
    }
}

/// On the near gateway.
fn run_nft(scene: &Scene, nft: &Path, rules: &str) {
    let mut command = Command::new(nft);
    command.arg(rules);
    said(&ok(scene.internet.gateway.output(command)));
}

/// How a connection ended.
#[derive(Debug)]
struct Ended {
    /// Since the last answer.
    after: Duration,
    error: io::Error,
}

impl Ended {
    /// As opposed to waiting in vain.
    fn is_told(&self) -> bool {
        matches!(self.error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)
    }
}

fn ask(stream: &mut Tls, answer: &Sender<()>) -> Ended {
    let mut last = Instant::now();
    loop {
        if let Err(error) = get(stream) {
            return Ended { after: last.elapsed(), error };
        }
        last = Instant::now();
        // Only the first ones are waited for.
        let _ = answer.send(());
        sleep(Duration::from_millis(100));
    }
}

fn get(stream: &mut Tls) -> io::Result<()> {
    http::get(stream, &SIGNALING.to_string(), "/", |_| Ok(())).map(drop)
}

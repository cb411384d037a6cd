//! Calls in the kernel, in the pump, and from hand to hand: on the wire nobody can tell which.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::thread::{JoinHandle, scope, sleep};
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use lab::addresses::{AGENT, AGENT_TUNNEL, MEDIA, ROUTER};
use lab::traffic::{EF_TOS, Outcome, Ports, voice};
use lab::{Captured, Host, Process, Record, Wiring, write_config};
use packet::protocol::UDP;

use crate::common::{Scene, alone, count, eventually, exe, is_long, ok, program, said, shared, watch};
use crate::machine::Machine;
use crate::webrtc::{Call, Local, mappings, media_side};

const FEATURE: &str = "kernel-fast-path";
const REQUIRE: &str = "[dataplane]\nfast_path = \"require\"\n";
const OFF: &str = "[dataplane]\nfast_path = \"off\"\n";
/// Until a call that has just connected is out of its handshakes.
const STRIDE: Duration = Duration::from_secs(1);
const FLIP: Duration = Duration::from_millis(50);
/// Linux's default.
const TTL: u8 = 64;
const PATIENCE: Duration = Duration::from_secs(10);
const LIVE: SocketAddr = SocketAddr::new(IpAddr::V4(MEDIA), Ports::VOICE_EF);

/// Who moved a call's outbound packets.
#[derive(Debug)]
struct Moved {
    sent: usize,
    /// Those that the pump was given.
    pumped: usize,
    /// How often the voice thread was put on a processor meanwhile.
    woken: u64,
    /// Who moves the call, as `flows` shows it at the end.
    in_kernel: bool,
}

#[test]
fn a_call_in_the_kernel_does_not_wake_the_daemon() {
    let Some(moved) = make_call(REQUIRE, |_, time| sleep(time)) else { return };
    // Timers ring, and a route may change by itself; a packet each way every 20 ms would be far more.
    assert!(moved.pumped * 50 <= moved.sent && moved.woken * 20 <= moved.sent as u64, "{moved:?}");
    assert!(moved.in_kernel, "as `flows` shows it");
}

#[test]
fn a_call_in_the_pump_looks_the_same() {
    let Some(moved) = make_call(OFF, |_, time| sleep(time)) else { return };
    assert!(moved.pumped * 2 >= moved.sent && moved.woken * 4 >= moved.sent as u64, "{moved:?}");
    assert!(!moved.in_kernel, "as `flows` shows it");
}

#[test]
fn a_call_that_changes_hands_every_50_ms_looks_the_same() {
    let change_routes = |scene: &Scene, time| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            for action in ["add", "del"] {
                ip(scene, &format!("route {action} {MEDIA}/32 via {ROUTER} mtu 1400"));
                sleep(FLIP);
            }
        }
    };
    let Some(moved) = make_call(REQUIRE, change_routes) else { return };
    assert!(
        moved.pumped >= 10 && moved.sent - moved.pumped >= 10,
        "one of the tiers had nothing to do: {moved:?}"
    );
}

#[test]
fn killed_during_a_call_it_leaves_no_program_and_no_route_that_leads_anywhere() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let Some(before) = Machine::look(&scene.internet.agent) else { return };
    raise(&mut scene, REQUIRE);
    let tun = scene.status().interface.name;
    let call = start_call(&scene, 150);
    let agent = &scene.internet.agent;
    eventually(PATIENCE, || match (programs(agent, "eth0"), programs(agent, &tun)) {
        ([1, _], [_, 1]) => Ok(()),
        other => Err(format!("attached to ingress and egress: {other:?}")),
    });

    ok(scene.kill_daemon());
    let agent = &scene.internet.agent;
    eventually(PATIENCE, || match programs(agent, "eth0") {
        [0, 0] => Ok(()),
        other => Err(format!("still attached to ingress and egress: {other:?}")),
    });
    let after = Machine::look(agent).unwrap();
    let differences = before.differences(&after);
    assert!(!differences.iter().any(|line| line.contains(&tun)), "{tun} is still there: {differences:#?}");
    let routes: Vec<&String> =
        differences.iter().filter(|line| line.contains("route show") && line.contains(": + ")).collect();
    let leads_nowhere =
        |line: &&String| [": + prohibit ", ": + throw "].iter().any(|kind| line.contains(kind));
    assert!(!routes.is_empty() && routes.iter().all(leads_nowhere), "{routes:#?}");
    call.join().unwrap();
}

#[test]
fn a_call_goes_on_in_the_kernel_when_the_link_was_down() {
    let _turn = shared();
    let Some(_) = program("ip", "iproute2") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    raise(&mut scene, REQUIRE);
    let (wire, outcome) = scene.on_wire(|| {
        let call = start_call(&scene, 600);
        wait_for_kernel(&scene);
        ip(&scene, "link set eth0 down");
        sleep(Duration::from_secs(1));
        ip(&scene, "link set eth0 up");
        ip(&scene, &format!("route add default via {ROUTER}"));
        wait_for_kernel(&scene);
        call.join().unwrap()
    });
    let sources: BTreeSet<SocketAddr> =
        wire.records.iter().filter(|r| is_sent(r)).map(|r| r.source).collect();
    assert_eq!(sources.len(), 1, "not one external endpoint: {sources:?}");
    assert!(outcome.answered * 2 > outcome.sent, "{} of {} answered", outcome.answered, outcome.sent);
}

#[test]
fn without_the_right_to_it_the_pump_carries_on_or_nothing_starts() {
    let _turn = shared();
    let Some(setpriv) = program("setpriv", "util-linux") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let Some(before) = Machine::look(&scene.internet.agent) else { return };
    let start = |scene: &Scene, more: &str| {
        let config = write_config(&scene.keys, &scene.directory, more).unwrap();
        let mut command = Command::new(&setpriv);
        command.args(["--bounding-set", "-bpf,-sys_admin"]).arg(exe()).arg("up").arg("--config").arg(config);
        command.env("BREAKOUT_STATE_DIR", scene.directory.file("state"));
        ok(Process::spawn(&scene.internet.agent, "up", command, &scene.directory.file("up.log")))
    };
    let mut refused = start(&scene, REQUIRE);
    let status = ok(refused.wait(PATIENCE)).expect("it goes on without what is required");
    let words = refused.output();
    assert!(
        !status.success() && words.contains("the kernel fast path is required, but cannot be"),
        "{words}"
    );
    assert!(words.contains("CAP_BPF"), "{words}");
    let after = Machine::look(&scene.internet.agent).unwrap();
    assert_eq!(before.differences(&after), Vec::<String>::new());

    ok(scene.start_gateway(lab::Gateway::Breakout, exe()));
    let mut carries_on = start(&scene, "");
    ok(carries_on.wait_for_line("breakout is up", PATIENCE));
    let (is_on, why) = feature(&scene);
    assert!(!is_on && why.contains("CAP_BPF"), "{why}");
    let outcome = start_call(&scene, 50).join().unwrap();
    assert_eq!(outcome.answered, outcome.sent, "{:?}", outcome.failure);
    said(&scene.breakout(&["down"]));
}

/// A WebRTC call from the TUN's address, and what `meanwhile` does during it; `None` where that cannot be. Panics unless all of the call
/// is one flow, marked, in order, complete, and heard.
fn make_call(more: &str, meanwhile: impl Fn(&Scene, Duration) + Sync) -> Option<Moved> {
    let _turn = alone();
    program("ip", "iproute2")?;
    let (mut scene, _coturn) = media_side()?;
    raise(&mut scene, more);
    assert_eq!(feature(&scene).0, more != OFF, "{}", feature(&scene).1);
    let daemon = scene.daemon.as_mut().unwrap().process().pid();
    let tun = scene.status().interface.name;

    let time = Duration::from_secs(if is_long() { 60 } else { 4 });
    let seconds = (time + 2 * STRIDE).as_secs();
    let call = Call::start(&scene, "call", seconds, Local::Only(AGENT_TUNNEL)).connected();
    sleep(STRIDE);
    let (wire, (inside, woken)) = scene.on_wire(|| {
        watch(&scene.internet.agent, &tun, || {
            let before = wake_ups(daemon);
            scope(|scope| scope.spawn(|| meanwhile(&scene, time)).join().unwrap());
            wake_ups(daemon) - before
        })
    });
    let flows = scene.flows();
    let mappings = mappings(&flows);
    let pair = call.finish(seconds).pair;
    let in_kernel = flows.iter().any(|flow| {
        (flow.source, flow.destination) == (pair.local.endpoint, pair.remote.endpoint) && flow.in_kernel
    });

    let sent: Vec<&Record> = wire.records.iter().filter(|r| is_sent(r)).collect();
    assert!(sent.len() as u64 >= time.as_secs() * 25, "only {} packets", sent.len());
    for record in &sent {
        assert_eq!((record.tos, record.ttl), (EF_TOS, TTL), "{record:?}");
        assert_eq!(record.destination, pair.remote.endpoint);
        assert_eq!(mappings[&pair.local.endpoint], BTreeSet::from([record.source]));
    }
    assert_complete(sent.iter().copied());
    assert_complete(inside.records.iter().filter(|r| !r.outgoing && r.source == pair.remote.endpoint));
    let pumped = count(&inside, |r| r.outgoing && r.destination == pair.remote.endpoint);
    Some(Moved { sent: sent.len(), pumped, woken, in_kernel })
}

/// Panics unless the RTP among these packets has every sequence number, in order.
#[track_caller]
fn assert_complete<'a>(records: impl Iterator<Item = &'a Record>) {
    let numbers: Vec<u16> = records
        .filter_map(|record| match record.head.as_slice() {
            // RFC 3550 §5.1; RFC 5761 §4: payload types 64 to 95 are RTCP's.
            [first, kind, high, low, ..] if first >> 6 == 2 && !(64..96).contains(&(kind & 0x7f)) => {
                Some(u16::from_be_bytes([*high, *low]))
            }
            _ => None,
        })
        .collect();
    assert!(numbers.len() > 50, "hardly any RTP: {numbers:?}");
    let gaps: Vec<&[u16]> = numbers.windows(2).filter(|pair| pair[1] != pair[0].wrapping_add(1)).collect();
    assert!(gaps.is_empty(), "{gaps:?}");
}

/// Waits until a call's packets leave the agent without the pump.
fn wait_for_kernel(scene: &Scene) {
    let tun = scene.status().interface.name;
    eventually(PATIENCE, || {
        let (wire, (inside, ())): (Captured, _) =
            scene.on_wire(|| watch(&scene.internet.agent, &tun, || sleep(Duration::from_millis(300))));
        let (sent, pumped) = (count(&wire, is_sent), count(&inside, |r| r.outgoing && r.destination == LIVE));
        if sent >= 5 && pumped == 0 { Ok(()) } else { Err(format!("{sent} packets, {pumped} by the pump")) }
    });
}

fn raise(scene: &mut Scene, more: &str) {
    ok(scene.start_gateway(lab::Gateway::Breakout, exe()));
    ok(scene.start_daemon(exe(), more));
}

/// A call from the TUN's address, as long as `packets` of 20 ms.
fn start_call(scene: &Scene, packets: u16) -> JoinHandle<Outcome> {
    let call = voice::Call { to: LIVE, from: Some(AGENT_TUNNEL), tos: 0, packets };
    ok(scene.internet.agent.thread("call", move || call.run()))
}

/// Whether the access router received it from the agent for the media host.
fn is_sent(record: &Record) -> bool {
    !record.outgoing
        && record.protocol == UDP
        && record.source.ip() == AGENT
        && record.destination.ip() == MEDIA
}

/// Whether the fast path is on, and why or why not.
fn feature(scene: &Scene) -> (bool, String) {
    let features = scene.status().features;
    let feature = features.into_iter().find(|feature| feature.name == FEATURE).unwrap();
    (feature.on, feature.why)
}

/// How many BPF programs are attached by tcx to a device's ingress and egress.
fn programs(host: &Host, device: &str) -> [usize; 2] {
    let device = device.to_owned();
    ok(host.run(move || {
        [TcAttachType::Ingress, TcAttachType::Egress]
            .map(|at| SchedClassifier::query_tcx(&device, at).unwrap().1.len())
    }))
}

/// How often a daemon's voice thread was put on a processor.
fn wake_ups(daemon: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let mut threads = tasks.map(|task| task.unwrap().path());
    let is_voice = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "voice")
    };
    let voice = threads.find(is_voice).expect("no thread is called `voice`");
    let status = std::fs::read_to_string(voice.join("status")).unwrap();
    let switches = |line: &str| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok();
    status.lines().filter_map(switches).sum()
}

fn ip(scene: &Scene, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    said(&ok(scene.internet.agent.output(command)));
}

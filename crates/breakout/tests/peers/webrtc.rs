use std::collections::{BTreeMap, BTreeSet};
use std::fs::create_dir;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use lab::addresses::{AGENT, AGENT_TUNNEL, HOME, MEDIA, SIGNALING};
use lab::{Capture, Process, Wiring};
use packet::protocol::{TCP, UDP};
use serde::Deserialize;

use crate::common::{EF, Scene, alone, count, file, is_long, is_tunnel, ok, program, said, wait_for_socket};

const TURN_PORT: u16 = 3478;
const USER: &str = "breakout";
const PASSWORD: &str = "lab";
/// Gathering, ICE, DTLS, and the end; on a busy machine.
const OVERHEAD: Duration = Duration::from_secs(40);
/// Audio frames of 20 ms.
const FRAMES_PER_SECOND: u64 = 50;
/// Hertz; different, so that an echo would be noticed.
const CALLER_SAYS: u32 = 400;
const PEER_SAYS: u32 = 800;

/// What one end reports.
#[derive(Debug, Deserialize)]
pub struct End {
    dtls: String,
    candidates: Vec<Candidate>,
    pub pair: Pair,
    sent: u64,
    received: u64,
    lost: u64,
    frames: u64,
    tonal: u64,
}

#[derive(Debug, Deserialize)]
pub struct Pair {
    pub local: Candidate,
    pub remote: Candidate,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Candidate {
    r#type: String,
    pub endpoint: SocketAddr,
}

#[test]
fn calls_from_every_interface_leave_by_the_bypass() {
    let _turn = alone();
    let Some((mut scene, _coturn)) = media_side() else { return };
    scene.raise();
    let seconds = 10;

    let capture = |host, device| ok(Capture::start(host, device));
    let router = &scene.internet.router;
    let (lan, wan) = (capture(router, "lan0"), capture(router, "wan0"));
    let gateway = capture(&scene.internet.gateway, "eth0");
    let calls = [
        Call::start(&scene, "tun", seconds, Local::Only(AGENT_TUNNEL)),
        Call::start(&scene, "physical", seconds, Local::Only(AGENT)),
        Call::start(&scene, "both", seconds, Local::All),
        Call::start(&scene, "relayed", seconds, Local::Relayed),
    ];
    let calls = calls.map(Call::connected);
    let flows = scene.flows();
    // That the capture behind the gateway sees what comes out of the tunnel.
    scene.reaches_signaling().unwrap();
    let callers = calls.map(|call| call.finish(seconds));
    measures_what_the_callers_saw(&scene, &callers);
    let [lan, wan, gateway] = [lan, wan, gateway].map(|capture| ok(capture.finish()));
    assert_eq!([lan.lost, wan.lost, gateway.lost], [0; 3]);

    let nominated = callers.each_ref().map(|caller| caller.pair.local.endpoint.ip());
    assert_eq!(nominated[..2], [IpAddr::from(AGENT_TUNNEL), AGENT.into()]);
    assert_eq!(nominated[3], IpAddr::from(MEDIA));

    let outbound =
        lan.records.iter().filter(|r| r.source.ip() == AGENT && r.protocol == UDP && !is_tunnel(r));
    let mut external = BTreeSet::new();
    for record in outbound {
        assert_eq!((record.destination.ip(), record.dscp()), (MEDIA.into(), EF), "{record:?}");
        external.insert(record.source);
    }
    let at_home: BTreeSet<SocketAddr> = wan
        .records
        .iter()
        .filter(|r| r.outgoing && r.protocol == UDP && r.destination.ip() == MEDIA)
        .map(|r| r.source)
        .collect();
    assert_eq!(external.len(), at_home.len(), "{external:?} became {at_home:?}");

    assert!(count(&gateway, |r| r.outgoing && r.destination.ip() == SIGNALING && r.protocol == TCP) > 0);
    assert_eq!(count(&gateway, |r| r.destination.ip() == MEDIA || r.source.ip() == MEDIA), 0);

    let mappings = mappings(&flows);
    for candidate in callers.iter().flat_map(|caller| &caller.candidates) {
        match candidate.r#type.as_str() {
            "host" => {
                let mapped = mappings.get(&candidate.endpoint);
                let mapped = mapped.unwrap_or_else(|| panic!("{candidate:?} has no flow in {flows:#?}"));
                assert_eq!(mapped.len(), 1, "{candidate:?} is mapped to {mapped:?}");
                assert!(
                    mapped.is_subset(&external),
                    "{candidate:?} is mapped to {mapped:?}, seen {external:?}"
                );
            }
            // RFC 4787: what coturn saw is what the rest of the world sees.
            "srflx" => assert!(at_home.contains(&candidate.endpoint), "{candidate:?} is none of {at_home:?}"),
            "relay" => assert_eq!(candidate.endpoint.ip(), MEDIA),
            other => panic!("a candidate of type {other}"),
        }
    }
    // One for each socket: three callers with one, one with two.
    assert_eq!(external.len(), 5, "{external:?}");
}

#[test]
fn a_call_lives_through_a_bulk_download_and_reloads() {
    let _turn = alone();
    let Some((mut scene, _coturn)) = media_side() else { return };
    let Some(curl) = program("curl", "curl") else { return };
    scene.raise();
    let seconds = if is_long() { 60 } else { 12 };

    let router = &scene.internet.router;
    let wan = ok(Capture::start_beside_tunnel(router, "wan0"));
    let call = Call::start(&scene, "bulk", seconds, Local::Only(AGENT_TUNNEL)).connected();
    let before = scene.gateway().received_bytes;
    let mut bulk = Command::new(curl);
    bulk.args(["--silent", "--output", "/dev/null", "--insecure", "--max-time", &seconds.to_string()]);
    bulk.arg(format!("https://{SIGNALING}/bytes/1000000000000"));
    let _bulk = ok(Process::spawn(&scene.internet.agent, "curl", bulk, &scene.directory.file("curl.log")));

    let config = scene.directory.file("breakout.toml");
    let old = std::fs::read_to_string(&config).unwrap();
    let mapped = mappings(&scene.flows());
    for round in 0..4 {
        std::thread::sleep(Duration::from_secs(seconds / 5));
        let other =
            format!("{old}\n[sets.more]\ncidrs = [\"192.0.2.0/24\"]\n[policy]\nunmatched = \"tunnel\"\n");
        scene.directory.write("breakout.toml", if round % 2 == 0 { &other } else { &old }).unwrap();
        let said = said(&scene.breakout(&["reload"]));
        assert!(said.contains("set more"), "{said}");
        let carried = scene.gateway().received_bytes - before;
        assert!(carried > (round + 1) * 10_000_000, "no bulk: {carried} bytes so far");
        for (internal, external) in mappings(&scene.flows()) {
            assert_eq!(mapped.get(&internal), Some(&external), "{internal} was moved");
        }
    }
    call.finish(seconds);

    let wan = ok(wan.finish());
    assert_eq!(wan.lost, 0);
    let media = wan.records.iter().filter(|r| r.outgoing && r.protocol == UDP && r.destination.ip() == MEDIA);
    let sources: BTreeSet<SocketAddr> = media.map(|r| r.source).collect();
    assert!(sources.len() == 1 && sources.iter().all(|s| s.ip() == HOME), "{sources:?}");
}

/// Opus at 48 kHz, bare or in ChannelData, packet by packet. What comes to the physical interface's own address passes the kernel tier only.
fn measures_what_the_callers_saw(scene: &Scene, callers: &[End]) {
    let flows = scene.flows();
    let measured = |of: fn(&control::Flow) -> &Option<control::Rtp>| -> Vec<u32> {
        let streams = flows.iter().filter_map(|flow| of(flow).as_ref());
        let packets = streams.map(|rtp| {
            assert_eq!((rtp.lost, rtp.strays, rtp.clock_rate), (0, 0, Some(48_000)), "{rtp:?}");
            assert!(rtp.jitter_us.is_some(), "{rtp:?}");
            rtp.packets
        });
        packets.collect()
    };
    let in_order = |mut counts: Vec<u32>| {
        counts.sort_unstable();
        counts
    };
    let (out, back) = (measured(|flow| &flow.out_rtp), measured(|flow| &flow.in_rtp));
    let heard = callers
        .iter()
        .filter(|caller| back.len() == callers.len() || caller.pair.local.endpoint.ip() != AGENT);
    assert_eq!(in_order(out.clone()), in_order(callers.iter().map(|caller| caller.sent as u32).collect()));
    assert_eq!(in_order(back.clone()), in_order(heard.map(|caller| caller.received as u32).collect()));
    let sums = [out, back].map(|counts| u64::from(counts.iter().sum::<u32>()));
    assert_eq!(scene.status().voice.iter().map(|sum| sum.packets).collect::<Vec<_>>(), sums);
}

/// The internet with coturn on its media host; `None`, said on standard error, where that cannot be.
pub fn media_side() -> Option<(Scene, Process)> {
    let coturn = program("turnserver", "coturn")?;
    if !Command::new("python3")
        .args(["-c", "import aiortc"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        lab::skip("python3 has no aiortc: pip install -r crates/breakout/tests/peers/requirements.txt");
        return None;
    }
    let scene = Scene::new(Wiring::default())?;
    let mut command = Command::new(coturn);
    command.args(["-n", "--no-tls", "--no-dtls", "--no-cli", "--log-file", "stdout", "--simple-log"]);
    command.args(["--listening-ip", &MEDIA.to_string(), "--listening-port", &TURN_PORT.to_string()]);
    command.args(["--relay-ip", &MEDIA.to_string(), "--min-port", "49152", "--max-port", "49999"]);
    command.args(["--lt-cred-mech", "--realm", "lab", "--user", &format!("{USER}:{PASSWORD}")]);
    command.arg("--pidfile").arg(scene.directory.file("turn.pid"));
    command.arg("--userdb").arg(scene.directory.file("turn.db"));
    let log = scene.directory.file("coturn.log");
    let mut process = ok(Process::spawn(&scene.internet.media, "coturn", command, &log));
    wait_for_socket(&mut process, &scene.internet.media, UDP, SocketAddrV4::new(MEDIA, TURN_PORT));
    Some((scene, process))
}

/// Which candidates a caller gathers.
#[derive(Clone, Copy)]
pub enum Local {
    /// Those of every interface.
    All,
    Only(Ipv4Addr),
    /// Coturn's only: all that the call sends goes to one port of one media address.
    Relayed,
}

/// A caller on the agent and a peer that can be reached through coturn only.
pub struct Call {
    caller: Process,
    peer: Process,
}

impl Call {
    pub fn start(scene: &Scene, name: &str, seconds: u64, local: Local) -> Self {
        let rendezvous = scene.directory.file(name);
        create_dir(&rendezvous).unwrap();
        let end = |role: &str, say: u32, hear: u32| {
            let mut command = Command::new("python3");
            command.arg(file("call.py")).arg(role).arg("--rendezvous").arg(&rendezvous);
            command.args(["--seconds", &seconds.to_string()]);
            command.args(["--say", &say.to_string(), "--hear", &hear.to_string()]);
            command
        };
        let server = format!("{MEDIA}:{TURN_PORT}");
        let mut caller = end("caller", CALLER_SAYS, PEER_SAYS);
        let relayed = ["--turn", &server, "--user", USER, "--password", PASSWORD];
        match local {
            Local::All => caller.args(["--stun", &server]),
            Local::Only(address) => caller.args(["--stun", &server, "--only", &address.to_string()]),
            Local::Relayed => caller.args(relayed),
        };
        let mut peer = end("peer", PEER_SAYS, CALLER_SAYS);
        peer.args(relayed);
        let spawn = |host, role: &str, command| {
            let log = scene.directory.file(&format!("{name}-{role}.log"));
            ok(Process::spawn(host, &format!("the {role} of `{name}`"), command, &log))
        };
        let internet = &scene.internet;
        Self { caller: spawn(&internet.agent, "caller", caller), peer: spawn(&internet.media, "peer", peer) }
    }

    pub fn connected(mut self) -> Self {
        ok(self.caller.wait_for_line("connected", OVERHEAD));
        ok(self.peer.wait_for_line("connected", OVERHEAD));
        self
    }

    /// Waits for its end, holds what both ends saw against what they sent, and gives the caller's side.
    #[track_caller]
    pub fn finish(mut self, seconds: u64) -> End {
        let caller = report(&mut self.caller, seconds);
        let peer = report(&mut self.peer, seconds);
        for (end, other) in [(&caller, &peer), (&peer, &caller)] {
            assert_eq!(end.dtls, "connected");
            assert_eq!((end.lost, end.received), (0, other.sent), "{end:#?}\nthe other end: {other:#?}");
            // The first second is DTLS, and Opus getting into its stride.
            let enough = (seconds - 1) * FRAMES_PER_SECOND;
            assert!(end.tonal >= enough && end.frames - end.tonal <= FRAMES_PER_SECOND, "{end:#?}");
        }
        assert_eq!(caller.pair.remote.endpoint, peer.pair.local.endpoint);
        assert_eq!(peer.pair.local.r#type, "relay");
        caller
    }
}

fn report(end: &mut Process, seconds: u64) -> End {
    let status = ok(end.wait(Duration::from_secs(seconds) + OVERHEAD));
    let said = end.output();
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {said}");
    let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no report: {said}"));
    serde_json::from_str(line).unwrap()
}

/// External endpoints by internal ones, of all that bypasses.
pub fn mappings(flows: &[control::Flow]) -> BTreeMap<SocketAddr, BTreeSet<SocketAddr>> {
    let mut mappings: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow.path == "bypass") {
        mappings.entry(flow.source).or_default().extend(flow.mapping);
    }
    mappings
}

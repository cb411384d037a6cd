use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use lab::addresses::{AGENT, AGENT_TUNNEL, GATEWAY, GATEWAY_PORT, SIGNALING, STREAMING};
use lab::service::{http, listen_tcp};
use lab::traffic::datagram::sip_options;
use lab::traffic::stream::{Pace, connect, connect_tls};
use lab::{Capture, Foreign, Gateway, Host, SIGNALING_NET, WireGuard, Wiring};
use packet::protocol::{TCP, UDP};
use tunnel::{PresharedKey, PrivateKey};

use crate::common::{
    Scene, assert_hidden, assert_shown, count, eventually, exe, is_long, is_tunnel, ok, program, said, shared,
};

/// WireGuard notices a lost session 15 s after it was last answered (keepalive and rekey timeouts).
const LOST_SESSION: Duration = Duration::from_secs(30);
const MEGABYTE: u64 = 1_000_000;

#[test]
fn wireguard_go_is_the_gateway() {
    far_end(Gateway::Foreign(Foreign::WireguardGo));
}

#[test]
fn gotatun_is_the_gateway() {
    far_end(Gateway::Foreign(Foreign::Gotatun));
}

#[test]
fn boringtun_cli_is_the_gateway() {
    far_end(Gateway::Foreign(Foreign::BoringtunCli));
}

#[test]
fn our_own_gateway() {
    far_end(Gateway::Breakout);
}

#[test]
fn wireguard_go_is_the_client() {
    client(Foreign::WireguardGo);
}

#[test]
fn gotatun_is_the_client() {
    client(Foreign::Gotatun);
}

#[test]
fn boringtun_cli_is_the_client() {
    client(Foreign::BoringtunCli);
}

#[test]
fn wrong_keys_are_named() {
    wrong_keys(Gateway::Breakout);
}

#[test]
fn wrong_keys_are_named_with_wireguard_go() {
    wrong_keys(Gateway::Foreign(Foreign::WireguardGo));
}

/// Handshake, data both ways, a far end that forgets the session, and one that moves to another port.
fn far_end(gateway: Gateway) {
    let _turn = shared();
    let Some(mut scene) = scene(gateway) else { return };
    let (wire, ()) = scene.on_wire(|| transfer(&scene).unwrap());
    assert_shown(&wire, TCP);

    ok(scene.start_gateway(gateway, exe()));
    ok(scene.start_daemon(exe(), ""));
    let (wire, ()) = scene.on_wire(|| transfer(&scene).unwrap());
    assert_hidden(&wire);
    let tunnel = scene.gateway();
    assert_eq!((tunnel.state.as_str(), tunnel.trouble), ("up", None));
    assert!(tunnel.sent_bytes > 10_000 && tunnel.received_bytes > MEGABYTE);
    if is_long() {
        rekeys_without_a_gap(&scene);
    }
    follows_the_gateway(&scene);

    // Everything about the session is gone with the process, and nothing but unanswered packets tells the daemon.
    scene.gateway = None;
    ok(scene.start_gateway(gateway, exe()));
    let restarted = Instant::now();
    let (wire, ()) = scene.on_wire(|| eventually(LOST_SESSION, || transfer(&scene)));
    assert_hidden(&wire);
    let age = scene.gateway().last_handshake_seconds.expect("data moved without a handshake");
    assert!(age < restarted.elapsed().as_secs_f64(), "the session is {age} s old, the gateway younger");
    if gateway == Gateway::Breakout {
        finds_the_gateway_again(&mut scene);
    }
}

/// WireGuard makes a new session every two minutes while there is traffic.
fn rekeys_without_a_gap(scene: &Scene) {
    let seconds = 140;
    let pace = Pace { requests: seconds * 5, pause: Duration::from_millis(200) };
    let client = move || sip_options((SIGNALING, 5060).into(), pace);
    let outcome = ok(scene.internet.agent.thread("sip", client)).join().unwrap();
    assert_eq!((outcome.answered, outcome.sent), (pace.requests, pace.requests), "{:?}", outcome.failure);
    let age = scene.gateway().last_handshake_seconds.unwrap();
    assert!(age < 60.0, "no new session after {seconds} s of traffic: the last handshake was {age} s ago");
}

/// The gateway's datagrams come from another port, in the middle of a stream; only that they are authentic says whose they are.
fn follows_the_gateway(scene: &Scene) {
    const OTHER_PORT: u16 = GATEWAY_PORT + 77;
    let Some(nft) = program("nft", "nftables") else { return };
    let internet = &scene.internet;
    let ticks = SocketAddr::from((STREAMING, 80));
    ok(listen_tcp(&internet.signaling, ticks, |mut stream| {
        loop {
            stream.write_all(b"tick\n")?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }));
    let mut stream = ok(internet.agent.run(move || connect(ticks))).unwrap();
    let (wire, ()) = scene.on_wire(|| stream.read_exact(&mut [0; 50]).unwrap());
    let own = wire
        .records
        .iter()
        .find(|r| is_tunnel(r) && r.source.ip() == AGENT)
        .expect("no tunnel")
        .source
        .port();

    let install = |host: &Host, table: String| {
        let mut command = Command::new(&nft);
        command.arg(table);
        said(&ok(host.output(command)));
    };
    // The home's NAT would let nothing in from a port that the agent has never sent to.
    install(
        &internet.router,
        format!(
            "table ip forward {{\nchain in {{\ntype nat hook prerouting priority -100;\n\
             ip saddr {GATEWAY} udp sport {OTHER_PORT} dnat to {AGENT}:{own}\n}}\n}}"
        ),
    );
    // Without connection tracking, which would keep the stream's old port.
    install(
        &internet.gateway,
        format!(
            "table ip moved {{\n\
             chain out {{\ntype filter hook output priority -400;\nudp sport {GATEWAY_PORT} udp sport set {OTHER_PORT}\n}}\n\
             chain in {{\ntype filter hook prerouting priority -400;\nudp dport {GATEWAY_PORT} drop\n\
             udp dport {OTHER_PORT} udp dport set {GATEWAY_PORT}\n}}\n}}"
        ),
    );
    let (wire, ()) = scene.on_wire(|| {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            stream.read_exact(&mut [0; 5]).expect("the stream has ended with the move");
        }
    });
    assert_hidden(&wire);
    assert_eq!(scene.gateway().endpoint, Some((GATEWAY, OTHER_PORT).into()));
    let to = |port| count(&wire, |r| r.protocol == UDP && r.destination == (GATEWAY, port).into());
    assert!(
        to(OTHER_PORT) > 10,
        "{} datagrams to the new port, {} to the old",
        to(OTHER_PORT),
        to(GATEWAY_PORT)
    );
}

/// Back on its configured port, and with nothing to send: the daemon looks there by itself.
fn finds_the_gateway_again(scene: &mut Scene) {
    scene.gateway = None;
    let mut command = Command::new("nft");
    command.args(["delete", "table", "ip", "moved"]);
    said(&ok(scene.internet.gateway.output(command)));
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    eventually(LOST_SESSION, || transfer(scene));
    assert_eq!(scene.gateway().endpoint, Some((GATEWAY, GATEWAY_PORT).into()));
}

/// The other way round: our gateway, another's client.
fn client(program: Foreign) {
    let _turn = shared();
    if let Err(missing) = program.find() {
        return lab::skip(missing);
    }
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let (wire, reached) = scene.on_wire(|| transfer(&scene));
    reached.unwrap();
    assert_shown(&wire, TCP);
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    let client = WireGuard {
        private_key: scene.keys.agent.clone(),
        listen_port: None,
        peer: scene.keys.gateway.public_key(),
        preshared_key: Some(scene.keys.preshared.clone()),
        endpoint: Some((GATEWAY, GATEWAY_PORT).into()),
        allowed_ips: vec![SIGNALING_NET.into()],
        keepalive: Some(5),
        address: Ipv4Net::new_assert(AGENT_TUNNEL, 32).into(),
    };
    let _client = ok(client.start(&scene.internet.agent, program, "wg0", &scene.directory));
    let (wire, ()) = scene.on_wire(|| eventually(Duration::from_secs(6), || transfer(&scene)));
    assert_hidden(&wire);

    scene.gateway = None;
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    eventually(LOST_SESSION, || transfer(&scene));
    if is_long() {
        let pace = Pace { requests: 700, pause: Duration::from_millis(200) };
        let sip = move || sip_options((SIGNALING, 5060).into(), pace);
        let outcome = ok(scene.internet.agent.thread("sip", sip)).join().unwrap();
        assert_eq!(outcome.answered, pace.requests, "{:?}", outcome.failure);
    }
}

/// Each kind of wrong key fails with a sentence in `status` that says what it is.
fn wrong_keys(gateway: Gateway) {
    let _turn = shared();
    let Some(mut scene) = scene(gateway) else { return };
    let (wire, reached) = scene.on_wire(|| transfer(&scene));
    reached.unwrap();
    assert_shown(&wire, TCP);
    ok(scene.start_gateway(gateway, exe()));
    let right = scene.keys.clone();
    let other = || PrivateKey::generate().unwrap();

    scene.keys.preshared = PresharedKey::generate().unwrap();
    fails(&mut scene, "the pre-shared keys differ");
    scene.keys = right.clone();
    scene.keys.gateway = other();
    fails(&mut scene, "check that peer_public_key is the gateway's");
    scene.keys = right.clone();
    scene.keys.agent = other();
    fails(&mut scene, "that the gateway knows this machine's public key");

    scene.keys = right;
    ok(scene.start_daemon(exe(), ""));
    transfer(&scene).unwrap();
    assert_eq!(scene.gateway().trouble, None);
}

/// Starts the daemon, sees that signaling fails and that `status` says why, and ends it.
fn fails(scene: &mut Scene, sentence: &str) {
    let capture = ok(Capture::start(&scene.internet.router, "lan0"));
    ok(scene.start_daemon(exe(), ""));
    transfer(scene).expect_err("signaling was reached with a wrong key");
    assert_hidden(&ok(capture.finish()));
    let text = eventually(Duration::from_secs(10), || {
        let text = said(&scene.breakout(&["status"]));
        if text.contains(sentence) { Ok(text) } else { Err(text) }
    });
    let tunnel = scene.gateway();
    assert!(tunnel.state != "up" && tunnel.last_handshake_seconds.is_none(), "{text}");
    ok(scene.stop_daemon());
}

/// Small requests and a megabyte over TLS, every byte compared.
fn transfer(scene: &Scene) -> Result<(), String> {
    // Each connection carries a handshake of about 1 KB up.
    (0..10).try_for_each(|_| scene.reaches_signaling())?;
    let tls = scene.identity.client.clone();
    let download = move || -> std::io::Result<()> {
        let mut stream = connect_tls((SIGNALING, 443).into(), &tls)?;
        http::download(&mut stream, &Ipv4Addr::to_string(&SIGNALING), MEGABYTE)
    };
    let done = ok(scene.internet.agent.thread("download", download)).join().unwrap();
    done.map_err(|error| format!("download: {error}"))
}

/// `None`, said on standard error, where this gateway or a lab cannot be.
fn scene(gateway: Gateway) -> Option<Scene> {
    if let Gateway::Foreign(program) = gateway {
        program.find().map_err(lab::skip).ok()?;
    }
    Scene::new(Wiring::default())
}

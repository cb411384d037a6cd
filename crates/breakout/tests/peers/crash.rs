use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use lab::addresses::{AGENT, MEDIA, SIGNALING, WEB};
use lab::traffic::datagram::sip_options;
use lab::traffic::stream::{Pace, connect, https};
use lab::traffic::voice::Call;
use lab::traffic::{EF_TOS, Outcome, Ports};
use lab::{Daemon, Gateway, Wiring, write_config};
use packet::protocol::TCP;

use crate::common::{Scene, assert_hidden, assert_shown, count, eventually, exe, ok, program, said, shared};
use crate::machine::Machine;

const ONCE: Pace = Pace { requests: 1, pause: Duration::ZERO };
/// Applications wait a second at least; a refusal that comes later is none.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Long enough for TCP to send again what was not acknowledged.
const RETRANSMISSION: Duration = Duration::from_secs(2);

#[test]
fn killed_it_keeps_signaling_closed_until_up_and_down() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let Some(before) = Machine::look(&scene.internet.agent) else { return };
    let (wire, reached) = scene.on_wire(|| scene.reaches_signaling());
    reached.unwrap();
    assert_shown(&wire, TCP);

    scene.raise();
    let (wire, reached) = scene.on_wire(|| scene.reaches_signaling());
    reached.unwrap();
    assert_hidden(&wire);

    let router = &scene.internet.router;
    let capture = ok(lab::Capture::start(router, "lan0"));
    let agent = &scene.internet.agent;
    let mut old = ok(agent.run(|| connect((SIGNALING, 80).into()))).unwrap();
    old.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    old.read_exact(&mut [0; 12]).unwrap();
    ok(scene.kill_daemon());
    let _ = old.write_all(b"GET /secret HTTP/1.1\r\n\r\n");

    let [tcp, udp, web] = try_everything(&scene);
    for refused in [&tcp, &udp] {
        let failure = refused.failure.as_ref().expect("signaling was reached without a daemon");
        assert!(failure.refused && failure.after < AT_ONCE, "{failure}");
    }
    assert_eq!(web.answered, 1, "{:?}", web.failure);
    let media = SocketAddr::from((MEDIA, Ports::VOICE_EF));
    let call = move || Call { to: media, from: None, tos: EF_TOS, packets: 50 }.run();
    let voice = ok(scene.internet.agent.thread("call", call)).join().unwrap();
    assert!(voice.answered == voice.sent && voice.sent > 50, "voice fails direct: {voice:?}");
    std::thread::sleep(RETRANSMISSION);
    let wire = ok(capture.finish());
    assert_eq!(wire.lost, 0);
    assert_hidden(&wire);
    assert!(
        count(&wire, |r| r.destination.ip() == WEB && r.source.ip() == AGENT) > 0,
        "the capture saw nothing"
    );

    scene.start_daemon(exe(), "").unwrap();
    let (wire, ()) = scene.on_wire(|| eventually(Duration::from_secs(5), || scene.reaches_signaling()));
    assert_hidden(&wire);

    assert_eq!(said(&scene.breakout(&["down"])), "breakout is down\n");
    assert_as_before(&scene, &before);
}

#[test]
fn killed_it_leaves_nothing_after_down() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let Some(before) = Machine::look(&scene.internet.agent) else { return };
    scene.raise();
    scene.reaches_signaling().unwrap();
    let during = Machine::look(&scene.internet.agent).unwrap();
    assert!(!before.differences(&during).is_empty(), "what `up` changes was not seen");
    ok(scene.kill_daemon());
    let after = Machine::look(&scene.internet.agent).unwrap();
    assert!(!before.differences(&after).is_empty(), "what keeps signaling closed was not seen");

    let said = said(&scene.breakout(&["down"]));
    assert!(said.contains("a crash had left something behind"), "{said}");
    assert_as_before(&scene, &before);
}

#[test]
fn strict_rp_filter_is_made_loose_and_put_back() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    for device in ["all", "default", "eth0"] {
        ok(scene.internet.agent.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1"));
    }
    let Some(before) = Machine::look(&scene.internet.agent) else { return };
    scene.raise();
    let media = SocketAddr::from((MEDIA, Ports::VOICE_UNMARKED));
    let call = move || Call { to: media, from: None, tos: 0, packets: 25 }.run();
    let voice = ok(scene.internet.agent.thread("call", call)).join().unwrap();
    assert_eq!(voice.answered, voice.sent, "{:?}", voice.failure);
    scene.reaches_signaling().unwrap();
    ok(scene.kill_daemon());
    scene.start_daemon(exe(), "").unwrap();
    ok(scene.stop_daemon());
    assert_as_before(&scene, &before);
}

#[test]
fn killed_it_keeps_ipv6_signaling_closed_too() {
    const SIGNALING_V6: &str = "2001:db8:5::10";
    let _turn = shared();
    let Some(_) = program("ip", "iproute2") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    for command in [
        "-6 address add 2001:db8:77::10/64 dev eth0 nodad",
        "-6 neighbour add 2001:db8:77::1 lladdr 02:00:00:00:00:01 dev eth0",
        "-6 route add default via 2001:db8:77::1",
    ] {
        let mut ip = Command::new("ip");
        ip.args(command.split(' '));
        said(&ok(scene.internet.agent.output(ip)));
    }
    let Some(before) = Machine::look(&scene.internet.agent) else { return };
    let to: SocketAddr = format!("[{SIGNALING_V6}]:443").parse().unwrap();
    let unrelated: SocketAddr = "[2001:db8:9::9]:7000".parse().unwrap();
    let knock = |scene: &Scene| {
        let patience = Duration::from_millis(400);
        let knock = move || {
            UdpSocket::bind("[::]:0").unwrap().send_to(b"hello", unrelated).unwrap();
            TcpStream::connect_timeout(&to, patience).unwrap_err()
        };
        let (wire, error) = scene.on_wire(|| ok(scene.internet.agent.run(knock)));
        assert!(count(&wire, |r| r.destination == unrelated) > 0, "the capture is blind");
        (count(&wire, |r| r.destination == to), error)
    };
    let (seen, _) = knock(&scene);
    assert!(seen > 0, "what went directly was not captured, so its absence would prove nothing");

    ok(scene.start_gateway(Gateway::Breakout, exe()));
    let config = write_config(&scene.keys, &scene.directory, "").unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text
        .replace("\"10.99.0.1/32\"", "\"10.99.0.1/32\", \"fd99::1/128\"")
        .replace("\"203.0.113.0/24\"", "\"203.0.113.0/24\", \"2001:db8:5::/48\"");
    scene.directory.write("breakout.toml", &text).unwrap();
    scene.daemon = Some(ok(Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));
    scene.reaches_signaling().unwrap();
    assert_eq!(knock(&scene).0, 0);
    ok(scene.kill_daemon());
    let (seen, error) = knock(&scene);
    assert_eq!(seen, 0, "signaling left over IPv6");
    assert!(
        error.kind() == ErrorKind::PermissionDenied || error.kind() == ErrorKind::HostUnreachable,
        "{error}"
    );
    said(&scene.breakout(&["down"]));
    assert_as_before(&scene, &before);
    assert!(knock(&scene).0 > 0);
}

#[track_caller]
fn assert_as_before(scene: &Scene, before: &Machine) {
    let after = Machine::look(&scene.internet.agent).unwrap();
    assert_eq!(before.differences(&after), Vec::<String>::new());
    let (wire, reached) = scene.on_wire(|| scene.reaches_signaling());
    reached.unwrap();
    assert_shown(&wire, TCP);
}

/// HTTPS to signaling, SIP to signaling, HTTPS to the unrelated site.
fn try_everything(scene: &Scene) -> [Outcome; 3] {
    let tls = scene.identity.client.clone();
    let everything = move || {
        [
            https((SIGNALING, 443).into(), &tls, ONCE),
            sip_options((SIGNALING, 5060).into(), ONCE),
            https((WEB, 443).into(), &tls, ONCE),
        ]
    };
    ok(scene.internet.agent.thread("everything", everything)).join().unwrap()
}

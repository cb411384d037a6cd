use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use lab::Wiring;
use lab::addresses::{AGENT, MEDIA, SIGNALING, WEB};
use lab::traffic::datagram::sip_options;
use lab::traffic::stream::{Pace, connect, https};
use lab::traffic::voice::Call;
use lab::traffic::{EF_TOS, Outcome, Ports};
use packet::protocol::TCP;

use crate::common::{Scene, assert_hidden, assert_shown, count, eventually, exe, ok, said, shared};
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

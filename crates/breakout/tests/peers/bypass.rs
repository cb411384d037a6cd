use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lab::addresses::{AGENT, AGENT_TUNNEL, MEDIA, NEIGHBOUR, ROUTER};
use lab::service::stun;
use lab::traffic::voice::Call;
use lab::traffic::{EF_TOS, Outcome, Ports};
use lab::{Captured, Impairment, LinkKind, Wiring};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use packet::protocol::{ICMP, UDP};
use socket2::{Domain, SockRef, Socket, Type};

use crate::common::{EF, Scene, count, eventually, ok, program, said, shared};

const LIVE: SocketAddr = SocketAddr::new(IpAddr::V4(MEDIA), Ports::VOICE_UNMARKED);
/// Nobody listens there.
const DEAD: SocketAddr = SocketAddr::new(IpAddr::V4(MEDIA), 20_100);
/// How long a mapping outlives its address, and what it takes to see that.
const LINGER: Duration = Duration::from_secs(12);
const OTHER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);

#[test]
fn a_dead_candidate_beside_a_live_call_loses_nothing() {
    const ROUNDS: u16 = 40;
    const DELAY: Duration = Duration::from_millis(20);
    let _turn = shared();
    let slow = LinkKind::Impaired(Impairment { delay: DELAY, ..Impairment::default() });
    let Some(mut scene) = Scene::new(Wiring { access: slow, ..Wiring::default() }) else { return };
    // Otherwise the far end reports one dead packet in a second only.
    ok(scene.internet.media.sysctl("net/ipv4/icmp_ratelimit", "0"));
    scene.raise();

    let socket = ok(scene.internet.agent.run(|| UdpSocket::bind((AGENT_TUNNEL, 0)))).unwrap();
    let ear = listen(socket.try_clone().unwrap(), Duration::from_secs(2));
    socket.send_to(&stun::request(stun::transaction(0)), LIVE).unwrap();
    let daemon = Pid::from_raw(scene.daemon.as_mut().unwrap().process().pid() as i32);
    let (wire, ()) = scene.on_wire(|| {
        for round in 0..ROUNDS {
            socket.send_to(&stun::request(stun::transaction(1)), DEAD).unwrap();
            sleep(DELAY / 2);
            // While the dead packet is under way, so that the daemon finds a live packet first and the error about the dead one second.
            kill(daemon, Signal::SIGSTOP).unwrap();
            socket.send_to(&rtp(round), LIVE).unwrap();
            sleep(DELAY * 3);
            kill(daemon, Signal::SIGCONT).unwrap();
            sleep(DELAY);
        }
    });
    let heard: BTreeSet<u16> = ear.join().unwrap().into_iter().map(|(number, _)| number).collect();
    let lost: Vec<u16> = (0..ROUNDS).filter(|number| !heard.contains(number)).collect();
    assert!(lost.is_empty(), "lost {lost:?}; {:?}", scene.status().drops);
    let errors = count(&wire, |r| r.outgoing && r.protocol == ICMP && r.source.ip() == MEDIA);
    assert_eq!(
        errors,
        usize::from(ROUNDS),
        "the far end did not refuse each dead packet: too little was tested"
    );
    let sources = sources(&wire);
    assert_eq!(sources.len(), 1, "not one external socket: {sources:?}");
}

#[test]
fn who_sends_to_a_dead_candidate_is_told() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    for from in [AGENT_TUNNEL, AGENT] {
        let ask = move || -> std::io::Error {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.connect(DEAD).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.send(&stun::request(stun::transaction(0))).unwrap();
            socket.recv(&mut [0; 64]).expect_err("somebody answered")
        };
        let error = ok(scene.internet.agent.thread("ask", ask)).join().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from}: {error}");
    }
}

#[test]
fn a_call_outlives_a_short_loss_of_the_address() {
    let _turn = shared();
    let Some(_) = program("ip", "iproute2") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    let (wire, outcome) = scene.on_wire(|| {
        let call = start_call(&scene, 500);
        sleep(Duration::from_secs(2));
        let before = mapping(&scene);
        ip(&scene, &format!("address del {AGENT}/24 dev eth0"));
        sleep(Duration::from_secs(4));
        assert!(!is_free(&scene, before), "{before} is not reserved any more");
        ip(&scene, &format!("address add {AGENT}/24 dev eth0"));
        ip(&scene, &format!("route add default via {ROUTER}"));
        sleep(Duration::from_secs(2));
        assert_eq!(mapping(&scene), before, "the mapping did not live on");
        call.join().unwrap()
    });
    assert_eq!(sources(&wire).len(), 1, "{:?}", sources(&wire));
    // Four seconds without an address, and what it takes to notice that it is back.
    let lost = outcome.sent - outcome.answered;
    assert!((150..=260).contains(&lost), "{lost} of {} lost", outcome.sent);
}

#[test]
fn a_call_outlives_a_link_that_is_down_for_a_moment() {
    let _turn = shared();
    let Some(_) = program("ip", "iproute2") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    let (wire, outcome) = scene.on_wire(|| {
        let call = start_call(&scene, 400);
        sleep(Duration::from_secs(2));
        let before = mapping(&scene);
        ip(&scene, "link set eth0 down");
        sleep(Duration::from_secs(2));
        ip(&scene, "link set eth0 up");
        ip(&scene, &format!("route add default via {ROUTER}"));
        sleep(Duration::from_secs(2));
        assert_eq!(mapping(&scene), before, "the mapping did not live on");
        call.join().unwrap()
    });
    assert_eq!(sources(&wire).len(), 1, "{:?}", sources(&wire));
    let lost = outcome.sent - outcome.answered;
    assert!((75..=160).contains(&lost), "{lost} of {} lost", outcome.sent);
    scene.reaches_signaling().unwrap();
}

#[test]
fn another_address_makes_a_new_flow_without_a_refusal() {
    let _turn = shared();
    let Some(_) = program("ip", "iproute2") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    // Otherwise the kernel drops an address together with the first one of its network.
    ok(scene.internet.agent.sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"));
    scene.raise();
    scene.reaches_signaling().unwrap();
    let (wire, outcome) = scene.on_wire(|| {
        let call = start_call(&scene, 300);
        sleep(Duration::from_secs(2));
        let before = mapping(&scene);
        assert_eq!(before.ip(), AGENT);
        ip(&scene, &format!("address add {OTHER_ADDRESS}/24 dev eth0"));
        ip(&scene, &format!("address del {AGENT}/24 dev eth0"));
        sleep(Duration::from_secs(2));
        assert_eq!(mapping(&scene).ip(), OTHER_ADDRESS);
        // Signaling has moved as well, in the same session.
        scene.reaches_signaling().unwrap();
        assert!(!is_free(&scene, before), "{before} is not reserved any more");
        let outcome = call.join().unwrap();
        eventually(LINGER, || {
            is_free(&scene, before).then_some(()).ok_or(format!("{before} is still reserved"))
        });
        outcome
    });
    assert!(outcome.failure.is_none(), "the application was refused: {:?}", outcome.failure);
    let lost = outcome.sent - outcome.answered;
    assert!(lost <= 25, "{lost} of {} lost: more than half a second", outcome.sent);
    let sources: Vec<IpAddr> = sources(&wire).into_iter().map(|source| source.ip()).collect();
    assert_eq!(sources, [IpAddr::from(AGENT), OTHER_ADDRESS.into()]);
}

#[test]
fn strangers_do_not_reach_the_application() {
    const DATAGRAMS: u64 = 20;
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    let agent = &scene.internet.agent;
    let plain = ok(agent.run(|| UdpSocket::bind((AGENT, 0)))).unwrap();
    let reachable = plain.local_addr().unwrap();
    let socket = ok(agent.run(|| UdpSocket::bind((AGENT_TUNNEL, 0)))).unwrap();
    let ear = listen(socket.try_clone().unwrap(), Duration::from_secs(3));
    let control = listen(plain, Duration::from_secs(3));
    socket.send_to(&stun::request(stun::transaction(0)), LIVE).unwrap();
    socket.send_to(&rtp(1), LIVE).unwrap();
    sleep(Duration::from_millis(300));

    let external = mapping(&scene);
    let neighbour = ok(scene.internet.router.run(|| UdpSocket::bind((NEIGHBOUR, 0)))).unwrap();
    let (wire, ()) = scene.on_wire(|| {
        for number in 0..DATAGRAMS {
            neighbour.send_to(&rtp(number as u16), external).unwrap();
        }
        neighbour.send_to(&rtp(1), reachable).unwrap();
    });
    assert_eq!(count(&wire, |r| r.destination == external && r.source.ip() == NEIGHBOUR), DATAGRAMS as usize);
    assert_eq!(scene.dropped("stranger"), DATAGRAMS);
    let heard = ear.join().unwrap();
    assert!(!heard.is_empty() && heard.iter().all(|(_, from)| *from == LIVE), "{heard:?}");
    assert_eq!(control.join().unwrap().len(), 1, "the neighbour cannot reach the agent at all");
}

#[test]
fn fragmented_media_is_refused_and_counted() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    let send = |size: usize| {
        let send = move || -> std::io::Result<usize> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            SockRef::from(&socket).set_tos_v4(u32::from(EF_TOS))?;
            socket.connect((MEDIA, Ports::VOICE_EF))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut datagram = rtp(1);
            datagram.resize(size, 0);
            socket.send(&datagram)?;
            socket.recv(&mut [0; 8192])
        };
        ok(scene.internet.agent.thread("send", send)).join().unwrap()
    };
    let to_media = |wire: &Captured| count(wire, |r| r.destination.ip() == MEDIA);
    let (wire, whole) = scene.on_wire(|| send(1200));
    assert_eq!(whole.unwrap(), 1200);
    assert_eq!(to_media(&wire), 1);
    assert_eq!(scene.dropped("fragmented-media"), 0);

    let (wire, fragmented) = scene.on_wire(|| send(4000));
    let refusal = fragmented.expect_err("a fragmented datagram was answered");
    assert!(matches!(refusal.kind(), ErrorKind::HostUnreachable | ErrorKind::PermissionDenied), "{refusal}");
    assert_eq!((to_media(&wire), wire.unparsed), (0, 0));
    assert!(scene.dropped("fragmented-media") > 0, "{:?}", scene.status().drops);
}

#[test]
fn a_reload_that_forbids_a_call_cuts_it_and_never_moves_it() {
    const FORBIDDING: &str = r#"
[[rules]]
name = "signaling"
to = "genesys-signaling"
path = "tunnel"
[[rules]]
name = "media-over-tcp"
to = "genesys-media"
protocol = "tcp"
path = "tunnel"
"#;
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    let call = start_call(&scene, 200);
    sleep(Duration::from_secs(1));
    assert_eq!(mapping(&scene).ip(), AGENT);
    let config = scene.directory.file("breakout.toml");
    let text = std::fs::read_to_string(&config).unwrap() + FORBIDDING;
    scene.directory.write("breakout.toml", &text).unwrap();
    let (behind, (wire, cut)) = scene.behind_gateway(|| {
        scene.on_wire(|| {
            let asked = SystemTime::now();
            let text = said(&scene.breakout(&["reload"]));
            eprintln!("the call is cut within {:?}", asked.elapsed().unwrap());
            let cut = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            assert!(text.contains("1 live flow"), "{text}");
            sleep(Duration::from_secs(2));
            u64::try_from(cut.as_nanos()).unwrap()
        })
    });
    let outcome = call.join().unwrap();
    assert!(outcome.failure.is_some_and(|failure| failure.refused), "the application was not told");
    assert!((40..190).contains(&outcome.answered), "{} answered", outcome.answered);
    assert_eq!(
        count(&wire, |r| !r.outgoing && r.destination == LIVE && r.at_ns > cut),
        0,
        "left after the cut"
    );
    assert_eq!(count(&behind, |r| r.destination == LIVE), 0, "the call was moved into the tunnel");
    scene.reaches_signaling().unwrap();
}

/// A call from the TUN's address, as long as `packets` of 20 ms.
fn start_call(scene: &Scene, packets: u16) -> JoinHandle<Outcome> {
    let call = Call { to: LIVE, from: Some(AGENT_TUNNEL), tos: 0, packets };
    ok(scene.internet.agent.thread("call", move || call.run()))
}

/// The external endpoint of the only live media flow: the one heard last.
fn mapping(scene: &Scene) -> SocketAddr {
    let flows = scene.flows();
    let live = flows.iter().filter(|flow| flow.destination == LIVE);
    let latest = live.min_by(|a, b| a.idle_seconds.total_cmp(&b.idle_seconds));
    latest.and_then(|flow| flow.mapping).unwrap_or_else(|| panic!("no mapping in {flows:#?}"))
}

/// Whether no socket of the agent's has this endpoint, be its address there or not.
fn is_free(scene: &Scene, endpoint: SocketAddr) -> bool {
    let bind = move || -> std::io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_freebind_v4(true)?;
        socket.bind(&endpoint.into())
    };
    match ok(scene.internet.agent.run(bind)) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AddrInUse => false,
        Err(error) => panic!("{error}"),
    }
}

/// The agent's external endpoints towards media, all of whose packets must be marked.
fn sources(wire: &Captured) -> BTreeSet<SocketAddr> {
    let outbound =
        wire.records.iter().filter(|r| !r.outgoing && r.protocol == UDP && r.destination.ip() == MEDIA);
    outbound.inspect(|r| assert_eq!(r.dscp(), EF, "{r:?}")).map(|r| r.source).collect()
}

/// What comes to a socket until it is quiet for that long: sequence number and sender, of RTP only.
fn listen(socket: UdpSocket, quiet: Duration) -> JoinHandle<Vec<(u16, SocketAddr)>> {
    std::thread::spawn(move || {
        let (mut heard, mut datagram) = (Vec::new(), [0; 2048]);
        socket.set_read_timeout(Some(quiet)).unwrap();
        loop {
            match socket.recv_from(&mut datagram) {
                Ok((12.., from)) if datagram[0] == 0x80 => {
                    heard.push((u16::from_be_bytes([datagram[2], datagram[3]]), from));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return heard,
                Err(error) => panic!("{error}"),
            }
        }
    })
}

/// RFC 3550 §5.1.
fn rtp(number: u16) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let mut packet = vec![0x80, 111, high, low, 0, 0, 0, 0, 1, 2, 3, 4];
    packet.resize(172, 0xd5);
    packet
}

fn ip(scene: &Scene, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    said(&ok(scene.internet.agent.output(command)));
}

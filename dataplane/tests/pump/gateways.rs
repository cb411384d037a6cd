//! The pump with two gateways, each in a namespace of its own with servers behind it: what applications see when one falls silent and comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::gateway::{Gateway, GatewaySetup};
use dataplane::{Failover, FailoverCause, GatewayEvent, GatewayLeg, Mtu, Tun, Underlay};
use packet::OuterDscp;
use tunnel::{PrivateKey, Responder, ResponderPeer};

use crate::machine::{self, FarEnd, GATEWAY_PORT, Machine, SIGNALING_V4, Tunnel, V4, WIFI_V4, ip, underlay};

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 1));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 88, 1));
const CABLE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 88, 10));
/// Nobody has it: what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:00:99";
const HTTPS: u16 = 443;
const SIP: u16 = 5060;
/// Signaling that answers nothing.
const SINK: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 11), SIP);
/// From a gateway's last answer until all goes through another: 5 s of silence, 1 s of grace, and as much to spare.
const FAIL_OVER: Duration = Duration::from_secs(7);
/// For what is sent at once.
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

/// A machine with two ways out, and a gateway at each; behind both are the same addresses.
struct Scene {
    machine: Machine,
    _second: FarEnd,
    _gateways: [Gateway; 2],
    failovers: Receiver<Failover>,
    /// What the pump tells that the tunnel carries.
    sizes: Receiver<u16>,
}

impl Scene {
    /// `None`, with the reason told, where it cannot be made.
    fn new() -> Option<Self> {
        let tunnel = Tunnel::new(OuterDscp::ZERO);
        let key = PrivateKey::generate().unwrap();
        let (told, failovers) = channel();
        let (tell, sizes) = channel();
        let mtu = Mtu::Discovered(Box::new(move |size| tell.send(size).unwrap()));
        let second = tunnel.to(&key, SECOND);
        let machine = Machine::with_gateways(&tunnel, mtu, |first| {
            let tell = move |event| match event {
                GatewayEvent::FailedOver(failover) => told.send(failover).unwrap(),
                GatewayEvent::Up(_) | GatewayEvent::Down(_) | GatewayEvent::Used(_) => {}
            };
            (vec![first, second], Box::new(tell))
        })?;
        let far = FarEnd::start();
        ip(&format!("link add cable type veth peer name wan netns {}", far.thread));
        ip("link set cable up");
        ip("address add 192.168.88.10/24 dev cable");
        far.run(|| {
            ip("link set lo up");
            ip("link set wan up");
            machine::wait_for_carrier("wan");
            ip("address add 192.168.88.1/24 dev wan");
        });
        let gateways = [
            start_gateway(&machine.far, "1", FIRST, &tunnel.agent, &tunnel.gateway),
            start_gateway(&far, "2", SECOND, &tunnel.agent, &key),
        ];
        machine.pump.set_underlay(with_routes([true, true])).unwrap();
        Some(Self { machine, _second: far, _gateways: gateways, failovers, sizes })
    }

    /// What the first gateway and this machine send to each other is lost.
    fn silence_the_first(&self) {
        ip(&format!("neighbour replace 192.168.77.1 lladdr {NOWHERE} dev wifi nud permanent"));
        self.machine
            .far
            .run(|| ip(&format!("neighbour replace 192.168.77.10 lladdr {NOWHERE} dev wan nud permanent")));
    }

    fn restore_the_first(&self) {
        self.machine.far.run(|| ip("neighbour del 192.168.77.10 dev wan"));
        ip("neighbour del 192.168.77.1 dev wifi");
    }

    /// Which gateway new flows go to, and how many go to each.
    fn used(&self) -> (Vec<bool>, Vec<usize>) {
        let tunnels = self.machine.pump.tunnels().unwrap();
        tunnels.iter().map(|tunnel| (tunnel.is_used, tunnel.flows)).unzip()
    }

    fn fails_over(&self, cause: FailoverCause, cut_flows: usize) {
        let failover = self.failovers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(failover, Failover { from: 0, to: 1, cause, cut_flows });
    }
}

#[test]
fn when_a_gateway_falls_silent_all_but_what_it_alone_knew_goes_on_and_only_new_flows_return() {
    let Some(scene) = Scene::new() else { return };
    let mut established = connect();
    assert_eq!(asked(&mut established), "1?");
    let call = Flow::new();
    assert_eq!(call.asked("before"), "1before");

    let begun = Instant::now();
    scene.silence_the_first();
    let opening = thread::spawn(connect);
    let answer = loop {
        call.send("during");
        if let Some(answer) = call.received(Duration::from_millis(100)) {
            break answer;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing takes over");
    };
    assert!(begun.elapsed() < FAIL_OVER, "after {:?}", begun.elapsed());
    assert_eq!(answer, "2during");
    scene.fails_over(FailoverCause::Silence, 1);

    established.write_all(b"?").unwrap();
    assert_eq!(established.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut old = connect();
    assert_eq!(asked(&mut old), "2?");
    assert_eq!(asked(&mut opening.join().unwrap()), "2?", "its SYN is repeated through the other");
    assert_eq!(scene.used().0, [false, true]);

    scene.restore_the_first();
    let begun = Instant::now();
    while scene.used().0 != [true, false] {
        assert!(begun.elapsed() < Duration::from_secs(40), "it does not return");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(asked(&mut connect()), "1?");
    assert_eq!(asked(&mut old), "2?", "it stays");
    keep_order(&call, &Flow::new());
    assert!(scene.failovers.try_recv().is_err(), "a return is no fail-over");
}

/// Of flows through both gateways, mixed as they are sent.
fn keep_order(old: &Flow, new: &Flow) {
    const COUNT: usize = 200;
    for number in 0..COUNT {
        [new, old].into_iter().for_each(|flow| flow.send(&number.to_string()));
    }
    for (flow, name) in [(new, "1"), (old, "2")] {
        let answers: Vec<_> = (0..COUNT).map(|_| flow.received_in_time()).collect();
        let expected: Vec<_> = (0..COUNT).map(|number| format!("{name}{number}")).collect();
        assert!(answers == expected, "out of order through {name}");
    }
}

/// The pump's threads have more of the same flows in hand all the while.
#[test]
fn what_waited_for_a_gateway_that_never_answers_is_sent_through_the_other_in_order() {
    const COUNT: usize = 120;
    let Some(scene) = Scene::new() else { return };
    scene.silence_the_first();
    let begun = Instant::now();
    let flows = [Flow::new(), Flow::new()];
    let first = flows[0].0.try_clone().unwrap();
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    let answered = thread::spawn(move || first.peek(&mut [0; 10]).map(|_| begun.elapsed()));
    for number in 0..COUNT {
        flows.iter().for_each(|flow| flow.send(&number.to_string()));
        // At most 256 wait, and until after the fail-over at 2 s.
        thread::sleep(Duration::from_millis(20));
    }
    for flow in &flows {
        let answers: Vec<_> = (0..COUNT).map(|_| flow.received_in_time()).collect();
        assert!(answers == (0..COUNT).map(|number| format!("2{number}")).collect::<Vec<_>>());
    }
    // A second for its answer, one of grace, and two to spare; what waits is refused after five.
    let answered = answered.join().unwrap().unwrap();
    assert!(answered < Duration::from_secs(4), "after {answered:?}");
    scene.fails_over(FailoverCause::Silence, 0);
    assert_eq!(scene.used(), (vec![false, true], vec![0, 2]));
}

#[test]
fn a_gateway_without_a_route_is_left_at_once_for_one_with_a_narrower_path() {
    let Some(scene) = Scene::new() else { return };
    let call = Flow::new();
    assert_eq!(call.asked("before"), "1before");
    scene.silence_the_first();
    scene.machine.pump.set_underlay(with_routes([false, true])).unwrap();
    call.send("after");
    let begun = Instant::now();
    let answer = loop {
        let new = Flow::new();
        new.send("new");
        if let Some(answer) = new.received(Duration::from_millis(100)) {
            break answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "new flows wait");
    };
    assert_eq!(answer, "2new");
    assert!(scene.failovers.try_recv().is_err(), "its own flows wait for the route");
    let failover = scene.failovers.recv_timeout(Duration::from_secs(3)).unwrap();
    assert_eq!((failover.to, failover.cause), (1, FailoverCause::NoRoute));
    assert_eq!(call.received_in_time(), "2after", "it waited");
    // WireGuard's overhead with an IPv6 header is 80 bytes.
    assert_eq!(scene.sizes.try_iter().collect::<Vec<_>>(), [1400 - 80], "only what flows go through counts");
}

#[test]
fn connections_survive_a_route_that_is_gone_for_a_moment() {
    let Some(scene) = Scene::new() else { return };
    let mut established = connect();
    assert_eq!(asked(&mut established), "1?");
    scene.machine.pump.set_underlay(with_routes([false, true])).unwrap();
    let call = Flow::new();
    call.send("new");
    established.write_all(b"!").unwrap();
    // It has failed over to by then, or waits.
    let _ = call.received(Duration::from_secs(1));
    scene.machine.pump.set_underlay(with_routes([true, true])).unwrap();
    let mut answer = [0; 2];
    established.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"1!");
    assert!(scene.failovers.try_recv().is_err());
}

#[test]
fn a_gateway_that_moves_is_asked_where_it_is_at_once() {
    let Some(scene) = Scene::new() else { return };
    let nowhere = SocketAddr::from((Ipv4Addr::new(192, 168, 77, 99), GATEWAY_PORT));
    scene.machine.pump.set_endpoint(0, nowhere).unwrap();
    let call = Flow::new();
    call.send("begun");
    assert_eq!(call.received(Duration::from_millis(200)), None);
    scene.machine.pump.set_endpoint(0, SocketAddr::new(FIRST, GATEWAY_PORT)).unwrap();
    // After a second it would be asked as one that is silent.
    assert_eq!(call.received(Duration::from_millis(500)).as_deref(), Some("1begun"));
}

#[test]
fn a_change_of_the_network_asks_those_alone_to_which_the_way_is_another() {
    let Some(scene) = Scene::new() else { return };
    let mut established = connect();
    assert_eq!(asked(&mut established), "1?");
    let sent = |after: Duration| {
        thread::sleep(after);
        scene.machine.pump.tunnels().unwrap().into_iter().map(|tunnel| tunnel.sent_bytes).collect::<Vec<_>>()
    };
    // The path's probes end, of which there is one every half second.
    let mut before = sent(Duration::ZERO);
    while let now = sent(Duration::from_millis(700))
        && now != before
    {
        before = now;
    }
    // A pause of 3 s would have the gateway asked.
    assert_eq!(asked(&mut established), "1?");
    let before = sent(QUIET);
    let mut underlay = with_routes([true, true]);
    underlay.addresses.push(machine::own(IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1))));
    scene.machine.pump.set_underlay(underlay.clone()).unwrap();
    assert_eq!(sent(QUIET), before, "a bridge for guests is nobody's way");
    underlay.gateways[1].mtu = Some(1300);
    scene.machine.pump.set_underlay(underlay.clone()).unwrap();
    assert_eq!(sent(QUIET), before, "nobody has a session with the other");
    let asked_before = scene.machine.pump.tunnels().unwrap()[0].last_handshake.unwrap();
    underlay.gateways[0].by = Some((1, FIRST, None));
    scene.machine.pump.set_underlay(underlay).unwrap();
    let after = sent(QUIET);
    assert!(after[0] > before[0] && after[1] == before[1], "{before:?}, {after:?}");
    assert!(scene.machine.pump.tunnels().unwrap()[0].last_handshake.unwrap() < asked_before, "it was asked");
    assert_eq!(asked(&mut established), "1?");
}

/// Each would be a handshake, and another session.
#[test]
fn who_only_sends_is_answered_by_small_probes() {
    let Some(scene) = Scene::new() else { return };
    let sink = scene.machine.far.run(|| {
        // A gateway that forwards says of probes that they go no further.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        ip("address add 203.0.113.11/32 dev lo");
        UdpSocket::bind(SINK).unwrap()
    });
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    let call = UdpSocket::bind((V4.tun, 0)).unwrap();
    for number in 0..20_u8 {
        call.send_to(&[number], SINK).unwrap();
        let mut received = [0];
        sink.recv(&mut received).unwrap();
        assert_eq!(received, [number]);
        thread::sleep(Duration::from_millis(500));
    }
    let tunnel = &scene.machine.pump.tunnels().unwrap()[0];
    let ago = [tunnel.last_handshake, tunnel.last_received].map(Option::unwrap);
    assert!(ago[0] > Duration::from_secs(8) && ago[1] < Duration::from_secs(5), "{ago:?}");
}

/// SIP over UDP.
struct Flow(UdpSocket);

impl Flow {
    fn new() -> Self {
        let socket = UdpSocket::bind((V4.tun, 0)).unwrap();
        socket.connect((SIGNALING_V4, SIP)).unwrap();
        Self(socket)
    }

    fn send(&self, text: &str) {
        // It may be told of what it sent before.
        while self.0.send(text.as_bytes()).is_err() {}
    }

    fn received(&self, patience: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 100];
        let length = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    fn received_in_time(&self) -> String {
        self.received(PATIENCE).expect("an answer")
    }

    fn asked(&self, text: &str) -> String {
        self.send(text);
        self.received_in_time()
    }
}

/// A connection to signaling, wherever it ends.
fn connect() -> TcpStream {
    let stream = TcpStream::connect_timeout(&(SIGNALING_V4, HTTPS).into(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn asked(stream: &mut TcpStream) -> String {
    stream.write_all(b"?").unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn with_routes(reachable: [bool; 2]) -> Underlay {
    let [first, second] = reachable;
    let gateways = vec![
        GatewayLeg { reachable: first, mtu: Some(1500), by: None },
        GatewayLeg { reachable: second, mtu: Some(1400), by: None },
    ];
    let underlay = underlay(Some(WIFI_V4));
    Underlay {
        addresses: [underlay.addresses.clone(), vec![machine::own(CABLE)]].concat(),
        gateways,
        ..underlay
    }
}

/// A gateway and servers behind it, whose answers begin with `name`.
fn start_gateway(
    far: &FarEnd,
    name: &'static str,
    address: IpAddr,
    agent: &PrivateKey,
    key: &PrivateKey,
) -> Gateway {
    let (agent, private_key) = (agent.public_key(), key.clone());
    far.run(move || {
        let tun = Tun::open(None).unwrap();
        let link = tun.name().to_owned();
        ip(&format!("link set {link} mtu 1420 up"));
        ip(&format!("address add 10.99.0.254/24 dev {link}"));
        ip(&format!("address add {SIGNALING_V4}/32 dev lo"));
        serve(name);
        let peer = ResponderPeer {
            public_key: agent,
            preshared_key: None,
            allowed_ips: vec!["10.99.0.1/32".parse().unwrap()],
            mtu: 1420,
            keepalive: None,
        };
        let setup = GatewaySetup {
            tun,
            responder: Responder::new(private_key, vec![peer], Instant::now()).unwrap(),
            addresses: Vec::new(),
            mtu: 1420,
            listen: SocketAddr::new(address, GATEWAY_PORT),
            outer_dscp: OuterDscp::ZERO,
            on_exit: Box::new(|result| result.unwrap()),
        };
        Gateway::start(setup).unwrap()
    })
}

/// Echoes behind the name, in this thread's namespace.
fn serve(name: &'static str) {
    let datagrams = UdpSocket::bind((SIGNALING_V4, SIP)).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 100];
        while let Ok((length, from)) = datagrams.recv_from(&mut bytes) {
            let _ = datagrams.send_to(&[name.as_bytes(), &bytes[..length]].concat(), from);
        }
    });
    let listener = TcpListener::bind((SIGNALING_V4, HTTPS)).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut bytes = [0; 100];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    stream.write_all(&[name.as_bytes(), &bytes[..length]].concat()).unwrap();
                }
            });
        }
    });
}

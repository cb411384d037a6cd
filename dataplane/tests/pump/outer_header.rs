//! What the tunnel's own packets say on the wire, and what packets inside are told of it, at the pump and at the gateway.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use dataplane::gateway::{Gateway, GatewaySetup};
use dataplane::{DropReason, GatewayLeg, Tun, Underlay};
use packet::{Checksum, Dscp, Echo, Ecn, OuterDscp, Packet, PacketMut, Tos, build};
use tunnel::{Opened, Peer, PeerConfig, PrivateKey, PublicKey, Responder, ResponderPeer, Sealed};

use crate::machine::{self, Machine, SIGNALING_V4, Tunnel, V4, WIFI_V4, ip, underlay};
use crate::marked;

const POLICIES: [OuterDscp; 3] = [OuterDscp::ZERO, OuterDscp::Copy, OuterDscp::Fixed(Dscp::AF41)];
const ECN: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];
/// The far end's addresses in both families.
const GATEWAYS: [&str; 2] = ["192.168.77.1", "2001:db8:77::1"];
const PATIENCE: Duration = Duration::from_secs(10);
const GATEWAY_PORT: u16 = 51_820;

#[test]
fn the_pump_marks_what_it_sends() {
    for (policy, gateway) in POLICIES.into_iter().flat_map(|policy| GATEWAYS.map(|it| (policy, it))) {
        let tunnel = Tunnel::new(policy);
        let Some(machine) = Machine::with(&tunnel) else { return };
        let mut far = far_end(&machine, &tunnel, gateway);
        let app = app(V4.tun, 5000);
        // The first packet waits for the handshake, the others go at once.
        for ecn in ECN {
            let inner = Tos(0x28).with_ecn(ecn);
            marked::set(&app, inner.0, 64);
            app.send_to(&[ecn as u8; 100], (SIGNALING_V4, 5060)).unwrap();
            assert_eq!(far.receive(policy), (inner, vec![ecn as u8; 100]), "{policy:?}");
        }
    }
}

#[test]
fn the_pump_tells_packets_of_congestion_on_the_way() {
    for gateway in GATEWAYS {
        let tunnel = Tunnel::new(OuterDscp::ZERO);
        let Some(machine) = Machine::with(&tunnel) else { return };
        let mut far = far_end(&machine, &tunnel, gateway);
        let app = app(V4.tun, 5000);
        app.send_to(b"opens the flow", (SIGNALING_V4, 5060)).unwrap();
        far.receive(OuterDscp::ZERO);
        far.sends_all_marks((SIGNALING_V4, 5060).into(), (V4.tun, 5000).into(), &app);
        assert_eq!(machine.drops(DropReason::Congested), 1);
    }
}

#[test]
fn of_pings_out_of_the_tunnel_only_the_gateways_probe_of_the_path_is_answered() {
    let tunnel = Tunnel::new(OuterDscp::ZERO);
    let Some(machine) = Machine::with(&tunnel) else { return };
    let mut far = far_end(&machine, &tunnel, GATEWAYS[0]);
    app(V4.tun, 5000).send_to(b"opens the session", (SIGNALING_V4, 5060)).unwrap();
    far.receive(OuterDscp::ZERO);
    for (id, ttl, payload) in
        [(1, 64, b"as ping does    "), (2, 1, b"as traceroute   "), (3, 1, b"breakout pathmtu")]
    {
        let mut ping = [0; 64];
        let echo = Echo { source: SIGNALING_V4, destination: V4.tun, id, sequence: 1 };
        assert!(echo.request(ttl, payload, &mut ping));
        far.send(&ping, Tos(0));
    }
    let answered = loop {
        far.next();
        if let Some(bytes) = far.opened.take() {
            break Packet::parse(&bytes).unwrap().answered_echo().unwrap().id;
        }
    };
    assert_eq!(answered, 3);
}

#[test]
fn the_gateway_marks_what_it_sends_and_tells_packets_of_congestion() {
    let (inside, outside): (IpAddr, IpAddr) = (Ipv4Addr::new(10, 99, 0, 254).into(), V4.tun);
    for policy in POLICIES {
        let Some(()) = machine::namespace() else { return };
        let (agent, gateway) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let _gateway = start_gateway(&agent, gateway.clone(), policy);
        let socket = app(Ipv4Addr::LOCALHOST.into(), 0);
        socket.connect((Ipv4Addr::LOCALHOST, GATEWAY_PORT)).unwrap();
        let mut far = End::new(socket, agent, gateway.public_key());
        let app = app(inside, 6000);

        far.send(&udp((outside, 5000).into(), (inside, 6000).into(), Tos(0), b"asks"), Tos(0));
        assert_eq!(far.next(), Tos(0).with_dscp(policy.encapsulated(None).dscp()), "the handshake's answer");
        let asked = marked::receive(&app);
        assert_eq!((asked.payload.as_slice(), asked.from), (b"asks".as_slice(), (outside, 5000).into()));

        for ecn in ECN {
            let inner = Tos(0x28).with_ecn(ecn);
            marked::set(&app, inner.0, 64);
            app.send_to(b"answer", asked.from).unwrap();
            assert_eq!(far.receive(policy), (inner, b"answer".to_vec()), "{policy:?}");
        }
        far.sends_all_marks(asked.from, (inside, 6000).into(), &app);
    }
}

/// A peer in the test's own hands, with the socket that it is reached through.
struct End {
    socket: UdpSocket,
    peer: Peer,
    opened: Option<Vec<u8>>,
}

impl End {
    fn new(socket: UdpSocket, private_key: PrivateKey, peer_public_key: PublicKey) -> Self {
        let preshared_key = None;
        let config =
            PeerConfig { private_key, peer_public_key, preshared_key, keepalive: None, index: 7, mtu: 1420 };
        Self { socket, peer: Peer::new(config, Instant::now()), opened: None }
    }

    /// Sends a packet, behind a handshake if there is no session.
    fn send(&mut self, packet: &[u8], outer: Tos) {
        let mut room = [packet, &[0; 15]].concat();
        let mut out = [0; 2048];
        let datagram = match self.peer.seal(&mut room, packet.len(), &mut out, Instant::now()).unwrap() {
            Sealed::Datagram(datagram) | Sealed::Queued { handshake: Some(datagram) } => datagram,
            other => panic!("{other:?}"),
        };
        marked::set(&self.socket, outer.0, 64);
        self.socket.send(datagram).unwrap();
    }

    /// Takes one datagram, answers it if need be, and returns what its outer header said.
    fn next(&mut self) -> Tos {
        let now = Instant::now();
        let datagram = marked::receive(&self.socket);
        if self.socket.peer_addr().is_err() {
            self.socket.connect(datagram.from).unwrap();
        }
        let mut out = [0; 2048];
        match self.peer.open(&datagram.payload, &mut out, now).unwrap() {
            Opened::Packet(packet) => self.opened = Some(packet.to_vec()),
            Opened::Reply(reply) => {
                self.socket.send(reply).unwrap();
            }
            Opened::Keepalive | Opened::Nothing => {}
        }
        while let Some(datagram) = self.peer.flush(&mut out, now) {
            self.socket.send(datagram).unwrap();
        }
        Tos(datagram.tos)
    }

    /// The next packet's TOS and payload, after what comes before it: each is to be marked by this policy.
    fn receive(&mut self, policy: OuterDscp) -> (Tos, Vec<u8>) {
        loop {
            let outer = self.next();
            let Some(bytes) = self.opened.take() else {
                assert_eq!(outer, policy.encapsulated(None), "{policy:?}: around no packet");
                continue;
            };
            let packet = Packet::parse(&bytes).unwrap();
            let inner = packet.headers().tos;
            assert_eq!(outer, policy.encapsulated(Some(inner)), "{policy:?}: around a packet");
            return (inner, packet.payload().to_vec());
        }
    }

    /// Every ECN inside every other: `app` gets all but one, told of congestion where there was any.
    fn sends_all_marks(&mut self, from: SocketAddr, to: SocketAddr, app: &UdpSocket) {
        for inner in ECN {
            for outer in ECN {
                let payload = [inner as u8, outer as u8];
                let packet = udp(from, to, Tos(0xb8).with_ecn(inner), &payload);
                self.send(&packet, Tos(0x28).with_ecn(outer));
                let Some(expected) = inner.decapsulated(outer) else { continue };
                let received = marked::receive(app);
                assert_eq!(received.payload, payload, "none but the packet that must not arrive is missing");
                assert_eq!(received.tos, Tos(0xb8).with_ecn(expected).0, "{inner:?} inside {outer:?}");
            }
        }
    }
}

/// The tunnel's far end, which the pump can reach from now on.
fn far_end(machine: &Machine, tunnel: &Tunnel, address: &str) -> End {
    let address = address.parse().unwrap();
    let socket = machine.far_socket(address, GATEWAY_PORT);
    machine.pump.set_endpoint(0, (address, GATEWAY_PORT).into()).unwrap();
    let gateways = vec![GatewayLeg { reachable: true, ..GatewayLeg::default() }];
    machine.pump.set_underlay(Underlay { gateways, ..underlay(Some(WIFI_V4)) }).unwrap();
    End::new(socket, tunnel.gateway.clone(), tunnel.agent.public_key())
}

fn start_gateway(agent: &PrivateKey, private_key: PrivateKey, outer_dscp: OuterDscp) -> Gateway {
    ip("link set lo up");
    let tun = Tun::open(None).unwrap();
    let name = tun.name().to_owned();
    ip(&format!("link set {name} mtu 1420 up"));
    ip(&format!("address add 10.99.0.254/24 dev {name}"));
    let peer = ResponderPeer {
        public_key: agent.public_key(),
        preshared_key: None,
        allowed_ips: vec!["10.99.0.1/32".parse().unwrap()],
        mtu: 1420,
        keepalive: None,
    };
    let responder = Responder::new(private_key, vec![peer], Instant::now()).unwrap();
    let listen = (Ipv4Addr::LOCALHOST, GATEWAY_PORT).into();
    let on_exit = Box::new(|result: Result<(), _>| result.unwrap());
    let addresses = Vec::new();
    Gateway::start(GatewaySetup { tun, responder, addresses, mtu: 1420, listen, outer_dscp, on_exit })
        .unwrap()
}

fn app(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    marked::prepare(&socket, PATIENCE);
    socket
}

fn udp(from: SocketAddr, to: SocketAddr, tos: Tos, payload: &[u8]) -> Vec<u8> {
    let header_len = build::udp_header_len(&from);
    let mut bytes = vec![0; header_len];
    assert!(build::udp_header(&mut bytes, from, to, tos, 64, payload.len()));
    bytes.extend(payload);
    assert!(PacketMut::parse(&mut bytes, Checksum::Partial).unwrap().complete_checksum());
    bytes
}

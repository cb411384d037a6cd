use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Type};
use tunnel::{Peer, PeerConfig, PrivateKey, ResponderPeer};

use super::*;

const OURS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const ECHO_REQUEST: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];

#[test]
fn udp_from_the_tun_leaves_before_what_came_earlier() {
    if let Err(error) = enter_namespace() {
        assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "no namespace: {error}");
        return eprintln!("skipped, because a network namespace cannot be made: {error}");
    }
    let (agent, gateway) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let config = PeerConfig {
        private_key: agent.clone(),
        peer_public_key: gateway.public_key(),
        preshared_key: None,
        keepalive: None,
        index: 7,
        mtu: 1420,
    };
    let mut worker = worker(gateway, &agent);
    let mut peer = Peer::new(config, worker.clock.now());
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.connect(worker.socket.local_addr().unwrap().as_socket().unwrap()).unwrap();
    let (mut out, now) = ([0; 2048], worker.clock.now());
    // Its first packet opens the session.
    let Sealed::Queued { handshake: Some(handshake) } =
        peer.seal(&mut [0x45; 48], 20, &mut out, now).unwrap()
    else {
        panic!("no handshake")
    };
    socket.send(handshake).unwrap();
    worker.move_packets(now).unwrap();
    assert_eq!(next_protocol(&socket, &mut peer, now), None);
    worker.take_from_peers(now).unwrap();

    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
    for _ in 0..20 {
        raw.send_to(&ECHO_REQUEST, &SockAddr::from(SocketAddr::from((OURS, 0)))).unwrap();
    }
    UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[7; 172], (OURS, 5000)).unwrap();
    worker.tun_ready = true;
    worker.move_packets(now).unwrap();
    let protocols: Vec<_> = (0..21).map(|_| next_protocol(&socket, &mut peer, now)).collect();
    assert_eq!(protocols[0], Some(17));
    assert_eq!(protocols[1..], [Some(1); 20]);
}

fn worker(private_key: PrivateKey, agent: &PrivateKey) -> Worker {
    let tun = Tun::open(None).unwrap();
    for arguments in ["link set lo up", "link set TUN up", "address add 10.99.0.254/24 dev TUN"] {
        let arguments = arguments.replace("TUN", tun.name());
        assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
    }
    let peer = ResponderPeer {
        public_key: agent.public_key(),
        preshared_key: None,
        allowed_ips: vec!["10.99.0.1/32".parse().unwrap()],
        mtu: 1420,
        keepalive: None,
    };
    let responder = Responder::new(private_key, vec![peer], Instant::now()).unwrap();
    let setup = GatewaySetup {
        tun,
        responder,
        addresses: Vec::new(),
        mtu: 1420,
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        outer_dscp: OuterDscp::ZERO,
        on_exit: Box::new(|_| {}),
    };
    Worker::new(setup, Arc::default()).unwrap().0
}

/// Of the packet in the next datagram, if there is one; what answers the datagram is sent.
fn next_protocol(socket: &UdpSocket, peer: &mut Peer, now: Instant) -> Option<u8> {
    let (mut datagram, mut out) = ([0; 2048], [0; 2048]);
    let len = socket.recv(&mut datagram).unwrap();
    let protocol = match peer.open(&datagram[..len], &mut out, now).unwrap() {
        Opened::Packet(packet) => packet.get(9).copied(),
        _ => None,
    };
    while let Some(datagram) = peer.flush(&mut out, now) {
        socket.send(datagram).unwrap();
    }
    protocol
}

fn enter_namespace() -> io::Result<()> {
    // SAFETY: takes no pointers; only this test's thread changes its namespace.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

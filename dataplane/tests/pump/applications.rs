//! What applications and far ends see of the pump.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use dataplane::{DropReason, Offload, OwnAddress, PumpError, Underlay};
use packet::{OuterDscp, build};
use policy::Path;
use socket2::{Domain, Protocol, Socket, Type};

use crate::machine::{
    self, DEAD_V4, FarEnd, MEDIA_V4, Machine, SIGNALING_V4, Tunnel, V4, V6, WIFI_V4, ip, underlay,
};
use crate::marked;

const STUN: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn voice_goes_out_and_its_answers_come_back_whole_and_marked() {
    let Some(machine) = Machine::new() else { return };
    for family in [V4, V6] {
        let (app, far) = (open(family.tun, 5000), machine.far_socket(family.media, 20_000));
        marked::set(&app, 0x02, 33);
        app.send_to(&STUN, at(family.media, 20_000)).unwrap();
        let sent = marked::receive(&far);
        assert_eq!((sent.payload.as_slice(), sent.from), (STUN.as_slice(), at(family.wifi, 5000)));
        assert_eq!((sent.tos, sent.ttl), (0xba, 33), "EF with the application's ECN and TTL");

        let answer: Vec<u8> = (0..1201u16).map(|byte| byte as u8).collect();
        marked::set(&far, 0x89, 40);
        far.send_to(&answer, sent.from).unwrap();
        let received = marked::receive(&app);
        assert_eq!((received.payload, received.from), (answer, at(family.media, 20_000)));
        assert_eq!((received.tos, received.ttl), (0x89, 40));
    }
}

/// Browsers bind a socket to each address of the machine.
#[test]
fn under_the_physical_address_voice_leaves_as_it_is_and_is_answered() {
    let Some(machine) = Machine::new() else { return };
    for family in [V4, V6] {
        let (app, far) = (open(family.wifi, 6000), machine.far_socket(family.media, 20_000));
        app.send_to(&STUN, at(family.media, 20_000)).unwrap();
        let sent = marked::receive(&far);
        assert_eq!(
            (sent.payload.as_slice(), sent.from, sent.tos),
            (STUN.as_slice(), at(family.wifi, 6000), 0xb8)
        );
        far.send_to(b"answer", sent.from).unwrap();
        assert_eq!(marked::receive(&app).payload, b"answer");
    }
    assert_eq!(machine.pump.counters().path(Path::Bypass).out_packets, 2, "both went through the pump");
}

/// Nor would an application hear of a router to which it is too large.
#[test]
fn under_the_physical_address_too_voice_may_be_fragmented() {
    let Some(machine) = Machine::new() else { return };
    let (app, far) = (open(V4.wifi, 6000), machine.far_socket(MEDIA_V4, 20_000));
    let captured = machine.far.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap());
    captured.set_read_timeout(Some(PATIENCE)).unwrap();
    set_option(&app, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
    app.send_to(&STUN, at(MEDIA_V4, 20_000)).unwrap();
    marked::receive(&far);
    let mut packet = [0; 100];
    assert_eq!((&captured).read(&mut packet).unwrap(), 48);
    assert_eq!(packet[6] & 0x40, 0, "DF");
}

/// Applications hand the kernel many datagrams at once (UDP_SEGMENT); it hands them on as one where we take it.
#[test]
fn a_super_packet_of_voice_leaves_in_its_datagrams() {
    let Some(machine) = Machine::new() else { return };
    for family in [V4, V6] {
        let far = machine.far_socket(family.media, 20_000);
        for (source, port) in [(family.tun, 7000), (family.wifi, 7001)] {
            let app = open(source, port);
            marked::set(&app, 0xb8, 64);
            segment(&app, 500);
            let sent: Vec<u8> = (0..5_100_u16).map(|byte| (byte / 7) as u8).collect();
            app.send_to(&sent, at(family.media, 20_000)).unwrap();
            for datagram in sent.chunks(500) {
                let received = marked::receive(&far);
                assert_eq!((received.payload.as_slice(), received.tos), (datagram, 0xb8), "from {source}");
            }
        }
    }
    assert_eq!(machine.pump.counters().path(Path::Bypass).out_packets, 4, "each was one packet on the TUN");
}

/// For which the kernel refuses a segmented send (EINVAL).
#[test]
fn segments_that_the_path_has_to_fragment_leave_one_by_one_and_in_order() {
    let Some(machine) = Machine::new() else { return };
    let far = machine.far_socket(MEDIA_V4, 20_000);
    ip("link set wifi mtu 1300");
    for flow in 0..20_u8 {
        let app = open(V4.tun, 7000 + u16::from(flow));
        marked::set(&app, 0xb8, 64);
        let sent: Vec<u8> = (0..6_600_u16).map(|byte| (byte / 7) as u8 ^ flow).collect();
        segment(&app, 1_320);
        app.send_to(&sent, at(MEDIA_V4, 20_000)).unwrap();
        segment(&app, 0);
        app.send_to(&[flow], at(MEDIA_V4, 20_000)).unwrap();
        for datagram in sent.chunks(1_320).chain([[flow].as_slice()]) {
            assert_eq!(marked::receive(&far).payload, datagram);
        }
    }
    assert_eq!(machine.drops(DropReason::SendFailed), 0);
    let features = machine.pump.features().unwrap();
    assert!(features.iter().any(|(name, on, _)| *name == "udp-segmentation" && *on), "{features:?}");
}

#[test]
fn without_offloads_voice_arrives_as_it_does_with_them() {
    let off = Offload { tun: false, udp: false };
    let Some(machine) = Machine::with_setup(&Tunnel::new(OuterDscp::ZERO), |setup| setup.offload = off)
    else {
        return;
    };
    let offloads = ["tun-tcp-segmentation", "tun-udp-segmentation", "udp-segmentation", "udp-gathering"];
    for (name, on, why) in machine.pump.features().unwrap() {
        assert!(!offloads.contains(&name) || !on && why.contains("switched off"), "{name}: {on}, {why}");
    }
    let (app, far) = (open(V4.tun, 7000), machine.far_socket(MEDIA_V4, 20_000));
    marked::set(&app, 0xb8, 64);
    segment(&app, 500);
    let sent: Vec<u8> = (0..5_100_u16).map(|byte| (byte / 7) as u8).collect();
    app.send_to(&sent, at(MEDIA_V4, 20_000)).unwrap();
    for datagram in sent.chunks(500) {
        let received = marked::receive(&far);
        assert_eq!((received.payload.as_slice(), received.tos), (datagram, 0xb8));
        far.send_to(datagram, received.from).unwrap();
        assert_eq!(marked::receive(&app).payload, datagram);
    }
}

#[test]
fn what_this_kernel_has_is_used() {
    let Some(machine) = Machine::new() else { return };
    for (name, on, why) in machine.pump.features().unwrap() {
        // Since Linux 6.2; the others are older than what else is needed.
        assert!(on || name == "tun-udp-segmentation", "{name}: {why}");
        assert!(!why.is_empty());
    }
}

/// From now on the kernel makes datagrams of `size` bytes of what is sent.
fn segment(socket: &UdpSocket, size: libc::c_int) {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, size);
}

fn set_option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the option's value is one `int`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_closed_port_is_told_to_a_connected_socket() {
    let Some(_machine) = Machine::new() else { return };
    for family in [V4, V6] {
        let app = open(family.tun, 5000);
        app.connect(at(family.dead, 20_000)).unwrap();
        app.send(&STUN).unwrap();
        assert_eq!(error_at(&app).kind(), ErrorKind::ConnectionRefused);
    }
}

/// ICE tries several candidates from one socket; the errors of one make the kernel fail sends to the others.
#[test]
fn a_dead_remote_beside_a_live_one_loses_nothing() {
    let Some(machine) = Machine::new() else { return };
    let (app, far) = (open(V4.tun, 5000), machine.far_socket(MEDIA_V4, 20_000));
    for burst in 0..50u8 {
        let probes: HashSet<Vec<u8>> =
            (0..20).map(|number| [&STUN[..18], &[burst, number]].concat()).collect();
        for probe in &probes {
            app.send_to(probe, at(DEAD_V4, 20_000)).unwrap();
            app.send_to(probe, at(MEDIA_V4, 20_000)).unwrap();
        }
        let received: HashSet<_> = probes.iter().map(|_| marked::receive(&far).payload).collect();
        assert_eq!(received, probes);
    }
    assert_eq!(machine.drops(DropReason::SendFailed), 0);
}

/// The send to the live remote takes the dead one's pending error from the mapping's socket; the application is told all the same.
#[test]
fn an_error_is_told_though_another_send_met_it() {
    let Some(machine) = Machine::new() else { return };
    let far = machine.far_socket(MEDIA_V4, 20_000);
    let (dead, live) = (open_shared(V4.tun, 5000), open_shared(V4.tun, 5000));
    dead.connect(at(DEAD_V4, 20_000)).unwrap();
    live.connect(at(MEDIA_V4, 20_000)).unwrap();
    for _ in 0..300 {
        dead.send(&STUN).unwrap();
        live.send(&STUN).unwrap();
        marked::receive(&far);
        assert_eq!(error_at(&dead).kind(), ErrorKind::ConnectionRefused);
    }
}

/// Anybody may write what a router says, and the application's host would believe it for ten minutes.
#[test]
fn what_a_router_says_of_sizes_is_told_to_no_application() {
    let Some(machine) = Machine::new() else { return };
    for (family, too_big, closed) in [(V4, (3, 4), (3, 3)), (V6, (2, 0), (1, 4))] {
        let (app, far) = (open(family.tun, 5000), machine.far_socket(family.media, 20_000));
        marked::set(&app, 0xb8, 64);
        app.connect(at(family.media, 20_000)).unwrap();
        app.send(&[7; 1200]).unwrap();
        let mapping = marked::receive(&far).from;
        machine.far.run(move || say(family.media, mapping, too_big, 600));
        for _ in 0..20 {
            app.send(&[7; 1200]).unwrap();
            assert_eq!(marked::receive(&far).payload.len(), 1200);
        }
        machine.far.run(move || say(family.media, mapping, closed, 0));
        assert_eq!(error_at(&app).kind(), ErrorKind::ConnectionRefused, "what comes after it is told");
    }
}

/// Writes an ICMP error from `router` about a datagram from `mapping` to it.
fn say(router: IpAddr, mapping: SocketAddr, (kind, code): (u8, u8), rest: u32) {
    let raw = Socket::new(Domain::for_address(mapping), Type::RAW, Some(libc::IPPROTO_RAW.into())).unwrap();
    let sent = build::SentUdp { source: mapping, destination: at(router, 20_000), payload: &[7; 1200] };
    let mut said = [0; build::MAX_REFUSAL];
    let error = build::IcmpError { kind, code, rest };
    let length = build::error_about_udp(&sent, error, router, &mut said).unwrap();
    raw.send_to(&said[..length], &SocketAddr::new(mapping.ip(), 0).into()).unwrap();
}

#[test]
fn a_refusal_reaches_the_application_at_once() {
    let Some(machine) = Machine::new() else { return };
    for (family, prohibited) in [(V4, libc::EHOSTUNREACH), (V6, libc::EACCES)] {
        for refused in [at(family.media, 22), at(family.signaling, 443)] {
            let begun = Instant::now();
            let error = std::net::TcpStream::connect_timeout(&refused, PATIENCE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "TCP to {refused}");
            assert!(begun.elapsed() < PATIENCE);

            let app = open(family.tun, 0);
            app.connect(SocketAddr::new(refused.ip(), 5060)).unwrap();
            app.send(b"OPTIONS").unwrap();
            let error = error_at(&app);
            assert_eq!(error.raw_os_error(), Some(prohibited), "UDP to {refused}");
        }
    }
    assert_eq!(machine.drops(DropReason::TunnelDown), 4);
}

/// A socket that a connection older than the tunnel left under the physical address.
#[test]
fn signaling_under_the_physical_address_is_refused() {
    let Some(machine) = Machine::new() else { return };
    let app = open(WIFI_V4, 0);
    app.connect(at(SIGNALING_V4, 5060)).unwrap();
    app.send(b"OPTIONS").unwrap();
    assert_eq!(error_at(&app).raw_os_error(), Some(libc::EHOSTUNREACH));
    assert_eq!(machine.drops(DropReason::ForeignSource), 1);
}

#[test]
fn a_call_keeps_its_port_when_its_address_returns_and_moves_when_another_comes() {
    let Some(machine) = Machine::new() else { return };
    let (app, far) = (open(V4.tun, 5000), machine.far_socket(MEDIA_V4, 20_000));
    let send = || app.send_to(&STUN, at(MEDIA_V4, 20_000)).unwrap();
    send();
    let before = marked::receive(&far).from;

    ip("address del 192.168.77.10/24 dev wifi");
    machine.pump.set_underlay(underlay(None)).unwrap();
    send();
    ip("address add 192.168.77.10/24 dev wifi");
    ip("route replace default via 192.168.77.1");
    machine.pump.set_underlay(underlay(Some(WIFI_V4))).unwrap();
    send();
    assert_eq!(marked::receive(&far).from, before);
    assert_eq!(machine.drops(DropReason::NoUnderlay), 1, "what was sent in between");

    let cable = "192.168.77.20".parse().unwrap();
    ip("address add 192.168.77.20/24 dev wifi");
    machine
        .pump
        .set_underlay(Underlay { addresses: vec![machine::own(cable)], ..underlay(Some(cable)) })
        .unwrap();
    send();
    let sent = marked::receive(&far);
    assert_eq!(sent.from, at(cable, 5000));
    far.send_to(b"answer", sent.from).unwrap();
    assert_eq!(marked::receive(&app).payload, b"answer");
}

/// Between the change of an address and the word of it: an error would end a call that has just begun.
#[test]
fn a_call_that_begins_while_its_address_goes_is_told_nothing_and_tries_again() {
    let Some(machine) = Machine::new() else { return };
    let (app, far) = (open(V4.tun, 5000), machine.far_socket(MEDIA_V4, 20_000));
    app.connect(at(MEDIA_V4, 20_000)).unwrap();
    ip("address del 192.168.77.10/24 dev wifi");
    app.send(&STUN).unwrap();
    let begun = Instant::now();
    while machine.drops(DropReason::NoUnderlay) == 0 {
        assert!(begun.elapsed() < PATIENCE, "it was not dropped");
        std::thread::sleep(Duration::from_millis(5));
    }
    // What an application is told leaves after what is counted.
    std::thread::sleep(Duration::from_millis(100));
    assert!(app.take_error().unwrap().is_none());
    assert_eq!(machine.drops(DropReason::NoPort), 0);
    ip("address add 192.168.77.10/24 dev wifi");
    ip("route replace default via 192.168.77.1");
    app.send(&STUN).unwrap();
    assert_eq!(marked::receive(&far).from, at(WIFI_V4, 5000));
}

/// A cable to another network is preferred as soon as it is there; then it is what has the addresses.
#[test]
fn calls_leave_by_the_interface_that_has_their_address_whichever_is_preferred() {
    let Some(machine) = Machine::new() else { return };
    let cable = FarEnd::start();
    ip(&format!("link add cable type veth peer name wan netns {}", cable.thread));
    ip("link set cable up");
    cable.run(|| {
        for command in ["link set lo up", "link set wan up"] {
            ip(command);
        }
        machine::wait_for_carrier("wan");
        for address in
            ["192.168.88.1/24", "2001:db8:88::1/64 nodad", "52.129.96.10/32", "2001:db8:96::10/128 nodad"]
        {
            ip(&format!("address add dev wan {address}"));
        }
        for network in ["192.168.77.0/24", "2001:db8:77::/64"] {
            ip(&format!("route add {network} dev wan"));
        }
        ["2001:db8:88::1", "2001:db8:96::10"].into_iter().for_each(machine::wait_for_local);
    });
    machine::wait_for_carrier("cable");
    for command in [
        "address add 192.168.88.10/24 dev cable",
        "address add 2001:db8:88::10/64 dev cable nodad",
        "route add default via 192.168.77.1 metric 600",
        "route del default via 192.168.77.1 metric 0",
    ] {
        ip(command);
    }
    machine::wait_for_local("2001:db8:88::10");
    let led = |device: &CStr| {
        // SAFETY: the name is a valid C string.
        let device = Some(unsafe { libc::if_nametoindex(device.as_ptr()) });
        let addresses = [V4.wifi, V6.wifi].map(|ip| OwnAddress { ip, device }).to_vec();
        machine.pump.set_underlay(Underlay { addresses, ..underlay(Some(WIFI_V4)) }).unwrap();
    };
    led(c"wifi");

    let ends: Vec<_> =
        [V4, V6].into_iter().flat_map(|family| [(family, family.tun), (family, family.wifi)]).collect();
    let calls: Vec<_> = (5000..)
        .zip(&ends)
        .map(|(port, (family, own))| {
            let far = at(family.media, 15_000 + port);
            let [by_wifi, by_cable] = [&machine.far, &cable].map(|end| {
                let socket = end.run(move || UdpSocket::bind(far).unwrap());
                marked::prepare(&socket, PATIENCE);
                socket
            });
            (open(*own, port), far, at(family.wifi, port), by_wifi, by_cable)
        })
        .collect();
    let arrive = |by_cable: bool| {
        for (app, far, external, wifi, cable) in &calls {
            app.send_to(&STUN, far).unwrap();
            let sent = marked::receive(if by_cable { cable } else { wifi });
            assert_eq!(sent.from, *external);
        }
    };
    arrive(false);
    ip("route add default via 192.168.88.1 metric 100");
    ip("route add default via 2001:db8:88::1 metric 100");
    machine.pump.routes_changed().unwrap();
    arrive(false);

    for address in ["192.168.77.10/24", "2001:db8:77::10/64"] {
        ip(&format!("address del {address} dev wifi"));
        ip(&format!("address add {address} dev cable"));
    }
    machine::wait_for_local("2001:db8:77::10");
    led(c"cable");
    arrive(true);
}

#[test]
fn there_may_be_more_calls_than_the_default_descriptor_limit() {
    const CALLS: usize = 1500;
    let Some(machine) = Machine::new() else { return };
    if machine::descriptors() < 2 * CALLS + 500 {
        return machine::skip("this process may not open enough descriptors");
    }
    let far = machine.far_socket(MEDIA_V4, 20_000);
    let apps: Vec<_> = (0..CALLS).map(|_| open(V4.tun, 0)).collect();
    let mut seen = HashSet::new();
    for app in &apps {
        app.send_to(&STUN, at(MEDIA_V4, 20_000)).unwrap();
        seen.insert(marked::receive(&far).from);
    }
    assert_eq!(seen.len(), CALLS);
}

#[test]
fn a_gateway_that_moves_to_the_other_family_and_back_does_not_stop_voice() {
    let Some(machine) = Machine::new() else { return };
    machine.pump.set_endpoint(0, "[2001:db8:77::1]:51820".parse().unwrap()).unwrap();
    machine.pump.set_endpoint(0, "192.168.77.1:51820".parse().unwrap()).unwrap();
    let unknown = machine.pump.set_endpoint(1, "192.168.77.1:51820".parse().unwrap());
    assert!(matches!(unknown, Err(PumpError::NoSuchGateway(1))));
    let (app, far) = (open(V4.tun, 5000), machine.far_socket(MEDIA_V4, 20_000));
    app.send_to(&STUN, at(MEDIA_V4, 20_000)).unwrap();
    assert_eq!(marked::receive(&far).payload, STUN);
}

/// What a socket is told instead of an answer.
fn error_at(socket: &UdpSocket) -> io::Error {
    loop {
        let error = socket.recv(&mut [0; 100]).unwrap_err();
        if error.kind() != ErrorKind::Interrupted {
            return error;
        }
    }
}

fn open(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    marked::prepare(&socket, PATIENCE);
    socket
}

/// A socket that shares its address with others of its kind.
fn open_shared(address: IpAddr, port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::for_address(at(address, port)), Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at(address, port).into()).unwrap();
    let socket = UdpSocket::from(socket);
    marked::prepare(&socket, PATIENCE);
    socket
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

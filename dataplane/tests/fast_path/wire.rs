//! What applications and far ends see of the fast path.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use aya::programs::{SchedClassifier, TcAttachType};
use dataplane::Direction;
use dataplane::fast_path::{Counts, FastPath, Flow, InstallError, Unavailable};
use dataplane::rtp::RtpStream;
use packet::Checksum;
use socket2::{Domain, Socket, Type};

use crate::machine::{DEAD_V4, Family, V4, V6, ip, skip};
use crate::marked;
use crate::network::{Call, Network, PATIENCE, Wire, open};
use crate::packets::{Body, Spec};
use crate::tun::index;

const STUN: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];

#[test]
fn a_call_over_ethernet() {
    calls_over(Wire::Veth);
}

#[test]
fn a_call_over_a_vlan() {
    calls_over(Wire::Vlan);
}

#[test]
fn a_call_over_interfaces_that_send_by_others() {
    for kind in ["bridge", "macvlan"] {
        calls_over(Wire::On(kind));
    }
}

/// Here each checksum is completed by the sending kernel and verified by the receiving one.
#[test]
fn a_call_over_an_interface_without_link_header() {
    calls_over(Wire::Tun);
}

fn calls_over(wire: Wire) {
    let Some(mut network) = Network::new(wire) else { return };
    for family in [V4, V6] {
        let calls = [network.call(family), identity(&network, family)];
        for call in calls {
            let id = network.hand_over(&call);
            converse(&call);
            let sent = super_packet(&call);
            let statistics = network.statistics(id);
            let headers: u64 = if call.remote.is_ipv4() { 28 } else { 48 };
            let bytes = 20 + sent + headers * 12;
            assert_eq!((statistics.outbound.packets, statistics.outbound.bytes), (12, bytes));
            assert_eq!((statistics.inbound.packets, statistics.inbound.bytes), (1, 1201 + headers));
            assert_eq!((statistics.outbound.handed_up, statistics.inbound.handed_up), (0, 0));
            assert_eq!(network.tun.waiting_udp(), None, "none took the pump");
            assert_eq!(network.fast_path.remove(id).unwrap(), statistics);
        }
    }
}

/// One packet each way: addresses, marks and payload are right at both ends.
fn converse(call: &Call) {
    marked::set(&call.app, 0x02, 33);
    call.app.send_to(&STUN, call.remote).unwrap();
    let sent = marked::receive(&call.far);
    assert_eq!((sent.payload.as_slice(), sent.from), (STUN.as_slice(), call.external));
    assert_eq!((sent.tos, sent.ttl), (0xba, 33), "EF with the application's ECN and TTL");

    let answer: Vec<u8> = (0..1201u16).map(|byte| byte as u8).collect();
    marked::set(&call.far, 0x89, 40);
    call.far.send_to(&answer, call.external).unwrap();
    let received = marked::receive(&call.app);
    assert_eq!((received.payload, received.from), (answer, call.remote));
    assert_eq!((received.tos, received.ttl), (0x89, 40));
}

/// The state that the daemon writes into an entry goes on in the kernel, over packets that it moves and those that it hands up.
#[test]
fn only_what_is_used_of_the_entries_is_mapped() {
    const ENTRIES: u32 = 4096;
    let Some(network) = Network::new(Wire::Veth) else { return };
    let mut fast_path = FastPath::open(index("tun"), ENTRIES).unwrap();
    fast_path.attach(index("wifi")).unwrap();
    let call = network.call(V4);
    let ids: Vec<_> = (0..200)
        .map(|number| {
            let [internal, external] =
                [call.internal, call.external].map(|it| SocketAddr::new(it.ip(), 10_000 + number));
            fast_path.install(&Flow { internal, external, ..network.flow(&call) }).unwrap()
        })
        .collect();
    assert!(ids.iter().all(|id| fast_path.statistics(*id).is_some()));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.ends_with("bpf-map")).map(|line| {
        let (from, rest) = line.split_once('-').unwrap();
        let (to, _) = rest.split_once(' ').unwrap();
        u64::from_str_radix(to, 16).unwrap() - u64::from_str_radix(from, 16).unwrap()
    });
    // Other tests have mappings too, each of 64 entries.
    let largest = mapped.max().unwrap();
    assert!(largest < u64::from(ENTRIES) * 448 / 4, "{largest} bytes");
}

#[test]
fn rtp_is_measured_in_both_directions() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    for family in [V4, V6] {
        let call = network.call(family);
        let mut before = RtpStream::default();
        for number in 0..10 {
            before.seen(&rtp(number), 172, u64::from(number), 0);
        }
        let before = before.handed_over();
        let flow = Flow { rtp: [before, RtpStream::default()], ..network.flow(&call) };
        let id = network.fast_path.install(&flow).unwrap();
        // 10 is nobody's; 11 and 12 are handed up.
        for number in 11..13 {
            call.app.send_to(&rtp(number), call.remote).unwrap();
            assert!(network.tun.waiting_udp().is_some());
        }
        for direction in [Direction::Outbound, Direction::Inbound] {
            assert!(network.fast_path.settle(id, direction, Duration::MAX, None));
        }
        marked::set(&call.app, 0x28, 64);
        marked::set(&call.far, 0x88, 64);
        for number in (13..100).filter(|number| number % 10 != 5) {
            let relayed = [&[0x40, 0, 0, 172][..], &rtp(number)].concat();
            call.app.send_to(&relayed, call.remote).unwrap();
            assert_eq!(marked::receive(&call.far).payload, relayed);
            call.far.send_to(&rtp(number), call.external).unwrap();
            assert_eq!(marked::receive(&call.app).payload, rtp(number));
        }
        call.app.send_to(&STUN, call.remote).unwrap();
        let statistics = network.fast_path.remove(id).unwrap();
        let told = |counts: Counts| {
            let report = counts.rtp.report().unwrap();
            (report.packets, report.lost, report.strays, report.dscp.value())
        };
        assert_eq!((statistics.outbound.handed_up, statistics.outbound.packets), (2, 79));
        assert_eq!(told(statistics.outbound), (10 + 2 + 78, 9, 0, 0x28 >> 2));
        assert_eq!(told(statistics.inbound), (78, 9, 0, 0x88 >> 2));
    }
}

fn rtp(number: u16) -> Vec<u8> {
    let mut payload = vec![0x80, 111];
    payload.extend(number.to_be_bytes());
    payload.resize(172, 7);
    payload
}

/// Many datagrams in one call (UDP_SEGMENT). Returns how many bytes were sent.
fn super_packet(call: &Call) -> u64 {
    set_option(&call.app, libc::SOL_UDP, libc::UDP_SEGMENT, 500);
    let sent: Vec<u8> = (0..5_100_u16).map(|byte| (byte / 7) as u8).collect();
    call.app.send_to(&sent, call.remote).unwrap();
    for datagram in sent.chunks(500) {
        let received = marked::receive(&call.far);
        assert_eq!(
            (received.payload.as_slice(), received.tos, received.from),
            (datagram, 0xba, call.external)
        );
    }
    sent.len() as u64
}

/// Under the physical interface's own address.
fn identity(network: &Network, family: Family) -> Call {
    let own = SocketAddr::new(family.wifi, 7000);
    network.call_between(own, own, family)
}

/// What was handed up must be through before the kernel takes over, and then again whenever a packet did not fit.
#[test]
fn a_direction_is_the_kernels_once_all_before_it_is_through() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    let call = network.call(V4);
    let flow = Flow { mtu: 300, ..network.flow(&call) };
    let id = network.fast_path.install(&flow).unwrap();
    let sent = |payload: &[u8]| call.app.send_to(payload, call.remote).unwrap();
    let state = |network: &Network| {
        let outbound = network.statistics(id).outbound;
        (outbound.handed_up, outbound.packets, outbound.live)
    };

    sent(b"first");
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(b"first")));
    assert_eq!(state(&network), (1, 0, false));
    assert!(!network.fast_path.settle(id, Direction::Outbound, Duration::ZERO, None), "handed up just now");
    assert!(network.fast_path.settle(id, Direction::Outbound, Duration::MAX, None));
    sent(b"second");
    assert_eq!(marked::receive(&call.far).payload, b"second");
    assert_eq!(state(&network), (1, 1, true));

    let large = [7; 273];
    sent(&large);
    sent(b"small behind large");
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(&large)));
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(b"small behind large")));
    assert_eq!(state(&network), (3, 1, false));
    assert!(network.fast_path.settle(id, Direction::Outbound, Duration::MAX, None));
    sent(&large[..272]);
    assert_eq!(marked::receive(&call.far).payload, large[..272], "just fits");
}

#[test]
fn a_flow_is_handed_back_by_its_outbound_side_first() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    let call = network.call(V4);
    let id = network.hand_over(&call);
    converse(&call);

    network.fast_path.suspend(id, Direction::Outbound);
    call.app.send_to(b"by the pump", call.remote).unwrap();
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(b"by the pump")));
    call.far.send_to(b"by the kernel", call.external).unwrap();
    assert_eq!(marked::receive(&call.app).payload, b"by the kernel");

    network.fast_path.suspend(id, Direction::Inbound);
    call.far.send_to(b"to the mapping's socket", call.external).unwrap();
    let answer = marked::receive(&call.reserved);
    assert_eq!((answer.payload.as_slice(), answer.from), (&b"to the mapping's socket"[..], call.remote));
    assert_eq!(network.statistics(id).inbound.handed_up, 1);

    network.settle(id);
    converse(&call);
    network.fast_path.remove(id).unwrap();
    assert_eq!(network.fast_path.statistics(id), None);
    assert!(!network.fast_path.settle(id, Direction::Outbound, Duration::MAX, None), "it is gone");
    call.app.send_to(b"unknown", call.remote).unwrap();
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(b"unknown")));
    call.far.send_to(b"late", call.external).unwrap();
    assert_eq!(marked::receive(&call.reserved).payload, b"late");
}

#[test]
fn an_expired_flow_is_the_pumps_to_judge() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    let call = network.call(V4);
    let flow = Flow { life: Duration::ZERO, ..network.flow(&call) };
    let id = network.fast_path.install(&flow).unwrap();
    network.settle(id);
    call.app.send_to(b"late", call.remote).unwrap();
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(b"late")));
    network.settle(id);
    call.far.send_to(b"late", call.external).unwrap();
    assert_eq!(marked::receive(&call.reserved).payload, b"late");
}

#[test]
fn only_the_flow_itself_gets_through() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    let call = network.call(V4);
    network.hand_over(&call);

    // Out: from another port, and to another remote.
    let other = open(SocketAddr::new(V4.tun, 5001));
    other.send_to(b"no mapping", call.remote).unwrap();
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(b"no mapping")));
    call.app.send_to(b"no flow", SocketAddr::new(V4.dead, 20_000)).unwrap();
    assert!(network.tun.waiting_udp().is_some_and(|packet| packet.ends_with(b"no flow")));

    // In: from another port, from another host; and what is meant for another station.
    for stranger in [SocketAddr::new(V4.media, 20_001), SocketAddr::new(DEAD_V4, 20_000)] {
        network.far_socket(stranger).send_to(b"stranger", call.external).unwrap();
        let got = marked::receive(&call.reserved);
        assert_eq!((got.payload.as_slice(), got.from), (&b"stranger"[..], stranger));
    }
    ip("link set wifi promisc on");
    let mac = ip("-brief link show wifi").split_whitespace().nth(2).unwrap().to_owned();
    for mac in ["02:00:00:00:00:99".to_owned(), mac] {
        let right = !mac.ends_with(":99");
        network.far.run(move || ip(&format!("neigh replace 192.168.77.10 lladdr {mac} dev wan")));
        call.far.send_to(if right { b"mine" } else { b"else" }, call.external).unwrap();
    }
    assert_eq!(marked::receive(&call.app).payload, b"mine");
    call.reserved.set_nonblocking(true).unwrap();
    assert_eq!(call.reserved.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// IEEE 802.1Q: a tag with the number 0 is a priority, and the stack takes such a packet as one without.
#[test]
fn a_tag_that_names_another_network_keeps_an_answer_out_and_a_priority_does_not() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    for family in [V4, V6] {
        let call = network.call(family);
        let id = network.hand_over(&call);
        for (number, payload) in [(5, b"else"), (0, b"mine")] {
            let frame = tagged(5 << 13 | number, &call, payload);
            network.far.run(move || send_frame("wan", &frame));
        }
        assert_eq!(marked::receive(&call.app).payload, b"mine");
        let inbound = network.statistics(id).inbound;
        assert_eq!((inbound.packets, inbound.handed_up), (1, 0));
        call.reserved.set_nonblocking(true).unwrap();
        assert_eq!(call.reserved.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// A frame with an answer, for `wifi`.
fn tagged(tag: u16, call: &Call, payload: &[u8]) -> Vec<u8> {
    let spec = Spec {
        source: call.remote,
        destination: call.external,
        tos: 0,
        ttl: 64,
        body: Body::Udp { summed: true },
        option_words: 0,
        extensions: Vec::new(),
        cut: 0,
        payload: payload.to_vec(),
        checksum: Checksum::Complete,
    };
    let told = ip("-brief link show wifi");
    let to = told.split_whitespace().nth(2).unwrap().split(':');
    let to: Vec<u8> = to.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let ether_type = if call.remote.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    [&to, &[2, 0, 0, 0, 0, 1][..], &[0x81, 0], &tag.to_be_bytes(), &ether_type, &spec.build().bytes].concat()
}

fn send_frame(interface: &str, frame: &[u8]) {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index(interface).cast_signed();
    // SAFETY: the kernel reads the frame and the address, which outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
}

/// A router that checks reverse paths strictly, and a firewall that lets in nothing but answers.
#[test]
fn answers_pass_strict_rp_filter_and_a_closed_firewall() {
    if Command::new("nft").arg("--version").output().is_err() {
        return skip("the program nft (nftables) is missing");
    }
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    for interface in ["all", "wifi", "tun"] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "1").unwrap();
    }
    let rules = "table inet closed { chain input { type filter hook input priority 0; policy drop; \
                 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; ct state established accept; }; }";
    let loaded = Command::new("nft").arg(rules).output().unwrap();
    if !loaded.status.success() {
        return skip(&format!("nft: {}", String::from_utf8_lossy(&loaded.stderr)));
    }
    for family in [V4, V6] {
        // The firewall is closed.
        let open_port = open(SocketAddr::new(family.wifi, 9000));
        let caller = network.far_socket(SocketAddr::new(family.media, 20_002));
        caller.send_to(b"unasked", open_port.local_addr().unwrap()).unwrap();

        for call in [network.call(family), identity(&network, family)] {
            let id = network.hand_over(&call);
            for _ in 0..3 {
                converse(&call);
            }
            network.fast_path.remove(id);
        }
        open_port.set_nonblocking(true).unwrap();
        assert_eq!(open_port.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn what_cannot_be_installed_is_told() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    let call = network.call(V4);
    let flow = network.flow(&call);
    let refused = |network: &mut Network, flow: Flow| network.fast_path.install(&flow).unwrap_err();
    let elsewhere = Flow { interface: network.tun.index, ..flow };
    assert!(matches!(refused(&mut network, elsewhere), InstallError::NotAttached(_)));
    assert!(matches!(refused(&mut network, Flow { next_hop: None, ..flow }), InstallError::NextHop));
    let mixed = Flow { external: "[2001:db8::1]:1".parse().unwrap(), ..flow };
    assert!(matches!(refused(&mut network, mixed), InstallError::Families));

    let first = network.fast_path.install(&flow).unwrap();
    assert!(matches!(refused(&mut network, flow), InstallError::Exists));
    // Another application's flow may not take over the first one's answers.
    let thief = Flow { internal: SocketAddr::new(V4.tun, 5001), ..flow };
    assert!(matches!(refused(&mut network, thief), InstallError::Exists));
    let same_source = Flow { external: SocketAddr::new(V4.wifi, 6001), ..flow };
    assert!(matches!(refused(&mut network, same_source), InstallError::Exists));
    let statistics = network.fast_path.statistics(first).unwrap();
    assert_eq!(network.fast_path.entries().collect::<Vec<_>>(), [(first, statistics)]);

    let full = (0..100).find_map(|port| {
        let [internal, external] =
            [flow.internal, flow.external].map(|at| SocketAddr::new(at.ip(), 10_000 + port));
        network.fast_path.install(&Flow { internal, external, ..flow }).err()
    });
    assert!(matches!(full, Some(InstallError::Full)));
}

#[test]
fn an_interface_that_does_not_fit_is_told() {
    let Some(mut network) = Network::new(Wire::Veth) else { return };
    let refused = network.fast_path.attach(index("lo")).unwrap_err();
    assert!(matches!(refused, Unavailable::InterfaceType { kind: libc::ARPHRD_LOOPBACK, .. }), "{refused}");
    let refused = network.fast_path.attach(99_999).unwrap_err();
    assert!(matches!(refused, Unavailable::NoInterface { index: 99_999 }), "{refused}");
}

#[test]
fn without_privilege_it_says_so() {
    let Some(network) = Network::new(Wire::Veth) else { return };
    let tun = network.tun.index;
    let refused = thread::spawn(move || {
        // SAFETY: changes this thread's own user only, for which the system call is made directly.
        unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        FastPath::open(tun, 4).err().unwrap()
    });
    let refused = refused.join().unwrap();
    assert!(matches!(refused, Unavailable::NotPermitted), "{refused}");
}

/// In the process that is killed: names the TUN and the physical interface.
const VICTIM: &str = "BREAKOUT_FAST_PATH_VICTIM";

#[test]
fn a_killed_process_leaves_nothing_attached() {
    if let Ok(interfaces) = std::env::var(VICTIM) {
        return hold_until_killed(&interfaces);
    }
    let Some(network) = Network::new(Wire::Veth) else { return };
    let interfaces = format!("{} {}", network.tun.index, index("wifi"));
    drop(network.fast_path);
    // A child that another test is starting holds every descriptor until it runs its program.
    wait_for(|| attached() == [0, 0]);

    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "wire::a_killed_process_leaves_nothing_attached", "--nocapture"])
        .env(VICTIM, interfaces)
        .spawn()
        .unwrap();
    wait_for(|| attached() == [1, 1]);
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_for(|| attached() == [0, 0]);
}

fn hold_until_killed(interfaces: &str) {
    let (tun, physical) = interfaces.split_once(' ').unwrap();
    let mut fast_path = FastPath::open(tun.parse().unwrap(), 4).unwrap();
    fast_path.attach(physical.parse().unwrap()).unwrap();
    thread::sleep(Duration::from_secs(60));
}

/// How many programs are on the TUN's egress and on the physical interface's ingress.
fn attached() -> [usize; 2] {
    [("tun", TcAttachType::Egress), ("wifi", TcAttachType::Ingress)]
        .map(|(name, at)| SchedClassifier::query_tcx(name, at).unwrap().1.len())
}

fn wait_for(condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: libc::c_int) {
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
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

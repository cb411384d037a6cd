//! The pump and the kernel fast path together: who moves a call's packets is nobody's business but the daemon's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails here should stop"
)]

#[allow(dead_code, reason = "shared with other tests")]
mod machine;
#[allow(dead_code, reason = "shared with other tests")]
mod marked;

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::{DropReason, FlowReport};
use machine::{Family, MEDIA_V4, Machine, V4, V6, ip};
use policy::{Config, Path, Snapshot};

const STUN: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];
const PATIENCE: Duration = Duration::from_secs(5);
/// After which the second packet of a flow is the kernel's.
const SETTLED: Duration = Duration::from_millis(5);

/// A call between an application under `source` and a far end.
struct Call {
    app: UdpSocket,
    far: UdpSocket,
    remote: SocketAddr,
    sent: u32,
}

#[test]
fn the_second_packet_and_all_later_ones_are_the_kernels() {
    let Some(machine) = machine_with_fast_path() else { return };
    for family in [V4, V6] {
        for source in [family.tun, family.wifi] {
            let mut call = Call::new(&machine, source, family);
            let external = call.there_and_back();
            assert!(is_in_kernel(&machine, &call), "from {source}");
            std::thread::sleep(SETTLED);
            let before = wake_ups();
            for _ in 0..200 {
                assert_eq!(call.there_and_back(), external);
            }
            let woken = wake_ups() - before;
            // A timer may ring; a packet may not.
            assert!(woken <= 5, "the voice thread woke {woken} times for 400 packets from {source}");
            let flow = flow(&machine, &call).unwrap();
            // A first answer under the physical address goes past both.
            let in_packets = if source == family.tun { 201 } else { 200 };
            assert_eq!(
                (flow.out_packets, flow.in_packets),
                (201, in_packets),
                "both tiers' packets are counted"
            );
        }
    }
    let bypass = machine.pump.counters().path(Path::Bypass);
    assert_eq!(
        (bypass.out_packets, bypass.in_packets),
        (4 * 201, 4 * 201 - 2),
        "first answers under the physical address go past the pump"
    );
}

#[test]
fn nothing_is_lost_or_overtaken_while_flows_change_hands() {
    let Some(machine) = machine_with_fast_path() else { return };
    let mut call = Call::new(&machine, V4.tun, V4);
    let external = call.there_and_back();
    let begun = Instant::now();
    let mut handed_back = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        if handed_back.elapsed() > Duration::from_millis(50) {
            handed_back = Instant::now();
            machine.pump.routes_changed().unwrap();
        }
        // Bursts, so that packets of both tiers would be on their way at once.
        let burst: Vec<[u8; 24]> = (0..8).map(|_| call.next()).collect();
        for packet in &burst {
            call.app.send_to(packet, call.remote).unwrap();
        }
        for packet in &burst {
            let received = marked::receive(&call.far);
            assert_eq!(
                (received.payload.as_slice(), received.from),
                (packet.as_slice(), external),
                "in order"
            );
            assert_eq!((received.tos, received.ttl), (0xb8, 64));
        }
        for packet in &burst {
            call.far.send_to(packet, external).unwrap();
        }
        for packet in &burst {
            assert_eq!(marked::receive(&call.app).payload, packet, "in order");
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    let flow = flow(&machine, &call).unwrap();
    assert_eq!((flow.out_packets, flow.in_packets), (u64::from(call.sent), u64::from(call.sent)));
}

#[test]
fn a_call_without_a_route_is_the_kernels_as_soon_as_there_is_one_again() {
    let Some(machine) = machine_with_fast_path() else { return };
    let (mut call, external) = Call::in_kernel(&machine);
    ip("route del default");
    machine.pump.routes_changed().unwrap();
    let begun = Instant::now();
    while machine.drops(DropReason::SendFailed) == 0 {
        assert!(begun.elapsed() < PATIENCE, "the packet without a route is not counted");
        call.app.send_to(&STUN, call.remote).unwrap();
        std::thread::sleep(SETTLED);
    }
    assert!(!is_in_kernel(&machine, &call), "it stays out as long as nothing can be sent");

    ip("route add default via 192.168.77.1");
    machine.pump.routes_changed().unwrap();
    let begun = Instant::now();
    while !is_in_kernel(&machine, &call) {
        assert!(begun.elapsed() < PATIENCE, "{}", feature(&machine).2);
        assert_eq!(call.there_and_back(), external);
        std::thread::sleep(SETTLED);
    }
}

#[test]
fn a_call_that_a_new_policy_forbids_is_cut_in_the_kernel_too() {
    let Some(machine) = machine_with_fast_path() else { return };
    let (mut call, external) = Call::in_kernel(&machine);

    let without_media = machine::CONFIG
        .replace("52.129.96.0/20", "52.129.112.0/20")
        .replace("2001:db8:96::/64", "2001:db8:97::/64");
    let (config, _) = Config::parse(&without_media, "test.toml").unwrap();
    assert_eq!(machine.pump.swap(Arc::new(Snapshot::compile(&config))).unwrap(), 1);
    let packet = call.next();
    call.app.send_to(&packet, call.remote).unwrap();
    call.far.send_to(b"answer", external).unwrap();
    for silent in [&call.far, &call.app] {
        silent.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(silent.recv(&mut [0; 100]).is_err(), "nothing goes either way");
    }
}

#[test]
fn a_stranger_gets_no_answer_in_and_the_pump_still_judges_whom_the_call_talked_to() {
    let Some(machine) = machine_with_fast_path() else { return };
    let (mut call, external) = Call::in_kernel(&machine);
    machine.far_socket(machine::DEAD_V4, 20_000).send_to(b"stranger", external).unwrap();
    // RFC 4787 §5: another port of an address that was talked to may answer.
    machine.far_socket(MEDIA_V4, 20_001).send_to(b"other port", external).unwrap();
    let received = marked::receive(&call.app);
    assert_eq!((received.payload.as_slice(), received.from.port()), (b"other port".as_slice(), 20_001));
    call.there_and_back();
}

#[test]
fn what_the_kernel_does_not_take_goes_on_through_the_pump() {
    let Some(machine) = machine_with_fast_path() else { return };
    let (mut call, external) = Call::in_kernel(&machine);
    // IPv4 options (four times "no operation") are the pump's; so is what follows, until the kernel may go on.
    set_options(&call.app, &[1, 1, 1, 1]);
    assert_eq!(call.there_and_back(), external);
    set_options(&call.app, &[]);
    for _ in 0..20 {
        assert_eq!(call.there_and_back(), external);
    }
    let flow = flow(&machine, &call).unwrap();
    assert_eq!((flow.out_packets, flow.in_packets), (23, 23));
}

#[test]
fn ten_thousand_flows_and_more_than_the_kernel_takes() {
    let Some(machine) = machine_with_fast_path() else { return };
    let mut call = Call::new(&machine, V4.tun, V4);
    call.there_and_back();
    let app = UdpSocket::bind((V4.tun, 7000)).unwrap();
    let nobody: IpAddr = "52.129.97.1".parse().unwrap();
    for port in 20_001..=34_000 {
        app.send_to(&STUN, (nobody, port)).unwrap();
        if port % 100 == 0 {
            // A new flow takes the pump, behind those before it.
            Call::new(&machine, V4.tun, V4).there_and_back();
            call.there_and_back();
        }
    }
    let flows = machine.pump.flows().unwrap();
    let in_kernel = flows.iter().filter(|flow| flow.in_kernel).count();
    assert!(in_kernel > 4_000, "{in_kernel} of {} flows are in the kernel", flows.len());
    assert!(in_kernel < flows.len(), "some did not fit");
    let (_, on, why) = feature(&machine);
    assert!(on && why.contains("in use"), "{why}");
    call.there_and_back();
}

impl Call {
    /// A call that the kernel moves, and where the far end sees it come from.
    fn in_kernel(machine: &Machine) -> (Self, SocketAddr) {
        let mut call = Self::new(machine, V4.tun, V4);
        let external = call.there_and_back();
        std::thread::sleep(SETTLED);
        call.there_and_back();
        (call, external)
    }

    fn new(machine: &Machine, source: IpAddr, family: Family) -> Self {
        let app = UdpSocket::bind((source, 0)).unwrap();
        marked::prepare(&app, PATIENCE);
        // Port 0: any.
        let far = machine.far_socket(family.media, 0);
        let remote = far.local_addr().unwrap();
        Self { app, far, remote, sent: 0 }
    }

    /// The next packet, numbered.
    fn next(&mut self) -> [u8; 24] {
        self.sent += 1;
        let mut packet = [0; 24];
        packet[..20].copy_from_slice(&STUN);
        packet[3] = 4;
        packet[20..].copy_from_slice(&self.sent.to_be_bytes());
        packet
    }

    /// Sends a packet and has it answered; returns where the far end saw it come from.
    fn there_and_back(&mut self) -> SocketAddr {
        let packet = self.next();
        self.app.send_to(&packet, self.remote).unwrap();
        let received = marked::receive(&self.far);
        assert_eq!((received.payload.as_slice(), received.tos, received.ttl), (packet.as_slice(), 0xb8, 64));
        self.far.send_to(&packet, received.from).unwrap();
        let answer = marked::receive(&self.app);
        assert_eq!((answer.payload.as_slice(), answer.from), (packet.as_slice(), self.remote));
        received.from
    }
}

/// `None`, with the reason told, where there is none.
fn machine_with_fast_path() -> Option<Machine> {
    let machine = Machine::new()?;
    let (_, on, why) = feature(&machine);
    if !on {
        machine::skip(&why);
    }
    on.then_some(machine)
}

fn feature(machine: &Machine) -> dataplane::Feature {
    machine.pump.features().unwrap().into_iter().find(|(name, ..)| *name == "kernel-fast-path").unwrap()
}

fn is_in_kernel(machine: &Machine, call: &Call) -> bool {
    flow(machine, call).is_some_and(|flow| flow.in_kernel)
}

fn flow(machine: &Machine, call: &Call) -> Option<FlowReport> {
    let source = call.app.local_addr().unwrap();
    machine.pump.flows().unwrap().into_iter().find(|flow| flow.tuple.source == source)
}

/// How often this machine's voice thread was put on a processor; other tests have their own.
fn wake_ups() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let is_ours = fs::read_to_string(path.join("comm")).ok()?.trim() == "voice"
                && fs::read_link(path.join("ns/net")).ok()?
                    == fs::read_link("/proc/thread-self/ns/net").ok()?;
            let status = fs::read_to_string(path.join("status")).ok().filter(|_| is_ours)?;
            let switches = |line: &str| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok();
            Some(status.lines().filter_map(switches).sum::<u64>())
        })
        .sum()
}

fn set_options(socket: &UdpSocket, options: &[u8]) {
    use std::os::fd::AsRawFd;
    // SAFETY: the kernel reads as many bytes as it is told of, all of which outlive the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as libc::socklen_t,
        )
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

//! The pump and the kernel fast path together: who moves a call's packets is nobody's business but the daemon's.

mod call;
mod capture;
mod changes;
mod refusals;

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use call::{Call, PATIENCE, SETTLED, STUN, feature, flow, is_in_kernel, machine_with_fast_path, set_options};
use capture::Capture;
use changes::{add_cable, without_media};
use dataplane::DropReason;
use policy::Path;

use crate::machine::{self, FWMARK, MEDIA_V4, V4, V6, ip};
use crate::marked;

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
    let (mut handed_back, mut is_narrow) = (Instant::now(), false);
    while begun.elapsed() < Duration::from_secs(3) {
        if handed_back.elapsed() > Duration::from_millis(50) {
            handed_back = Instant::now();
            is_narrow = !is_narrow;
            ip(&format!(
                "route replace default via 192.168.77.1 mtu {}",
                if is_narrow { 1400 } else { 1500 }
            ));
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
fn a_change_of_routes_that_is_not_its_own_leaves_a_call_in_the_kernel() {
    let Some(machine) = machine_with_fast_path() else { return };
    let (mut call, external) = Call::in_kernel(&machine);
    let pump = Capture::start(&machine.tun);
    for number in 0..20 {
        ip(&format!("route add 198.51.100.{number}/32 via 192.168.77.1"));
        machine.pump.routes_changed().unwrap();
        assert_eq!(call.there_and_back(), external);
    }
    let pumped = pump.waiting().filter(|seen| seen.outgoing && seen.destination == call.remote).count();
    assert_eq!(pumped, 0);
}

#[test]
fn a_stream_that_begins_with_a_burst_is_counted_whole() {
    let Some(machine) = machine_with_fast_path() else { return };
    let call = Call::new(&machine, V4.tun, V4);
    // While the kernel learns of the flow, most of the burst is on its way to the pump.
    for number in 0..300 {
        call.app.send_to(&rtp(number), call.remote).unwrap();
    }
    let external = marked::receive(&call.far).from;
    for number in 0..300 {
        call.far.send_to(&rtp(number), external).unwrap();
    }
    for number in 300..400 {
        std::thread::sleep(SETTLED);
        call.app.send_to(&rtp(number), call.remote).unwrap();
        call.far.send_to(&rtp(number), external).unwrap();
    }
    let flow = flow(&machine, &call).unwrap();
    assert!(flow.in_kernel);
    let counted = [flow.out_rtp, flow.in_rtp].map(|rtp| rtp.map(|rtp| (rtp.packets, rtp.lost, rtp.strays)));
    assert_eq!(counted, [Some((400, 0, 0)); 2]);
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

    assert_eq!(machine.pump.swap(without_media()).unwrap(), 1);
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
    assert_eq!((flow.out_packets, flow.in_packets), (u64::from(call.sent), u64::from(call.sent)));
}

#[test]
fn a_call_is_the_kernels_beside_a_flow_that_is_never_quiet() {
    let Some(machine) = machine_with_fast_path() else { return };
    let restless = Call::new(&machine, V4.tun, V4);
    // What has options is always the pump's.
    set_options(&restless.app, &[1, 1, 1, 1]);
    let (_on, off) = channel::<()>();
    let (app, remote) = (restless.app.try_clone().unwrap(), restless.remote);
    std::thread::spawn(move || {
        run_before_others();
        while off.recv_timeout(Duration::from_micros(300)) == Err(RecvTimeoutError::Timeout) {
            app.send_to(&STUN, remote).unwrap();
        }
    });
    Call::in_kernel(&machine);
}

#[test]
fn the_kernel_takes_the_way_that_routes_give_to_the_calls_mark() {
    let Some(machine) = machine_with_fast_path() else { return };
    add_cable(&machine);
    ip("route add default via 192.168.88.1 table 200");
    // What a rule's TOS is held against has lost the upper three bits: of EF it is this (`fib_dscp_masked_match` in linux/net/ip_fib.h).
    ip(&format!("rule add fwmark {FWMARK} tos 0x18 table 200 priority 50"));
    let (mut call, _) = Call::in_kernel(&machine);
    let wires = ["other", "wan"].map(|wire| machine.far.run(move || Capture::start(wire)));
    call.there_and_back();
    let taken = wires.map(|wire| wire.waiting().any(|seen| seen.destination == call.remote));
    assert_eq!(taken, [true, false]);
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

fn rtp(number: u16) -> [u8; 172] {
    let mut packet = [0; 172];
    packet[..2].copy_from_slice(&[0x80, 111]);
    packet[2..4].copy_from_slice(&number.to_be_bytes());
    packet[4..8].copy_from_slice(&(u32::from(number) * 960).to_be_bytes());
    packet[11] = 1;
    packet
}

/// Lets this thread keep its pace on a busy machine, where that is permitted.
fn run_before_others() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the parameters, which outlive the call; 0 is this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
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

//! What the kernel is not given, or keeps no longer.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::DropReason;
use dataplane::engine::LINGER;
use policy::{Config, Snapshot};

use super::call::{
    Call, PATIENCE, SETTLED, STUN, feature, is_in_kernel, machine_with_fast_path, set_options,
};
use crate::machine::{CONFIG, FWMARK, MEDIA_V4, Machine, V4, ip, skip, underlay};
use crate::marked;

#[test]
fn what_the_machines_firewall_refuses_is_not_the_kernels() {
    if Command::new("nft").arg("--version").output().is_err() {
        return skip("the program nft (nftables) is missing");
    }
    let Some(machine) = machine_with_fast_path() else { return };
    let (mut before, _) = Call::in_kernel(&machine);
    nft(&format!(
        "table inet closed {{ chain output {{ type filter hook output priority 0; \
         meta mark {FWMARK} ip daddr {MEDIA_V4} drop; }}; }}"
    ));
    let mut after = Call::new(&machine, V4.tun, V4);
    for refused in 1..=3 {
        after.app.send_to(&STUN, after.remote).unwrap();
        wait_for(|| machine.drops(DropReason::SendFailed) >= refused);
    }
    assert!(!is_in_kernel(&machine, &after));

    // The kernel passes the firewall by, until a packet that it leaves to the pump tells.
    before.there_and_back();
    set_options(&before.app, &[1, 1, 1, 1]);
    before.app.send_to(&STUN, before.remote).unwrap();
    wait_for(|| !is_in_kernel(&machine, &before));
    set_options(&before.app, &[]);

    nft("delete table inet closed");
    machine.pump.routes_changed().unwrap();
    for call in [&mut before, &mut after] {
        call.there_and_back();
        call.wait_for_kernel(&machine);
    }
}

#[test]
fn a_full_queue_does_not_keep_a_call_out() {
    let Some(machine) = machine_with_fast_path() else { return };
    // Its neighbour is known then.
    Call::new(&machine, V4.tun, V4).there_and_back();
    // A bucket that holds no packet at all.
    let mut tc = Command::new("tc");
    let added = tc.args("qdisc add dev wifi root tbf rate 8kbit burst 40 limit 40".split(' ')).output();
    if !added.as_ref().is_ok_and(|output| output.status.success()) {
        return skip(&format!("tc cannot make a queue that is full: {added:?}"));
    }
    let mut call = Call::new(&machine, V4.tun, V4);
    call.app.send_to(&STUN, call.remote).unwrap();
    wait_for(|| machine.drops(DropReason::SendFailed) > 0);
    let deleted = Command::new("tc").args("qdisc del dev wifi root".split(' ')).status().unwrap();
    assert!(deleted.success());
    call.there_and_back();
    call.wait_for_kernel(&machine);
}

#[test]
fn a_route_that_leads_back_into_the_tun_is_no_way_out() {
    let Some(machine) = machine_with_fast_path() else { return };
    // What comes back into the TUN is marked by then: it is refused, or it would go round for ever.
    let rules = "[[rules]]\nname = \"round\"\nto = \"genesys-media\"\nprotocol = \"udp\"\nwhen = \"ef\"\npath = \"reject\"\n\
                 [[rules]]\nname = \"media\"\nto = \"genesys-media\"\nprotocol = \"udp\"\npath = \"bypass\"\ndscp = \"ef\"\n";
    let (config, _) = Config::parse(&format!("{CONFIG}{rules}"), "test.toml").unwrap();
    machine.pump.swap(Arc::new(Snapshot::compile(&config))).unwrap();
    ip(&format!("route add 52.129.96.0/20 dev {}", machine.tun));

    let call = Call::new(&machine, V4.tun, V4);
    wait_for(|| {
        call.app.send_to(&STUN, call.remote).unwrap();
        std::thread::sleep(SETTLED);
        feature(&machine).2.contains("leads into the TUN")
    });
    assert!(!is_in_kernel(&machine, &call));
}

#[test]
fn an_entry_ends_with_its_mapping() {
    let Some(machine) = machine_with_fast_path() else { return };
    let (call, external) = Call::in_kernel(&machine);
    // As if the address were gone, for longer than the mapping waits for it.
    machine.pump.set_underlay(underlay(None)).unwrap();
    let another = wait_for_port(external);
    call.far.send_to(b"not the call's any more", external).unwrap();
    assert_eq!(marked::receive(&another).payload, b"not the call's any more");
}

#[test]
fn on_a_kernel_without_tcx_the_pump_carries_on_and_says_why() {
    // In a thread of its own: what it gives up is gone for good, for those too that it starts.
    let done = std::thread::spawn(|| {
        if let Err(error) = refuse_bpf_links() {
            return skip(&format!("this kernel filters no system calls: {error}"));
        }
        let Some(machine) = Machine::new() else { return };
        let (_, on, why) = feature(&machine);
        assert!(!on && why.contains("this kernel has no tcx: Linux 6.6 or newer is needed"), "{why}");
        let mut call = Call::new(&machine, V4.tun, V4);
        for _ in 0..3 {
            call.there_and_back();
        }
        assert!(!is_in_kernel(&machine, &call));
    });
    done.join().unwrap();
}

/// From now on this thread's kernel knows no BPF link of the kind asked for: `link_create` in linux/kernel/bpf/syscall.c answers EINVAL to
/// an attach type of a later kernel.
fn refuse_bpf_links() -> std::io::Result<()> {
    /// linux/bpf.h.
    const BPF_LINK_CREATE: u32 = 28;
    /// `struct seccomp_data` (linux/seccomp.h): the number, and the lower half of the first argument.
    const NUMBER: u32 = 0;
    const COMMAND: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        step(LOAD, NUMBER, 0, 0),
        step(EQUAL, libc::SYS_bpf as u32, 0, 3),
        step(LOAD, COMMAND, 0, 0),
        step(EQUAL, BPF_LINK_CREATE, 0, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the kernel reads one sock_fprog and the steps that it points to, all of which outlive the call.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn nft(rules: &str) {
    let done = Command::new("nft").arg(rules).output().unwrap();
    assert!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr));
}

/// Binds to an external endpoint once its mapping has ended.
fn wait_for_port(external: SocketAddr) -> UdpSocket {
    let begun = Instant::now();
    loop {
        match UdpSocket::bind(external) {
            Ok(socket) => {
                marked::prepare(&socket, PATIENCE);
                return socket;
            }
            Err(error) => assert!(begun.elapsed() < 3 * LINGER, "{external}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
fn wait_for(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

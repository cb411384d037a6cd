use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::addresses::{AGENT, AGENT_TUNNEL, STREAMING};
use lab::{Captured, Host, Process, Record, Wiring};
use packet::protocol::{TCP, UDP};

use crate::common::{Scene, alone, assert_hidden, assert_shown, file, ok, program, said, wait_for_socket};

const PORT: u16 = 5060;
const CALLS: usize = 200;
/// IPv4 and UDP; TCP has a few more.
const IP_AND_TRANSPORT: usize = 28;

#[test]
fn sipp_over_udp() {
    options("u1", UDP);
}

#[test]
fn sipp_over_tcp() {
    options("t1", TCP);
}

/// `transport` is SIPp's: one socket of UDP or TCP.
fn options(transport: &str, protocol: u8) {
    let _turn = alone();
    let Some(sipp) = program("sipp", "sip-tester") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let log = scene.directory.file("sipp-uas.log");
    let mut server = serve(&sipp, &scene.internet.signaling, (transport, protocol), &log);

    let (wire, ()) = scene.on_wire(|| call(&sipp, &scene.internet.agent, AGENT, transport));
    assert_shown(&wire, protocol);

    scene.raise();
    let (behind, (wire, ())) = scene
        .behind_gateway(|| scene.on_wire(|| call(&sipp, &scene.internet.agent, AGENT_TUNNEL, transport)));
    assert_hidden(&wire);
    let (bytes, shortest) = requests(&behind);
    assert!(shortest > 0 && bytes >= CALLS * shortest, "{bytes} bytes came out of the tunnel");
    assert!(server.wait(Duration::ZERO).unwrap().is_none(), "the server ended:\n{}", server.output());
}

/// The bytes of all requests, and of the shortest. Several may pass as one segment or one super-packet, which a capture shows as one record.
fn requests(behind: &Captured) -> (usize, usize) {
    let sent = || {
        let records = behind.records.iter();
        records.filter(|record| record.outgoing && record.destination == (STREAMING, PORT).into())
    };
    let payload = |record: &Record| (record.len as usize).saturating_sub(IP_AND_TRANSPORT);
    let whole = sent().filter(|record| record.head.starts_with(b"OPTIONS sip:")).map(payload);
    (sent().map(payload).sum(), whole.min().unwrap_or(0))
}

fn serve(sipp: &Path, host: &Host, (transport, protocol): (&str, u8), log: &Path) -> Process {
    let mut command = Command::new(sipp);
    command.arg("-sf").arg(file("sipp-uas.xml"));
    command.args(["-i", &STREAMING.to_string(), "-bind_local", "-p", &PORT.to_string()]);
    command.args(["-t", transport, "-nostdin"]);
    let mut server = Process::spawn(host, "sipp", command, log).unwrap();
    wait_for_socket(&mut server, host, protocol, SocketAddrV4::new(STREAMING, PORT));
    server
}

/// Makes the calls from `from` and panics unless each one gets its 200.
fn call(sipp: &Path, host: &Host, from: Ipv4Addr, transport: &str) {
    let mut command = Command::new(sipp);
    command.arg("-sf").arg(file("sipp-uac.xml")).arg(format!("{STREAMING}:{PORT}"));
    command.args(["-i", &from.to_string(), "-bind_local", "-t", transport]);
    command.args(["-m", &CALLS.to_string(), "-r", "100", "-nostdin", "-timeout", "20s", "-timeout_error"]);
    let text = said(&ok(host.output(command)));
    let successful = text.lines().rev().find(|line| line.contains("Successful call"));
    assert!(successful.is_some_and(|line| line.contains(&CALLS.to_string())), "{text}");
}

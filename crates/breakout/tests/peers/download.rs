use std::io::{Read, Write, pipe};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use lab::addresses::SIGNALING;
use lab::service::http::Body;
use lab::service::listen_tcp;
use lab::traffic::stream::connect;
use lab::{Impairment, LinkKind, Wiring};
use packet::protocol::TCP;

use crate::common::{Scene, alone, assert_hidden, assert_shown, ok, program, said};

const SIZE: u64 = 100_000_000;

#[test]
fn a_hundred_megabytes_arrive_unharmed() {
    download(Wiring::default());
}

#[test]
fn a_hundred_megabytes_arrive_unharmed_over_a_bad_line() {
    let bad =
        Impairment { delay: Duration::from_micros(500), loss: 0.01, reorder: 0.01, ..Impairment::default() };
    download(Wiring { access: LinkKind::Impaired(bad), ..Wiring::default() });
}

/// A line beyond the home that carries less than the agent's own, as with PPPoE or LTE, and says so by ICMP only.
#[test]
fn a_download_and_an_upload_pass_a_narrow_path() {
    const MTU: &str = "1400";
    const UPLOAD: usize = 3_000_000;
    let _turn = alone();
    let Some(curl) = program("curl", "curl") else { return };
    let Some(ip) = program("ip", "iproute2") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    for (host, device) in [(&scene.internet.router, "wan0"), (&scene.internet.core, "home0")] {
        let mut command = Command::new(&ip);
        command.args(["link", "set", device, "mtu", MTU]);
        said(&ok(host.output(command)));
    }
    scene.raise();
    curl_body(&curl, &scene, 10_000_000).unwrap();

    let to = (SIGNALING, 8061).into();
    let (tell, received) = channel();
    ok(listen_tcp(&scene.internet.signaling, to, move |mut stream| {
        let count = std::io::copy(&mut stream, &mut std::io::sink())?;
        tell.send(count).map_err(std::io::Error::other)
    }));
    let upload = move || connect(to)?.write_all(&vec![0xd5; UPLOAD]);
    ok(scene.internet.agent.thread("upload", upload)).join().unwrap().unwrap();
    assert_eq!(received.recv_timeout(Duration::from_secs(10)).unwrap(), UPLOAD as u64);
}

fn download(wiring: Wiring) {
    let _turn = alone();
    let Some(curl) = program("curl", "curl") else { return };
    let Some(mut scene) = Scene::new(wiring) else { return };
    let (wire, direct) = scene.on_wire(|| curl_body(&curl, &scene, 1000));
    direct.unwrap();
    assert_shown(&wire, TCP);

    scene.raise();
    let before = scene.internet.access.relay().map_or(0, lab::Relay::dropped);
    let (wire, through) = scene.on_wire(|| curl_body(&curl, &scene, SIZE));
    through.unwrap();
    assert_hidden(&wire);
    if let Some(relay) = scene.internet.access.relay() {
        assert!(relay.dropped() > before + 100, "the line was not bad at all");
    }
}

/// Downloads with curl, on the agent, and compares every byte with what the server was to send.
fn curl_body(curl: &std::path::Path, scene: &Scene, size: u64) -> Result<(), String> {
    let mut command = Command::new(curl);
    let certificate = scene.directory.file("lab.pem");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"]).arg(certificate);
    command.arg(format!("https://{SIGNALING}/bytes/{size}"));
    let agent = &scene.internet.agent;
    agent.thread("curl", move || run_and_compare(command, size)).unwrap().join().unwrap()
}

fn run_and_compare(mut command: Command, size: u64) -> Result<(), String> {
    let (mut reader, writer) = pipe().unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    // The command keeps a copy of the writing end.
    drop(command);
    let (mut expected, mut wanted, mut got) = (Body::default(), Vec::new(), vec![0; 1 << 20]);
    let mut length = 0;
    loop {
        let read = reader.read(&mut got).unwrap();
        if read == 0 {
            break;
        }
        wanted.resize(read, 0);
        expected.read_exact(&mut wanted).unwrap();
        if got[..read] != wanted[..] {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("other bytes than were sent, within {read} after the first {length}"));
        }
        length += read as u64;
    }
    let status = child.wait().unwrap();
    if status.success() && length == size {
        Ok(())
    } else {
        Err(format!("{length} of {size} bytes, curl: {status}"))
    }
}

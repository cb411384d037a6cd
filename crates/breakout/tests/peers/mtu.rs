//! The path to the gateway is narrower than the agent's own network, or becomes so, and routers say so or not.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::Duration;

use lab::addresses::{GATEWAY, GATEWAY_PORT, ROUTER, SIGNALING, STREAMING};
use lab::service::{answer_udp, listen_tcp};
use lab::traffic::stream::connect;
use lab::{Foreign, Gateway, Host, Internet, Process, Record, Wiring};
use packet::build::{IcmpError, MAX_REFUSAL, SentUdp, error_about_udp};
use packet::protocol::UDP;
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::{Scene, eventually, exe, is_long, ok, program, said, shared};

/// UDP header, WireGuard's header and tag.
const OVERHEAD: u16 = 40;
/// What fits inside before anything is known: the tunnel leaves room for IPv6 outside.
const WIDEST: u16 = 1420;
/// The agent, the access router's two sides, the core's two, the gateway.
const IPV6: [(&str, &str); 6] = [
    ("eth0", "2001:db8:77::10/64"),
    ("lan0", "2001:db8:77::1/64"),
    ("wan0", "2001:db8:100::2/64"),
    ("home0", "2001:db8:100::1/64"),
    ("gateway0", "2001:db8:18::1/64"),
    ("eth0", "2001:db8:18::2/64"),
];
/// A found path: probes lost to a busy machine are made up for within this time.
const FOUND: Duration = Duration::from_secs(60);
/// A transfer that ends has ended by then; TCP tries again every few seconds.
const ENDED: Duration = Duration::from_secs(90);
const UPLOADS: (Ipv4Addr, u16) = (SIGNALING, 8061);
const DOWNLOADS: (Ipv4Addr, u16) = (STREAMING, 8061);
const CHUNK: usize = 40_000;
const CHUNKS: usize = 100;
/// Between chunks, so that a transfer goes on while the path changes.
const PAUSE: Duration = Duration::from_millis(20);

#[test]
fn a_path_of_1280_bytes_that_routers_do_not_tell_of_to_our_own_gateway() {
    narrows(Gateway::Breakout, 1280, Routers::Silent, Outside::V4);
}

#[test]
fn a_path_of_1380_bytes_that_routers_tell_of_to_wireguard_go() {
    narrows(Gateway::Foreign(Foreign::WireguardGo), 1380, Routers::Tell, Outside::V4);
}

#[test]
fn an_ipv6_path_of_1280_bytes_that_routers_tell_of_to_our_own_gateway() {
    narrows(Gateway::Breakout, 1280, Routers::Tell, Outside::V6);
}

#[test]
fn an_ipv6_path_of_1380_bytes_that_routers_do_not_tell_of_to_our_own_gateway() {
    narrows(Gateway::Breakout, 1380, Routers::Silent, Outside::V6);
}

#[test]
fn every_path_to_every_gateway() {
    if !is_long() {
        return;
    }
    for gateway in [Gateway::Breakout, Gateway::Foreign(Foreign::WireguardGo)] {
        for mtu in [1280, 1380, 1420] {
            for routers in [Routers::Tell, Routers::Silent] {
                for outside in [Outside::V4, Outside::V6] {
                    eprintln!("{gateway}, {mtu}, {routers:?}, {outside:?}");
                    narrows(gateway, mtu, routers, outside);
                }
            }
        }
    }
}

#[test]
fn a_path_that_narrows_for_a_while_without_a_word_is_followed_both_ways() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    for host in [&scene.internet.router, &scene.internet.core] {
        silence(&nft, host, "destination-unreachable");
    }
    scene.raise();
    serve(&scene);
    let widest = WIDEST + Outside::V4.overhead();
    eventually(FOUND, || is_found(&scene, widest, "confirmed by a probe"));
    for (carries, path) in [(1280, 1280), (1500, widest)] {
        narrow(&scene, carries);
        eventually(FOUND, || {
            upload(&scene).finish();
            is_found(&scene, path, "confirmed by a probe")
        });
    }
    // What is in use is confirmed; a size that failed is tried again after ever longer pauses.
    narrow(&scene, 1380);
    upload(&scene).finish();
    eventually(FOUND, || is_found(&scene, 1380, "probes"));
}

/// As devices do whose segmentation is broken: no error says so.
#[test]
fn what_is_lost_when_it_is_sent_as_one_is_sent_one_by_one() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    serve(&scene);
    upload(&scene).finish();
    assert_eq!(segmentation(&scene), (true, "the kernel does it".to_owned()));

    let mut command = Command::new(&nft);
    command.arg(format!(
        "table inet broken {{\nchain forward {{\ntype filter hook forward priority 0;\n\
         udp dport {GATEWAY_PORT} meta length > 1500 drop\n}}\n}}"
    ));
    said(&ok(scene.internet.router.output(command)));
    eventually(2 * FOUND, || {
        upload(&scene).finish();
        match segmentation(&scene) {
            (false, why) if why.contains("was lost, and arrived one by one") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    upload(&scene).finish();
}

/// Anybody may write what routers do, and the kernel believes it for ten minutes.
#[test]
fn a_forged_word_of_a_narrow_path_cuts_nothing() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    serve(&scene);
    let widest = WIDEST + Outside::V4.overhead();
    eventually(FOUND, || is_found(&scene, widest, "confirmed by a probe"));
    let (wire, ()) = scene.on_wire(|| upload(&scene).finish());
    let is_sent = |record: &&Record| record.protocol == UDP && record.destination.ip() == GATEWAY;
    let source = wire.records.iter().find(is_sent).expect("a tunnel").source;

    let forge = move || {
        let sent = SentUdp { source, destination: (GATEWAY, GATEWAY_PORT).into(), payload: &[7; 1452] };
        let mut said = [0; MAX_REFUSAL];
        let narrow = IcmpError { kind: 3, code: 4, rest: 600 };
        let length = error_about_udp(&sent, narrow, ROUTER.into(), &mut said).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.send_to(&said[..length], &source.into())
    };
    ok(scene.internet.router.run(forge)).unwrap();
    eventually(FOUND, || is_found(&scene, widest, "confirmed by a probe"));
    let log = std::fs::read_to_string(scene.directory.file("daemon.log")).unwrap();
    assert!(log.contains("path=600 known=as a router on the way says"), "it was not heard: {log}");

    let (wire, ()) = scene.on_wire(|| upload(&scene).finish());
    let sent: Vec<_> = wire.records.iter().filter(is_sent).collect();
    let (whole, later) = (
        sent.iter().filter(|record| record.len >= widest.into()).count(),
        sent.iter().filter(|record| record.source.port() == 0).count(),
    );
    assert!(whole > CHUNKS && later == 0, "{whole} whole, {later} fragments");
}

/// Neither does the gateway answer probes: only routers that fragment can make large packets arrive.
#[test]
fn a_silent_path_of_1380_bytes_to_a_gateway_that_answers_no_probes() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    for host in [&scene.internet.router, &scene.internet.core] {
        silence(&nft, host, "destination-unreachable");
    }
    silence(&nft, &scene.internet.gateway, "{ destination-unreachable, time-exceeded, echo-reply }");
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    ok(scene.start_daemon(exe(), ""));
    serve(&scene);
    narrow(&scene, 1380);
    answer_lengths(&scene);
    eventually(FOUND, || match ask(&scene, 1400 - 28) {
        Ok(1372) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    upload(&scene).finish();
    let gateway = scene.gateway();
    assert!(gateway.path_mtu_known.contains("routers may fragment"), "{}", gateway.path_mtu_known);
    assert_eq!(gateway.path_mtu, WIDEST + Outside::V4.overhead());
}

/// It is not found out: packets of the configured size are fragmented on the way.
#[test]
fn a_configured_size_stays() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    narrow(&scene, 1380);
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    let config = ok(lab::write_config(&scene.keys, &scene.directory, ""));
    let text =
        std::fs::read_to_string(&config).unwrap().replacen("[interface]", "[interface]\nmtu = 1420", 1);
    std::fs::write(&config, text).unwrap();
    scene.daemon = Some(ok(lab::Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));
    serve(&scene);
    upload(&scene).finish();
    assert_eq!(
        (scene.status().interface.mtu, scene.gateway().path_mtu_known.as_str()),
        (1420, "as configured")
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Routers {
    Tell,
    /// Their ICMP never arrives.
    Silent,
}

/// What the tunnel's own packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outside {
    V4,
    V6,
}

impl Outside {
    fn overhead(self) -> u16 {
        OVERHEAD + if self == Self::V4 { 20 } else { 40 }
    }
}

/// In the middle of transfers.
fn narrows(gateway: Gateway, mtu: u16, routers: Routers, outside: Outside) {
    let _turn = shared();
    if let Gateway::Foreign(foreign) = gateway
        && let Err(missing) = foreign.find()
    {
        return lab::skip(missing);
    }
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    if routers == Routers::Silent {
        for host in [&scene.internet.router, &scene.internet.core] {
            silence(&nft, host, "destination-unreachable");
        }
    }
    ok(scene.start_gateway(gateway, exe()));
    match outside {
        Outside::V4 => ok(scene.start_daemon(exe(), "")),
        Outside::V6 => start_over_ipv6(&mut scene, gateway),
    }
    serve(&scene);
    eventually(FOUND, || is_found(&scene, WIDEST + outside.overhead(), "confirmed by a probe"));

    // Only a gateway that does as we do notices by itself that what it sends no longer arrives.
    let downloads = gateway == Gateway::Breakout || routers == Routers::Tell;
    let running = [Some(upload(&scene)), downloads.then(|| download(&scene))];
    sleep(CHUNKS as u32 / 4 * PAUSE);
    narrow(&scene, mtu.into());
    running.into_iter().flatten().for_each(Transfer::finish);

    let known = if routers == Routers::Tell { "a router" } else { "probes" };
    eventually(FOUND, || is_found(&scene, mtu, known));
    // What the other end pads to.
    let inner = (mtu - outside.overhead()) & !15;
    eventually(FOUND, || match link_mtu(&scene) {
        link if link == inner.max(1280) => Ok(()),
        link => Err(format!("the link has {link}")),
    });
    assert_eq!(scene.status().interface.mtu, inner);

    upload(&scene).finish();
    download(&scene).finish();
    fragmentable(&scene);
}

fn is_found(scene: &Scene, path: u16, known: &str) -> Result<(), String> {
    let tunnel = scene.gateway();
    match (tunnel.path_mtu == path, tunnel.path_mtu_known.contains(known)) {
        (true, true) => Ok(()),
        _ => Err(format!("{}, {}", tunnel.path_mtu, tunnel.path_mtu_known)),
    }
}

/// A datagram of 1280 bytes that may be fragmented arrives over every path, and its answer.
fn fragmentable(scene: &Scene) {
    const PAYLOAD: usize = 1280 - 28;
    answer_lengths(scene);
    // New sockets send without DF.
    ok(scene.internet.agent.sysctl("net/ipv4/ip_no_pmtu_disc", "1"));
    assert_eq!(ask(scene, PAYLOAD).unwrap(), PAYLOAD);
}

fn answer_lengths(scene: &Scene) {
    ok(answer_udp(&scene.internet.signaling, UPLOADS.into(), 0, |payload, _| {
        Some(payload.len().to_be_bytes().to_vec())
    }));
}

/// Sends one datagram; returns the length in which it arrived.
fn ask(scene: &Scene, payload: usize) -> std::io::Result<usize> {
    ok(scene.internet.agent.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(UPLOADS)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(&vec![7; payload])?;
        let mut answer = [0; 8];
        socket.recv(&mut answer)?;
        Ok(usize::from_be_bytes(answer))
    }))
}

struct Transfer {
    /// How many bytes arrived, all of them right.
    arrived: Receiver<usize>,
}

impl Transfer {
    fn finish(self) {
        let arrived = self.arrived.recv_timeout(ENDED).expect("the transfer did not end, or it failed");
        assert_eq!(arrived, CHUNK * CHUNKS);
    }
}

/// One end of every transfer, at signaling.
fn serve(scene: &Scene) {
    let signaling = &scene.internet.signaling;
    ok(listen_tcp(signaling, UPLOADS.into(), |mut stream| {
        let arrived = receive(&mut stream)?;
        stream.write_all(&arrived.to_be_bytes())
    }));
    ok(listen_tcp(signaling, DOWNLOADS.into(), |mut stream| send(&mut stream)));
}

fn upload(scene: &Scene) -> Transfer {
    transfer(scene, || {
        let mut stream = patient(UPLOADS)?;
        send(&mut stream)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut arrived = [0; 8];
        stream.read_exact(&mut arrived)?;
        Ok(usize::from_be_bytes(arrived))
    })
}

fn download(scene: &Scene) -> Transfer {
    transfer(scene, || receive(&mut patient(DOWNLOADS)?))
}

fn transfer(scene: &Scene, run: impl FnOnce() -> std::io::Result<usize> + Send + 'static) -> Transfer {
    let (tell, arrived) = channel();
    let run = move || match run() {
        Ok(count) => drop(tell.send(count)),
        Err(error) => eprintln!("transfer: {error}"),
    };
    // It tells by the channel; the thread ends with its connection.
    drop(ok(scene.internet.agent.thread("transfer", run)));
    Transfer { arrived }
}

/// A connection that survives a pause.
fn patient(to: (Ipv4Addr, u16)) -> std::io::Result<std::net::TcpStream> {
    let stream = connect(to.into())?;
    stream.set_read_timeout(Some(ENDED))?;
    stream.set_write_timeout(Some(ENDED))?;
    Ok(stream)
}

fn send(stream: &mut impl Write) -> std::io::Result<()> {
    let chunk: Vec<u8> = (0..CHUNK).map(byte_at).collect();
    for _ in 0..CHUNKS {
        stream.write_all(&chunk)?;
        sleep(PAUSE);
    }
    Ok(())
}

fn receive(stream: &mut impl Read) -> std::io::Result<usize> {
    let (mut arrived, mut bytes) = (0, vec![0; 65_536]);
    loop {
        let read = stream.read(&mut bytes)?;
        if read == 0 {
            return Ok(arrived);
        }
        let are_right = bytes[..read].iter().enumerate().all(|(at, byte)| *byte == byte_at(arrived + at));
        if !are_right {
            return Err(std::io::Error::other(format!("other bytes than were sent after {arrived}")));
        }
        arrived += read;
    }
}

fn byte_at(place: usize) -> u8 {
    let place = place % CHUNK;
    (place / 251 + place) as u8
}

/// The line between the home and the internet.
fn narrow(scene: &Scene, mtu: u32) {
    for (host, device) in [(&scene.internet.router, "wan0"), (&scene.internet.core, "home0")] {
        ok(host.set_mtu(device, mtu));
    }
}

/// Whether datagrams are given to the kernel as one, and why.
fn segmentation(scene: &Scene) -> (bool, String) {
    let features = scene.status().features;
    let found = features.into_iter().find(|feature| feature.name == "udp-segmentation").expect("it is told");
    (found.on, found.why)
}

/// Lets none of its ICMP of this type arrive.
fn silence(nft: &std::path::Path, host: &Host, icmp: &str) {
    let mut command = Command::new(nft);
    command.arg(format!(
        "table inet silent {{\nchain out {{\ntype filter hook output priority 0;\n\
         icmp type {icmp} drop\nicmpv6 type packet-too-big drop\n}}\n}}"
    ));
    said(&ok(host.output(command)));
}

/// The daemon, on its way to a gateway that is reached over IPv6.
fn start_over_ipv6(scene: &mut Scene, gateway: Gateway) {
    let Internet { agent, router, core, gateway: far, .. } = &scene.internet;
    for host in [router, core] {
        ok(host.sysctl("net/ipv6/conf/all/forwarding", "1"));
    }
    for (host, (device, address)) in [agent, router, router, core, core, far].into_iter().zip(IPV6) {
        ok(host.add_address(device, address.parse().unwrap()));
    }
    let route =
        |host: &Host, to: &str, via: &str| ok(host.add_route(to.parse().unwrap(), via.parse().unwrap()));
    route(agent, "::/0", "2001:db8:77::1");
    route(router, "::/0", "2001:db8:100::1");
    route(core, "2001:db8:77::/64", "2001:db8:100::2");
    route(far, "::/0", "2001:db8:18::1");
    if gateway == Gateway::Breakout {
        listen_on_ipv6(scene);
    }
    let config = ok(lab::write_config(&scene.keys, &scene.directory, ""));
    replace(&config, &format!("{GATEWAY}:"), "[2001:db8:18::2]:");
    scene.daemon = Some(ok(lab::Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory)));
}

/// Our own gateway listens on one family.
fn listen_on_ipv6(scene: &mut Scene) {
    scene.gateway = None;
    let config = scene.directory.file("gateway.toml");
    replace(&config, "[interface]\n", "[interface]\nlisten_address = \"::\"\n");
    let mut command = Command::new(exe());
    command.arg("gateway").arg("--config").arg(config);
    let log = scene.directory.file("gateway.log");
    let mut process = ok(Process::spawn(&scene.internet.gateway, "breakout gateway", command, &log));
    ok(process.wait_for_line("gateway is up", FOUND));
    scene.gateway = Some(process);
}

fn replace(file: &std::path::Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replacen(from, to, 1)).unwrap();
}

fn link_mtu(scene: &Scene) -> u16 {
    let mut command = Command::new("ip");
    command.args(["-o", "link", "show", "dev", &scene.status().interface.name]);
    let shown = said(&ok(scene.internet.agent.output(command)));
    let mut words = shown.split(' ').skip_while(|word| *word != "mtu");
    words.nth(1).and_then(|mtu| mtu.parse().ok()).expect("no mtu")
}

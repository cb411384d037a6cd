//! Signaling, when the tunnel cannot carry it or it does not belong there.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lab::Wiring;
use lab::addresses::{AGENT, AGENT_TUNNEL, GATEWAY, GATEWAY_PORT, MEDIA, SIGNALING};
use lab::service::answer_udp;
use lab::traffic::datagram::sip_options;
use lab::traffic::stream::{Pace, https};
use lab::traffic::voice::Call;
use lab::traffic::{EF_TOS, Ports};
use packet::protocol::TCP;
use socket2::{Domain, Socket, Type};

use crate::common::{Scene, assert_hidden, assert_shown, eventually, exe, ok, said, shared};

/// Applications wait a second at least; a refusal that comes later is none.
const AT_ONCE: Duration = Duration::from_millis(500);
const ONCE: Pace = Pace { requests: 1, pause: Duration::ZERO };

#[test]
fn a_connection_from_another_address_than_the_tunnels_is_reset_at_once() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let http = SocketAddr::from((SIGNALING, 80));
    let connect_from_home = move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((AGENT, 0)).into())?;
        socket.connect_timeout(&http.into(), 2 * AT_ONCE)
    };
    let (wire, connected) = scene.on_wire(|| ok(scene.internet.agent.run(connect_from_home)));
    connected.unwrap();
    assert_shown(&wire, TCP);

    scene.raise();
    scene.reaches_signaling().unwrap();
    let (wire, (error, after)) = scene.on_wire(|| {
        let begun = Instant::now();
        let refused = (ok(scene.internet.agent.run(connect_from_home)).unwrap_err(), begun.elapsed());
        scene.reaches_signaling().unwrap();
        refused
    });
    assert!(error.kind() == ErrorKind::ConnectionRefused && after < AT_ONCE, "{error} after {after:?}");
    assert_hidden(&wire);
    assert!(scene.dropped("foreign-source") > 0);
}

#[test]
fn without_a_gateway_signaling_is_refused_and_voice_goes_on() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let (wire, reached) = scene.on_wire(|| scene.reaches_signaling());
    reached.unwrap();
    assert_shown(&wire, TCP);

    ok(scene.start_daemon(exe(), ""));
    let (wire, ()) = scene.on_wire(|| {
        eventually(Duration::from_secs(12), || {
            let tls = scene.identity.client.clone();
            let both = move || {
                [https((SIGNALING, 443).into(), &tls, ONCE), sip_options((SIGNALING, 5060).into(), ONCE)]
            };
            for outcome in ok(scene.internet.agent.thread("both", both)).join().unwrap() {
                let failure = outcome.failure.ok_or("there is neither an answer nor a refusal")?;
                if !failure.refused || failure.after > AT_ONCE {
                    return Err(failure.to_string());
                }
            }
            Ok(())
        });
        assert_eq!(scene.gateway().state, "down");
        let media = SocketAddr::from((MEDIA, Ports::VOICE_EF));
        let call = move || Call { to: media, from: None, tos: EF_TOS, packets: 100 }.run();
        let voice = ok(scene.internet.agent.thread("call", call)).join().unwrap();
        assert!(voice.answered == voice.sent && voice.sent > 100, "{voice:?}");
    });
    assert_hidden(&wire);

    ok(scene.start_gateway(lab::Gateway::Breakout, exe()));
    eventually(Duration::from_secs(12), || scene.reaches_signaling());
}

#[test]
fn a_reload_moves_the_tunnel_and_knows_the_way_to_its_new_end() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    scene.reaches_signaling().unwrap();
    let config = std::fs::read_to_string(scene.directory.file("breakout.toml")).unwrap();
    let here = format!("{GATEWAY}:{GATEWAY_PORT}");
    let nowhere = "[2001:db8::1]:51820";
    assert!(config.contains(&here), "{config}");

    ok(scene.directory.write("breakout.toml", &config.replace(&here, nowhere)));
    assert!(said(&scene.breakout(&["reload"])).contains(nowhere));
    let gateway = scene.gateway();
    assert_eq!((gateway.endpoint, gateway.reachable), (nowhere.parse().ok(), false));

    ok(scene.directory.write("breakout.toml", &config));
    said(&scene.breakout(&["reload"]));
    let gateway = scene.gateway();
    assert_eq!((gateway.endpoint, gateway.reachable), (here.parse().ok(), true));
    scene.reaches_signaling().unwrap();
}

#[test]
fn a_reload_that_fails_and_cannot_go_back_says_so() {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    scene.raise();
    let config = std::fs::read_to_string(scene.directory.file("breakout.toml")).unwrap();
    let another = config.replace(
        "[sets.genesys-signaling]\ncidrs = [",
        "[sets.genesys-signaling]\ncidrs = [\"192.0.2.0/28\", ",
    );
    assert_ne!(another, config);
    let file = scene.directory.file("breakout.toml");
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let mut command = std::process::Command::new(exe());
    command.arg("reload").env("BREAKOUT_STATE_DIR", scene.directory.file("state"));
    let log = scene.directory.file("reload.log");
    let mut reload = ok(lab::Process::spawn(&scene.internet.agent, "breakout reload", command, &log));
    // Who opens it waits for the daemon to read it. Then whom the socket is for can neither be changed nor put back.
    let mut read = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    let socket = scene.directory.file("state").join("control");
    std::fs::rename(&socket, socket.with_extension("away")).unwrap();
    read.write_all(another.as_bytes()).unwrap();
    drop(read);
    let status = ok(reload.wait(Duration::from_secs(20))).expect("the reload has no end");
    let told: String = std::fs::read_to_string(&log).unwrap().split([' ', '\n', '│']).collect();
    assert!(!status.success() && told.contains("couldnotbeputbackwhole"), "{told}");
    scene.reaches_signaling().unwrap();

    std::fs::rename(socket.with_extension("away"), &socket).unwrap();
    std::fs::remove_file(&file).unwrap();
    ok(scene.directory.write("breakout.toml", &another));
    assert!(said(&scene.breakout(&["reload"])).contains("prefixes: 1 before, 2 now"));
}

#[test]
fn large_datagrams_pass_the_tunnel_in_fragments() {
    const SIZE: usize = 4000;
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let to = SocketAddr::from((SIGNALING, 8061));
    ok(answer_udp(&scene.internet.signaling, to, 0, |datagram, _| Some(datagram.to_vec())));
    scene.raise();
    let (wire, echo) = scene.on_wire(|| {
        let ask = move || -> std::io::Result<(Vec<u8>, Vec<u8>)> {
            let socket = UdpSocket::bind((AGENT_TUNNEL, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            let sent: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
            socket.send(&sent)?;
            let mut received = vec![0; 2 * SIZE];
            let length = socket.recv(&mut received)?;
            received.truncate(length);
            Ok((sent, received))
        };
        ok(scene.internet.agent.thread("ask", ask)).join().unwrap()
    });
    assert_hidden(&wire);
    let (sent, received) = echo.unwrap();
    assert!(sent == received, "{} bytes came back", received.len());
}

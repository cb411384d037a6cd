//! A network that lets nobody out who has not seen its page: HTTP is sent there, and all else is dropped.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use lab::addresses::{ROUTER, WEB};
use lab::service::{Connection, listen_tcp};
use lab::traffic::stream::{Pace, https};
use lab::{Gateway, Wiring};
use packet::protocol::TCP;

use crate::common::{
    Scene, assert_hidden, assert_shown, eventually, exe, is_tunnel, ok, program, said, shared,
};

const CHECK_PORT: u16 = 8080;
const LOGIN_PORT: u16 = 8888;
/// What the daemon asks for at first, and a handshake's time.
const PATIENCE: Duration = Duration::from_secs(20);
const SECONDS: Duration = Duration::from_secs(10);

#[test]
fn a_captive_portal_is_told_of_can_be_reached_and_lets_no_signaling_out() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(_) = program("curl", "curl") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let (wire, reached) = scene.on_wire(|| scene.reaches_signaling());
    reached.unwrap();
    assert_shown(&wire, TCP);

    let page = format!("http://{ROUTER}:{LOGIN_PORT}/login");
    let sent_there = format!("HTTP/1.1 302 Found\r\nLocation: {page}\r\nContent-Length: 0\r\n\r\n");
    serve(&scene.internet.web, CHECK_PORT, "HTTP/1.1 204 No Content\r\n\r\n".to_owned());
    serve(&scene.internet.router, CHECK_PORT, sent_there);
    serve(
        &scene.internet.router,
        LOGIN_PORT,
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlogin\n".to_owned(),
    );
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    let rules = format!(
        "table ip portal {{
            chain away {{
                type nat hook prerouting priority dstnat
                iifname lan0 tcp dport {{ 80, {CHECK_PORT} }} redirect to :{CHECK_PORT}
            }}
            chain out {{
                type filter hook forward priority filter
                iifname lan0 drop
            }}
        }}"
    );
    let rules = ok(scene.directory.write("portal.nft", &rules));
    let mut command = Command::new(&nft);
    command.arg("-f").arg(rules);
    said(&ok(scene.internet.router.output(command)));

    let config = ok(lab::write_config(&scene.keys, &scene.directory, ""));
    let text = std::fs::read_to_string(config).unwrap();
    let check = format!("portal_check = \"http://{WEB}:{CHECK_PORT}/check\"");
    let config = ok(scene.directory.write("breakout.toml", &text.replace("portal_check = \"\"", &check)));
    let (wire, daemon) = scene.on_wire(|| {
        let daemon = ok(lab::Daemon::start(&scene.internet.agent, exe(), &config, &scene.directory));
        eventually(PATIENCE, || {
            let tls = scene.identity.client.clone();
            let once = Pace { requests: 1, pause: Duration::ZERO };
            let attempt = move || https((lab::addresses::SIGNALING, 443).into(), &tls, once);
            let outcome = ok(scene.internet.agent.thread("https", attempt)).join().unwrap();
            let failure = outcome.failure.ok_or("signaling was reached")?;
            if failure.refused { Ok(()) } else { Err(failure.to_string()) }
        });
        eventually(PATIENCE, || match scene.status().portal {
            Some(url) if url == page => Ok(()),
            told => Err(format!("{told:?}")),
        });
        let told = said(&scene.breakout(&["status"]));
        assert!(
            told.contains(&format!("a captive portal is in the way: open {page} in a browser")),
            "{told}"
        );
        assert_eq!(curl(&scene, &page), "login\n");
        daemon
    });
    scene.daemon = Some(daemon);
    assert_hidden(&wire);
    assert!(
        !wire.records.iter().any(|record| is_tunnel(record) && record.source.ip() != lab::addresses::AGENT)
    );
    let log = std::fs::read_to_string(scene.directory.file("daemon.log")).unwrap();
    assert!(log.contains(&format!("a captive portal is in the way: open {page} in a browser")), "{log}");

    // Logged in.
    let mut command = Command::new(&nft);
    command.args(["delete", "table", "ip", "portal"]);
    said(&ok(scene.internet.router.output(command)));
    let (wire, ()) = scene.on_wire(|| eventually(SECONDS, || scene.reaches_signaling()));
    assert_hidden(&wire);
    let status = scene.status();
    assert_eq!((status.tunnel.gateways[0].state.as_str(), status.portal), ("up", None));
}

/// Answers each request the same.
fn serve(host: &lab::Host, port: u16, answer: String) {
    let serve = move |mut stream: Connection| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        stream.write_all(answer.as_bytes())
    };
    ok(listen_tcp(host, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), serve));
}

fn curl(scene: &Scene, url: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "5", url]);
    said(&ok(scene.internet.agent.output(command)))
}

//! A network that lets nobody out who has not seen its page: HTTP is sent there, and all else is dropped.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::addresses::{ROUTER, WEB};
use lab::service::{Connection, listen_tcp};
use lab::traffic::stream::{Pace, https};
use lab::{Gateway, Record, Wiring};
use packet::protocol::TCP;

use crate::common::{
    Scene, assert_hidden, assert_shown, count, eventually, exe, is_tunnel, ok, program, said, shared,
};
use crate::names::{self, STILL};

const CHECK_PORT: u16 = 8080;
const LOGIN_PORT: u16 = 8888;
/// What the daemon asks for at first, and a handshake's time.
const PATIENCE: Duration = Duration::from_secs(20);
const SECONDS: Duration = Duration::from_secs(10);
/// From a change of the network until somebody is asked, where the tunnel is not there.
const ASKED: Duration = Duration::from_secs(1);

#[test]
fn a_captive_portal_is_told_of_can_be_reached_and_lets_no_signaling_out() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(_) = program("curl", "curl") else { return };
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    let (wire, reached) = scene.on_wire(|| scene.reaches_signaling());
    reached.unwrap();
    assert_shown(&wire, TCP);

    let portal = Portal::new(&scene, nft);
    let page = portal.page.clone();
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    portal.close(&scene);

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

    portal.open(&scene);
    let (wire, ()) = scene.on_wire(|| eventually(SECONDS, || scene.reaches_signaling()));
    assert_hidden(&wire);
    let status = scene.status();
    assert_eq!((status.tunnel.gateways[0].state.as_str(), status.portal), ("up", None));
}

/// A session that is up shows nothing of the network that has come. With all that could be in the way of the portal's page.
#[test]
fn roaming_into_a_captive_portal_is_noticed_at_once_with_the_kill_switch_and_split_dns_on() {
    let _turn = shared();
    let Some(nft) = program("nft", "nftables") else { return };
    let Some(_) = program("curl", "curl") else { return };
    let Some(mut scene) = names::open_scene() else { return };
    let resolv_conf = ok(scene.directory.write("resolv.conf", &format!("nameserver {ROUTER}\n")));
    ok(scene.internet.agent.show_instead("/etc/resolv.conf".as_ref(), &resolv_conf));
    let _networks = names::serve_dns(&scene, &scene.internet.router, (ROUTER, WEB), STILL);
    let portal = Portal::new(&scene, nft);
    let _dns = names::start_gateway(&mut scene, STILL);
    let check = format!("portal_check = \"http://check.example:{CHECK_PORT}/check\"");
    names::start_daemon_as(&mut scene, true, |config| config.replace("portal_check = \"\"", &check));
    let greeted = |scene: &Scene| match names::call(scene, 1) {
        told if told.greeted == 1 => Ok(()),
        told => Err(format!("{told:?}")),
    };
    eventually(PATIENCE, || greeted(&scene));

    // Another network, with nobody in the way.
    let (wire, ()) = scene.on_wire(|| {
        move_to(&scene, "192.168.77.10", "192.168.77.11");
        sleep(2 * ASKED);
        greeted(&scene).unwrap();
    });
    let is_check = |record: &Record| record.destination.port() == CHECK_PORT;
    assert_eq!(count(&wire, is_check), 0, "nobody is asked while the tunnel is up");

    let (wire, ()) = scene.on_wire(|| {
        portal.close(&scene);
        move_to(&scene, "192.168.77.11", "192.168.77.10");
        // A gateway that is asked at once is down after 5 s.
        eventually(4 * ASKED, || match scene.status().portal {
            Some(url) if url == portal.page => Ok(()),
            told => Err(format!("{told:?}")),
        });
        assert_eq!(curl(&scene, &portal.page), "login\n");
        assert_eq!(names::call(&scene, 1).greeted, 0);
    });
    assert_hidden(&wire);
    assert!(count(&wire, is_check) > 0, "the control");

    portal.open(&scene);
    let (wire, ()) = scene.on_wire(|| eventually(SECONDS, || greeted(&scene)));
    assert_hidden(&wire);
    assert_eq!(scene.status().portal, None);
}

fn move_to(scene: &Scene, from: &str, to: &str) {
    let script = format!(
        "ip address del {from}/24 dev eth0
         ip address add {to}/24 dev eth0
         ip route replace default via {ROUTER}"
    );
    let mut shell = Command::new("sh");
    shell.args(["-ec", &script]);
    said(&ok(scene.internet.agent.output(shell)));
}

/// The access router's, open at first.
struct Portal {
    page: String,
    rules: PathBuf,
    nft: PathBuf,
}

impl Portal {
    fn new(scene: &Scene, nft: PathBuf) -> Self {
        let page = format!("http://{ROUTER}:{LOGIN_PORT}/login");
        let sent_there = format!("HTTP/1.1 302 Found\r\nLocation: {page}\r\nContent-Length: 0\r\n\r\n");
        serve(&scene.internet.web, CHECK_PORT, "HTTP/1.1 204 No Content\r\n\r\n".to_owned());
        serve(&scene.internet.router, CHECK_PORT, sent_there);
        serve(
            &scene.internet.router,
            LOGIN_PORT,
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlogin\n".to_owned(),
        );
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
        Self { page, rules, nft }
    }

    /// Nobody gets out who has not logged in.
    fn close(&self, scene: &Scene) {
        let mut command = Command::new(&self.nft);
        command.arg("-f").arg(&self.rules);
        said(&ok(scene.internet.router.output(command)));
    }

    fn open(&self, scene: &Scene) {
        let mut command = Command::new(&self.nft);
        command.args(["delete", "table", "ip", "portal"]);
        said(&ok(scene.internet.router.output(command)));
    }
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

//! The lab's parts in real namespaces, without a daemon.
#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not reach their helpers")]

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use lab::addresses::{AGENT_TUNNEL, GATEWAY, GATEWAY_PORT, MEDIA, SIGNALING};
use lab::traffic::stream::{self, Pace};
use lab::traffic::voice::Call;
use lab::traffic::{EF_TOS, Ports};
use lab::{Capture, Foreign, Gateway, Impairment, Lab, LinkKind, WireGuard, Wiring, skip};

fn may_run() -> bool {
    if !lab::has_rights() {
        skip("making network namespaces needs root");
    }
    lab::has_rights()
}

#[test]
fn an_agent_without_a_daemon_is_red_and_its_leaks_are_named() {
    if !may_run() {
        return;
    }
    let run = lab::run(&lab::Options { break_split: true, ..Default::default() }).unwrap();
    let report = &run.report;
    assert_eq!(report.exit_status(), 1, "{report}");
    assert_eq!(report.signaling_in_clear, ["https", "wss", "sip-udp", "sip-tls"], "{report}");
    assert_eq!(report.other_signaling_in_clear, 0, "{report}");
    let right: Vec<&str> = report.rows.iter().filter(|row| row.ok).map(|row| row.kind.as_str()).collect();
    assert_eq!(right, ["web"], "{report}");
    assert!(report.rows.iter().all(|row| row.answered == row.sent), "{report}");
    let directory = run.lab.directory.path().to_owned();
    drop(run);
    assert!(!directory.exists());
}

#[test]
fn what_foreign_gateways_decrypt_is_seen_behind_them_and_nowhere_else() {
    if !may_run() {
        return;
    }
    let client = Foreign::WireguardGo;
    if let Err(missing) = client.find() {
        return skip(missing);
    }
    for gateway in Foreign::ALL {
        if let Err(missing) = gateway.find() {
            skip(missing);
            continue;
        }
        through_the_tunnel(client, gateway);
    }
}

fn through_the_tunnel(client: Foreign, gateway: Foreign) {
    let mut lab = Lab::build(Wiring::default()).unwrap();
    let wire = Capture::start(&lab.internet.router, "lan0").unwrap();
    let behind = Capture::start(&lab.internet.gateway, "eth0").unwrap();
    lab.start_gateway(Gateway::Foreign(gateway), "unused".as_ref()).unwrap();
    let config = WireGuard {
        private_key: lab.keys.agent.clone(),
        listen_port: None,
        peer: lab.keys.gateway.public_key(),
        preshared_key: Some(lab.keys.preshared.clone()),
        endpoint: Some((GATEWAY, GATEWAY_PORT).into()),
        allowed_ips: vec![lab::SIGNALING_NET.into()],
        keepalive: None,
        address: ipnet::Ipv4Net::from(AGENT_TUNNEL).into(),
    };
    let _client = config.start(&lab.internet.agent, client, "wg0", &lab.directory).unwrap();

    let to = SocketAddr::from((SIGNALING, 443));
    let tls = lab.identity.client.clone();
    let pace = Pace { requests: 5, pause: Duration::from_millis(20) };
    let outcome =
        lab.internet.agent.thread("https", move || stream::https(to, &tls, pace)).unwrap().join().unwrap();
    assert_eq!(outcome.answered, 5, "{gateway}: {:?}", outcome.failure);
    assert_eq!(outcome.local.unwrap().ip(), AGENT_TUNNEL);

    let (wire, behind) = (wire.finish().unwrap(), behind.finish().unwrap());
    assert!(behind.records.iter().any(|r| r.destination == to && r.source.ip() == GATEWAY), "{gateway}");
    assert!(!wire.records.iter().any(|r| r.destination == to || r.source == to), "{gateway}");
    assert!(wire.records.iter().any(|r| r.destination == SocketAddr::from((GATEWAY, GATEWAY_PORT))));
    assert_eq!((wire.lost, behind.lost), (0, 0));
}

#[test]
fn an_impaired_link_delays_and_loses_what_it_is_told_to_while_a_call_runs() {
    if !may_run() {
        return;
    }
    let delay = Duration::from_millis(10);
    let wiring = Wiring {
        uplink: LinkKind::Impaired(Impairment { delay, ..Default::default() }),
        seed: 1,
        ..Default::default()
    };
    let lab = Lab::build(wiring).unwrap();
    let call = |packets| {
        let call = Call { to: (MEDIA, Ports::VOICE_EF).into(), from: None, tos: EF_TOS, packets };
        lab.internet.agent.thread("call", move || call.run()).unwrap().join().unwrap()
    };
    let whole = call(50);
    assert_eq!((whole.sent, whole.answered), (51, 51), "{:?}", whole.failure);
    assert!(whole.round_trips.min() >= 2 * delay.as_nanos() as u64, "{}", whole.round_trips.min());
    assert_eq!(whole.dscp_back, [46].into());

    let relay = lab.internet.uplink.relay().unwrap();
    relay.set(Impairment { delay, loss: 0.1, ..Default::default() });
    let lossy = call(150);
    assert!(relay.dropped() > 0);
    assert!((0.02..0.5).contains(&lossy.loss()), "{}", lossy.loss());
}

#[test]
fn programs_of_a_host_live_in_its_network_and_die_with_it() {
    if !may_run() {
        return;
    }
    let host = lab::Host::new("lonely").unwrap();
    let mut list = std::process::Command::new("ls");
    list.args(["-L", "-i", "/proc/self/ns/net"]);
    let own = std::fs::metadata(host.netns_path()).unwrap().ino();
    let said = String::from_utf8(host.output(list).unwrap().stdout).unwrap();
    assert!(said.starts_with(&own.to_string()), "{said}");

    let directory = lab::Directory::new().unwrap();
    let mut sleep = std::process::Command::new("sleep");
    sleep.arg("60");
    let mut process = lab::Process::spawn(&host, "sleep", sleep, &directory.file("log")).unwrap();
    assert!(process.wait(Duration::ZERO).unwrap().is_none());
    drop(host);
    let status = process.wait(Duration::from_secs(5)).unwrap().unwrap();
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn a_program_that_is_missing_is_named_with_what_to_do() {
    let error = lab::find_program("no-such-program-anywhere", "Install it: somehow.").unwrap_err();
    assert_eq!(error.to_string(), "`no-such-program-anywhere` was not found in PATH\nInstall it: somehow.");
    assert_eq!(error.exit_status(), 2);
}

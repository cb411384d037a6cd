//! `status`, `flows`, `reload`, `down` and a second `up`, against a daemon's control socket without a daemon.

mod common;

use std::{fs, path::Path, sync::mpsc, thread};

use common::Place;
use control::{
    Access, Command, DohServer, Drops, Failover, Feature, Flow, Flows, Gateway, Interface, LearnedAddress,
    Names, PathCount, Refusal, RefusalKind, Reloaded, Reply, Resolver, Rtp, Server, Status, Tunnel, Underlay,
    Voice,
};
use nix::fcntl::{Flock, FlockArg};

#[test]
fn without_a_daemon_each_says_so() {
    let place = Place::new();
    for command in ["status", "flows", "reload"] {
        place.run(&[command]).assert(4, "no breakout daemon is running");
    }
}

#[test]
fn a_second_up_says_that_one_is_running() {
    let place = Place::new();
    place.write_config("");
    fs::create_dir(place.state()).unwrap();
    let lock = fs::File::create(place.state().join("lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    fs::write(place.state().join("lock"), "4711\n").unwrap();
    place.run(&["up", "--config", "agent.toml"]).assert(3, "a breakout daemon is running already (pid 4711)");
    drop(lock);
}

#[test]
fn status_is_readable_by_people_and_programs() {
    let place = Place::new();
    let daemon = Daemon::start(&place.state(), |_| Reply::Status(Box::new(status())));
    let shown = place.run(&["status"]);
    shown.assert(0, "");
    for part in [
        "tun0  10.99.0.1/32  mtu 1420",
        "tunnel      down, by paris of 2 gateways, by order",
        "from frankfurt to paris 12 s ago: it fell silent; 3 connections were reset",
        "gateway     frankfurt, not used: it does not answer\n            down, KEY at 198.18.0.2:51820",
        "gateway     paris, used: it does not answer\n            down, KEY at no address yet",
        "last handshake 3 min 20 s ago, last heard never, round trip 12.2 ms; 2 flows, sent 1.4 KiB",
        "is the key right?",
        "IPv4 192.168.1.20, IPv6 none\n            \
         a captive portal is in the way: open http://10.0.0.1/login in a browser\n",
        "bypass  7            1.4 KiB    6           1023 B",
        "voice  streams  packets  lost        worst jitter",
        "in     1        399      1 (0.25 %)  1.9 ms",
        "policy   3        refused by a rule",
        "uso      off  the kernel is too old",
    ] {
        assert!(shown.stdout.contains(part), "{part} in\n{}", shown.stdout);
    }
    let json = place.run(&["status", "--json"]).json();
    assert_eq!(json, serde_json::to_value(status()).unwrap());
    drop(daemon);
}

#[test]
fn one_gateway_is_the_tunnel() {
    let place = Place::new();
    let one = |_| {
        let mut status = status();
        status.tunnel.gateways.truncate(1);
        status.tunnel.failover = None;
        Reply::Status(Box::new(status))
    };
    let _daemon = Daemon::start(&place.state(), one);
    let shown = place.run(&["status"]).stdout;
    assert!(shown.contains("tunnel      down, gateway KEY at 198.18.0.2:51820\n"), "{shown}");
    assert!(!shown.contains("gateways"), "{shown}");
}

#[test]
fn flows_are_shown_with_what_was_left_out() {
    let place = Place::new();
    let _daemon = Daemon::start(&place.state(), |_| Reply::Flows(Flows { flows: vec![flow()], omitted: 5 }));
    let shown = place.run(&["flows"]).stdout;
    for part in [
        "udp",
        "10.99.0.1:40000",
        "52.129.96.10:20000",
        "bypass",
        "media",
        "192.168.1.20:40000",
        "ef",
        "kernel",
        "340 ms",
        "1 (2.00 %) lost, jitter unknown",
        "and 5 more",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    assert_eq!(place.run(&["flows", "--json"]).json()["flows"][0]["mapping"], "192.168.1.20:40000");
}

#[test]
fn names_tell_who_is_asked_and_what_may_pass_by() {
    let place = Place::new();
    let plain = place.state();
    let daemon = Daemon::start(&plain, |_| Reply::Names(names(&[])));
    let shown = place.run(&["names"]).stdout;
    for part in [
        "resolver    by way of resolvconf: it keeps it; it listens on 127.51.82.53:53\n",
        "our names   asked of 10.99.0.53:53 through the tunnel: 7 questions, 1 without an answer\n",
        "others      asked of 192.0.2.53:53 as before: 9 questions\n",
        "203.0.113.7  api.mypurecloud.com  genesys-signaling  told   3 min 20 s",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    assert!(!shown.contains("over HTTPS"), "{shown}");
    drop(daemon);

    let _daemon = Daemon::start(&plain, |_| Reply::Names(names(&[("dns.google", 3), ("doh.cox.net", 1)])));
    let shown = place.run(&["names"]).stdout;
    let told = "over HTTPS  these servers were asked for: dns.google (3), doh.cox.net (1); a program";
    assert!(shown.contains(told) && shown.contains("docs/names.md"), "{shown}");
    let json = place.run(&["names", "--json"]).json();
    assert_eq!(json["resolver"]["doh"][0], serde_json::json!({"name": "dns.google", "questions": 3}));
}

#[test]
fn a_reload_says_what_changed_or_why_not() {
    let place = Place::new();
    for (cut_flows, told) in [
        (0, ""),
        (1, "1 live flow was cut: the new policy forbids it\n"),
        (2, "2 live flows were cut: the new policy forbids them\n"),
    ] {
        let reloaded = Reloaded {
            changes: vec!["set x is new".to_owned()],
            cut_flows,
            warnings: vec!["odd".to_owned()],
        };
        let _daemon = Daemon::start(&place.state(), move |_| Reply::Reloaded(reloaded.clone()));
        let outcome = place.run(&["reload"]);
        outcome.assert(0, "warning: odd");
        assert_eq!(outcome.stdout, format!("set x is new\n{told}"));
    }
    let refusal = Refusal::new(RefusalKind::Configuration, "agent.toml:3: `x` is no address");
    let _daemon = Daemon::start(&place.state(), move |_| Reply::Refused(refusal.clone()));
    place.run(&["reload"]).assert(2, "agent.toml:3: `x` is no address");
}

#[test]
fn a_daemon_that_is_refused_or_talks_nonsense_is_no_crash() {
    let place = Place::new();
    {
        let _daemon =
            Daemon::start(&place.state(), |_| Reply::Refused(Refusal::new(RefusalKind::Denied, "not you")));
        place.run(&["status"]).assert(3, "not you");
    }
    {
        let _daemon = Daemon::start(&place.state(), |_| Reply::Stopping);
        place.run(&["status"]).assert(3, "does not fit the question");
    }
    fs::remove_file(place.state().join("control")).unwrap_or_default();
    let listener = std::os::unix::net::UnixListener::bind(place.state().join("control")).unwrap();
    let nonsense = thread::spawn(move || {
        use std::io::Write;
        for answer in
            [&b"{\"version\":2,\"reply\":{\"fish\":1}}\n"[..], b"{\"version\":7}\n", b"\xff\xff\n", b""]
        {
            listener.accept().unwrap().0.write_all(answer).unwrap();
        }
    });
    for found in
        ["makes no sense", "version 7 of the control protocol", "makes no sense", "closed the connection"]
    {
        place.run(&["status"]).assert(3, found);
    }
    nonsense.join().unwrap();
}

#[test]
fn down_waits_until_the_daemon_is_gone() {
    let place = Place::new();
    let daemon = Daemon::start(&place.state(), |command| {
        assert_eq!(command, Command::Down);
        Reply::Stopping
    });
    let lock = fs::File::create(place.state().join("lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    let ends = thread::spawn(move || {
        thread::sleep(std::time::Duration::from_millis(200));
        drop(lock);
    });
    let outcome = place.run(&["down"]);
    assert!(ends.is_finished(), "down came back before the daemon was gone");
    outcome.assert(0, "");
    assert_eq!(outcome.stdout, "breakout is down\n");
    drop(daemon);
}

/// A control socket that answers every request by a function.
struct Daemon {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(state: &Path, answer: impl Fn(Command) -> Reply + Send + 'static) -> Self {
        fs::create_dir_all(state).unwrap_or_default();
        let path = state.join("control");
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async {
                let Ok(server) = Server::bind(&path, Access::default()) else { return };
                let (calls, mut asked) = tokio::sync::mpsc::channel::<control::Call>(4);
                ready.send(()).unwrap_or_default();
                let answering = async {
                    while let Some(call) = asked.recv().await {
                        drop(call.answer.send(answer(call.command)));
                    }
                };
                tokio::select! {
                    _ = server.serve(calls) => {}
                    () = answering => {}
                    _ = stopped => {}
                }
            });
        });
        assert!(is_ready.recv().is_ok(), "the control socket is up");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

fn status() -> Status {
    let count = |path: &str, out_packets| PathCount {
        path: path.to_owned(),
        out_packets,
        out_bytes: 1434,
        in_packets: 6,
        in_bytes: 1023,
    };
    Status {
        version: "0.1.0".to_owned(),
        pid: 4711,
        config: "agent.toml".into(),
        uptime_seconds: 61,
        interface: Interface {
            name: "tun0".to_owned(),
            addresses: vec!["10.99.0.1/32".to_owned()],
            mtu: 1420,
        },
        tunnel: Tunnel {
            prefer: "order".to_owned(),
            gateways: vec![
                gateway("frankfurt", "198.18.0.2:51820", false),
                Gateway { endpoint: None, reachable: false, ..gateway("paris", "198.18.1.2:51820", true) },
            ],
            failover: Some(Failover {
                from: "frankfurt".to_owned(),
                to: "paris".to_owned(),
                cause: "it fell silent".to_owned(),
                seconds_ago: 12,
                cut_flows: 3,
            }),
        },
        underlay: Underlay { v4: Some("192.168.1.20".to_owned()), v6: None },
        portal: Some("http://10.0.0.1/login".to_owned()),
        paths: vec![count("tunnel", 1), count("bypass", 7), count("reject", 0)],
        voice: vec![Voice {
            direction: "in".to_owned(),
            streams: 1,
            packets: 399,
            lost: 1,
            jitter_us: Some(1_940),
        }],
        drops: vec![Drops {
            reason: "policy".to_owned(),
            packets: 3,
            meaning: "refused by a rule".to_owned(),
        }],
        features: vec![Feature {
            name: "uso".to_owned(),
            on: false,
            why: "the kernel is too old".to_owned(),
        }],
    }
}

fn gateway(name: &str, endpoint: &str, used: bool) -> Gateway {
    Gateway {
        name: name.to_owned(),
        public_key: "KEY".to_owned(),
        endpoint: endpoint.parse().ok(),
        reachable: true,
        state: "down".to_owned(),
        used,
        why: "it does not answer".to_owned(),
        flows: 2,
        round_trip_ms: Some(12.25),
        last_handshake_seconds: Some(200.0),
        last_received_seconds: None,
        sent_bytes: 1434,
        received_bytes: 0,
        path_mtu: 1480,
        path_mtu_known: "as a router on the way says".to_owned(),
        trouble: Some("is the key right?".to_owned()),
    }
}

fn names(doh: &[(&str, u64)]) -> Names {
    let doh =
        doh.iter().map(|(name, questions)| DohServer { name: (*name).to_owned(), questions: *questions });
    Names {
        config: "agent.toml".into(),
        resolver: Some(Resolver {
            mode: "resolvconf".to_owned(),
            why: "it keeps it".to_owned(),
            listening: vec![([127, 51, 82, 53], 53).into()],
            tunnel_dns: vec![([10, 99, 0, 53], 53).into()],
            others: vec![([192, 0, 2, 53], 53).into()],
            asked: 7,
            failed: 1,
            handed_on: 9,
            doh: doh.collect(),
        }),
        addresses: vec![LearnedAddress {
            address: [203, 0, 113, 7].into(),
            name: "api.mypurecloud.com".to_owned(),
            set: "genesys-signaling".to_owned(),
            known: "told".to_owned(),
            seconds_left: 200,
        }],
    }
}

fn flow() -> Flow {
    let socket = |text: &str| text.parse().unwrap_or_else(|_| unreachable!());
    Flow {
        protocol: "udp".to_owned(),
        source: socket("10.99.0.1:40000"),
        destination: socket("52.129.96.10:20000"),
        path: "bypass".to_owned(),
        gateway: None,
        rule: "media".to_owned(),
        mapping: Some(socket("192.168.1.20:40000")),
        mark: "ef".to_owned(),
        out_packets: 50,
        out_bytes: 9600,
        in_packets: 50,
        in_bytes: 9600,
        idle_seconds: 0.34,
        in_kernel: true,
        out_rtp: None,
        in_rtp: Some(Rtp {
            ssrc: 1,
            packets: 49,
            lost: 1,
            strays: 0,
            jitter_us: None,
            clock_rate: None,
            dscp: "ef".to_owned(),
        }),
    }
}

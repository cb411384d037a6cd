//! Learned addresses in real network namespaces: what of a shared address enters the TUN, and what goes as before.

use std::{
    fs::File,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use policy::{Captured, Fail, Guarded, LearnedSet, Traffic};
use routes::{
    Cleaned, Error, KILL_SWITCH, PRIORITY_LEARNED_PORTS, Routes, State, TABLE_LEARNED, Wanted,
    netlink::{Family, Netlink, Rule, Watch},
};

use crate::common::{
    attempt::{
        Outcome::{self, Arrived, Entered, Refused},
        Way::{self, Icmp, Tcp, UdpConnected, UdpSendTo},
        attempt,
    },
    clean, has, in_namespace, run,
    world::{
        MARK, SIGNALING, TUN, TUN_V4, TUN_V6, Tun, UNRELATED, World, arrived, captured, closed, ip, send,
        send_from_device, settings, settled_snapshot, silent, wanted,
    },
};

/// HTTPS and SIP.
fn traffic() -> Traffic {
    Traffic { tcp: vec![443..=443, 5060..=5061], udp: vec![443..=443], ..Traffic::default() }
}

fn learned(set: &str, addresses: &[&str]) -> LearnedSet {
    let mut addresses: Vec<_> = addresses.iter().map(|address| ip(address)).collect();
    addresses.sort();
    LearnedSet { set: set.to_owned(), addresses, traffic: traffic() }
}

/// The addresses of [`UNRELATED`] turn out to be signaling's too.
fn shared() -> Vec<LearnedSet> {
    vec![learned("signaling", &UNRELATED)]
}

/// What [`traffic`] makes of attempts.
const ATTEMPTS: [(Way, u16, Outcome); 12] = [
    (Tcp, 443, Entered),
    (Tcp, 5060, Entered),
    (Tcp, 5061, Entered),
    (Tcp, 5062, Arrived),
    (Tcp, 22, Arrived),
    (UdpConnected, 443, Entered),
    (UdpSendTo, 443, Entered),
    (UdpConnected, 5060, Arrived),
    (UdpSendTo, 5060, Arrived),
    (UdpConnected, 444, Arrived),
    (UdpSendTo, 444, Arrived),
    (Icmp, 0, Arrived),
];

/// Makes all attempts at both shared addresses; `entered` is what becomes of those that belong into the TUN.
#[track_caller]
fn assert_all(world: &World, tun: &mut Tun, entered: Outcome) {
    for address in UNRELATED {
        for (way, port, outcome) in ATTEMPTS {
            let expected = if outcome == Entered { entered } else { outcome };
            let found = attempt(world, tun, way, SocketAddr::new(ip(address), port));
            assert_eq!(found, expected, "{way:?} to port {port} of {address}");
        }
    }
}

#[test]
fn of_a_shared_address_only_the_rules_ports_enter_the_tun() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        assert_all(&world, &mut tun, Arrived);

        routes.learn(&shared()).await.unwrap();
        assert_all(&world, &mut tun, Entered);
        assert_eq!(routes.repair().await.unwrap(), [""; 0], "the kernel has exactly what was planned");
        assert_all(&world, &mut tun, Entered);

        routes.learn(&[]).await.unwrap();
        assert_all(&world, &mut tun, Arrived);
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

/// A gateway may come to be heard at an address that a name has too: the tunnel cannot run inside itself.
#[test]
fn our_own_sockets_reach_learned_addresses_outside_of_the_tun() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        let sip = Traffic { udp: vec![5060..=5060], ..Traffic::default() };
        routes.learn(&[LearnedSet { traffic: sip, ..learned("signaling", &UNRELATED) }]).await.unwrap();
        tun.entered();
        for address in UNRELATED {
            let wire = world.listen(address);
            send(None, 0, address).unwrap();
            assert_eq!(tun.entered().len(), 1, "the control: {address}");
            send(None, MARK, address).unwrap();
            assert!(arrived(&wire), "a marked packet to {address} stayed here");
            assert_eq!(tun.entered(), []);
        }
    });
}

#[test]
fn the_tuns_addresses_are_the_source_of_what_enters() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        routes.learn(&shared()).await.unwrap();
        for (source, destination) in [(TUN_V4, UNRELATED[0]), (TUN_V6, UNRELATED[1])] {
            tun.entered();
            let any = if ip(destination).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect((destination, 443)).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), ip(source));
            socket.send(b"hello").unwrap();
            assert_eq!(tun.entered(), [(ip(source), ip(destination))]);
        }
    });
}

#[test]
fn what_the_kernel_cannot_say_enters_as_well() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let netlink = Netlink::new().unwrap();
        for ports in [(0, 80), (1024, 65535)] {
            let rule = Rule { ports: Some(ports), ip_protocol: Some(6), ..Rule::new(Family::V4, 77, 77) };
            assert_eq!(netlink.add_rule(&rule).await.unwrap_err().errno(), Some(libc::EINVAL), "{ports:?}");
        }

        let mut routes = world.apply().await;
        let high = Traffic { tcp: vec![1024..=65535], udp: vec![1..=65534], icmp: true, other: false };
        let all = Traffic { tcp: vec![0..=65535], udp: vec![0..=65535], icmp: true, other: true };
        let cases = [
            (
                high,
                [(Tcp, 65535, Entered), (Tcp, 22, Entered), (UdpSendTo, 65535, Arrived), (Icmp, 0, Entered)],
            ),
            (
                Traffic { icmp: true, ..Traffic::default() },
                [
                    (Tcp, 443, Arrived),
                    (UdpSendTo, 443, Arrived),
                    (UdpSendTo, 22, Arrived),
                    (Icmp, 0, Entered),
                ],
            ),
            (
                all,
                [
                    (Tcp, 22, Entered),
                    (UdpSendTo, 65535, Entered),
                    (UdpSendTo, 1, Entered),
                    (Icmp, 0, Entered),
                ],
            ),
            (
                traffic(),
                [(Tcp, 443, Entered), (Tcp, 22, Arrived), (UdpSendTo, 22, Arrived), (Icmp, 0, Arrived)],
            ),
        ];
        for (traffic, attempts) in cases {
            let told = format!("{traffic:?}");
            routes.learn(&[LearnedSet { traffic, ..learned("signaling", &UNRELATED) }]).await.unwrap();
            for address in UNRELATED {
                for (way, port, outcome) in attempts {
                    let found = attempt(&world, &mut tun, way, SocketAddr::new(ip(address), port));
                    assert_eq!(found, outcome, "{way:?} to port {port} of {address} with {told}");
                }
            }
            assert_eq!(routes.repair().await.unwrap(), [""; 0], "after {told}");
        }
    });
}

#[test]
fn a_crash_leaves_learned_addresses_refused_by_port_and_the_next_run_takes_them_over() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let routes_of_a_dead_run = async |learned: &[LearnedSet]| {
            let tun = Tun::open();
            let mut routes = world.apply().await;
            routes.learn(learned).await.unwrap();
            drop(routes);
            tun.close().await;
        };
        routes_of_a_dead_run(&shared()).await;
        // Another TUN, so that what enters none can be told from what enters one.
        let mut tun = Tun::open();
        assert_all(&world, &mut tun, Refused);

        let state = State::open(world.state.path()).unwrap();
        let taken_over = Wanted { learned: shared(), ..wanted(captured()) };
        let routes = Routes::apply(state, settings(), &taken_over).await.unwrap();
        assert!(routes.took_over());
        assert_all(&world, &mut tun, Entered);
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);

        // The next run does not want them.
        routes_of_a_dead_run(&shared()).await;
        let mut tun = Tun::open();
        let routes = world.apply().await;
        assert_all(&world, &mut tun, Arrived);
        routes.teardown().await.unwrap();
        tun.close().await;

        routes_of_a_dead_run(&shared()).await;
        let cleaned = clean(world.state.path()).await.unwrap();
        // Three port ranges in two families and what leads our own sockets past them, and an address of each.
        assert_eq!(cleaned, Cleaned { rules: 4 + 6 + 2, routes: 6 + 2, ..Cleaned::default() });
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn what_others_remove_is_put_back_and_who_learns_is_not_told_of_it() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        let mut watch = Watch::new().unwrap();
        watch.ignore(routes.netlink());
        routes.learn(&shared()).await.unwrap();
        routes.learn(&[learned("signaling", &UNRELATED[..1])]).await.unwrap();
        routes.learn(&shared()).await.unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(400), watch.changed()).await;
        assert!(quiet.is_err(), "what it does itself is told");

        let table = TABLE_LEARNED.to_string();
        let priority = PRIORITY_LEARNED_PORTS.to_string();
        for removal in [
            ["ip", "-4", "route", "flush", "table", &table],
            ["ip", "-6", "route", "flush", "table", &table],
            ["ip", "-4", "rule", "del", "priority", &priority],
            ["ip", "-6", "rule", "del", "priority", &priority],
        ] {
            run(removal);
            tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.unwrap().unwrap();
            assert!(!routes.repair().await.unwrap().is_empty(), "after {removal:?}");
            assert_eq!(routes.repair().await.unwrap(), [""; 0], "after {removal:?}");
        }
        assert_all(&world, &mut tun, Entered);
    });
}

#[test]
fn sets_come_and_go_each_with_its_table() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let tun = Tun::open();
        let mut routes = world.apply().await;
        let without = settled_snapshot();
        let table =
            |number: u32| run(["ip", "route", "show", "table", &(TABLE_LEARNED + number).to_string()]);
        let rules = || run(["ip", "rule", "show"]).matches("dport").count();

        let (a, b) = (learned("a", &UNRELATED[..1]), learned("b", &["192.0.2.7", "192.0.2.8"]));
        routes.learn(&[a.clone(), b.clone()]).await.unwrap();
        assert!(table(0).contains(UNRELATED[0]) && table(1).contains("192.0.2.7"));
        assert_eq!((table(1).lines().count(), rules()), (4, 6));

        routes.learn(&[learned("b", &["192.0.2.8"])]).await.unwrap();
        assert!(!table(1).contains("192.0.2.7") && table(1).contains("192.0.2.8"));
        assert_eq!(rules(), 3);

        // A reload: both policies' sets at once, then the new one's.
        let narrow = LearnedSet { traffic: Traffic { udp: vec![7..=7], ..Traffic::default() }, ..b.clone() };
        let wanted = |learned: &[&LearnedSet]| Wanted {
            learned: learned.iter().copied().cloned().collect(),
            ..wanted(captured())
        };
        routes.update(&wanted(&[&b, &a, &narrow])).await.unwrap();
        assert_eq!((table(1).lines().count(), rules()), (4, 7));
        routes.update(&wanted(&[&narrow, &a])).await.unwrap();
        assert_eq!((table(1).lines().count(), rules()), (4, 4));

        // Nothing learned yet, and the rules are there.
        routes.learn(&[LearnedSet { addresses: Vec::new(), ..narrow }]).await.unwrap();
        assert_eq!(rules(), 1);
        routes.learn(&[]).await.unwrap();
        assert_eq!(settled_snapshot(), without);
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn what_cannot_be_learned_whole_is_not_learned() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        routes.learn(&[learned("signaling", &["192.0.2.7"])]).await.unwrap();
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{TUN}/disable_ipv6"), "1").unwrap();
        let before = settled_snapshot();

        let refused = routes.learn(&[learned("b", &UNRELATED), learned("c", &[])]).await.unwrap_err();
        assert!(refused.to_string().contains(UNRELATED[1]), "{refused}");
        assert_eq!(settled_snapshot(), before);

        run(["ip", "route", "add", "blackhole", "9.9.9.0/24", "table", "51901"]);
        let more = Wanted { learned: vec![learned("b", &UNRELATED[..1])], ..wanted(captured()) };
        let refused = routes.update(&more).await.unwrap_err();
        assert!(matches!(refused, Error::TableTaken { table: 51901, .. }), "{refused}");
        run(["ip", "route", "del", "blackhole", "9.9.9.0/24", "table", "51901"]);
        assert_eq!(settled_snapshot(), before);

        // One address more is no matter of the other family.
        routes.learn(&[learned("signaling", &["192.0.2.7", UNRELATED[0]])]).await.unwrap();
        let to = SocketAddr::new(ip(UNRELATED[0]), 443);
        assert_eq!(attempt(&world, &mut tun, UdpSendTo, to), Entered);
    });
}

/// A kill switch for what is captured and fails closed.
fn with_kill_switch(learned: Vec<LearnedSet>) -> Wanted {
    let v4: Ipv4Addr = SIGNALING[0].parse().unwrap();
    let guarded = vec![Guarded { v4: vec![v4..=v4], v6: vec![], traffic: traffic() }];
    Wanted { kill_switch: Some(guarded), learned, ..wanted(captured()) }
}

/// What is bound to a device reaches the shared addresses, or not, by port.
#[track_caller]
fn assert_bound(world: &World, reaches_443: bool) {
    for address in UNRELATED {
        let listen = |port| world.neighbour.enter(|| UdpSocket::bind((ip(address), port)).unwrap());
        let (shut, open) = (listen(443), listen(5060));
        let sent = send_from_device(0, address, 443);
        if reaches_443 {
            sent.unwrap();
            assert!(arrived(&shut), "{address}");
        } else {
            assert_eq!(sent.unwrap_err().kind(), ErrorKind::PermissionDenied, "{address}");
            assert!(silent(&shut), "{address} was reached");
        }
        send_from_device(0, address, 5060).unwrap();
        assert!(arrived(&open), "another port of {address}");
    }
}

#[test]
fn the_kill_switch_keeps_learned_addresses_in_by_port_too() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        let mut routes = Routes::apply(state, settings(), &with_kill_switch(vec![])).await.unwrap();
        assert_bound(&world, true);
        routes.learn(&shared()).await.unwrap();
        assert_bound(&world, false);
        assert_eq!(routes.kill_switch().unwrap().ranges, 3);
        for learned in [vec![learned("signaling", &["192.0.2.7"])], vec![], shared()] {
            let has_it = learned == shared();
            routes.learn(&learned).await.unwrap();
            assert_bound(&world, !has_it);
        }

        if has("nft") {
            run(["nft", "flush", "ruleset"]);
            tokio::time::timeout(Duration::from_secs(10), async {
                while routes.kill_switch().unwrap().put_back == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap();
            assert_bound(&world, false);
        }
        drop(routes);
        tun.close().await;
        assert_bound(&world, false);
        let cleaned = clean(world.state.path()).await.unwrap();
        assert!(cleaned.kill_switch && cleaned.rules == 4 + 6 + 2, "{cleaned:?}");
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn learning_goes_on_where_somebody_has_just_removed_the_kill_switch() {
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        let more = learned("signaling", &[UNRELATED[0], UNRELATED[1], "192.0.2.7", "2001:db8::7"]);
        let mut routes = Routes::apply(state, settings(), &with_kill_switch(vec![more])).await.unwrap();
        // What only forgets waits for nothing in between: the table's keeper has not seen it yet.
        routes::nft::remove(KILL_SWITCH).unwrap();
        routes.learn(&shared()).await.unwrap();
        assert_bound(&world, false);
        routes.teardown().await.unwrap();
    });
}

/// Sends from sockets bound to a device and from others to a learned address, while other addresses come and go.
#[test]
fn learning_leaves_no_gap() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        let mut routes = Routes::apply(state, settings(), &with_kill_switch(shared())).await.unwrap();
        let wires =
            UNRELATED.map(|address| world.neighbour.enter(|| UdpSocket::bind((ip(address), 443)).unwrap()));

        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mine = File::open("/proc/thread-self/ns/net").unwrap();
        let sender = tokio::task::spawn_blocking(move || {
            setns(&mine, CloneFlags::CLONE_NEWNET).unwrap();
            let sockets = [UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap()];
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                for (socket, address) in sockets.iter().zip(UNRELATED) {
                    let refused = send_from_device(0, address, 443).expect_err("past the kill switch");
                    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
                    socket.send_to(b"hello", (ip(address), 443)).expect("refused while learning");
                    sent += 1;
                }
            }
            sent
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        for round in 0..200 {
            let mut addresses: Vec<_> = UNRELATED.map(ip).to_vec();
            addresses.extend((0..round % 40).map(|at| IpAddr::from([192, 0, 2, at])));
            addresses.extend(
                (0..round % 30).map(|at| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(at)])),
            );
            addresses.sort();
            let set = LearnedSet { addresses, ..learned("signaling", &[]) };
            routes.learn(&[set]).await.unwrap();
            if !tun.entered().iter().any(|(source, _)| [TUN_V4, TUN_V6].map(ip).contains(source)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(sender.await.unwrap() > 100);
        assert!(wires.iter().all(silent), "a learned address was reached");
    });
}

/// Tells how long it takes until one address more is in the TUN, with 10 000 captured prefixes there.
#[test]
fn learning_does_not_wait_for_the_captured_prefixes() {
    const PREFIXES: u32 = 10_000;
    const LEARNED: u16 = 200;
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let v4 = |at: u32| Ipv4Addr::from_bits(0x0b00_0000 + (at << 9));
        let v6 = |at: u32| Ipv6Addr::from_bits((0x2a00_0000_0000 + u128::from(at) * 2) << 80);
        let mut many = Vec::new();
        let mut guarded = Guarded { v4: vec![], v6: vec![], traffic: traffic() };
        for at in 0..PREFIXES / 2 {
            many.push(Captured { prefix: IpNet::new(v4(at).into(), 24).unwrap(), fail: Fail::Closed });
            many.push(Captured { prefix: IpNet::new(v6(at).into(), 48).unwrap(), fail: Fail::Closed });
            guarded.v4.push(v4(at)..=Ipv4Addr::from_bits(v4(at).to_bits() | 0xff));
            guarded.v6.push(v6(at)..=Ipv6Addr::from_bits(v6(at).to_bits() | ((1 << 80) - 1)));
        }
        let started = Instant::now();
        let state = State::open(world.state.path()).unwrap();
        let mut routes = Routes::apply(state, settings(), &wanted(many.clone())).await.unwrap();
        println!("apply with {PREFIXES} prefixes: {:?}", started.elapsed());

        let mut wanted = wanted(many);
        for kill_switch in [None, Some(vec![guarded])] {
            let with = if kill_switch.is_some() { "with" } else { "without" };
            wanted.kill_switch = kill_switch;
            wanted.learned = vec![learned("signaling", &[])];
            let started = Instant::now();
            routes.update(&wanted).await.unwrap();
            println!("update {with} kill switch: {:?}", started.elapsed());
            let mut times = Vec::new();
            for count in 1..=LEARNED {
                let v4 = (0..count.div_ceil(2))
                    .map(|at| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + u32::from(at))));
                let v6 = (0..count / 2).map(|at| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, at]));
                let set = LearnedSet { addresses: v4.chain(v6).collect(), ..learned("signaling", &[]) };
                let started = Instant::now();
                routes.learn(&[set]).await.unwrap();
                times.push(started.elapsed());
            }
            times.sort();
            println!(
                "one address more, {with} kill switch: median {:?}, slowest of {LEARNED} {:?}",
                times[times.len() / 2],
                times[times.len() - 1]
            );
        }
        let started = Instant::now();
        assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        println!("repair that finds nothing: {:?}", started.elapsed());
        let table = |family| {
            run(["ip", family, "route", "show", "table", &TABLE_LEARNED.to_string()]).lines().count()
        };
        assert_eq!(table("-4") + table("-6"), usize::from(LEARNED) * 2);
        assert_eq!(routes.kill_switch().unwrap().ranges, PREFIXES as usize + usize::from(LEARNED));
    });
}

#[test]
fn captured_prefixes_and_learned_addresses_change_together() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        let both = Wanted { learned: shared(), ..wanted(vec![closed("192.0.2.0/24")]) };
        routes.update(&both).await.unwrap();
        assert_all(&world, &mut tun, Entered);
        let to = |address, port| SocketAddr::new(ip(address), port);
        assert_eq!(attempt(&world, &mut tun, UdpSendTo, to(SIGNALING[0], 443)), Arrived);
        // A prefix around the learned addresses takes all of their ports.
        let wider = Wanted { learned: shared(), ..wanted(vec![closed("198.51.100.0/24")]) };
        routes.update(&wider).await.unwrap();
        assert_eq!(attempt(&world, &mut tun, Tcp, to(UNRELATED[0], 22)), Entered);
        routes.update(&both).await.unwrap();
        assert_all(&world, &mut tun, Entered);
    });
}

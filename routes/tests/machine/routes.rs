//! The daemon's part in real network namespaces, seen from the TUN, from a neighbour's sockets and by `ip`.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use policy::{Captured, Fail, LearnedSet, Traffic};
use routes::{
    Cleaned, Conflict, Error, Leftovers, PRIORITY_CAPTURED, PRIORITY_SOURCE, Routes, State, Wanted,
    conflicts,
    netlink::{Family, Kind, Netlink, Route, Rule, Watch},
    underlay,
};

use crate::common::{
    clean, in_namespace, run,
    world::{
        MARK, MEDIA, SIGNALING, TUN, TUN_V4, TUN_V6, Tun, UNRELATED, World, arrived, captured, closed, ip,
        net, rp_filter, send, set_rp_filter, settings, settle_addresses, settled_snapshot, silent, wanted,
    },
};

#[test]
fn apply_captures_and_teardown_leaves_the_machine_as_it_was() {
    in_namespace(async || {
        let world = World::new().await;
        set_rp_filter("wan0", 1);
        let before = settled_snapshot();

        let mut tun = Tun::open();
        let routes = world.apply().await;
        assert_eq!((rp_filter("wan0"), rp_filter("lo")), ("2".into(), "0".into()));
        assert!(routes.firewall_missing().is_none(), "{:?}", routes.firewall_missing());
        tun.entered();
        for destination in [SIGNALING, MEDIA].concat() {
            let wire = world.listen(destination);
            send(None, 0, destination).unwrap();
            let source = ip(if ip(destination).is_ipv4() { TUN_V4 } else { TUN_V6 });
            assert_eq!(tun.entered(), [(source, ip(destination))]);
            assert!(silent(&wire), "{destination} was sent in the clear");
            send(None, MARK, destination).unwrap();
            assert!(arrived(&wire), "a marked packet to {destination} stayed here");
        }
        assert_eq!(tun.entered(), []);

        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn unrelated_traffic_never_comes_near_the_tun() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let _routes = world.apply().await;
        tun.entered();
        for destination in UNRELATED {
            let wire = world.listen(destination);
            send(None, 0, destination).unwrap();
            assert!(arrived(&wire), "{destination}");
        }
        assert_eq!(tun.entered(), []);
    });
}

#[test]
fn a_crash_leaves_signaling_refused_and_media_direct_and_the_next_run_mends_it() {
    in_namespace(async || {
        let world = World::new().await;
        set_rp_filter("wan0", 1);
        let before = settled_snapshot();

        let crash = async || {
            let tun = Tun::open();
            drop(world.apply().await);
            tun.close().await;
            for destination in SIGNALING {
                let wire = world.listen(destination);
                let refused = send(None, 0, destination).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{destination}: {refused}");
                let refused = std::net::TcpStream::connect((ip(destination), 443)).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{destination}: {refused}");
                assert!(silent(&wire));
            }
            for destination in [MEDIA, UNRELATED].concat() {
                let wire = world.listen(destination);
                send(None, 0, destination).unwrap();
                assert!(arrived(&wire), "{destination}");
            }
            assert_eq!(rp_filter("wan0"), "2");
        };

        crash().await;
        // A crash upon a crash: the value to go back to is still the first one.
        crash().await;
        let tun = Tun::open();
        world.apply().await.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);

        crash().await;
        let cleaned = clean(world.state.path()).await.unwrap();
        assert_eq!(cleaned, Cleaned { rules: 4, routes: 6, sysctls: 1, ..Cleaned::default() });
        assert_eq!(settled_snapshot(), before);
        assert_eq!(clean(world.state.path()).await.unwrap(), Cleaned::default());
    });
}

#[test]
fn a_socket_on_the_tuns_address_never_reaches_the_wire() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let netlink = Netlink::new().unwrap();
        let index = netlink.link_index(TUN).await.unwrap();
        netlink.set_up(index).await.unwrap();
        for address in settings().addresses {
            netlink.add_address(index, address).await.unwrap();
        }
        settle_addresses();
        let pairs = [(TUN_V4, UNRELATED[0]), (TUN_V6, UNRELATED[1])];
        for (source, destination) in pairs {
            let wire = world.listen(destination);
            send(Some(source), 0, destination).unwrap();
            assert!(arrived(&wire), "the control: without rules it leaves");
        }

        let _routes = world.apply().await;
        tun.entered();
        for (source, destination) in pairs {
            let wire = world.listen(destination);
            send(Some(source), 0, destination).unwrap();
            assert!(silent(&wire), "{destination} saw the tunnel's address");
            assert_eq!(tun.entered(), [(ip(source), ip(destination))]);
        }
    });
}

#[test]
fn a_neighbour_cannot_reach_a_socket_on_the_tuns_address() {
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let netlink = Netlink::new().unwrap();
        let index = netlink.link_index(TUN).await.unwrap();
        netlink.set_up(index).await.unwrap();
        for address in settings().addresses {
            netlink.add_address(index, address).await.unwrap();
        }
        settle_addresses();
        let bind = |address| UdpSocket::bind((ip(address), 5060)).unwrap();
        let sockets = [TUN_V4, TUN_V6].map(|address| (address, bind(address)));
        for (address, socket) in &sockets {
            world.neighbour.enter(|| send(None, 0, address)).unwrap();
            assert!(arrived(socket), "the control: without the firewall {address} is reached");
        }

        let routes = world.apply().await;
        assert!(routes.firewall_missing().is_none());
        for (address, socket) in &sockets {
            world.neighbour.enter(|| send(None, 0, address)).unwrap();
            assert!(silent(socket), "{address} was reached");
            send(None, 0, address).unwrap();
            assert!(arrived(socket), "{address} is reached from the machine itself");
        }
    });
}

#[test]
fn the_link_never_gets_too_narrow_for_ipv6() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        let narrow = routes::Settings { mtu: 1000, ..settings() };
        let mut routes = Routes::apply(state, narrow, &wanted(captured())).await.unwrap();
        let netlink = Netlink::new().unwrap();
        let index = routes.tun();
        assert_eq!(netlink.link(index).await.unwrap().mtu, 1280);
        routes.set_mtu(1300).await.unwrap();
        assert_eq!(netlink.link(index).await.unwrap().mtu, 1300);

        // Somebody else makes it narrower: the routes of IPv6 are gone and signaling is refused, then all is mended.
        netlink.set_mtu(index, 1000).await.unwrap();
        let refused = send(None, 0, SIGNALING[1]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{refused}");
        let repaired = routes.repair().await.unwrap();
        assert!(repaired.iter().any(|what| what.contains("fd99::1")), "{repaired:?}");
        tun.entered();
        send(None, 0, SIGNALING[1]).unwrap();
        assert_eq!(tun.entered(), [(ip(TUN_V6), ip(SIGNALING[1]))]);
    });
}

#[test]
fn what_others_remove_is_put_back() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        let mut routes = world.apply().await;
        let with_routes = settled_snapshot();
        let mut watch = Watch::new().unwrap();

        // By somebody who still lives when the kernel tells of it.
        let mut by = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        writeln!(by.stdin.as_ref().unwrap(), "rule del priority {PRIORITY_CAPTURED}").unwrap();
        while watch.last().is_none() {
            tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.unwrap().unwrap();
        }
        assert_eq!(watch.last().map(|by| (by.pid, by.name.as_str())), Some((by.id(), "ip")));
        drop(by.stdin.take());
        by.wait().unwrap();

        run(["ip", "-6", "rule", "del", "priority", &PRIORITY_SOURCE.to_string()]);
        run(["ip", "route", "flush", "table", "51821"]);
        run(["ip", "address", "flush", "dev", TUN]);
        watch.changed().await.unwrap();
        let repaired = routes.repair().await.unwrap();
        assert!(repaired.len() >= 5, "{repaired:?}");
        assert_eq!(sorted(&settled_snapshot()), sorted(&with_routes));

        let mut rounds = 0;
        while tokio::time::timeout(Duration::from_millis(400), watch.changed()).await.is_ok() {
            assert_eq!(routes.repair().await.unwrap(), [""; 0]);
            rounds += 1;
            assert!(rounds < 10, "a repair that finds nothing changes nothing");
        }

        tun.close().await;
        watch.changed().await.unwrap();
        assert!(matches!(routes.repair().await, Err(Error::TunGone(name)) if name == TUN));
    });
}

#[test]
fn a_route_of_somebody_elses_in_our_tables_is_deleted_at_once() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        let before = settled_snapshot();
        let mut watch = Watch::new().unwrap();
        watch.ignore(routes.netlink());
        for (family, route) in [
            // In the place of the TUN's, and of what refuses behind it.
            ("-4", "replace 203.0.113.0/24 table 51821 dev wan0 metric 100"),
            ("-4", "replace blackhole 203.0.113.0/24 table 51821 metric 200"),
            ("-6", "replace 2001:db8:113::/48 table 51821 dev wan0 metric 100"),
            // Beside them.
            ("-4", "add 203.0.113.9/32 table 51821 dev wan0 metric 7"),
            ("-4", "add 203.0.113.0/24 table 51821 tos 0x10 dev wan0 metric 100"),
            ("-4", "add unreachable 203.0.113.9/32 table 51821 metric 7"),
            ("-4", "add 203.0.113.8/29 table 51821 nexthop dev wan0 nexthop dev lo"),
            ("-6", "add 2001:db8:113::9/128 table 51821 dev wan0 metric 7"),
        ] {
            let route: Vec<_> = [family, "route"].into_iter().chain(route.split(' ')).collect();
            assert!(Command::new("ip").args(&route).status().unwrap().success(), "{route:?}");
            let told = tokio::time::timeout(Duration::from_secs(10), watch.changed());
            told.await.unwrap().unwrap();
            let repaired = routes.repair().await.unwrap();
            assert!(repaired[0].contains("somebody else's route"), "{repaired:?}");
            assert_eq!(sorted(&settled_snapshot()), sorted(&before));
            assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        }
        tun.entered();
        for (source, destination) in [TUN_V4, TUN_V6].map(ip).into_iter().zip(SIGNALING) {
            send(None, 0, destination).unwrap();
            assert_eq!(tun.entered(), [(source, ip(destination))]);
        }
        tun.close().await;
    });
}

#[test]
fn a_route_of_somebody_elses_that_came_after_a_crash_is_deleted_by_the_next_start() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        drop(world.apply().await);
        let tables = || {
            let table = |family| run(["ip", family, "route", "show", "table", "51821"]);
            sorted(&["-4", "-6"].map(table).concat())
        };
        let before = tables();
        tun.close().await;
        let [v4, v6] = SIGNALING;
        run(["ip", "route", "replace", "blackhole", "203.0.113.0/24", "table", "51821", "metric", "200"]);
        for address in [v4, v6] {
            run(["ip", "route", "add", address, "table", "51821", "dev", "wan0", "metric", "7"]);
        }
        // Their routes show whose tables they are where the rules are gone too.
        for family in ["-4", "-6"] {
            run(["ip", family, "rule", "del", "priority", &PRIORITY_CAPTURED.to_string()]);
        }

        // One that fails when they are deleted already leaves what refuses.
        let mut tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        let too_large = routes::Settings { mtu: u32::MAX, ..settings() };
        Routes::apply(state, too_large, &wanted(captured())).await.unwrap_err();
        for address in [v4, v6] {
            let wire = world.listen(address);
            send(None, 0, address).unwrap_err();
            assert!(silent(&wire), "{address} was reached");
        }

        let mut routes = world.apply().await;
        assert_eq!(tables(), before);
        assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        tun.entered();
        for (source, destination) in [TUN_V4, TUN_V6].map(ip).into_iter().zip(SIGNALING) {
            send(None, 0, destination).unwrap();
            assert_eq!(tun.entered(), [(source, ip(destination))]);
        }
        tun.close().await;
    });
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn what_has_the_tuns_address_is_silent_once_that_is_gone() {
    in_namespace(async || {
        let world = World::new().await;
        let [v4, v6] = SIGNALING.map(|address| SocketAddr::new(ip(address), 5060));
        let open = |to: SocketAddr| {
            let udp = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            udp.connect(to).unwrap();
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let tcp = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
            let begun = connect(tcp.as_raw_fd(), &SockaddrStorage::from(to));
            assert_eq!(begun, Err(Errno::EINPROGRESS));
            let tcp = TcpStream::from(tcp);
            let names = [udp.local_addr().unwrap(), tcp.local_addr().unwrap()];
            assert_eq!(names.map(|name| name.ip()), [ip(if to.is_ipv4() { TUN_V4 } else { TUN_V6 }); 2]);
            (udp, tcp)
        };
        for has_crashed in [false, true] {
            let tun = Tun::open();
            let routes = world.apply().await;
            let sockets = [v4, v6].map(open);
            if has_crashed {
                drop(routes);
                tun.close().await;
                clean(world.state.path()).await.unwrap();
            } else {
                routes.teardown().await.unwrap();
                tun.close().await;
            }
            for (udp, tcp) in sockets {
                let wire = world.listen(if udp.local_addr().unwrap().is_ipv4() {
                    SIGNALING[0]
                } else {
                    SIGNALING[1]
                });
                assert!(udp.send(b"secret").is_err(), "after a crash: {has_crashed}");
                assert!(silent(&wire), "in the tunnel's name, after a crash: {has_crashed}");
                let ended = tcp.take_error().unwrap().expect("it goes on");
                assert_eq!(ended.kind(), ErrorKind::ConnectionAborted, "after a crash: {has_crashed}");
            }
            let wire = world.listen(SIGNALING[1]);
            send(None, 0, SIGNALING[1]).unwrap();
            assert!(arrived(&wire), "the control: others are reached");
        }
    });
}

/// IPv6 sockets keep the route that they have found for longer than others.
#[test]
fn a_connected_socket_follows_whatever_is_added() {
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        let before = [closed("192.0.2.0/24"), closed("2001:db8:2::/48")];
        let mut routes = Routes::apply(state, settings(), &wanted(before.to_vec())).await.unwrap();
        let connected = |destination: &str| {
            let any = if ip(destination).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect((ip(destination), 5060)).unwrap();
            let wire = world.listen(destination);
            socket.send(b"before").unwrap();
            assert!(arrived(&wire), "the control: {destination} is reached");
            (socket, wire)
        };
        let assert_gone = |(socket, wire): (UdpSocket, UdpSocket), when: &str| {
            for _ in 0..3 {
                let _refused = socket.send(b"after");
            }
            assert!(silent(&wire), "to {} in the clear {when}", wire.local_addr().unwrap());
        };

        let old = SIGNALING.map(connected);
        routes.update(&wanted(captured())).await.unwrap();
        old.into_iter().for_each(|old| assert_gone(old, "after an update"));

        let traffic = Traffic { udp: vec![5060..=5060], ..Traffic::default() };
        let learned = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| ip(address)).collect();
            [LearnedSet { set: "signaling".to_owned(), addresses, traffic: traffic.clone() }]
        };
        routes.learn(&learned(&["192.0.2.7", "2001:db8:2::7"])).await.unwrap();
        let old = UNRELATED.map(connected);
        routes.learn(&learned(&["192.0.2.7", "2001:db8:2::7", UNRELATED[0], UNRELATED[1]])).await.unwrap();
        old.into_iter().for_each(|old| assert_gone(old, "after it was learned"));

        let mut watch = Watch::new().unwrap();
        watch.ignore(routes.netlink());
        for family in ["-4", "-6"] {
            run(["ip", family, "route", "flush", "table", "51821"]);
        }
        let old = SIGNALING.map(connected);
        watch.changed().await.unwrap();
        routes.repair().await.unwrap();
        old.into_iter().for_each(|old| assert_gone(old, "after the routes were put back"));
        assert_eq!(
            routes.repair().await.unwrap(),
            [""; 0],
            "nothing is left of what made sockets look again"
        );
    });
}

#[test]
fn a_removed_rule_is_back_at_once_whatever_else_cannot_be() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        let mut routes = world.apply().await;
        let mut watch = Watch::new().unwrap();
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{TUN}/disable_ipv6"), "1").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        watch.changed().await.unwrap();
        routes.repair().await.unwrap_err();

        for family in ["-4", "-6"] {
            run(["ip", family, "rule", "del", "priority", &PRIORITY_CAPTURED.to_string()]);
            run(["ip", family, "route", "flush", "table", "51821"]);
        }
        watch.changed().await.unwrap();
        routes.repair().await.unwrap_err();
        for destination in SIGNALING {
            let wire = world.listen(destination);
            let _refused = send(None, 0, destination);
            assert!(silent(&wire), "{destination} was sent in the clear");
        }
        tun.close().await;
    });
}

/// As wg-quick does for all addresses: without preferences, and the second one is to be asked first.
#[test]
fn our_rules_move_ahead_of_others_which_keep_their_order() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        let own = [TUN_V4, TUN_V6].map(ip);
        let mut watch = Watch::new().unwrap();
        watch.ignore(routes.netlink());
        let priorities = |family: &str, what: &str| -> Vec<u32> {
            let rules = run(["ip", family, "rule"]);
            let found = rules.lines().filter(|line| line.contains(what));
            found.map(|line| line.split_once(':').unwrap().0.parse().unwrap()).collect()
        };
        let whole = "not fwmark 51820 table 51820";
        let near = "table main suppress_prefixlength 0";
        for (family, via) in [("-4", "192.168.7.1"), ("-6", "fd07::1")] {
            run(["ip", family, "route", "add", "default", "via", via, "table", "51820"]);
        }
        for rule in [whole, near] {
            for family in ["-4", "-6"] {
                ip_rule(family, "add", rule);
            }
            watch.changed().await.unwrap();
            let repaired = routes.repair().await.unwrap();
            assert!(repaired.iter().any(|what| what.contains("place ahead of")), "{repaired:?}");
            assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        }
        for family in ["-4", "-6"] {
            let ours = priorities(family, "proto 181");
            let (whole, near) = (priorities(family, "lookup 51820"), priorities(family, "suppress_prefix"));
            assert!(ours.iter().all(|ours| *ours > 0 && *ours < near[0]), "{ours:?} {near:?}");
            assert!(near[0] < whole[0], "{near:?} {whole:?}");
        }
        assert_eq!(routes.ahead(), [""; 0]);
        tun.entered();
        for (source, destination) in own.into_iter().zip(SIGNALING) {
            let wire = world.listen(destination);
            send(None, 0, destination).unwrap();
            assert!(silent(&wire), "{destination} went the others' way");
            assert_eq!(tun.entered(), [(source, ip(destination))]);
        }

        // What is learned stands with the rest.
        let traffic = Traffic { udp: vec![5060..=5060], ..Traffic::default() };
        let addresses = UNRELATED.map(ip).to_vec();
        routes.learn(&[LearnedSet { set: "signaling".to_owned(), addresses, traffic }]).await.unwrap();
        for (source, destination) in own.into_iter().zip(UNRELATED) {
            send(None, 0, destination).unwrap();
            assert_eq!(tun.entered(), [(source, ip(destination))]);
        }
        routes.learn(&[]).await.unwrap();

        // When the others are gone, all is as it was.
        for family in ["-4", "-6"] {
            ip_rule(family, "del", whole);
            ip_rule(family, "del", near);
            run(["ip", family, "route", "flush", "table", "51820"]);
        }
        watch.changed().await.unwrap();
        assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        assert_eq!(priorities("-4", "proto 181"), [PRIORITY_CAPTURED, PRIORITY_SOURCE]);
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn rules_that_ours_cannot_move_ahead_of_are_told() {
    in_namespace(async || {
        let world = World::new().await;
        ip_rule("-4", "add", "priority 0 uidrange 7-7 protocol static lookup main");
        let tun = Tun::open();
        let mut routes = world.apply().await;
        assert_eq!(routes.ahead(), ["0: from all uidrange 7-7 lookup 254 proto static"]);
        ip_rule("-6", "add", "priority 1 goto 32766");
        assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        assert_eq!(routes.ahead().len(), 2, "{:?}", routes.ahead());
        ip_rule("-4", "del", "priority 0 uidrange 7-7 protocol static lookup main");
        ip_rule("-6", "del", "priority 1 goto 32766");
        // No packet to another machine goes by these.
        ip_rule("-4", "add", "priority 1 nop");
        ip_rule("-4", "add", "priority 1 iif wan0 lookup local");
        routes.repair().await.unwrap();
        assert_eq!(routes.ahead(), [""; 0]);
        drop(routes);
        tun.close().await;
    });
}

#[test]
fn our_rules_stay_ahead_of_others_whatever_becomes_of_the_local_table() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        let mut routes = world.apply().await;
        ip_rule("-4", "add", "priority 50 lookup 51820");
        routes.repair().await.unwrap();
        let rules = run(["ip", "rule"]);
        for family in ["-4", "-6"] {
            ip_rule(family, "add", "priority 100 lookup local");
        }
        assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        assert_eq!(routes.ahead(), [""; 0]);
        for family in ["-4", "-6"] {
            ip_rule(family, "del", "priority 0 lookup local");
        }
        assert_eq!(routes.repair().await.unwrap(), [""; 0]);
        assert_eq!(routes.ahead(), [""; 0]);
        let ours = |rules: &str| -> Vec<String> {
            rules.lines().filter(|rule| rule.contains("proto 181")).map(str::to_owned).collect()
        };
        assert_eq!(ours(&run(["ip", "rule"])), ours(&rules));
        tun.close().await;
    });
}

/// As where Cilium runs.
#[test]
fn our_rules_stay_behind_a_local_table_that_was_moved() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        for family in ["-4", "-6"] {
            ip_rule(family, "add", "priority 100 lookup local");
            ip_rule(family, "del", "priority 0 lookup local");
        }
        let _routes = world.apply().await;
        assert!(run(["ip", "rule"]).contains("105:\tnot from all fwmark"), "{}", run(["ip", "rule"]));
        // What answers on the TUN's address answers here.
        let server = UdpSocket::bind((ip(TUN_V4), 5060)).unwrap();
        let client = UdpSocket::bind("192.168.7.2:0").unwrap();
        tun.entered();
        server.send_to(b"answer", client.local_addr().unwrap()).unwrap();
        assert!(arrived(&client));
        assert_eq!(tun.entered(), []);
    });
}

#[test]
fn what_an_older_version_left_elsewhere_is_taken_over() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let netlink = Netlink::new().unwrap();
        let old = |family| Rule {
            mark: Some(MARK),
            invert: true,
            protocol: routes::PROTOCOL,
            ..Rule::new(family, 5180, routes::TABLE_CAPTURED)
        };
        for family in [Family::V4, Family::V6] {
            netlink.add_rule(&old(family)).await.unwrap();
        }
        let tun = Tun::open();
        let routes = world.apply().await;
        assert!(routes.took_over());
        let ours: Vec<_> = netlink.rules().await.unwrap();
        assert!(!ours.iter().any(|rule| rule.priority == 5180), "{ours:?}");
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

fn ip_rule(family: &str, what: &str, rule: &str) {
    let output = Command::new("ip").args([family, "rule", what]).args(rule.split(' ')).output().unwrap();
    assert!(output.status.success(), "{what} {rule}: {output:?}");
}

#[test]
fn a_change_is_told_at_once_and_none_is_lost() {
    in_namespace(async || {
        let netlink = Netlink::new().unwrap();
        let mut watch = Watch::new().unwrap();
        netlink.add_veth("dock0", "dock1", None).await.unwrap();
        watch.changed().await.unwrap();
        let dock = netlink.link_index("dock0").await.unwrap();
        netlink.set_mtu(dock, 1400).await.unwrap();
        // On a slow machine one of these waits may be long enough; the others are cancelled.
        for _ in 0..5 {
            if tokio::time::timeout(Duration::from_millis(1), watch.changed()).await.is_ok() {
                return;
            }
        }
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
    });
}

#[test]
fn what_a_crash_left_is_known_as_such() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        let first = world.apply().await;
        assert!(!first.took_over());
        drop(first);
        let second = world.apply().await;
        assert!(second.took_over());
        second.teardown().await.unwrap();
        assert!(!world.apply().await.took_over());
        tun.close().await;
    });
}

#[test]
fn another_namespaces_leftovers_are_let_be_and_named() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let tun = Tun::open();
        drop(world.apply().await);
        tun.close().await;
        let noted = || std::fs::read_to_string(world.state.path().join("undo.json")).unwrap();
        let journal = noted();
        let namespace = |path: &str| std::fs::read_link(path).unwrap().display().to_string();
        let own = namespace("/proc/thread-self/ns/net");
        let (refused, there) = world.neighbour.enter(|| {
            let refused = State::open(world.state.path()).unwrap_err();
            (refused.to_string(), namespace("/proc/thread-self/ns/net"))
        });
        assert!(refused.contains(&format!("{own}, and this is {there}: run it there")), "{refused}");
        assert_eq!(noted(), journal);
        clean(world.state.path()).await.unwrap();
        assert_eq!(settled_snapshot(), before);

        // Nobody is in a namespace of that name any more, as after a container's restart.
        std::fs::write(world.state.path().join("undo.json"), journal.replace(&own, "net:[1]")).unwrap();
        assert_eq!(Leftovers::look(world.state.path()).unwrap().undo, []);
        // An older version did not note it.
        let unnamed = journal.replace(&format!("\"namespace\":\"{own}\","), "");
        assert_ne!(unnamed, journal);
        std::fs::write(world.state.path().join("undo.json"), unnamed).unwrap();
        assert_eq!(Leftovers::look(world.state.path()).unwrap().undo.len(), 2);
    });
}

#[test]
fn an_interface_that_appears_later_is_made_loose_and_put_back() {
    in_namespace(async || {
        let world = World::new().await;
        set_rp_filter("default", 1);
        let tun = Tun::open();
        assert_eq!(rp_filter(TUN), "1");
        let mut routes = world.apply().await;
        assert_eq!(rp_filter(TUN), "2");

        let mut watch = Watch::new().unwrap();
        Netlink::new().unwrap().add_veth("dock0", "dock1", None).await.unwrap();
        assert_eq!(rp_filter("dock0"), "1");
        watch.changed().await.unwrap();
        let repaired = routes.repair().await.unwrap();
        assert!(repaired.iter().any(|what| what.contains("dock0")), "{repaired:?}");
        assert_eq!((rp_filter("dock0"), rp_filter("dock1")), ("2".into(), "2".into()));

        // As udev does.
        run(["ip", "link", "set", "dock0", "name", "enx0"]);
        watch.changed().await.unwrap();
        routes.repair().await.unwrap();
        // Set by somebody else meanwhile: theirs to keep.
        set_rp_filter("dock1", 0);
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!((rp_filter("enx0"), rp_filter("dock1")), ("1".into(), "0".into()));
    });
}

#[test]
fn another_interface_with_the_index_of_one_that_was_made_loose_keeps_its_value() {
    in_namespace(async || {
        let world = World::new().await;
        let netlink = Netlink::new().unwrap();
        netlink.add_veth("dock0", "dock1", None).await.unwrap();
        set_rp_filter("dock0", 1);
        let tun = Tun::open();
        drop(world.apply().await);
        tun.close().await;
        assert_eq!(rp_filter("dock0"), "2");

        let index = netlink.link_index("dock0").await.unwrap().to_string();
        run(["ip", "link", "del", "dock0"]);
        run(["ip", "link", "add", "other0", "index", &index, "type", "veth", "peer", "name", "other1"]);
        set_rp_filter("other0", 2);
        assert_eq!(clean(world.state.path()).await.unwrap().sysctls, 0);
        assert_eq!(rp_filter("other0"), "2");
    });
}

#[test]
fn it_is_up_where_kernel_settings_can_only_be_read() {
    in_namespace(async || {
        let world = World::new().await;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        run(["mount", "--make-rprivate", "/"]);
        run(["mount", "--bind", "/proc/sys", "/proc/sys"]);
        run(["mount", "-o", "remount,bind,ro", "/proc/sys"]);
        let refused = std::fs::write("/proc/sys/net/ipv6/conf/wan0/disable_ipv6", "0").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "the control");

        let mut tun = Tun::open();
        let routes = world.apply().await;
        let own = run(["ip", "-6", "address", "show", "dev", TUN, "scope", "link"]);
        assert_eq!(own, "", "it has an address that nobody gave it");
        tun.entered();
        send(None, 0, SIGNALING[1]).unwrap();
        assert_eq!(tun.entered(), [(ip(TUN_V6), ip(SIGNALING[1]))]);
        routes.teardown().await.unwrap();
    });
}

#[test]
fn a_reload_leaves_no_gap() {
    in_namespace(async || {
        let world = World::new().await;
        let mut tun = Tun::open();
        let mut routes = world.apply().await;
        let wire = world.listen(SIGNALING[0]);
        let halves = vec![closed("203.0.113.0/25"), closed("203.0.113.128/25"), closed("198.51.100.0/24")];
        let direct = vec![Captured { prefix: net("203.0.113.0/24"), fail: Fail::Direct }];
        let sets = [halves, direct, captured()];

        tun.entered();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mine = File::open("/proc/thread-self/ns/net").unwrap();
        let sender = tokio::task::spawn_blocking(move || {
            setns(&mine, CloneFlags::CLONE_NEWNET).unwrap();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                send(None, 0, SIGNALING[0]).expect("refused during a reload");
                sent += 1;
            }
            sent
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        for set in sets.iter().cycle().take(60) {
            routes.update(&wanted(set.clone())).await.unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(sender.await.unwrap() > 100);
        assert!(silent(&wire), "signaling left in the clear during a reload");
    });
}

#[test]
fn a_reload_that_fails_changes_nothing() {
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let mut routes = world.apply().await;
        let before = settled_snapshot();

        let foreign =
            Route { table: routes::TABLE_LEARNED, kind: Kind::Blackhole, ..Route::new(net("9.9.9.0/24")) };
        let netlink = Netlink::new().unwrap();
        netlink.add_route(&foreign).await.unwrap();
        let traffic = Traffic { udp: vec![5060..=5060], ..Traffic::default() };
        let addresses = vec![ip(UNRELATED[0])];
        let learned = vec![LearnedSet { set: "signaling".to_owned(), addresses, traffic }];
        let other = Wanted { learned, ..wanted(vec![closed("10.0.0.0/8")]) };
        let refused = routes.update(&other).await.unwrap_err();
        assert!(matches!(refused, Error::TableTaken { table: 51900, .. }), "{refused}");
        assert!(refused.to_string().contains("blackhole 9.9.9.0/24"), "{refused}");
        netlink.delete_route(&foreign).await.unwrap();
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn an_apply_that_fails_leaves_the_machine_as_it_was() {
    in_namespace(async || {
        let world = World::new().await;
        set_rp_filter("wan0", 1);
        let before = settled_snapshot();
        let tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        // No TUN takes an MTU of 70000.
        let refused =
            Routes::apply(state, routes::Settings { mtu: 70_000, ..settings() }, &wanted(captured())).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("set the MTU 70000"), "{refused}");
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
        assert!(!world.state.path().join("undo.json").exists());
    });
}

#[test]
fn the_underlay_is_what_marked_packets_see() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        let routes = world.apply().await;
        let netlink = Netlink::new().unwrap();
        run(["ip", "route", "add", UNRELATED[0], "via", "192.168.7.1", "mtu", "1400"]);

        let gateways = [Some(ip(UNRELATED[0])), None, Some(ip("192.168.7.1"))];
        let found = underlay(&netlink, MARK, &gateways, Some(routes.tun())).await.unwrap();
        let [Some(gateway), None, Some(neighbour)] = found.gateways.as_slice() else {
            panic!("a leg for each that is known: {:?}", found.gateways)
        };
        assert_eq!((neighbour.via, neighbour.mtu), (None, 1500));
        assert_eq!((gateway.source, gateway.mtu), (ip("192.168.7.2"), 1400));
        assert_eq!((gateway.device.as_str(), gateway.via), ("wan0", Some(ip("192.168.7.1"))));
        assert_eq!(found.v4.as_ref().map(|leg| (leg.source, leg.mtu)), Some((ip("192.168.7.2"), 1500)));
        assert_eq!(found.v6.as_ref().map(|leg| leg.source), Some(ip("fd07::2")));
        let mut addresses: Vec<_> = found.addresses.iter().map(|address| address.net).collect();
        addresses.sort();
        assert_eq!(addresses, [net("192.168.7.2/24"), net("fd07::2/64")]);

        // Even an endpoint inside a captured prefix is looked up with the mark.
        let captured_endpoint =
            underlay(&netlink, MARK, &[Some(ip(SIGNALING[0]))], Some(routes.tun())).await.unwrap();
        assert_eq!(captured_endpoint.gateways[0].as_ref().unwrap().device, "wan0");

        let sets = [closed("192.168.0.0/16"), closed("198.51.100.0/24"), closed("10.0.0.0/8")];
        assert_eq!(
            conflicts(&sets, &[ip("192.0.2.7"), ip(UNRELATED[0])], &found),
            [
                Conflict::Endpoint { endpoint: ip(UNRELATED[0]), prefix: net("198.51.100.0/24") },
                Conflict::Network {
                    network: net("192.168.7.0/24"),
                    device: "wan0".into(),
                    prefix: net("192.168.0.0/16"),
                },
            ]
        );

        let wan = netlink.link_index("wan0").await.unwrap();
        netlink.set_down(wan).await.unwrap();
        let found = underlay(&netlink, MARK, &gateways, Some(routes.tun())).await.unwrap();
        assert_eq!(found.gateways, [None, None, None]);
        assert_eq!((found.v4, found.v6, found.addresses), (None, None, vec![]));
        tun.close().await;
    });
}

#[test]
fn an_interface_leads_out_by_a_route_of_its_own_preferred_or_not() {
    in_namespace(async || {
        let _world = World::new().await;
        let netlink = Netlink::new().unwrap();
        for (near, far, host) in [("wlan0", "ap0", 8), ("bridge0", "guest0", 9)] {
            netlink.add_veth(near, far, None).await.unwrap();
            for link in [near, far] {
                let link = netlink.link_index(link).await.unwrap();
                netlink.set_up(link).await.unwrap();
            }
            run(["ip", "address", "add", &format!("192.168.{host}.2/24"), "dev", near]);
            run(["ip", "address", "add", &format!("fd0{host}::2/64"), "dev", near, "nodad"]);
        }
        run(["ip", "route", "add", "default", "via", "192.168.8.1", "metric", "600"]);
        run(["ip", "route", "add", "default", "via", "fd08::1", "metric", "2000"]);
        settle_addresses();
        let leading_out = async || {
            let found = underlay(&netlink, MARK, &[], None).await.unwrap();
            assert_eq!(found.v4.map(|leg| leg.device).as_deref(), Some("wan0"));
            let out = found.addresses.into_iter().filter(|address| address.leads_out);
            let mut out: Vec<_> = out.map(|address| (address.device, address.net.addr().is_ipv4())).collect();
            out.sort();
            out
        };
        let both = |device: &str| [(device.to_owned(), false), (device.to_owned(), true)];
        assert_eq!(leading_out().await, [both("wan0"), both("wlan0")].concat());
        // Its carrier is gone.
        let access_point = netlink.link_index("ap0").await.unwrap();
        netlink.set_down(access_point).await.unwrap();
        while netlink.link(netlink.link_index("wlan0").await.unwrap()).await.unwrap().running {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(leading_out().await, both("wan0"));
    });
}

#[test]
fn a_missing_tun_is_named() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let state = State::open(world.state.path()).unwrap();
        let refused = Routes::apply(state, settings(), &wanted(captured())).await.unwrap_err();
        assert!(matches!(&refused, Error::TunGone(name) if name == TUN), "{refused}");
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn a_machine_whose_ipv6_is_switched_off_is_served_all_the_same() {
    in_namespace(async || {
        let world = World::new().await;
        for scope in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
        let before = settled_snapshot();
        let mut tun = Tun::open();
        let routes = world.apply().await;
        tun.entered();
        for (source, destination) in [(TUN_V4, SIGNALING[0]), (TUN_V6, SIGNALING[1])] {
            send(None, 0, destination).unwrap();
            assert_eq!(tun.entered(), [(ip(source), ip(destination))]);
        }
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn the_daemon_may_spawn_all_of_it() {
    fn sent(_: impl Future<Output = Result<(), Error>> + Send) {}
    sent(async {
        let netlink = Netlink::new()?;
        underlay(&netlink, MARK, &[Some(ip(UNRELATED[0]))], None).await?;
        let state = State::open(std::path::Path::new("/nowhere"))?;
        let mut routes = Routes::apply(state, settings(), &wanted(captured())).await?;
        Watch::new()?.changed().await?;
        routes.repair().await?;
        routes.update(&wanted(vec![])).await?;
        routes.teardown().await
    });
}

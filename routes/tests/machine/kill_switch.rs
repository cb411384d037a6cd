//! The kill switch in real network namespaces: what leaves, and who may take it away.

use std::{
    fs::File,
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use nix::sys::socket::{NetlinkAddr, getsockname, setsockopt, sockopt};
use policy::{Guarded, LearnedSet, Traffic};
use routes::{KILL_SWITCH, Leftovers, Routes, Settings, State, Undo, Wanted, connections, nft, open_up};

use crate::common::{
    clean, has, in_namespace, run, skip,
    world::{
        MARK, MEDIA, SIGNALING, TUN, Tun, UNRELATED, World, arrived, captured, closed, ip, send,
        send_from_device, settings, settled_snapshot, silent, wanted,
    },
};

/// 5060 alone, over TCP and UDP, of what fails closed.
fn guarded() -> Vec<Guarded> {
    let v4 = |from: &str, to: &str| from.parse().unwrap()..=to.parse().unwrap();
    let v6 = |from: &str, to: &str| from.parse().unwrap()..=to.parse().unwrap();
    vec![Guarded {
        v4: vec![v4("203.0.113.0", "203.0.113.63"), v4("203.0.113.128", "203.0.113.255")],
        v6: vec![v6("2001:db8:113::", "2001:db8:113:6:ffff:ffff:ffff:ffff")],
        traffic: Traffic { tcp: vec![5060..=5060], udp: vec![5060..=5060], ..Traffic::default() },
    }]
}

fn with_kill_switch() -> Wanted {
    Wanted { kill_switch: Some(guarded()), ..wanted(captured()) }
}

fn assert_shut(world: &World) {
    for destination in SIGNALING {
        let wire = world.listen(destination);
        let refused = send_from_device(0, destination, 5060).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{destination}: {refused}");
        assert!(silent(&wire), "{destination} was reached");
        send_from_device(MARK, destination, 5060).unwrap();
        assert!(arrived(&wire), "a marked packet to {destination} stayed here");
        // Beside the tunnel's ports it is none of its business.
        send_from_device(0, destination, 5062).unwrap();
    }
    for destination in [MEDIA, UNRELATED].concat() {
        let wire = world.listen(destination);
        send_from_device(0, destination, 5060).unwrap();
        assert!(arrived(&wire), "{destination}");
    }
}

#[test]
fn it_keeps_what_is_bound_to_a_device_off_the_wire_and_outlives_the_process() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        for destination in SIGNALING {
            let wire = world.listen(destination);
            send_from_device(0, destination, 5060).unwrap();
            assert!(arrived(&wire), "the control: without it {destination} is reached");
        }

        let tun = Tun::open();
        let routes = world.start(&with_kill_switch()).await;
        assert_eq!(routes.kill_switch().unwrap().ranges, 3);
        assert_shut(&world);
        drop(routes);
        tun.close().await;
        assert_shut(&world);

        // The next run takes it over, with another TUN, and removes it in the end.
        let mut tun = Tun::open();
        let routes = world.start(&with_kill_switch()).await;
        assert!(routes.took_over());
        assert_shut(&world);
        tun.entered();
        send(None, 0, SIGNALING[0]).unwrap();
        assert_eq!(tun.entered().len(), 1, "what is routed into the TUN passes");
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn a_later_interface_with_the_dead_tuns_index_or_name_does_not_pass() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        let routes = world.start(&with_kill_switch()).await;
        let index = routes.tun().to_string();
        drop(routes);
        tun.close().await;
        let send_by = |device: &str| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            setsockopt(&socket, sockopt::BindToDevice, &device.into()).unwrap();
            socket.send_to(b"OPTIONS", (SIGNALING[0], 5060))
        };
        for (name, index) in [("wlan9", index.as_str()), (TUN, "4711")] {
            run(["ip", "link", "add", name, "index", index, "type", "veth", "peer", "name", "ap9"]);
            run(["ip", "link", "set", name, "up"]);
            run(["ip", "address", "add", "192.168.9.2/24", "dev", name]);
            let refused = send_by(name).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{name} with index {index}: {refused}");
            assert!(nft::remove(KILL_SWITCH).unwrap());
            send_by(name).expect("the control: it is the kill switch that refuses");
            run(["ip", "link", "del", name]);
            let tun = Tun::open();
            drop(world.start(&with_kill_switch()).await);
            tun.close().await;
        }
    });
}

#[test]
fn a_machine_whose_own_address_is_signalings_keeps_all_else() {
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let own = Guarded { v4: vec![ip4("192.168.0.0")..=ip4("192.168.255.255")], ..guarded().remove(0) };
        let wanted = Wanted { kill_switch: Some(vec![own]), ..wanted(captured()) };
        let routes = world.start(&wanted).await;
        assert!(send_from_device(0, "192.168.7.1", 5060).is_err(), "the control: it keeps that network in");

        let wire = world.listen(UNRELATED[0]);
        send(None, 0, UNRELATED[0]).unwrap();
        assert!(arrived(&wire), "datagrams to elsewhere");
        let server = world.neighbour.enter(|| TcpListener::bind((ip(UNRELATED[0]), 7000)).unwrap());
        TcpStream::connect(server.local_addr().unwrap()).expect("connections to elsewhere");
        // The neighbour is told at once that nobody listens: that reset is this machine's own.
        let refused = world.neighbour.enter(|| {
            TcpStream::connect_timeout(&SocketAddr::new(ip("192.168.7.2"), 7001), Duration::from_secs(3))
        });
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        routes.teardown().await.unwrap();
    });
}

#[test]
fn a_dead_runs_kill_switch_goes_when_the_next_run_has_none() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let tun = Tun::open();
        drop(world.start(&with_kill_switch()).await);
        let routes = world.apply().await;
        assert!(routes.took_over() && routes.kill_switch().is_none());
        assert!(!nft::exists(KILL_SWITCH).unwrap());
        drop(routes);
        tun.close().await;

        let tun = Tun::open();
        drop(world.start(&with_kill_switch()).await);
        tun.close().await;
        let cleaned = clean(world.state.path()).await.unwrap();
        assert!(cleaned.kill_switch && cleaned.rules == 4, "{cleaned:?}");
        assert_eq!(settled_snapshot(), before);
    });
}

/// What a crash kept closed and what the next run wants are both closed until that has started, whichever has a kill switch.
#[test]
fn a_start_that_fails_opens_nothing_of_a_dead_runs() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let elsewhere = Wanted { kill_switch: None, ..wanted(vec![closed("198.51.100.0/24")]) };
        let elsewhere_in_firewall = Wanted {
            kill_switch: Some(vec![Guarded {
                v4: vec![ip4(UNRELATED[0])..=ip4(UNRELATED[0])],
                ..everything()
            }]),
            ..elsewhere.clone()
        };
        for next in [&elsewhere, &elsewhere_in_firewall] {
            let tun = Tun::open();
            drop(world.start(&with_kill_switch()).await);
            tun.close().await;

            let tun = Tun::open();
            for _ in 0..2 {
                let state = State::open(world.state.path()).unwrap();
                let routes = Routes::apply(state, settings(), next).await.unwrap();
                assert!(routes.took_over());
                assert_signaling_refused(&world);
                drop(routes);
            }
            tun.close().await;
            assert_signaling_refused(&world);
            send(None, 0, UNRELATED[0]).unwrap_err();
            let bound = send_from_device(0, UNRELATED[0], 5060);
            assert_eq!(bound.is_err(), next.kill_switch.is_some());

            let tun = Tun::open();
            let routes = world.start(next).await;
            for destination in SIGNALING {
                let wire = world.listen(destination);
                send(None, 0, destination).unwrap();
                send_from_device(0, destination, 5060).unwrap();
                assert!(arrived(&wire), "{destination} is this run's no more");
            }
            let bound = send_from_device(0, UNRELATED[0], 5060);
            assert_eq!(bound.is_err(), next.kill_switch.is_some());
            routes.teardown().await.unwrap();
            tun.close().await;
            assert_eq!(settled_snapshot(), before);
        }
    });
}

/// Nothing says what the dead run had done.
#[test]
fn a_start_that_fails_opens_nothing_whose_journal_is_lost() {
    in_namespace(async || {
        let world = World::new().await;
        let tun = Tun::open();
        drop(world.start(&with_kill_switch()).await);
        tun.close().await;
        let kept = settled_snapshot();
        std::fs::remove_file(world.state.path().join("undo.json")).unwrap();

        let tun = Tun::open();
        let state = State::open(world.state.path()).unwrap();
        let settings = Settings { mtu: u32::MAX, ..settings() };
        let other =
            Wanted { kill_switch: Some(vec![everything()]), ..wanted(vec![closed("198.51.100.0/24")]) };
        Routes::apply(state, settings, &other).await.unwrap_err();
        tun.close().await;
        assert_eq!(settled_snapshot(), kept);
        assert_signaling_refused(&world);
        let undo = Leftovers::look(world.state.path()).unwrap().undo;
        assert!(undo.contains(&Undo::Routing), "{undo:?}");
    });
}

/// Routed, and bound to a device.
fn assert_signaling_refused(world: &World) {
    for destination in SIGNALING {
        let wire = world.listen(destination);
        send(None, 0, destination).unwrap_err();
        send_from_device(0, destination, 5060).unwrap_err();
        assert!(silent(&wire), "{destination} was reached");
    }
}

#[test]
fn a_reload_swaps_it_raises_it_and_removes_it_and_one_that_fails_does_neither() {
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let mut routes = world.apply().await;
        routes.update(&with_kill_switch()).await.unwrap();
        assert_shut(&world);

        let wider = Wanted {
            kill_switch: Some(vec![Guarded {
                v4: vec![ip4(UNRELATED[0])..=ip4(UNRELATED[0])],
                ..everything()
            }]),
            ..wanted(captured())
        };
        routes.update(&wider).await.unwrap();
        send_from_device(0, UNRELATED[0], 7).unwrap_err();
        send_from_device(0, SIGNALING[0], 5060).unwrap();

        let impossible = |wanted| {
            let traffic = Traffic { udp: vec![5060..=5060], ..Traffic::default() };
            let set = LearnedSet { set: "signaling".to_owned(), addresses: Vec::new(), traffic };
            Wanted { learned: vec![set], ..wanted }
        };
        run(["ip", "route", "add", "blackhole", "9.9.9.0/24", "table", "51900"]);
        routes.update(&impossible(with_kill_switch())).await.unwrap_err();
        send_from_device(0, UNRELATED[0], 7).unwrap_err();
        send_from_device(0, SIGNALING[0], 5060).unwrap();
        routes.update(&impossible(wanted(captured()))).await.unwrap_err();
        assert!(nft::exists(KILL_SWITCH).unwrap());
        run(["ip", "route", "del", "blackhole", "9.9.9.0/24", "table", "51900"]);

        routes.update(&wanted(captured())).await.unwrap();
        assert!(!nft::exists(KILL_SWITCH).unwrap());
        routes.teardown().await.unwrap();
    });
}

#[test]
fn a_journal_that_cannot_be_written_keeps_no_reload_from_removing_it() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let tun = Tun::open();
        let mut routes = world.start(&with_kill_switch()).await;
        let in_the_way = world.state.path().join("undo.new");
        std::fs::create_dir(&in_the_way).unwrap();
        routes.update(&wanted(captured())).await.unwrap();
        assert!(!nft::exists(KILL_SWITCH).unwrap());
        send_from_device(0, SIGNALING[0], 5060).unwrap();
        std::fs::remove_dir(in_the_way).unwrap();
        routes.teardown().await.unwrap();
        tun.close().await;
        assert_eq!(settled_snapshot(), before);
    });
}

#[test]
fn whoever_removes_or_changes_it_finds_it_put_back_and_is_named() {
    in_namespace(async || {
        if !has("nft") {
            return;
        }
        let world = World::new().await;
        let _tun = Tun::open();
        let routes = world.start(&with_kill_switch()).await;
        let listed = || run(["nft", "list", "table", "inet", KILL_SWITCH]);
        let whole = listed();
        run(["nft", "add", "table", "inet", "strangers"]);
        let mut put_back = 0;
        for command in [
            "flush ruleset",
            "delete table inet breakout-kill-switch",
            "flush chain inet breakout-kill-switch output",
            "insert rule inet breakout-kill-switch output accept",
            "flush set inet breakout-kill-switch addresses0.v4",
        ] {
            run(["nft", command]);
            put_back += 1;
            tokio::time::timeout(Duration::from_secs(10), async {
                while routes.kill_switch().unwrap().put_back < put_back {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("not put back after `nft {command}`"));
            assert_eq!(listed(), whole, "after `nft {command}`");
            assert_eq!(routes.kill_switch().unwrap().last.unwrap().name, "nft");
        }
        // Other tables are no business of ours, and our own doings no reason to do them again.
        run(["nft", "add", "table", "inet", "strangers"]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(routes.kill_switch().unwrap().put_back, put_back);
        routes.teardown().await.unwrap();
        assert!(!nft::exists(KILL_SWITCH).unwrap());
    });
}

#[test]
fn it_is_watched_again_after_an_error() {
    in_namespace(async || {
        let world = World::new().await;
        let _tun = Tun::open();
        let routes = world.start(&with_kill_switch()).await;
        // The watch has something to read, and then no socket to read it from.
        let (watch, kept) = watching_socket();
        assert!(nft::remove(KILL_SWITCH).unwrap());
        let nowhere = File::open("/dev/null").unwrap();
        // SAFETY: both are open; what is replaced is a socket of this process's, with a copy of it in `kept`.
        assert_eq!(unsafe { libc::dup2(nowhere.as_raw_fd(), watch) }, watch);
        let put_back = async |times| {
            tokio::time::timeout(Duration::from_secs(10), async {
                while routes.kill_switch().unwrap().put_back < times {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("not put back: {:?}", routes.kill_switch()));
        };
        put_back(1).await;
        drop(kept);
        assert!(nft::remove(KILL_SWITCH).unwrap(), "it was put back");
        put_back(2).await;
        assert_eq!(routes.kill_switch().unwrap().missing, None);
        assert_shut(&world);
        routes.teardown().await.unwrap();
    });
}

/// The socket of this namespace's that hears of nftables, and a copy that keeps what it has heard.
fn watching_socket() -> (RawFd, OwnedFd) {
    let mine = UdpSocket::bind("127.0.0.1:0").unwrap();
    let namespace = |fd: RawFd| socket_option::<u64>(fd, libc::SO_NETNS_COOKIE);
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let fd: RawFd = entry.file_name().to_str().unwrap().parse().unwrap();
        let is_watch = socket_option::<i32>(fd, libc::SO_PROTOCOL) == Some(libc::NETLINK_NETFILTER)
            && getsockname::<NetlinkAddr>(fd).is_ok_and(|name| name.groups() != 0)
            && namespace(fd) == namespace(mine.as_raw_fd());
        if is_watch {
            // SAFETY: it is open: it was just asked for its name.
            return (fd, unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().unwrap());
        }
    }
    panic!("nobody hears of nftables");
}

/// `None`: it is no socket.
fn socket_option<T: Copy + Default>(fd: RawFd, option: i32) -> Option<T> {
    let (mut value, mut length) = (T::default(), size_of::<T>() as u32);
    // SAFETY: the kernel writes at most `length` bytes, which is the value's size.
    let got =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut length) };
    (got == 0).then_some(value)
}

#[test]
fn opening_up_needs_neither_lock_nor_journal() {
    in_namespace(async || {
        let world = World::new().await;
        let before = settled_snapshot();
        let tun = Tun::open();
        drop(world.start(&with_kill_switch()).await);
        tun.close().await;
        std::fs::write(world.state.path().join("undo.json"), "{").unwrap();
        clean(world.state.path()).await.unwrap_err();
        let (cleaned, errors) = open_up().await;
        assert!(errors.is_empty(), "{errors:?}");
        assert!(cleaned.kill_switch && cleaned.rules == 4 && cleaned.routes == 6, "{cleaned:?}");
        assert_eq!(settled_snapshot(), before);
        assert_eq!(open_up().await.0, routes::Cleaned::default());
    });
}

#[test]
fn each_change_is_noted_before_it_is_made_and_forgotten_when_it_is_undone() {
    in_namespace(async || {
        let world = World::new().await;
        crate::common::world::set_rp_filter("wan0", 1);
        let noted = || routes::Leftovers::look(world.state.path()).unwrap();
        let tun = Tun::open();
        let routes = world.start(&with_kill_switch()).await;
        let found = noted();
        assert_eq!(found.running, Some(Some(std::process::id() as i32)));
        assert!(
            matches!(
                found.undo.as_slice(),
                [Undo::Table { name }, Undo::Table { .. }, Undo::RpFilter { name: device, was: 1, .. }, Undo::Routing, Undo::Tun { name: tun, .. }]
                    if name == KILL_SWITCH && device == "wan0" && tun == TUN
            ),
            "{found:?}"
        );
        routes.teardown().await.unwrap();
        assert_eq!(noted().undo, []);
        tun.close().await;
    });
}

#[test]
fn old_connections_are_ended_and_others_are_not() {
    in_namespace(async || {
        let world = World::new().await;
        let listen =
            |address: &str| world.neighbour.enter(|| TcpListener::bind((ip(address), 5060)).unwrap());
        let servers = [SIGNALING[0], SIGNALING[1], UNRELATED[0]].map(listen);
        let mut old =
            servers.each_ref().map(|server| TcpStream::connect(server.local_addr().unwrap()).unwrap());
        let mapped: SocketAddr = format!("[::ffff:{}]:5060", SIGNALING[0]).parse().unwrap();
        let mut old_mapped = TcpStream::connect(mapped).unwrap();
        let is_signaling = |connection: &connections::Connection| {
            SIGNALING.contains(&connection.remote.ip().to_string().as_str())
                && connection.remote.port() == 5060
        };
        let ended = match connections::end(is_signaling) {
            Err(connections::Error::Unsupported) => {
                return skip("this kernel cannot end connections");
            }
            ended => ended.unwrap(),
        };
        assert_eq!(ended.len(), 3, "{ended:?}");
        for stream in old[..2].iter_mut().chain([&mut old_mapped]) {
            let error = std::io::Read::read(stream, &mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        }
        std::io::Write::write_all(&mut old[2], b"still there").unwrap();
        assert_eq!(connections::end(is_signaling).unwrap(), []);

        setsockopt(&old[2], sockopt::Mark, &MARK).unwrap();
        let is_marked = |connection: &connections::Connection| connection.mark == Some(MARK);
        assert_eq!(connections::end(is_marked).unwrap().len(), 1);
    });
}

#[test]
fn connected_udp_sockets_are_ended_and_others_are_not() {
    in_namespace(async || {
        let _world = World::new().await;
        let socket = |to: &str| {
            let to: SocketAddr = to.parse().unwrap();
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.connect(to).unwrap();
            socket
        };
        let [v4, v6] = SIGNALING;
        let old = [format!("{v4}:5060"), format!("[{v6}]:5060"), format!("[::ffff:{v4}]:5060")];
        let old = old.each_ref().map(|to| socket(to));
        let others = [socket(&format!("{}:5060", UNRELATED[0])), socket(&format!("{v4}:5062"))];
        let unconnected = UdpSocket::bind("0.0.0.0:5060").unwrap();
        let is_signaling = |connection: &connections::Connection| {
            SIGNALING.contains(&connection.remote.ip().to_string().as_str())
                && connection.remote.port() == 5060
        };
        let ended = match connections::end_udp(is_signaling) {
            Err(connections::Error::Unsupported | connections::Error::UnsupportedUdp) => {
                return skip("this kernel cannot end UDP sockets");
            }
            ended => ended.unwrap(),
        };
        assert_eq!(ended.len(), 3, "{ended:?}");
        for socket in &old {
            assert_eq!(socket.send(b"secret").unwrap_err().raw_os_error(), Some(libc::EDESTADDRREQ));
        }
        for socket in &others {
            socket.send(b"still there").unwrap();
        }
        unconnected.send_to(b"still there", (v4, 5062)).unwrap();
    });
}

/// All traffic, to nobody.
fn everything() -> Guarded {
    let traffic = Traffic { udp: vec![0..=65535], tcp: vec![0..=65535], icmp: true, other: true };
    Guarded { v4: vec![], v6: vec![], traffic }
}

fn ip4(text: &str) -> std::net::Ipv4Addr {
    text.parse().unwrap()
}

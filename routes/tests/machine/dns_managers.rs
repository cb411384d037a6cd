//! Others keep /etc/resolv.conf: resolvconf(8), Debian's and openresolv, and systemd-resolved. The real ones, from Debian's
//! packages, in a mount namespace.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use routes::{
    Leftovers, State, Undo,
    dns::{self, Dns, Mode, Settings},
    netlink::Netlink,
    open_up,
};

use crate::common::{
    clean,
    etc::{
        self, RESOLV_CONF, Server, getent, live_and_die, look, package, plain_lines, replace, servers,
        settings, soon, tear_down, with_own_etc,
    },
    has, open_tun, run,
};

const DHCP: &str = "nameserver 10.0.0.1\nsearch corp.example\noptions edns0\n";
const ALONE: [&str; 3] = ["nameserver 127.51.82.53", "search corp.example", "options edns0"];
/// Far more than there are.
const MANY_STEPS: u64 = 300;
const TUN: &str = "tun0";
const NETWORK: &str = "net0";
/// Longer than it takes to hear of what others have changed.
const QUIET: Duration = Duration::from_millis(500);

#[test]
fn openresolv_gets_an_entry_that_stands_alone() {
    let Some(package) = package("openresolv") else { return };
    with_own_etc(async || {
        install(&package);
        fs::write("/etc/resolvconf.conf", "resolv_conf=/etc/resolv.conf\n").unwrap();
        resolvconf(&["-a", "eth0.dhcp"], DHCP);
        is_kept_by_resolvconf().await;
    });
}

#[test]
fn debians_resolvconf_gets_an_entry_that_stands_alone() {
    let Some(package) = package("resolvconf") else { return };
    with_own_etc(async || {
        install(&package);
        run(["cp", "-a", package.join("etc/resolvconf").to_str().unwrap(), "/etc/"]);
        fs::create_dir_all("/run/resolvconf/interface").unwrap();
        symlink("/run/resolvconf/resolv.conf", RESOLV_CONF).unwrap();
        resolvconf(&["--enable-updates"], "");
        resolvconf(&["-a", "eth0.dhcp"], DHCP);
        is_kept_by_resolvconf().await;
    });
}

/// One that does not put our entry alone is passed over.
#[test]
fn a_resolvconf_that_leads_to_another_resolver_is_passed_over() {
    let Some(package) = package("openresolv") else { return };
    with_own_etc(async || {
        install(&package);
        fs::write("/etc/resolvconf.conf", "resolv_conf=/etc/resolv.conf\nname_servers=127.0.0.1\n").unwrap();
        resolvconf(&["-a", "eth0.dhcp"], DHCP);
        let before = look();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let dns = Dns::set_up(&state, settings()).await.unwrap();
        let report = dns.report();
        assert_eq!(report.mode, Mode::File);
        assert!(
            report.why.contains("resolvconf cannot be used (it does not put its exclusive entry alone)"),
            "{}",
            report.why
        );
        assert_eq!(servers(&dns), ["127.0.0.1:53"]);
        assert!(!resolvconf(&["-l"], "").contains("lo.breakout"));
        assert!(matches!(
            Leftovers::look(directory.path()).unwrap().undo.as_slice(),
            [Undo::ResolvConf { .. }]
        ));
        tear_down(dns, &state).await.unwrap();
        assert_eq!(look(), before);
    });
}

async fn is_kept_by_resolvconf() {
    let before = look();
    let listed = resolvconf(&["-l"], "");
    let as_before = |after: &str| {
        assert_eq!(look(), before, "{after}");
        assert_eq!(resolvconf(&["-l"], ""), listed, "{after}");
        assert_eq!(
            plain_lines(RESOLV_CONF).iter().find(|line| line.starts_with("name")).unwrap(),
            "nameserver 10.0.0.1"
        );
    };
    as_before("the control");
    let directory = tempfile::tempdir().unwrap();
    let state = State::open(directory.path()).unwrap();
    let set_up = async |state: &State| {
        let dns = Dns::set_up(state, settings()).await.unwrap();
        assert_eq!(dns.report().mode, Mode::Resolvconf, "{}", dns.report().why);
        assert_eq!(servers(&dns), ["10.0.0.1:53"]);
        let mut lines = plain_lines(RESOLV_CONF);
        lines.sort();
        lines.dedup();
        let mut alone = ALONE.map(str::to_owned);
        alone.sort();
        assert_eq!(lines, alone);
        dns
    };

    let mut dns = set_up(&state).await;
    assert_eq!(Leftovers::look(directory.path()).unwrap().undo, [Undo::ResolvconfEntry]);
    assert_eq!(dns.repair(&state).await.unwrap(), Vec::<String>::new());
    tear_down(dns, &state).await.unwrap();
    as_before("down");

    // Crashes, and what follows them.
    drop(set_up(&state).await);
    assert_eq!(dns::left_before().await.unwrap(), ["10.0.0.1:53".parse().unwrap()]);
    drop(set_up(&state).await);
    drop(state);
    assert!(clean(directory.path()).await.unwrap().dns);
    as_before("clean");
    let state = State::open(directory.path()).unwrap();
    drop(set_up(&state).await);
    assert!(open_up().await.0.dns);
    as_before("panic-off");

    // Others come, and take ours away.
    let mut dns = set_up(&state).await;
    resolvconf(&["-a", "wlan0.dhcp"], "nameserver 10.0.0.2\n");
    while servers(&dns) != ["10.0.0.1:53", "10.0.0.2:53"] {
        soon(dns.changed()).await;
        dns.repair(&state).await.unwrap();
    }
    resolvconf(&["-d", "wlan0.dhcp"], "");
    resolvconf(&["-d", "lo.breakout"], "");
    let mut repaired = Vec::new();
    while repaired.is_empty() {
        soon(dns.changed()).await;
        repaired = dns.repair(&state).await.unwrap();
    }
    assert_eq!(repaired, ["our entry of resolvconf"]);
    assert_eq!(servers(&dns), ["10.0.0.1:53"]);
    tear_down(dns, &state).await.unwrap();
    drop(state);
    as_before("others");

    let mut deaths = 0;
    for step in 1..MANY_STEPS {
        let directory = tempfile::tempdir().unwrap();
        let status = live_and_die("dns_managers::life", directory.path(), step);
        let state = directory.path().join("state");
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(libc::SIGKILL), "step {step}");
        deaths = step;
        if step % 2 == 0 {
            clean(&state).await.unwrap();
        } else {
            let state = State::open(&state).unwrap();
            let dns = set_up(&state).await;
            tear_down(dns, &state).await.unwrap();
        }
        as_before(&format!("step {step}"));
        assert_eq!(Leftovers::look(&state).unwrap().undo, [], "step {step}");
    }
    assert!((8..MANY_STEPS - 1).contains(&deaths), "{deaths} steps: not all are there, or they have no end");
    println!("died at each of {deaths} steps");
}

#[test]
fn life() {
    etc::live(async |_, _, _| {});
}

#[test]
fn systemd_resolved_asks_us_for_the_policys_domains_only() {
    let Some(package) = systemd_resolved() else { return };
    with_own_etc(async || {
        let mut resolved = Resolved::start(&package);
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        let before = look();
        let (theirs, ours) = (Server::new([10, 0, 0, 1].into()), Server::breakouts());
        let goes = |name: &str, to_us: bool| {
            let answer = getent(name);
            let expected = if to_us { "127.51.82.53 " } else { "10.0.0.1 " };
            assert!(answer.starts_with(expected), "{name}: {answer}");
            assert_eq!((theirs.was_asked_for(name), ours.was_asked_for(name)), (!to_us, to_us), "{name}");
        };
        goes("control.mypurecloud.com", false);

        let settings = resolved.settings().await;
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let mut dns = Dns::set_up(&state, settings.clone()).await.unwrap();
        let report = dns.report();
        assert_eq!(report.mode, Mode::Resolved, "{}", report.why);
        assert_eq!(servers(&dns), ["10.0.0.1:53"]);
        assert_eq!(look(), before);
        assert_eq!(Leftovers::look(directory.path()).unwrap().undo, [Undo::DnsLink]);
        goes("api.mypurecloud.com", true);
        goes("mypurecloud.com", true);
        goes("api.mypurecloud.com.example", false);
        // So that what the C library makes of it when it has no answer comes here too.
        assert_eq!(dns.search(), ["corp.example"]);
        goes("api.mypurecloud.com.corp.example", true);
        goes("intranet.corp.example", false);
        // What it was answered before is not told any more.
        assert!(getent("control.mypurecloud.com").starts_with("127.51.82.53 "));
        goes("api.pure.cloud", false);
        assert_eq!(dns.repair(&state).await.unwrap(), Vec::<String>::new());
        let domains = vec!["mypurecloud.com".to_owned(), "usw2.pure.cloud".to_owned()];
        dns.set_domains(&state, domains).await.unwrap();
        goes("api.usw2.pure.cloud", true);

        // Somebody takes it away.
        let link = dns::LINK;
        settle(&mut dns, &state).await;
        let ways: [(&str, &[&str]); 6] = [
            ("reverted", &["resolvectl", "revert", link]),
            ("led-elsewhere", &["resolvectl", "domain", link, "example"]),
            ("asked-elsewhere", &["resolvectl", "dns", link, "10.0.0.1"]),
            ("set-down", &["ip", "link", "set", link, "down"]),
            ("without-address", &["ip", "address", "delete", "127.51.82.53/32", "dev", link]),
            ("deleted", &["ip", "link", "delete", link]),
        ];
        for (name, way) in ways {
            match way[0] {
                "resolvectl" => resolved.ctl(&way[1..]),
                program => assert!(Command::new(program).args(&way[1..]).status().unwrap().success()),
            }
            let meanwhile = format!("meanwhile-{name}.mypurecloud.com");
            drop(getent(&meanwhile));
            soon(dns.changed()).await;
            settle(&mut dns, &state).await;
            assert!(getent(&meanwhile).starts_with("127.51.82.53 "), "{name}: it was cached");
            goes(&format!("{name}.mypurecloud.com"), true);
        }

        // The network has a link of its own asked as well.
        for (domain, mode) in [("api.mypurecloud.com", Mode::File), ("home.example", Mode::Resolved)] {
            resolved.ctl(&["domain", NETWORK, domain]);
            repair_until(&mut dns, &state, mode).await;
        }
        assert_eq!(dns.search(), ["corp.example", "home.example"]);
        goes("api.mypurecloud.com.home.example", true);

        // Somebody leads past it, and back to it.
        replace("nameserver 10.0.0.1\n");
        repair_until(&mut dns, &state, Mode::File).await;
        assert_eq!(plain_lines(RESOLV_CONF), ["nameserver 127.51.82.53"]);
        assert_eq!(servers(&dns), ["10.0.0.1:53"]);
        fs::remove_file(RESOLV_CONF).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        repair_until(&mut dns, &state, Mode::Resolved).await;
        assert_eq!(look(), before);
        goes("back.mypurecloud.com", true);

        // It dies and is started again.
        resolved.kill();
        repair_until(&mut dns, &state, Mode::File).await;
        assert_eq!(servers(&dns), ["10.0.0.1:53"], "where it would have asked");
        resolved.spawn();
        repair_until(&mut dns, &state, Mode::Resolved).await;
        assert_eq!(look(), before);
        goes("again.mypurecloud.com", true);
        settle(&mut dns, &state).await;
        resolved.ctl(&["revert", dns::LINK]);
        soon(dns.changed()).await;
        settle(&mut dns, &state).await;
        goes("reverted-again.mypurecloud.com", true);

        tear_down(dns, &state).await.unwrap();
        assert_eq!(Leftovers::look(directory.path()).unwrap().undo, []);
        assert_eq!(look(), before);
        goes("down.mypurecloud.com", false);

        // A crash while it did not run, and the journal lost.
        resolved.kill();
        let lost = tempfile::tempdir().unwrap();
        let dns = Dns::set_up(&State::open(lost.path()).unwrap(), settings.clone()).await.unwrap();
        assert_eq!(dns.report().mode, Mode::File);
        drop(dns);
        assert_eq!(plain_lines(RESOLV_CONF)[0], "nameserver 127.51.82.53");
        resolved.spawn();
        let dns = Dns::set_up(&state, settings.clone()).await.unwrap();
        assert_eq!((dns.report().mode, look()), (Mode::Resolved, before.clone()));
        goes("lost.mypurecloud.com", true);
        tear_down(dns, &state).await.unwrap();

        // A crash: the names stay unanswered, whatever comes after it.
        let crash = async |resolved: &mut Resolved, state: &State| {
            drop(Dns::set_up(state, resolved.settings().await).await.unwrap());
            goes("up.mypurecloud.com", true);
            resolved.tun = None;
        };
        crash(&mut resolved, &state).await;
        drop(ours);
        assert_eq!(getent("crashed.mypurecloud.com"), "");
        assert!(!theirs.was_asked_for("crashed.mypurecloud.com"));
        assert!(!theirs.was_asked_for("crashed.mypurecloud.com.corp.example"));
        assert!(getent("crashed.example.net").starts_with("10.0.0.1 "));
        assert_eq!(dns::left_before().await.unwrap(), ["10.0.0.1:53".parse().unwrap()]);
        resolved.kill();
        resolved.spawn();
        assert_eq!(getent("restarted.mypurecloud.com"), "");
        assert!(!theirs.was_asked_for("restarted.mypurecloud.com"));
        drop(state);
        assert!(clean(directory.path()).await.unwrap().dns);
        assert!(getent("cleaned.mypurecloud.com").starts_with("10.0.0.1 "));
        assert!(!resolved.has_our_link().await);
        assert_eq!(dns::left_before().await, None);
        drop(resolved);
    });
}

#[test]
fn what_a_dead_run_has_answered_is_asked_anew() {
    let Some(package) = systemd_resolved() else { return };
    with_own_etc(async || {
        let resolved = Resolved::start(&package);
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let name = "api.mypurecloud.com";
        let answered = || getent(name).starts_with("127.51.82.53 ");

        let ours = Server::breakouts();
        drop(Dns::set_up(&state, resolved.settings().await).await.unwrap());
        assert!(answered() && ours.was_asked_for(name));
        drop(ours);
        assert!(answered(), "the control: it is cached");

        let ours = Server::breakouts();
        let dns = Dns::set_up(&state, resolved.settings().await).await.unwrap();
        assert_eq!(dns.report().mode, Mode::Resolved, "{}", dns.report().why);
        assert!(answered() && ours.was_asked_for(name));
        tear_down(dns, &state).await.unwrap();
    });
}

#[test]
fn systemd_resolved_is_told_as_soon_as_there_is_a_way_to_it_again() {
    let Some(package) = systemd_resolved() else { return };
    with_own_etc(async || {
        let mut resolved = Resolved::start(&package);
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        let before = look();
        let (theirs, ours) = (Server::new([10, 0, 0, 1].into()), Server::breakouts());
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();

        resolved.stop_bus();
        let mut dns = Dns::set_up(&state, resolved.settings().await).await.unwrap();
        assert_eq!(dns.report().mode, Mode::File, "{}", dns.report().why);
        assert_eq!(servers(&dns), ["10.0.0.1:53"], "where it would have asked");
        for name in ["late", "again"] {
            resolved.start_bus();
            resolved.kill();
            resolved.spawn();
            repair_until(&mut dns, &state, Mode::Resolved).await;
            assert_eq!(look(), before);
            let name = format!("{name}.mypurecloud.com");
            assert!(getent(&name).starts_with("127.51.82.53 "));
            assert!(ours.was_asked_for(&name) && !theirs.was_asked_for(&name));
            resolved.stop_bus();
            repair_until(&mut dns, &state, Mode::File).await;
        }
        resolved.start_bus();
        resolved.kill();
        resolved.spawn();
        repair_until(&mut dns, &state, Mode::Resolved).await;

        // It hangs, while something has to be done with it.
        let process = Pid::from_raw(resolved.daemon.id().try_into().unwrap());
        kill(process, Signal::SIGSTOP).unwrap();
        dns.repair(&state).await.unwrap();
        assert_eq!(dns.report().mode, Mode::File);
        assert!(dns.report().why.contains("it did not answer within 5 s"), "{}", dns.report().why);
        // It is not waited for again and again.
        soon(async {
            for _ in 0..6 {
                dns.repair(&state).await.unwrap();
            }
        })
        .await;
        kill(process, Signal::SIGCONT).unwrap();
        repair_until(&mut dns, &state, Mode::Resolved).await;
        tear_down(dns, &state).await.unwrap();
        assert_eq!(look(), before);
    });
}

async fn repair_until(dns: &mut Dns, state: &State, mode: Mode) {
    while dns.report().mode != mode {
        soon(dns.changed()).await;
        dns.repair(state).await.unwrap();
    }
}

/// Until nothing is told any more.
async fn settle(dns: &mut Dns, state: &State) {
    dns.repair(state).await.unwrap();
    while tokio::time::timeout(QUIET, dns.changed()).await.is_ok() {
        dns.repair(state).await.unwrap();
    }
}

#[test]
fn a_hanging_resolvconf_leaves_no_link_behind() {
    let (Some(package), Some(openresolv)) = (systemd_resolved(), package("openresolv")) else { return };
    with_own_etc(async || {
        let resolved = Resolved::start(&package);
        install(&openresolv);
        fs::write("/etc/resolvconf.conf", "resolv_conf=/etc/resolv.conf\n").unwrap();
        resolvconf(&["-a", "eth0.dhcp"], DHCP);
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        for by_panic in [false, true] {
            let dns = Dns::set_up(&state, resolved.settings().await).await.unwrap();
            assert_eq!(dns.report().mode, Mode::Resolvconf, "{}", dns.report().why);
            assert!(resolved.has_our_link().await);
            fs::write("/run/hangs", "#!/bin/sh\nexec sleep 60\n").unwrap();
            fs::set_permissions("/run/hangs", fs::Permissions::from_mode(0o755)).unwrap();
            run(["mount", "--bind", "/run/hangs", "/usr/sbin/resolvconf"]);
            let undo = async {
                if by_panic {
                    open_up().await;
                } else {
                    drop(tear_down(dns, &state).await);
                }
                panic!("resolvconf did not hang");
            };
            let is_gone = async {
                while resolved.has_our_link().await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = undo => {}
                gone = tokio::time::timeout(Duration::from_secs(8), is_gone) => gone.unwrap(),
            }
            // What hung may still be about to die.
            run(["umount", "--lazy", "/usr/sbin/resolvconf"]);
        }
    });
}

/// As on a kernel that has no such links: systemd-resolved is told of the TUN.
#[test]
fn a_link_that_is_not_ours_is_let_be() {
    let Some(package) = systemd_resolved() else { return };
    with_own_etc(async || {
        let mut resolved = Resolved::start(&package);
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        let (theirs, ours) = (Server::new([10, 0, 0, 1].into()), Server::new([10, 99, 0, 1].into()));
        let add_strangers = || run(["ip", "link", "add", dns::LINK, "type", "veth", "peer", "name", "far"]);
        add_strangers();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let settings = resolved.settings().await;
        let mut dns = Dns::set_up(&state, settings.clone()).await.unwrap();
        let told_of_the_tun =
            |undo: &[Undo]| matches!(undo, [Undo::ResolvedLink { name, .. }] if name == TUN);
        let undo = || Leftovers::look(directory.path()).unwrap().undo;
        assert_eq!(dns.report().mode, Mode::Resolved);
        assert!(dns.report().why.contains("somebody else has a link breakout-dns"), "{}", dns.report().why);
        assert!(told_of_the_tun(&undo()), "{:?}", undo());
        assert!(getent("up.mypurecloud.com").starts_with("10.99.0.1 "));
        assert!(ours.was_asked_for("up.mypurecloud.com") && !theirs.was_asked_for("up.mypurecloud.com"));
        assert!(getent("up.example.net").starts_with("10.0.0.1 "));
        open_up().await;
        assert!(resolved.has_our_link().await, "panic-off has deleted it");

        // The link is ours to have as soon as it has gone.
        run(["ip", "link", "delete", dns::LINK]);
        dns.repair(&state).await.unwrap();
        assert!(!dns.report().why.contains("a crash"), "{}", dns.report().why);
        assert_eq!(undo(), [Undo::DnsLink]);
        tear_down(dns, &state).await.unwrap();
        assert!(!resolved.has_our_link().await);

        // A crash has it ask others for the policy's names, as is said.
        add_strangers();
        let dns = Dns::set_up(&state, settings).await.unwrap();
        assert!(
            dns.report().why.contains("a crash would have it ask others for them"),
            "{}",
            dns.report().why
        );
        assert!(getent("again.mypurecloud.com").starts_with("10.99.0.1 "));
        drop((dns, ours, resolved.tun.take()));
        eventually(|| getent("crashed.mypurecloud.com").starts_with("10.0.0.1 "));
        drop(state);
        clean(directory.path()).await.unwrap();
        assert_eq!(undo(), []);
    });
}

/// Its links have the same numbers as ours, and are others.
#[test]
fn a_systemd_resolved_of_another_network_is_told_nothing() {
    let Some(package) = systemd_resolved() else { return };
    with_own_etc(async || {
        let resolved = Resolved::start(&package);
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        let settings = resolved.settings().await;
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let _tun = open_tun(TUN);
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let dns = Dns::set_up(&state, settings).await.unwrap();
        let report = dns.report();
        assert_eq!(report.mode, Mode::File);
        assert!(report.why.contains("it is in another network namespace"), "{}", report.why);
        assert!(!resolved.has_our_link().await);
        tear_down(dns, &state).await.unwrap();
    });
}

#[test]
fn a_crash_at_every_step_with_systemd_resolved() {
    let Some(package) = systemd_resolved() else { return };
    with_own_etc(async || {
        let resolved = Resolved::start(&package);
        symlink("../run/systemd/resolve/stub-resolv.conf", RESOLV_CONF).unwrap();
        let before = look();
        let theirs = Server::new([10, 0, 0, 1].into());
        let mut deaths = 0;
        for step in 1..MANY_STEPS {
            let directory = tempfile::tempdir().unwrap();
            let status = live_and_die("dns_managers::life", directory.path(), step);
            let state = directory.path().join("state");
            if status.success() {
                break;
            }
            assert_eq!(status.signal(), Some(libc::SIGKILL), "step {step}");
            deaths = step;
            match step % 3 {
                0 => assert_eq!(open_up().await.1.len(), 0),
                1 => drop(clean(&state).await.unwrap()),
                _ => {
                    let state = State::open(&state).unwrap();
                    let dns = Dns::set_up(&state, settings()).await.unwrap();
                    assert_eq!(dns.report().mode, Mode::Resolved, "{}", dns.report().why);
                    tear_down(dns, &state).await.unwrap();
                }
            }
            assert_eq!((look(), resolved.has_our_link().await), (before.clone(), false), "step {step}");
            let name = format!("step-{step}.mypurecloud.com");
            assert!(getent(&name).starts_with("10.0.0.1 ") && theirs.was_asked_for(&name), "step {step}");
        }
        assert!(
            (15..MANY_STEPS - 1).contains(&deaths),
            "{deaths} steps: not all are there, or they have no end"
        );
        println!("died at each of {deaths} steps");
    });
}

/// Its package, where there is D-Bus for it.
fn systemd_resolved() -> Option<PathBuf> {
    has("dbus-daemon").then(|| package("systemd-resolved"))?
}

/// D-Bus, systemd-resolved, a network, and a TUN.
struct Resolved {
    bus: Child,
    daemon: Child,
    package: PathBuf,
    tun: Option<std::os::fd::OwnedFd>,
    /// Without an address it asks nobody.
    _network: std::os::fd::OwnedFd,
}

impl Resolved {
    fn start(package: &Path) -> Self {
        let mut users = fs::OpenOptions::new().append(true).open("/etc/passwd").unwrap();
        users.write_all(b"systemd-resolve:x:982:982::/:/usr/sbin/nologin\n").unwrap();
        let mut groups = fs::OpenOptions::new().append(true).open("/etc/group").unwrap();
        groups.write_all(b"systemd-resolve:x:982:\n").unwrap();
        fs::create_dir("/etc/systemd").unwrap();
        // By default it caches nothing of what a server on this machine has answered.
        fs::write(
            "/etc/systemd/resolved.conf",
            "[Resolve]\nDNS=10.0.0.1\nDomains=corp.example\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\nCacheFromLocalhost=yes\n",
        )
        .unwrap();
        run(["ip", "address", "add", "10.0.0.1/32", "dev", "lo"]);
        let [tun, network] = [(TUN, "10.99.0.1/32"), (NETWORK, "192.0.2.7/24")].map(|(name, address)| {
            let tun = open_tun(name);
            run(["ip", "address", "add", address, "dev", name]);
            run(["ip", "link", "set", name, "up"]);
            tun
        });

        for directory in ["/run/dbus", "/run/systemd"] {
            fs::create_dir(directory).unwrap();
        }
        fs::write("/run/bus.conf", CONFIG).unwrap();
        let bus = spawn_bus();
        let daemon = spawn(package);
        Self { bus, daemon, package: package.to_owned(), tun: Some(tun), _network: network }
    }

    fn stop_bus(&mut self) {
        self.bus.kill().unwrap();
        self.bus.wait().unwrap();
        fs::remove_file(BUS).unwrap();
    }

    fn start_bus(&mut self) {
        self.bus = spawn_bus();
    }

    fn kill(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    fn spawn(&mut self) {
        self.daemon = spawn(&self.package);
    }

    async fn settings(&self) -> Settings {
        assert!(self.tun.is_some());
        let index = Netlink::new().unwrap().link_index(TUN).await.unwrap();
        Settings {
            link: TUN.to_owned(),
            index,
            on_link: "10.99.0.1".parse().unwrap(),
            domains: vec!["mypurecloud.com".to_owned()],
        }
    }

    async fn has_our_link(&self) -> bool {
        Netlink::new().unwrap().links().await.unwrap().iter().any(|link| link.name == dns::LINK)
    }

    fn ctl(&self, arguments: &[&str]) {
        assert!(command(&self.package, "usr/bin/resolvectl").args(arguments).status().unwrap().success());
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.bus] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

const BUS: &str = "/run/dbus/system_bus_socket";
const CONFIG: &str = r#"<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

fn spawn_bus() -> Child {
    let bus = Command::new("dbus-daemon").args(["--nofork", "--config-file=/run/bus.conf"]).spawn().unwrap();
    eventually(|| Path::new(BUS).exists());
    bus
}

/// Until it answers on D-Bus.
fn spawn(package: &Path) -> Child {
    let program = ["usr/lib", "lib"].map(|lib| format!("{lib}/systemd/systemd-resolved"));
    let program = program.iter().find(|program| package.join(program).exists()).unwrap();
    let daemon = command(package, program).spawn().unwrap();
    eventually(|| {
        let mut ctl = command(package, "usr/bin/resolvectl");
        ctl.arg("status").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    });
    daemon
}

/// A program of the package's, with the library of the same version.
fn command(package: &Path, program: &str) -> Command {
    let libraries = package.join(format!("usr/lib/{}-linux-gnu/systemd", std::env::consts::ARCH));
    let mut command = Command::new(package.join(program));
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

fn eventually(is_so: impl Fn() -> bool) {
    for _ in 0..400 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it never came");
}

/// The package's programs where they look for each other.
fn install(package: &Path) {
    for directory in ["sbin", "lib"] {
        let lower = format!("lowerdir={}:/usr/{directory}", package.join(directory).display());
        run(["mount", "-t", "overlay", "-o", &lower, "overlay", &format!("/usr/{directory}")]);
    }
}

fn resolvconf(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("/usr/sbin/resolvconf");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

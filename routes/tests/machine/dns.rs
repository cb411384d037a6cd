//! /etc/resolv.conf is replaced, and put back byte for byte; in a mount namespace, so that this machine's own stays untouched.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        process::ExitStatusExt,
    },
    process::Command,
    time::{Duration, Instant},
};

use routes::{
    Cleaned, Leftovers, State, Undo,
    dns::{self, Dns, Mode},
    open_up,
};
use tokio::time::{sleep, timeout};

use crate::common::{
    clean,
    etc::{
        self, RESOLV_CONF, Server, getent, live_and_die, look, plain_lines, replace, servers, settings, soon,
        tear_down, with_own_etc,
    },
    run,
};

const BEFORE: &str = "nameserver 10.0.0.1\nsearch corp.example\noptions edns0\nnameserver fd00::1";
/// What a DHCP client writes.
const FOREIGN: &str = "nameserver 10.7.0.1\n";
/// What a life leaves when [`FOREIGN`] is in place.
const WRITTEN: &str = "written";
/// Far more than there are.
const MANY_STEPS: u64 = 500;

/// What can stand there.
const KINDS: [(&str, fn()); 7] = [
    ("nothing", || {}),
    ("a file", || fs::write(RESOLV_CONF, BEFORE).unwrap()),
    ("somebody's file of odd bytes", || {
        fs::write(RESOLV_CONF, b"; \xff\0\r\n# Generated\nnameserver 10.0.0.1 \n\n").unwrap();
        chown(RESOLV_CONF, Some(12), Some(34)).unwrap();
        fs::set_permissions(RESOLV_CONF, fs::Permissions::from_mode(0o640)).unwrap();
    }),
    ("an empty file", || fs::write(RESOLV_CONF, "").unwrap()),
    ("a link", || {
        fs::create_dir_all("/run/NetworkManager").unwrap();
        fs::write("/run/NetworkManager/resolv.conf", BEFORE).unwrap();
        symlink("../run/NetworkManager/resolv.conf", RESOLV_CONF).unwrap();
    }),
    ("a link to nothing", || symlink("/run/nowhere/resolv.conf", RESOLV_CONF).unwrap()),
    ("a mount", || {
        fs::write("/run/mounted", BEFORE).unwrap();
        fs::write(RESOLV_CONF, "").unwrap();
        run(["mount", "--bind", "/run/mounted", RESOLV_CONF]);
    }),
];

fn clear() {
    // It may be a mount or not be there.
    let _ = Command::new("umount").args(["-q", RESOLV_CONF]).output();
    let _ = fs::remove_file(RESOLV_CONF);
}

#[test]
fn it_is_replaced_and_put_back() {
    with_own_etc(async || {
        for (kind, put) in KINDS {
            clear();
            put();
            let before = look();
            let directory = tempfile::tempdir().unwrap();
            let state = State::open(directory.path()).unwrap();
            let mut dns = Dns::set_up(&state, settings()).await.unwrap();
            let lines = plain_lines(RESOLV_CONF);
            assert_eq!(lines[0], "nameserver 127.51.82.53", "{kind}");
            assert!(lines[1..].iter().all(|line| !line.starts_with("nameserver")), "{kind}: {lines:?}");
            match kind {
                "a file" | "a link" | "a mount" => {
                    assert_eq!(servers(&dns), ["10.0.0.1:53", "[fd00::1]:53"], "{kind}");
                    assert_eq!(lines[1..], ["search corp.example", "options edns0"], "{kind}");
                    assert_eq!(dns.search(), ["corp.example"], "{kind}");
                }
                "somebody's file of odd bytes" => assert_eq!(servers(&dns), ["10.0.0.1:53"]),
                _ => assert_eq!(servers(&dns), ["127.0.0.1:53"], "{kind}: as the C library does"),
            }
            let report = dns.report();
            assert_eq!(report.mode, Mode::File);
            assert!(
                report.why.contains("systemd-resolved cannot be used (")
                    && report.why.contains("resolvconf does not keep it"),
                "{}",
                report.why
            );
            let noted = Leftovers::look(directory.path()).unwrap().undo;
            assert!(matches!(noted.as_slice(), [Undo::ResolvConf { .. }]), "{noted:?}");

            let ours = look();
            assert_eq!(dns.repair(&state).await.unwrap(), Vec::<String>::new(), "{kind}");
            dns.set_domains(&state, vec!["pure.cloud".to_owned()]).await.unwrap();
            assert_eq!(look(), ours, "{kind}");

            tear_down(dns, &state).await.unwrap();
            assert_eq!(look(), before, "{kind}");
            assert_eq!(Leftovers::look(directory.path()).unwrap().undo, []);
        }
    });
}

#[test]
fn the_c_library_asks_us_and_after_a_crash_nobody() {
    with_own_etc(async || {
        run(["ip", "address", "add", "10.0.0.1/32", "dev", "lo"]);
        fs::write(RESOLV_CONF, "nameserver 10.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
        let theirs = Server::new([10, 0, 0, 1].into());
        assert!(getent("control.example").starts_with("10.0.0.1 "), "the control");

        let directory = tempfile::tempdir().unwrap();
        let ours = Server::breakouts();
        let dns = Dns::set_up(&State::open(directory.path()).unwrap(), settings()).await.unwrap();
        assert!(getent("a.example").starts_with("127.51.82.53 "));
        assert!(ours.was_asked_for("a.example") && !theirs.was_asked_for("a.example"));

        drop((dns, ours));
        assert_eq!(getent("b.example"), "");
        assert!(!theirs.was_asked_for("b.example"), "in the clear");

        assert!(clean(directory.path()).await.unwrap().dns);
        assert!(getent("c.example").starts_with("10.0.0.1 "));
    });
}

#[test]
fn what_a_crash_left_is_taken_over_or_cleaned() {
    with_own_etc(async || {
        for (kind, put) in KINDS {
            clear();
            put();
            let before = look();
            let directory = tempfile::tempdir().unwrap();
            let open = || State::open(directory.path()).unwrap();
            let dns = Dns::set_up(&open(), settings()).await.unwrap();
            let ours = look();
            let asked = dns.before();
            drop(dns);
            assert_eq!(look(), ours);
            assert_eq!(dns::left_before().await, Some(asked.clone()), "{kind}");

            // A crash upon a crash: what was there is still what was first.
            let dns = Dns::set_up(&open(), settings()).await.unwrap();
            assert_eq!((look(), dns.before()), (ours.clone(), asked), "{kind}");
            drop(dns);
            assert_eq!(clean(directory.path()).await.unwrap(), Cleaned { dns: true, ..Cleaned::default() });
            assert_eq!(look(), before, "{kind}");
            assert_eq!(dns::left_before().await, None);
            assert_eq!(clean(directory.path()).await.unwrap(), Cleaned::default());

            // The next run has no use for it.
            drop(Dns::set_up(&open(), settings()).await.unwrap());
            assert!(dns::put_back(&open()).await.unwrap());
            assert_eq!(look(), before, "{kind}");
        }
    });
}

#[test]
fn it_is_put_back_without_the_journal() {
    with_own_etc(async || {
        for (kind, put) in KINDS {
            clear();
            put();
            let before = look();
            // Another boot's journal is void, and its directory gone.
            let crash = async || {
                let directory = tempfile::tempdir().unwrap();
                drop(Dns::set_up(&State::open(directory.path()).unwrap(), settings()).await.unwrap());
                assert_ne!(look(), before);
            };
            let directory = tempfile::tempdir().unwrap();
            crash().await;
            assert!(clean(directory.path()).await.unwrap().dns, "{kind}");
            assert_eq!(look(), before, "{kind}");

            crash().await;
            assert!(open_up().await.0.dns, "{kind}");
            assert_eq!(look(), before, "{kind}");
            assert!(!open_up().await.0.dns, "{kind}");

            crash().await;
            let state = State::open(directory.path()).unwrap();
            assert!(dns::put_back(&state).await.unwrap());
            assert_eq!(look(), before, "{kind}");

            crash().await;
            let dns = Dns::set_up(&state, settings()).await.unwrap();
            tear_down(dns, &state).await.unwrap();
            assert_eq!(look(), before, "{kind}");
        }
    });
}

#[test]
fn what_others_write_is_what_is_put_back() {
    with_own_etc(async || {
        fs::write(RESOLV_CONF, BEFORE).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let mut dns = Dns::set_up(&state, settings()).await.unwrap();
        let ours = plain_lines(RESOLV_CONF);

        let writes: [(fn(), &str); 3] = [
            (|| replace("nameserver 10.7.0.1\nsearch corp.example\noptions edns0\n"), "10.7.0.1:53"),
            (
                || {
                    fs::write(RESOLV_CONF, "search corp.example\noptions edns0\nnameserver 10.7.0.2\n")
                        .unwrap()
                },
                "10.7.0.2:53",
            ),
            (
                || {
                    fs::write(
                        "/run/resolv.conf",
                        "search corp.example\noptions edns0\nnameserver 10.7.0.3\n",
                    )
                    .unwrap();
                    fs::remove_file(RESOLV_CONF).unwrap();
                    symlink("/run/resolv.conf", RESOLV_CONF).unwrap();
                },
                "10.7.0.3:53",
            ),
        ];
        let mut theirs = look();
        for (write, server) in writes {
            // What set_up and repair write themselves may still be told of.
            write();
            theirs = look();
            let mut repaired = Vec::new();
            while repaired.is_empty() {
                soon(dns.changed()).await;
                repaired = dns.repair(&state).await.unwrap();
            }
            assert_eq!(repaired, ["our /etc/resolv.conf"]);
            assert_eq!(plain_lines(RESOLV_CONF), ours);
            assert_eq!(servers(&dns), [server]);
        }
        // The link's target is theirs still.
        fs::write("/run/resolv.conf", "nameserver 10.7.0.4\n").unwrap();
        while servers(&dns) != ["10.7.0.4:53"] {
            soon(dns.changed()).await;
            dns.repair(&state).await.unwrap();
        }
        assert_eq!(plain_lines(RESOLV_CONF), ["nameserver 127.51.82.53"]);

        tear_down(dns, &state).await.unwrap();
        assert_eq!(look(), theirs);
    });
}

/// As Debian's pppd does (`usepeerdns`): ours is saved, and lives on in what is written but for its server.
const PPP_UP: &str = "cd /etc && cp -p resolv.conf resolv.conf.pppd-backup && \
    { grep -v '^nameserver' resolv.conf; echo 'nameserver 10.7.0.9'; } >resolv.conf.tmp && mv resolv.conf.tmp resolv.conf";
const PPP_DOWN: &str = "mv /etc/resolv.conf.pppd-backup /etc/resolv.conf";

#[test]
fn who_saves_ours_and_restores_it_restores_what_was_before() {
    with_own_etc(async || {
        for (kind, put) in KINDS.into_iter().filter(|(kind, _)| *kind != "a mount") {
            clear();
            put();
            let before = look();
            let directory = tempfile::tempdir().unwrap();
            let state = State::open(directory.path()).unwrap();
            let mut dns = Dns::set_up(&state, settings()).await.unwrap();
            let (ours, asked) = (plain_lines(RESOLV_CONF), servers(&dns));

            run(["sh", "-c", PPP_UP]);
            repaired_until_asked(&mut dns, &state, &["10.7.0.9:53"]).await;
            assert_eq!(plain_lines(RESOLV_CONF), ours, "{kind}");
            run(["sh", "-c", PPP_DOWN]);
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            repaired_until_asked(&mut dns, &state, &asked).await;
            assert_eq!(plain_lines(RESOLV_CONF), ours, "{kind}");
            tear_down(dns, &state).await.unwrap();
            assert_eq!(look(), before, "{kind}");

            // It is restored when nobody is there to see it.
            let mut dns = Dns::set_up(&state, settings()).await.unwrap();
            run(["sh", "-c", PPP_UP]);
            repaired_until_asked(&mut dns, &state, &["10.7.0.9:53"]).await;
            drop((dns, state));
            run(["sh", "-c", PPP_DOWN]);
            assert!(clean(directory.path()).await.unwrap().dns, "{kind}");
            assert_eq!(look(), before, "{kind}");
        }
    });
}

#[test]
fn who_never_gives_in_is_answered_every_few_seconds_and_told_of_once() {
    with_own_etc(async || {
        fs::write(RESOLV_CONF, BEFORE).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let mut dns = Dns::set_up(&state, settings()).await.unwrap();
        let (started, mut rounds, mut told) = (Instant::now(), 0, Vec::new());
        let foe = async {
            while started.elapsed() < Duration::from_secs(6) {
                if plain_lines(RESOLV_CONF)[0] == "nameserver 127.51.82.53" {
                    replace("# Generated by somebody\nnameserver 10.7.0.1\n");
                    rounds += 1;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let us = async {
            loop {
                dns.changed().await;
                told.extend(dns.repair(&state).await.unwrap());
            }
        };
        tokio::select! {
            () = foe => {}
            () = us => {}
        }
        let most = 8 + started.elapsed().as_secs() / 3 + 1;
        assert!((8..=most).contains(&rounds), "{rounds} rounds");
        let (fight, plain) = told.split_last().unwrap();
        assert!(told.len() <= 9 && plain.iter().all(|told| told == "our /etc/resolv.conf"), "{told:?}");
        let said = "somebody else keeps writing it";
        assert!(fight.contains(said) && dns.report().why.contains(said), "{fight}");
        assert!(dns.report().why.contains("\"# Generated by somebody\""), "{}", dns.report().why);

        // They give in at last.
        let is_over = async {
            while dns.report().why.contains(said) {
                dns.changed().await;
                dns.repair(&state).await.unwrap();
            }
        };
        timeout(Duration::from_secs(60), is_over).await.unwrap();
        timeout(Duration::from_secs(1), dns.changed()).await.expect_err("nothing has changed");
        assert_eq!(plain_lines(RESOLV_CONF), ["nameserver 127.51.82.53"]);
        assert_eq!(servers(&dns), ["10.7.0.1:53"]);
        tear_down(dns, &state).await.unwrap();
    });
}

#[test]
fn what_a_link_leads_to_is_read_whenever_it_comes() {
    with_own_etc(async || {
        symlink("../run/net/manager/resolv.conf", RESOLV_CONF).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let mut dns = Dns::set_up(&state, settings()).await.unwrap();
        assert_eq!(servers(&dns), ["127.0.0.1:53"]);
        // One step at a time, each seen before the next.
        for step in ["mkdir /run/net", "mkdir /run/net/manager"] {
            run(["sh", "-c", step]);
            soon(dns.changed()).await;
            dns.repair(&state).await.unwrap();
        }
        fs::write("/run/net/manager/resolv.conf", "nameserver 10.7.0.1\n").unwrap();
        repaired_until_asked(&mut dns, &state, &["10.7.0.1:53"]).await;

        fs::create_dir_all("/run/other/manager").unwrap();
        fs::write("/run/other/manager/resolv.conf", "nameserver 10.7.0.2\n").unwrap();
        run(["sh", "-c", "mv /run/net /run/old && mv /run/other /run/net"]);
        repaired_until_asked(&mut dns, &state, &["10.7.0.2:53"]).await;
        run(["rm", "-r", "/run/net"]);
        repaired_until_asked(&mut dns, &state, &["127.0.0.1:53"]).await;
        run(["mv", "/run/old", "/run/net"]);
        repaired_until_asked(&mut dns, &state, &["10.7.0.1:53"]).await;
        tear_down(dns, &state).await.unwrap();
    });
}

/// Also where nobody answers there.
#[test]
fn systemd_resolveds_own_servers_are_followed() {
    with_own_etc(async || {
        fs::write(RESOLV_CONF, "nameserver 127.0.0.53\n").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let mut dns = Dns::set_up(&state, settings()).await.unwrap();
        assert_eq!(servers(&dns), Vec::<String>::new());
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        for (server, asked) in [("10.7.0.1", "10.7.0.1:53"), ("10.7.0.2", "10.7.0.2:53")] {
            fs::write("/run/systemd/resolve/resolv.conf", format!("nameserver {server}\n")).unwrap();
            repaired_until_asked(&mut dns, &state, &[asked]).await;
        }
    });
}

async fn repaired_until_asked(dns: &mut Dns, state: &State, wanted: &[&str]) {
    while servers(dns) != wanted {
        soon(dns.changed()).await;
        dns.repair(state).await.unwrap();
    }
}

/// Ours keeps its comments then.
#[test]
fn who_edits_ours_is_taken_at_their_word() {
    let edits: [(&str, &[&str], &str); 4] = [
        (
            "sed -i 's/^nameserver .*/nameserver 192.0.2.54/' /etc/resolv.conf",
            &["192.0.2.54:53"],
            "nameserver 192.0.2.54\nsearch corp.example\noptions edns0\n",
        ),
        (
            "sed -i '1inameserver 192.0.2.54' /etc/resolv.conf",
            &["192.0.2.54:53", "10.0.0.1:53", "[fd00::1]:53"],
            "nameserver 192.0.2.54\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch corp.example\noptions edns0\n",
        ),
        (
            "echo 'options rotate' >>/etc/resolv.conf",
            &["10.0.0.1:53", "[fd00::1]:53"],
            "nameserver 10.0.0.1\nnameserver fd00::1\nsearch corp.example\noptions edns0\noptions rotate\n",
        ),
        (
            "sed -i 's/corp.example$/other.example/' /etc/resolv.conf",
            &["10.0.0.1:53", "[fd00::1]:53"],
            "nameserver 10.0.0.1\nnameserver fd00::1\nsearch other.example\noptions edns0\n",
        ),
    ];
    with_own_etc(async || {
        for (edit, asked, theirs) in edits {
            let directory = tempfile::tempdir().unwrap();
            let state = State::open(directory.path()).unwrap();
            let set_up = async || {
                fs::write(RESOLV_CONF, BEFORE).unwrap();
                Dns::set_up(&state, settings()).await.unwrap()
            };
            let mut dns = set_up().await;
            run(["sh", "-c", edit]);
            let mut repaired = Vec::new();
            while repaired.is_empty() {
                soon(dns.changed()).await;
                repaired = dns.repair(&state).await.unwrap();
            }
            assert_eq!(repaired, ["our /etc/resolv.conf"], "{edit}");
            assert_eq!(servers(&dns), asked, "{edit}");
            let kept = theirs.lines().filter(|line| !line.starts_with("nameserver"));
            let ours: Vec<&str> = ["nameserver 127.51.82.53"].into_iter().chain(kept).collect();
            assert_eq!(plain_lines(RESOLV_CONF), ours, "{edit}");
            tear_down(dns, &state).await.unwrap();
            assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), theirs, "{edit}");

            // Nobody is there to see it.
            drop(set_up().await);
            run(["sh", "-c", edit]);
            let left = dns::left_before().await.unwrap();
            assert_eq!(left.iter().map(ToString::to_string).collect::<Vec<_>>(), asked, "{edit}");
            assert!(dns::put_back(&state).await.unwrap());
            assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), theirs, "{edit}");
        }
    });
}

#[test]
fn what_others_wrote_after_a_crash_stays() {
    with_own_etc(async || {
        fs::write(RESOLV_CONF, BEFORE).unwrap();
        let directory = tempfile::tempdir().unwrap();
        drop(Dns::set_up(&State::open(directory.path()).unwrap(), settings()).await.unwrap());
        replace(FOREIGN);
        let theirs = look();
        assert_eq!(clean(directory.path()).await.unwrap(), Cleaned::default());
        assert_eq!(look(), theirs);
    });
}

#[test]
fn a_mount_keeps_its_inode_also_where_etc_is_read_only() {
    with_own_etc(async || {
        for is_read_only in [false, true] {
            clear();
            fs::write("/run/mounted", BEFORE).unwrap();
            fs::set_permissions("/run/mounted", fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(RESOLV_CONF, "").unwrap();
            if is_read_only {
                run(["mount", "-o", "remount,bind,ro", "/etc"]);
            }
            run(["mount", "--bind", "/run/mounted", RESOLV_CONF]);
            let inode = fs::metadata(RESOLV_CONF).unwrap().ino();
            let directory = tempfile::tempdir().unwrap();
            let state = State::open(directory.path()).unwrap();
            let mut dns = Dns::set_up(&state, settings()).await.unwrap();
            assert_eq!(plain_lines("/run/mounted")[0], "nameserver 127.51.82.53");

            fs::write("/run/mounted", FOREIGN).unwrap();
            soon(dns.changed()).await;
            while servers(&dns) != ["10.7.0.1:53"] {
                dns.repair(&state).await.unwrap();
            }
            assert_eq!(plain_lines(RESOLV_CONF), ["nameserver 127.51.82.53"]);
            tear_down(dns, &state).await.unwrap();
            assert_eq!(fs::read_to_string("/run/mounted").unwrap(), FOREIGN);
            let metadata = fs::metadata(RESOLV_CONF).unwrap();
            assert_eq!((metadata.ino(), metadata.mode() & 0o7777), (inode, 0o600));
        }
    });
}

#[test]
fn what_cannot_be_written_is_told_and_nothing_is_noted() {
    with_own_etc(async || {
        fs::write(RESOLV_CONF, BEFORE).unwrap();
        run(["mount", "-o", "remount,bind,ro", "/etc"]);
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let refused = Dns::set_up(&state, settings()).await.unwrap_err();
        assert!(
            refused.to_string().contains("cannot change /etc/resolv.conf: Read-only file system"),
            "{refused}"
        );
        assert_eq!(Leftovers::look(directory.path()).unwrap().undo, []);
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), BEFORE);
    });
}

#[test]
fn death_at_every_step() {
    with_own_etc(async || {
        for (kind, put) in KINDS {
            clear();
            put();
            let original = look();
            write_foreign();
            let foreign = look();
            let mut deaths = 0;
            for step in 1..MANY_STEPS {
                clear();
                put();
                let directory = tempfile::tempdir().unwrap();
                let status = live_and_die("dns::life", directory.path(), step);
                let expected = if directory.path().join(WRITTEN).exists() { &foreign } else { &original };
                if status.success() {
                    assert_eq!(look(), foreign, "{kind}");
                    break;
                }
                assert_eq!(status.signal(), Some(libc::SIGKILL), "{kind}, step {step}");
                deaths = step;
                let state = directory.path().join("state");
                if step % 2 == 0 {
                    clean(&state).await.unwrap();
                } else {
                    let state = State::open(&state).unwrap();
                    let dns = Dns::set_up(&state, settings()).await.unwrap();
                    tear_down(dns, &state).await.unwrap();
                }
                assert_eq!(look(), *expected, "{kind}, step {step}");
                assert_eq!(Leftovers::look(&state).unwrap().undo, [], "{kind}, step {step}");
            }
            assert!(
                (15..MANY_STEPS - 1).contains(&deaths),
                "{kind}: {deaths} steps: not all are there, or they have no end"
            );
            println!("{kind}: died at each of {deaths} steps");
        }
    });
}

fn write_foreign() {
    fs::write("/etc/resolv.conf.tmp", FOREIGN).unwrap();
    if fs::rename("/etc/resolv.conf.tmp", RESOLV_CONF).is_err() {
        fs::remove_file("/etc/resolv.conf.tmp").unwrap();
        fs::write(RESOLV_CONF, FOREIGN).unwrap();
    }
}

/// What [`death_at_every_step`] runs in a process of its own.
#[test]
fn life() {
    etc::live(async |directory, state, dns| {
        write_foreign();
        fs::write(directory.join(WRITTEN), "").unwrap();
        dns.repair(state).await.unwrap();
    });
}

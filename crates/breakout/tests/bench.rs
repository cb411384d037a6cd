//! `breakout bench` from the command line to its files, for seconds: that it measures, not how fast anything is.
#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not reach their helpers")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bench::{Client, Path as Way, Site};
use routes::netlink::{Family, Rule, TABLE_MAIN};

fn breakout(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_breakout")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn measures_a_real_daemon_and_tells_a_slower_run_from_a_like_one() {
    if !lab::has_rights() {
        return lab::skip("making network namespaces needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let (json, html) = (directory.path().join("a.json"), directory.path().join("a.html"));
    let sections = "fixed-load,forwarding,idle,roaming,startup";
    let output = breakout(&[
        "bench",
        "--quick",
        "--rounds",
        "2",
        "--only",
        sections,
        "--json",
        text(&json),
        "--html",
        text(&html),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("fixed-up") && table.contains("start-up"), "{table}");
    assert!(std::fs::read_to_string(&html).unwrap().contains("CPU seconds for each gigabyte"));

    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(report["contenders"][0]["features"].as_array().is_some_and(|all| !all.is_empty()), "{report}");
    let cells = report["cells"].as_array().unwrap();
    let of = |scenario: &str, path: &str| {
        let is_it = |cell: &&serde_json::Value| {
            cell["scenario"] == scenario && cell["path"].as_str().is_some_and(|found| found.starts_with(path))
        };
        cells.iter().find(is_it).unwrap_or_else(|| panic!("no {scenario} by {path} in {report}"))
    };
    for (scenario, path, metric) in [
        ("start-up", "tunnel", "milliseconds"),
        ("start-up", "bypass-", "milliseconds"),
        ("idle", "tunnel", "memory"),
        ("ping-pong", "direct", "rtt-p50"),
        ("ping-pong", "bypass-", "rtt-p50"),
        ("packet-rate", "direct", "packets"),
        ("packet-rate", "bypass-", "packets"),
    ] {
        let rounds = of(scenario, path)["metrics"][metric]["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2, "{report}");
        assert!(rounds.iter().all(|value| value.as_f64().unwrap() > 0.0), "{scenario} {path}: {rounds:?}");
    }
    let bars = report["bars"].as_array().unwrap();
    assert!(bars.iter().any(|bar| bar["what"] == "peak resident memory under full load"), "{bars:?}");

    let same = breakout(&["bench", "compare", text(&json), text(&json)]);
    assert_eq!(same.status.code(), Some(0), "{}", String::from_utf8_lossy(&same.stdout));

    let mut slower = report.clone();
    for cell in slower["cells"].as_array_mut().unwrap() {
        let rounds =
            cell.pointer_mut("/metrics/milliseconds/rounds").and_then(|rounds| rounds.as_array_mut());
        for took in rounds.into_iter().flatten() {
            *took = 1e6.into();
        }
    }
    let after = directory.path().join("b.json");
    std::fs::write(&after, slower.to_string()).unwrap();
    let worse = breakout(&["bench", "compare", text(&json), text(&after)]);
    let said = String::from_utf8_lossy(&worse.stdout);
    assert_eq!(worse.status.code(), Some(1), "{said}");
    assert!(said.contains("worse   startup / start-up"), "{said}");
}

#[test]
fn hears_only_the_calls_and_loads_that_were_asked_for() {
    if !lab::has_rights() {
        return lab::skip("making network namespaces needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("a.json");
    let calls = ["bench", "--rounds", "1", "--samples", "100", "--only", "voice", "--calls", "2,1,2"];
    let output = breakout(&[&calls[..], &["--loads", "download,udp-upload", "--json", text(&json)]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["plan"]["calls"], serde_json::json!([1, 2]));
    assert_eq!(report["plan"]["loads"], serde_json::json!(["download", "udp-upload"]));
    let cells = report["cells"].as_array().unwrap();
    let heard: BTreeSet<(&str, &str)> = cells
        .iter()
        .map(|cell| (cell["scenario"].as_str().unwrap(), cell["load"].as_str().unwrap()))
        .collect();
    let tcp = [("calls-1", "download"), ("calls-2", "download"), ("load", "download")];
    // Beside datagrams only the most calls talk.
    let udp = [("calls-2", "udp-upload"), ("load", "udp-upload")];
    assert_eq!(heard, tcp.into_iter().chain(udp).collect());
    for cell in cells {
        let rate = cell["metrics"]["load-rate"]["rounds"][0].as_f64().unwrap();
        assert!(rate > 0.0, "{cell}");
        // 300 Mbit/s are offered; what arrives in the first moments may have waited.
        assert!(cell["load"] != "udp-upload" || rate < 0.4, "{cell}");
    }
}

#[test]
fn says_of_what_commit_it_is() {
    let git =
        Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let Some(commit) = git.ok().filter(|git| git.status.success()) else {
        return lab::skip("these sources are no working tree of git");
    };
    let commit = String::from_utf8(commit.stdout).unwrap();
    let said = String::from_utf8(breakout(&["--version"]).stdout).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!("breakout {version} ({}", &commit[..12]);
    assert!(said.starts_with(&expected), "{said}, not {expected}");
}

#[test]
fn a_run_that_cannot_measure_leaves_the_files_of_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("a.json");
    std::fs::write(&json, "before").unwrap();
    // Nobody listens on the discard port.
    let output = breakout(&["bench", "--live", "--target", "127.0.0.1:9", "--json", text(&json)]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(&json).unwrap(), "before");
}

#[test]
fn a_client_that_dies_costs_its_own_figures_and_no_others() {
    let Some((name, program)) = another_client() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (json, mortal) = (directory.path().join("a.json"), directory.path().join("mortal"));
    // Dies as soon as it has sent a megabyte, which is in its first transfer.
    let script = format!(
        "#!/bin/sh\n\
         for n in $(seq 1200); do\n\
             sleep 0.05; kill -0 $$ || exit\n\
             sent=$(sed -n 's/ *wg0: *//p' /proc/self/net/dev | tr -s ' ' | cut -d ' ' -f 9)\n\
             [ \"${{sent:-0}}\" -lt 1000000 ] || {{ kill -9 $$; exit; }}\n\
         done >/dev/null 2>&1 &\n\
         exec {} \"$@\"\n",
        text(&program)
    );
    std::fs::write(&mortal, script).unwrap();
    std::fs::set_permissions(&mortal, std::fs::Permissions::from_mode(0o755)).unwrap();
    let against = format!("{name}={}", text(&mortal));
    let run =
        ["bench", "--rounds", "1", "--only", "fixed-load", "--against", &against, "--json", text(&json)];
    let output = breakout(&run);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let failed = report["failed"].as_array().unwrap();
    let all_its = failed.iter().all(|failed| failed["what"].as_str().unwrap().ends_with(name));
    assert!(failed.len() == 2 && all_its, "{failed:?}");
    let has = |scenario: &str| {
        let cells = report["cells"].as_array().unwrap().iter();
        cells.filter(|cell| cell["scenario"] == scenario && cell["client"] == "breakout").count()
    };
    assert_eq!((has("fixed-up"), has("fixed-down")), (1, 1), "{report}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("Failed (what could not be measured"), "{said}");
}

#[test]
fn a_client_that_starts_and_carries_nothing_has_failed() {
    let Some((name, program)) = another_client() else { return };
    let ip = match lab::find_program("ip", "Install it: apt install iproute2.") {
        Ok(ip) => ip,
        Err(missing) => return lab::skip(missing.to_string()),
    };
    let directory = tempfile::tempdir().unwrap();
    let (json, mute) = (directory.path().join("a.json"), directory.path().join("mute"));
    // It is asked for its version where this test is, whose network stays as it is. The site is built by its first start.
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let script = format!(
        "#!/bin/sh\n\
         [ \"$(readlink /proc/self/ns/net)\" != \"{}\" ] || exec {program} \"$@\"\n\
         [ ! -e \"$0.started\" ] || {} link set eth0 down\n\
         touch \"$0.started\"\n\
         exec {program} \"$@\"\n",
        text(&here),
        text(&ip),
        program = text(&program),
    );
    std::fs::write(&mute, script).unwrap();
    std::fs::set_permissions(&mute, std::fs::Permissions::from_mode(0o755)).unwrap();
    let against = format!("{name}={}", text(&mute));
    let run = ["bench", "--rounds", "1", "--only", "startup", "--against", &against, "--json", text(&json)];
    let output = breakout(&run);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let failed = report["failed"].as_array().unwrap();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0]["why"].as_str().unwrap().ends_with("no packet came back within 10 s"), "{failed:?}");
}

#[test]
fn what_is_measured_under_another_name_is_found() {
    if !lab::has_rights() {
        return lab::skip("making network namespaces needs root");
    }
    let exe = Path::new(env!("CARGO_BIN_EXE_breakout"));
    let site = Site::build(Client::BreakoutWithoutFastPath, lab::Gateway::Breakout, exe).unwrap();
    let talk = |path| {
        let open = site.open_calls(path, 2, 5)?;
        let heard = open.run().unwrap();
        assert_eq!(heard.samples.len(), 10);
        site.check_way(path, site.voice(path), &open.ports().unwrap(), 10)
    };
    for path in [Way::BypassPump, Way::Tunnel] {
        talk(path).unwrap();
    }
    let wrong = talk(Way::BypassFastPath).unwrap_err().to_string();
    assert!(wrong.contains("is bypass (pump), not bypass (fast path)"), "{wrong}");

    // Media leaves directly, past the daemon that lives.
    let past = Rule::new(Family::V4, 1, TABLE_MAIN);
    site.agent
        .network("lead packets past the daemon", async move |netlink| netlink.add_rule(&past).await)
        .unwrap();
    let wrong = talk(Way::BypassPump).unwrap_err().to_string();
    assert!(wrong.contains("no answer to voice packets"), "{wrong}");
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_with_what_to_do() {
    for (arguments, reason) in [
        (&["bench", "--against", "openvpn"][..], "give wireguard-go, gotatun or boringtun-cli"),
        (&["bench", "--against", "gotatun=/no/such/file"], "/no/such/file is no file"),
        (&["bench", "--only", "colour"], "`colour` is not measured"),
        (&["bench", "--loads", "full"], "`full` is no load: give idle, upload, download or udp-upload"),
        (&["bench", "--calls", "0"], "0 is not in 1..=500"),
        (&["bench", "--live"], "--target"),
        (
            &["bench", "--live", "--target", "127.0.0.1", "--only", "voice,idle"],
            "`idle` cannot be measured with --live",
        ),
        (&["bench", "compare", "no-such-file", "neither"], "no-such-file: cannot be read"),
        (
            &["bench", "--json", "/no/such/directory/file", "--live", "--target", "127.0.0.1:9"],
            "cannot write",
        ),
    ] {
        let output = breakout(arguments);
        let said = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        assert!(matches!(output.status.code(), Some(2 | 3)), "{arguments:?}: {said}");
        let words =
            |text: &str| text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(words(&said).contains(reason), "{arguments:?}: {said}");
    }
    let live = breakout(&["bench", "--live", "--target", "127.0.0.1", "--only", "idle"]);
    assert_eq!(live.status.code(), Some(2));
}

/// The first of the other WireGuard programs that is installed; `None`, said on standard error, where nothing can be run against it.
fn another_client() -> Option<(&'static str, PathBuf)> {
    if !lab::has_rights() {
        lab::skip("making network namespaces needs root");
        return None;
    }
    let installed = lab::Foreign::ALL.into_iter().find_map(|kind| Some((kind.name(), kind.find().ok()?)));
    if installed.is_none() {
        lab::skip("no other WireGuard program is installed");
    }
    installed
}

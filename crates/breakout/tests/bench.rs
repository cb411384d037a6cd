//! `breakout bench` from the command line to its files, for seconds: that it measures, not how fast anything is.
#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not reach their helpers")]

use std::collections::BTreeSet;
use std::path::Path;
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
    let sections = "fixed-load,forwarding,idle,startup";
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
    let calls = ["bench", "--rounds", "1", "--samples", "20", "--only", "voice", "--calls", "2,1,2"];
    let output = breakout(&[&calls[..], &["--loads", "download", "--json", text(&json)]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["plan"]["calls"], serde_json::json!([1, 2]));
    assert_eq!(report["plan"]["loads"], serde_json::json!(["download"]));
    let cells = report["cells"].as_array().unwrap();
    let heard: BTreeSet<(&str, &str)> = cells
        .iter()
        .map(|cell| (cell["scenario"].as_str().unwrap(), cell["load"].as_str().unwrap()))
        .collect();
    assert_eq!(heard, [("calls-1", "download"), ("calls-2", "download"), ("load", "download")].into());
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
    let wrong = failed(talk(Way::BypassFastPath));
    assert!(wrong.contains("is bypass (pump), not bypass (fast path)"), "{wrong}");

    // Media leaves directly, past the daemon that lives.
    let past = Rule::new(Family::V4, 1, TABLE_MAIN);
    site.agent
        .network("lead packets past the daemon", async move |netlink| netlink.add_rule(&past).await)
        .unwrap();
    let wrong = failed(talk(Way::BypassPump));
    assert!(wrong.contains("no answer to voice packets"), "{wrong}");
}

fn failed(found: Result<(), lab::LabError>) -> String {
    let error = found.unwrap_err();
    format!("{error}: {}", std::error::Error::source(&error).unwrap())
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_with_what_to_do() {
    for (arguments, reason) in [
        (&["bench", "--against", "openvpn"][..], "give wireguard-go, gotatun or boringtun-cli"),
        (&["bench", "--against", "gotatun=/no/such/file"], "/no/such/file is no file"),
        (&["bench", "--only", "colour"], "`colour` is not measured"),
        (&["bench", "--loads", "full"], "`full` is no load: give idle, upload or download"),
        (&["bench", "--calls", "0"], "0 is not in 1..=500"),
        (&["bench", "--live"], "--target"),
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
}

//! What `--json` writes is what `compare` reads, and what differs is said.
#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not reach their helpers")]

use std::path::PathBuf;

use bench::{
    Better, Contender, Key, Load, Machine, Mode, Path, Plan, Report, SCHEMA, Section, compare, html,
};
use hdrhistogram::Histogram;

fn report(rates: &[f64]) -> Report {
    let contender = |client: &str| Contender {
        client: client.to_owned(),
        version: format!("{client} 1"),
        gateway: "breakout".to_owned(),
        gateway_version: "breakout 1".to_owned(),
        mtu: 1420,
        realtime: false,
        features: serde_json::json!([{ "name": "vnet_hdr", "on": true, "why": "" }]),
    };
    let mut report = Report {
        schema: SCHEMA,
        mode: Mode::Lab,
        taken_at: 1,
        seconds: 2.5,
        version: "1".to_owned(),
        command: vec!["breakout".to_owned(), "bench".to_owned(), "<&>".to_owned()],
        machine: Machine { processor: "x".to_owned(), cores: 2, ..Machine::default() },
        realtime: true,
        plan: Plan::quick(),
        contenders: vec![contender("breakout"), contender("gotatun")],
        notes: vec!["a note".to_owned()],
        cells: Vec::new(),
        failed: Vec::new(),
        bars: Vec::new(),
    };
    for (client, factor) in [("breakout", 2.0), ("gotatun", 1.0)] {
        let client = client.to_owned();
        let throughput = Key {
            path: Some(Path::Tunnel),
            client: client.clone(),
            ..Key::new(Section::Throughput, "tcp-up-1")
        };
        let (load, path) = (Some(Load::Upload), Some(Path::Tunnel));
        let voice = Key { load, path, client, ..Key::new(Section::Voice, "calls-10") };
        for (round, rate) in rates.iter().enumerate() {
            report.record(round, &throughput, "rate", "Gbit/s", Better::Higher, rate * factor);
            let mut delays = Histogram::<u64>::new(3).unwrap();
            for delay in 1..=100 {
                delays.record(delay * 1000).unwrap();
            }
            report.record_delays(round, &voice, "round-trip", &delays);
            report.record(round, &voice, "rtt-p99", "µs", Better::Lower, 99.0);
        }
    }
    report
}

fn written(report: &Report, name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("breakout-bench-test-{}-{name}.json", std::process::id()));
    std::fs::write(&path, serde_json::to_vec(report).unwrap()).unwrap();
    path
}

#[test]
fn a_report_survives_its_file() {
    let report = report(&[1.0, 1.1, 1.2]);
    let path = written(&report, "whole");
    let read = Report::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read, report);
    assert_eq!(read.cells[1].distributions["round-trip"].count(), 300);
}

#[test]
fn what_is_no_report_is_refused_with_a_reason() {
    for (content, reason) in [
        ("no", "is no JSON"),
        ("{}", "has the schema none, not 3"),
        ("{\"schema\": 99}", "has the schema 99, not 3"),
        ("{\"schema\": 2}", "has the schema 2, not 3: measure again"),
        ("{\"schema\": 3}", "is no report of the bench: missing field"),
    ] {
        let path = std::env::temp_dir().join(format!("breakout-bench-test-{}-bad.json", std::process::id()));
        std::fs::write(&path, content).unwrap();
        let error = Report::read(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains(reason), "{error}");
    }
    let missing = Report::read("no/such/file".as_ref()).unwrap_err().to_string();
    assert!(missing.contains("no/such/file: cannot be read"), "{missing}");
}

#[test]
fn what_got_slower_is_worse_and_what_did_not_is_not() {
    let (fast, slow) = (report(&[1.0, 1.05, 1.1, 1.0, 1.02]), report(&[0.8, 0.82, 0.81, 0.8, 0.83]));
    let worse = compare(&fast, &slow);
    assert!(worse.is_worse());
    let said = worse.to_string();
    assert!(
        said.contains("worse   throughput / tcp-up-1 / tunnel / breakout: rate 2.040 → 1.620 Gbit/s (-21 %)"),
        "{said}"
    );
    assert!(said.contains(
            "1 worse, 0 gone, 0 better, 1 within the noise; not counted: 1 moved, 1 within the noise; 0 in one report only"
        ), "{said}");
    assert!(said.contains("moved   throughput / tcp-up-1 / tunnel / gotatun: rate"), "{said}");
    assert!(!compare(&slow, &fast).is_worse());
    assert!(!compare(&fast, &fast).is_worse());
}

#[test]
fn whatever_differs_between_plans_is_pointed_out() {
    let before = report(&[1.0]);
    let mut after = before.clone();
    after.plan = Plan {
        sections: vec![Section::Voice],
        rounds: before.plan.rounds + 1,
        transfers: vec!["tcp-up-4".to_owned()],
        transfer_seconds: 7.0,
        voice_samples: 7,
        voice_seconds: 7.0,
        calls: vec![7],
        loads: vec![Load::Download],
        idle_seconds: 7.0,
    };
    let cautions = compare(&before, &after).cautions;
    assert_eq!(cautions.len(), 9, "{cautions:?}");
    let said = format!(
        "`transfer_seconds` of the plan differs: {:?} before, 7.0 after",
        before.plan.transfer_seconds
    );
    assert!(cautions.contains(&said), "{cautions:?}");
}

#[test]
fn another_build_machine_or_peer_is_pointed_out() {
    let before = report(&[1.0]);
    let mut after = before.clone();
    after.machine.kernel = "9.9".to_owned();
    after.version = "1 (0123456789ab)".to_owned();
    after.contenders[1].version = "gotatun 2".to_owned();
    after.cells.truncate(1);
    let comparison = compare(&before, &after);
    assert_eq!(comparison.cautions.len(), 3, "{:?}", comparison.cautions);
    assert_eq!(comparison.unmatched, 3);
}

#[test]
fn a_direction_that_starves_is_seen() {
    let mut report = report(&[1.0]);
    let client = "breakout".to_owned();
    let key = Key { path: Some(Path::Tunnel), client, ..Key::new(Section::Throughput, "tcp-both-1") };
    for (name, rate) in [("rate", 4.0), ("rate-up", 3.96), ("rate-down", 0.04)] {
        report.record(0, &key, name, "Gbit/s", Better::Higher, rate);
    }
    let text = report.to_string();
    for (row, rate) in [("tcp-both-1 ", "4.00"), ("tcp-both-1, up ", "3.96"), ("tcp-both-1, down ", "0.040")]
    {
        let line = text.lines().find(|line| line.trim_start().starts_with(row)).unwrap();
        assert!(line.contains(rate), "{line}");
    }
    assert!(!text.contains("tcp-up-1, up"), "{text}");
}

#[test]
fn tables_show_all_rounds_packets_together_and_every_lost_one() {
    let mut report = report(&[1.0]);
    let (load, path, client) = (Some(Load::Upload), Some(Path::Tunnel), "breakout".to_owned());
    let key = Key { load, path, client, ..Key::new(Section::Voice, "calls-50") };
    for round in 0..5 {
        let is_bad = round == 3;
        let mut delays = Histogram::<u64>::new(3).unwrap();
        delays.record_n(100_000, 900).unwrap();
        delays.record_n(if is_bad { 9_000_000 } else { 100_000 }, 96).unwrap();
        report.record_delays(round, &key, "round-trip", &delays);
        let p99 = if is_bad { 9000.0 } else { 100.0 };
        report.record(round, &key, "rtt-p99", "µs", Better::Lower, p99);
        report.record(round, &key, "late-p99", "µs", Better::Neither, if is_bad { 77.0 } else { 7.0 });
        report.record(round, &key, "sent", "packets", Better::Neither, if is_bad { 1000.0 } else { 996.0 });
        report.record(round, &key, "reordered", "packets", Better::Lower, if is_bad { 7.0 } else { 0.0 });
    }
    let text = report.to_string();
    let row = text.lines().find(|line| line.trim_start().starts_with("50 ")).unwrap();
    let shown: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let of = |column: &str| {
        let heads = text.lines().find(|line| line.contains("rtt p50")).unwrap();
        let at = heads.split("  ").map(str::trim).filter(|head| !head.is_empty());
        shown[at.clone().position(|head| head == column).unwrap()]
    };
    assert_eq!((of("rtt p50"), of("p99")), ("100", "9003"), "{text}");
    assert_eq!((of("lost"), of("reordered"), of("sent")), ("4 (0.080 %)", "7", "4984"), "{text}");
    assert_eq!(of("sent late"), "77.0", "the bench's own lateness, in the worst round: {text}");
}

#[test]
fn the_page_is_whole_and_safe() {
    let page = html::page(&report(&[1.0, 1.1]));
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</body></html>\n"));
    assert!(page.contains("&lt;&amp;&gt;") && !page.contains("<&>"));
    assert!(page.contains("2.00 × as much as gotatun"), "{page}");
    assert_eq!(page.matches("<polyline").count(), 2);
    for outside in ["http-equiv", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

//! What must hold is judged by the run's own figures, and only where they suffice.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy's exception for tests does not reach their helpers"
)]

use bench::{
    Bar, Better, Contender, Key, Load, Machine, Mode, Path, Plan, Report, SCHEMA, Section, compare, html,
    judge,
};
use hdrhistogram::Histogram;

const ROUNDS: usize = 5;

fn report(gateway: &str) -> Report {
    let contender = |client: &str| Contender {
        client: client.to_owned(),
        version: String::new(),
        gateway: gateway.to_owned(),
        gateway_version: String::new(),
        mtu: 1420,
        realtime: true,
        features: serde_json::Value::Null,
    };
    Report {
        schema: SCHEMA,
        mode: Mode::Lab,
        taken_at: 1,
        seconds: 1.0,
        version: String::new(),
        command: Vec::new(),
        machine: Machine::default(),
        realtime: true,
        plan: Plan::full(),
        contenders: ["breakout", "boringtun-cli", "gotatun"].map(contender).to_vec(),
        notes: Vec::new(),
        cells: Vec::new(),
        failed: Vec::new(),
        bars: Vec::new(),
    }
}

fn tunnel(section: Section, scenario: &str, client: &str) -> Key {
    Key { path: Some(Path::Tunnel), client: client.to_owned(), ..Key::new(section, scenario) }
}

fn voice(path: Path, calls: u16, load: Load) -> Key {
    let client = if path == Path::Direct { "" } else { "breakout" }.to_owned();
    Key { load: Some(load), path: Some(path), client, ..Key::new(Section::Voice, format!("calls-{calls}")) }
}

/// The bare path beside the load of a tier's daemon.
fn bare(path: Path, beside: Path, calls: u16, load: Load) -> Key {
    Key { beside: Some(beside), client: String::new(), ..voice(path, calls, load) }
}

fn record(report: &mut Report, key: &Key, name: &str, value: f64) {
    for round in 0..ROUNDS {
        report.record(round, key, name, "x", Better::Lower, value);
    }
}

fn hear(report: &mut Report, key: &Key, packets: u64, us: f64) {
    record(report, key, "load-rate", 2.0);
    record(report, key, "sent", packets as f64 / ROUNDS as f64);
    record(report, key, "rtt-p50", us);
    record(report, key, "rtt-p99", us);
    let mut delays = Histogram::<u64>::new(3).unwrap();
    delays.record_n((us * 1e3) as u64, packets / ROUNDS as u64).unwrap();
    for round in 0..ROUNDS {
        report.record_delays(round, key, "round-trip", &delays);
    }
}

fn find<'a>(bars: &'a [Bar], words: &str) -> &'a Bar {
    bars.iter().find(|bar| bar.what.contains(words)).unwrap_or_else(|| {
        panic!("no bar about `{words}` in {:?}", bars.iter().map(|bar| &bar.what).collect::<Vec<_>>())
    })
}

#[test]
fn throughput_is_judged_against_others_and_the_ceiling() {
    let mut report = report("breakout");
    for (client, rate) in [("breakout", 3.0), ("boringtun-cli", 0.9), ("gotatun", 1.2)] {
        for scenario in ["tcp-up-1", "tcp-down-1"] {
            record(&mut report, &tunnel(Section::Throughput, scenario, client), "rate", rate);
        }
    }
    record(&mut report, &Key::new(Section::Ceiling, "chacha20-poly1305"), "rate", 10.0);
    let bars = judge(&report);
    let met = |words| find(&bars, words).met;
    assert_eq!(met("tcp-up-1 through the gateway breakout, by boringtun-cli"), Some(true));
    assert_eq!(met("tcp-up-1 through the gateway breakout, by gotatun"), Some(false));
    assert_eq!(met("tcp-down-1 through the gateway breakout, by gotatun"), Some(true));
    assert_eq!(find(&bars, "tcp-up-1, ours at both ends").measured, 0.3);
    assert_eq!(met("tcp-up-1, ours at both ends"), Some(false));

    for contender in &mut report.contenders {
        contender.gateway = "wireguard-go".to_owned();
    }
    let bars = judge(&report);
    assert_eq!(find(&bars, "tcp-up-1 through the gateway wireguard-go, by boringtun-cli").met, Some(true));
    assert!(!bars.iter().any(|bar| bar.what.contains("ceiling")), "the far end is not ours");
}

#[test]
fn cost_is_only_judged_of_clients_that_carried_the_load() {
    let mut report = report("breakout");
    let [ours, theirs] =
        ["breakout", "boringtun-cli"].map(|client| tunnel(Section::FixedLoad, "fixed-up", client));
    for (key, cpu) in [(&ours, 1.0), (&theirs, 4.0)] {
        record(&mut report, key, "cpu", cpu);
        record(&mut report, key, "rate", 0.3);
    }
    let bars = judge(&report);
    assert_eq!((bars.len(), bars[0].measured, bars[0].met), (1, 0.25, Some(true)));
    for cell in &mut report.cells {
        if cell.key.client == "boringtun-cli" {
            cell.metrics.get_mut("rate").unwrap().rounds = vec![Some(0.2); ROUNDS];
        }
    }
    let bars = judge(&report);
    assert_eq!(bars[0].met, None);
    assert!(bars[0].note.contains("boringtun-cli did not carry the load"), "{}", bars[0].note);
}

#[test]
fn voice_is_judged_beside_direct_and_only_with_enough_packets() {
    let mut report = report("breakout");
    for (path, us) in [(Path::Direct, 100.0), (Path::BypassPump, 210.0), (Path::BypassFastPath, 120.0)] {
        for calls in [1, 10] {
            hear(&mut report, &voice(path, calls, Load::Idle), 30_000, us);
        }
        if path == Path::Direct {
            continue;
        }
        let loaded = voice(path, 50, Load::Upload);
        hear(&mut report, &bare(Path::Direct, path, 50, Load::Upload), 30_000, 100.0);
        hear(&mut report, &loaded, 30_000, us);
        record(&mut report, &loaded, "loss", 0.0);
    }
    let bars = judge(&report);
    let met = |words| find(&bars, words).met;
    assert_eq!(met("bypass (pump), 1 call idle"), Some(false), "2.1 is more than 2.0");
    assert_eq!(met("bypass (pump), 10 calls idle"), Some(true), "and less than 2.6");
    assert_eq!(met("bypass (pump), 50 calls during a saturating upload: round trip's p99"), Some(false));
    assert_eq!(met("bypass (fast path), 1 call idle: round trip's median"), Some(true));
    assert_eq!(met("bypass (fast path), 50 calls during a saturating upload: loss"), Some(true));

    report.contenders[0].realtime = false;
    let lost = voice(Path::BypassFastPath, 50, Load::Upload);
    report.record(ROUNDS - 1, &lost, "loss", "%", Better::Lower, 0.01);
    let few = voice(Path::BypassPump, 50, Load::Idle);
    hear(&mut report, &few, 3000, 100.0);
    hear(&mut report, &voice(Path::Direct, 50, Load::Idle), 30_000, 100.0);
    let bars = judge(&report);
    let pump = find(&bars, "bypass (pump), 50 calls during a saturating upload: round trip's p99");
    assert_eq!((pump.met, pump.note.as_str()), (None, "not judged: no thread of the client runs real-time"));
    let loss = find(&bars, "bypass (fast path), 50 calls during a saturating upload: loss");
    assert_eq!((loss.met, loss.measured), (Some(false), 0.01), "one lost packet in any round counts");
    let few = find(&bars, "bypass (pump), 50 calls idle");
    assert_eq!((few.met, few.note.as_str()), (None, "not judged: 3000 packets were sent, too few"));
}

#[test]
fn a_round_in_which_nothing_came_back_does_not_move_the_others() {
    let mut report = report("breakout");
    let (direct, bypass) = (voice(Path::Direct, 10, Load::Idle), voice(Path::BypassPump, 10, Load::Idle));
    for round in 0..ROUNDS {
        let us = 100.0 * (1 + round) as f64;
        report.record(round, &direct, "rtt-p50", "µs", Better::Lower, us);
        if round != 1 {
            report.record(round, &bypass, "rtt-p50", "µs", Better::Lower, 2.0 * us);
        }
    }
    let bars = judge(&report);
    let bar = find(&bars, "bypass (pump), 10 calls idle");
    assert_eq!(bar.rounds, [Some(2.0), None, Some(2.0), Some(2.0), Some(2.0)]);
    assert_eq!(bar.measured, 2.0);
    assert_eq!(bar.note, "not judged: fewer than 5 rounds");
}

/// Hears 6000 packets in each round: 100 µs, and of every thousand so many of 1 ms.
fn hear_slow(report: &mut Report, key: &Key, slow: [u64; ROUNDS]) {
    record(report, key, "load-rate", 2.0);
    for (round, slow) in slow.into_iter().enumerate() {
        let mut delays = Histogram::<u64>::new(3).unwrap();
        delays.record_n(100_000, 6 * (1000 - slow)).unwrap();
        delays.record_n(1_000_000, 6 * slow).unwrap();
        let p99 = delays.value_at_quantile(0.99) as f64 / 1e3;
        report.record(round, key, "rtt-p99", "µs", Better::Lower, p99);
        report.record_delays(round, key, "round-trip", &delays);
    }
}

#[test]
fn a_p99_is_that_of_all_rounds_packets_and_says_how_far_it_swings() {
    let mut report = report("breakout");
    let (pump, direct) =
        (voice(Path::BypassPump, 50, Load::Upload), bare(Path::Direct, Path::BypassPump, 50, Load::Upload));
    hear_slow(&mut report, &direct, [0; ROUNDS]);
    // Two bad rounds of five: the median of five p99s does not know them.
    hear_slow(&mut report, &pump, [0, 40, 0, 40, 0]);
    let bars = judge(&report);
    let bar = find(&bars, "bypass (pump), 50 calls during a saturating upload: round trip's p99");
    assert!((bar.measured - 10.0).abs() < 0.1, "{bar:?}");
    assert_eq!((bar.met, bar.rounds[0]), (Some(false), Some(1.0)));
    let [low, high] = bar.interval.unwrap();
    assert!(low == 1.0 && high > 9.9, "without the bad rounds it is direct's: {low} to {high}");
}

#[test]
fn voice_that_is_lost_in_the_tunnel_does_not_make_the_rest_faster() {
    let said = |ours_lost: f64, theirs_lost: f64| {
        let mut report = report("breakout");
        let of = |client: &str| Key { client: client.to_owned(), ..voice(Path::Tunnel, 50, Load::Upload) };
        for (client, us, lost) in [("breakout", 200.0, ours_lost), ("gotatun", 1000.0, theirs_lost)] {
            hear(&mut report, &of(client), 30_000, us);
            record(&mut report, &of(client), "sent", 6000.0 * (1.0 + lost));
        }
        let bar =
            find(&judge(&report), "voice inside the tunnel, 50 calls during a saturating upload").clone();
        assert!((bar.measured - 0.2).abs() < 0.01, "{bar:?}");
        (bar.met, bar.note)
    };
    let ours = "more than 1 % of ours never came back: the p99 is longer than said";
    let theirs = "theirs lost more than 1 %: their p99 is that of what came back";
    assert_eq!(said(0.005, 0.005), (Some(true), String::new()));
    assert_eq!(said(0.02, 0.0), (Some(false), ours.to_owned()));
    assert_eq!(said(0.0, 0.02), (Some(true), theirs.to_owned()));
    assert_eq!(said(0.5, 0.5), (Some(false), format!("{ours}; {theirs}")));
}

#[test]
fn a_lost_packet_is_slower_than_any_that_came_back() {
    let mut report = report("breakout");
    let (pump, direct) =
        (voice(Path::BypassPump, 50, Load::Upload), bare(Path::Direct, Path::BypassPump, 50, Load::Upload));
    hear_slow(&mut report, &direct, [0; ROUNDS]);
    hear_slow(&mut report, &pump, [8; ROUNDS]);
    let what = "bypass (pump), 50 calls during a saturating upload: round trip's p99";
    assert_eq!(find(&judge(&report), what).measured, 1.0);
    record(&mut report, &pump, "sent", 6000.0 * 1.005);
    let bar = find(&judge(&report), what).clone();
    assert!((bar.measured - 10.0).abs() < 0.1 && bar.rounds == vec![Some(bar.measured); ROUNDS], "{bar:?}");
}

#[test]
fn each_tier_is_judged_by_what_was_heard_beside_its_own_load() {
    let mut report = report("breakout");
    for (tier, direct, ours) in [(Path::BypassFastPath, 100.0, 110.0), (Path::BypassPump, 300.0, 330.0)] {
        hear(&mut report, &bare(Path::Direct, tier, 50, Load::Upload), 30_000, direct);
        hear(&mut report, &voice(tier, 50, Load::Upload), 30_000, ours);
    }
    let bars = judge(&report);
    for tier in ["fast path", "pump"] {
        let bar = find(&bars, &format!("bypass ({tier}), 50 calls during a saturating upload"));
        assert!((bar.measured - 1.1).abs() < 0.01, "{bar:?}");
        assert_eq!(bar.met, Some(true));
    }
}

#[test]
fn what_direct_is_by_itself_stands_beside_a_bar_and_may_be_more_than_it_allows() {
    for (again, met, note) in [
        (105.0, Some(true), ""),
        (120.0, Some(true), "direct differs from itself by 1.20 ×: more than lies between figure and bar"),
        (131.0, None, "not judged: direct differs from itself by 1.31 ×"),
        (75.0, None, "not judged: direct differs from itself by 1.33 ×"),
    ] {
        let mut report = report("breakout");
        let tier = Path::BypassFastPath;
        hear(&mut report, &bare(Path::Direct, tier, 50, Load::Upload), 30_000, 100.0);
        hear(&mut report, &bare(Path::DirectAgain, tier, 50, Load::Upload), 30_000, again);
        hear(&mut report, &voice(tier, 50, Load::Upload), 30_000, 115.0);
        report.bars = judge(&report);
        let bar =
            find(&report.bars, "bypass (fast path), 50 calls during a saturating upload: round trip's p99");
        assert_eq!((bar.met, bar.note.as_str()), (met, note));
        assert!((bar.again.unwrap() - again / 100.0).abs() < 0.01, "{bar:?}");
        assert!(report.to_string().contains("direct again"), "{report}");
    }
}

#[test]
fn nothing_lost_of_few_packets_says_nothing() {
    for (packets, loss, met) in [(30_000, 0.0, Some(true)), (600, 0.0, None), (600, 0.2, Some(false))] {
        let mut report = report("breakout");
        let key = voice(Path::BypassPump, 50, Load::Upload);
        hear(&mut report, &key, packets, 100.0);
        record(&mut report, &key, "loss", loss);
        let bars = judge(&report);
        assert_eq!(find(&bars, "loss in the worst round").met, met, "{packets} {loss}");
    }
}

#[test]
fn a_load_that_stood_still_is_no_load() {
    let mut report = report("breakout");
    let tier = Path::BypassPump;
    let (pump, direct) = (voice(tier, 50, Load::Upload), bare(Path::Direct, tier, 50, Load::Upload));
    hear(&mut report, &direct, 30_000, 100.0);
    hear(&mut report, &pump, 30_000, 150.0);
    record(&mut report, &pump, "loss", 0.0);
    let p99 = "bypass (pump), 50 calls during a saturating upload: round trip's p99";
    let loss = "bypass (pump), 50 calls during a saturating upload: loss";
    let met = |report: &Report| {
        let bars = judge(report);
        (find(&bars, p99).met, find(&bars, loss).met, find(&bars, p99).note.clone())
    };
    assert_eq!(met(&report), (Some(true), Some(true), String::new()));

    report.record(3, &pump, "load-rate", "Gbit/s", Better::Neither, 0.9);
    let said = "not judged: in a round the load moved 0.90 Gbit/s, less than 1.00";
    assert_eq!(met(&report), (None, None, said.to_owned()));

    report.record(3, &pump, "loss", "%", Better::Lower, 0.1);
    assert_eq!(met(&report).1, Some(false), "what is lost is lost");

    report.record(3, &pump, "loss", "%", Better::Lower, 0.0);
    report.record(3, &pump, "load-rate", "Gbit/s", Better::Neither, 2.0);
    record(&mut report, &tunnel(Section::Throughput, "tcp-up-1", "breakout"), "rate", 4.5);
    let said = "not judged: in a round the load moved 2.00 Gbit/s, less than 2.25";
    assert_eq!(met(&report), (None, None, said.to_owned()));
}

#[test]
fn a_daemon_that_is_woken_by_packets_is_told_from_one_that_is_not() {
    let mut report = report("breakout");
    let idle = tunnel(Section::Idle, "idle", "breakout");
    report.record(0, &idle, "wakeups-per-second", "1/s", Better::Lower, 0.5);
    let one = voice(Path::BypassFastPath, 1, Load::Idle);
    // 50 packets and half a wake-up in a second.
    record(&mut report, &one, "switches-per-packet", 0.01);
    record(&mut report, &one, "switches-per-second", 0.5);
    let bars = judge(&report);
    let bar = find(&bars, "wake-ups of the daemon");
    assert_eq!((bar.met, bar.measured), (Some(true), 0.0));

    for (name, value) in [("switches-per-packet", 1.01), ("switches-per-second", 50.5)] {
        let cell = report.cells.iter_mut().find(|cell| cell.key == one).unwrap();
        cell.metrics.get_mut(name).unwrap().rounds = vec![Some(value); ROUNDS];
    }
    let bars = judge(&report);
    let bar = find(&bars, "wake-ups of the daemon");
    assert_eq!(bar.met, Some(false));
    assert!((bar.measured - 1.0).abs() < 1e-9, "{}", bar.measured);
}

#[test]
fn few_rounds_are_reported_and_bars_are_shown_and_compared() {
    let mut before = report("breakout");
    for (client, rate) in [("breakout", 3.0), ("boringtun-cli", 0.9)] {
        before.record(
            0,
            &tunnel(Section::Throughput, "tcp-up-1", client),
            "rate",
            "Gbit/s",
            Better::Higher,
            rate,
        );
    }
    assert_eq!(judge(&before)[0].note, "not judged: fewer than 5 rounds");

    for (client, rate) in [("breakout", 3.0), ("boringtun-cli", 0.9)] {
        record(&mut before, &tunnel(Section::Throughput, "tcp-up-1", client), "rate", rate);
    }
    before.bars = judge(&before);
    let mut after = before.clone();
    let slower = tunnel(Section::Throughput, "tcp-up-1", "breakout");
    after.cells.iter_mut().find(|cell| cell.key == slower).unwrap().metrics.get_mut("rate").unwrap().rounds =
        vec![Some(2.0); ROUNDS];
    after.bars = judge(&after);
    let said = compare(&before, &after).to_string();
    assert!(
        said.contains("no longer met: tcp-up-1 through the gateway breakout, by boringtun-cli's: 3.333"),
        "{said}"
    );
    assert!(compare(&after, &before).to_string().contains("met now: tcp-up-1"));

    let (text, page) = (after.to_string(), html::page(&after));
    for shown in [&text, &page] {
        assert!(shown.contains("≥ 3.00 ×") && shown.contains("NO"), "{shown}");
        assert!(shown.contains("0 of 1 bars are met"), "{shown}");
    }
}

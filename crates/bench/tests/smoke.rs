//! The bench in real namespaces, for seconds: that everything is measured, not how fast it is.
#![expect(clippy::unwrap_used, reason = "clippy's exception for tests does not reach their helpers")]

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use bench::live::{self, Live};
use bench::throughput::{self, Direction, Protocol, Transfer};
use bench::voice::{self, Calls, EF_TOS, Quality};
use bench::{Load, Plan, Section};
use ipnet::Ipv4Net;
use lab::{End, Host, Link, LinkKind, skip};

fn may_run() -> bool {
    if !lab::has_rights() {
        skip("making network namespaces needs root");
    }
    lab::has_rights()
}

/// Two hosts and a wire, without any tunnel.
struct Pair {
    _wire: Link,
    near: Host,
    far: Host,
    address: std::net::Ipv4Addr,
}

fn pair() -> Pair {
    let (near, far) = (Host::new("near").unwrap(), Host::new("far").unwrap());
    let net = |last| Ipv4Net::new([10, 1, 2, last].into(), 24).unwrap();
    let wire = Link::connect(
        LinkKind::Wire,
        End { host: &near, device: "eth0", address: net(1).into() },
        End { host: &far, device: "eth0", address: net(2).into() },
        0,
    )
    .unwrap();
    Pair { _wire: wire, near, far, address: net(2).addr() }
}

#[test]
fn transfers_arrive_in_every_direction() {
    if !may_run() {
        return;
    }
    let pair = pair();
    let to = SocketAddr::from((pair.address, 47_000));
    throughput::serve(&pair.far, to).unwrap();
    for protocol in [Protocol::Tcp, Protocol::Udp(1400)] {
        let duration = Duration::from_millis(200);
        let (direction, rate) = (Direction::Both, Some(50_000_000));
        let transfer = Transfer { to, protocol, direction, streams: 2, duration, rate };
        let moved = pair.near.thread("transfer", move || transfer.run()).unwrap().join().unwrap().unwrap();
        for count in [moved.up.unwrap(), moved.down.unwrap()] {
            assert!(count.bytes > 0 && count.total_bytes > count.bytes, "{protocol:?}: {count:?}");
            // Two streams of 50 Mbit/s for 200 ms are 2.5 MB; never more, but for what waits in buffers.
            assert!(count.bytes < 4_000_000, "{protocol:?}: {count:?}");
            assert_eq!(count.packets > 0, protocol != Protocol::Tcp);
        }
    }
}

#[test]
fn calls_come_back() {
    if !may_run() {
        return;
    }
    let pair = pair();
    let to = SocketAddr::from((pair.address, 20_000));
    voice::serve(&pair.far, to).unwrap();
    let call = Calls { to, calls: 3, packets: 20, tos: EF_TOS };
    let heard = pair.near.thread("voice", move || call.run()).unwrap().join().unwrap().unwrap();
    let quality = Quality::new(&heard, 0);
    assert_eq!((heard.sent, quality.loss), (60, 0.0));
    assert_eq!((quality.delays.round_trip.len(), quality.delays.one_way.len()), (60, 120));
    assert!((1.0..4.5).contains(&quality.mos), "{}", quality.mos);
}

#[test]
fn the_marked_echo_answers_nothing_else() {
    if !may_run() {
        return;
    }
    let pair = pair();
    let to = SocketAddr::from((pair.address, 20_002));
    voice::serve_marked(&pair.far, to).unwrap();
    let call = |tos| {
        let call = Calls { to, calls: 1, packets: 1, tos };
        pair.near.thread("voice", move || call.run()).unwrap().join().unwrap()
    };
    assert_eq!(call(EF_TOS).unwrap().samples.len(), 1);
    assert_eq!(call(0).unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_live_run_measures_against_a_far_end_in_another_namespace() {
    if !may_run() {
        return;
    }
    let pair = pair();
    let target = SocketAddr::from((pair.address, live::PORT));
    let far = pair.far.run(move || live::serve(target)).unwrap().unwrap();
    // The far end's threads were started by the host's, so they live in its namespace.
    assert_eq!(far.address, target);
    let plan = Plan {
        sections: vec![Section::Throughput, Section::Voice],
        rounds: 1,
        transfer_seconds: 0.1,
        voice_samples: 20,
        calls: vec![2],
        loads: Load::ALL.to_vec(),
        ..Plan::quick()
    };
    let live = Live { target, plan, version: "1".to_owned(), command: Vec::new() };
    let report = pair.near.thread("live", move || live::run(&live)).unwrap().join().unwrap().unwrap();
    let cells = report.cells.len();
    assert_eq!(
        cells,
        6 + Load::ALL.len(),
        "{:?}",
        report.cells.iter().map(|cell| &cell.key).collect::<Vec<_>>()
    );
    assert!(report.cells.iter().all(|cell| cell.metrics.values().all(|metric| metric.rounds.len() == 1)));
    let rates: Vec<f64> = report
        .section(Section::Throughput)
        .filter_map(|cell| Some(cell.metrics.get(bench::metric::RATE)?.median()))
        .collect();
    assert!(rates.len() == 6 && rates.iter().all(|rate| *rate > 0.0), "{rates:?}");
    let voice: Vec<_> = report.section(Section::Voice).collect();
    assert!(voice.iter().all(|cell| cell.distributions["round-trip"].count() == 20), "{voice:?}");
    // Both ends have one clock.
    for cell in &voice {
        let of = |name: &str| cell.metrics[name].median();
        let (offset, error) = (of(bench::metric::CLOCK_OFFSET), of(bench::metric::CLOCK_ERROR));
        assert!(error > 0.0 && offset.abs() <= error + 100.0, "{offset} ± {error} µs");
    }
    let says = |words: &str| report.notes.iter().any(|note| note.contains(words));
    assert!(says("µs ahead of this machine's") && says("may be wrong by up to"), "{:?}", report.notes);
    let (text, page) = (report.to_string(), bench::html::page(&report));
    assert!(text.contains("tcp-down-4") && page.contains("<polyline"), "{text}");

    drop(far);
    sleep(Duration::from_millis(50));
    let refused =
        pair.near.thread("late", move || std::net::TcpStream::connect(target)).unwrap().join().unwrap();
    assert!(refused.is_err());
}

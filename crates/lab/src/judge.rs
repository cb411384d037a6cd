//! From what captures saw to which path each kind of traffic took.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use packet::{Dscp, protocol};

use crate::capture::{Captured, Record};
use crate::report::{CapturePoint, Path, Report, Row, Verdict};
use crate::traffic::{Kind, Outcome};
use crate::wires::Wires;

/// What of a [`Kind`] is left when it has been driven.
#[derive(Clone, Debug)]
pub struct Driven {
    pub name: &'static str,
    pub what: &'static str,
    pub protocol: u8,
    pub to: SocketAddr,
    pub expected: Path,
    pub mark: Option<Dscp>,
    pub outcome: Outcome,
}

/// A refusal later than this is no refusal: applications wait a second at least.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Of what was sent, this much may stay unanswered: chance on an impaired link, not a path that does not work.
const TOLERATED_LOSS: f64 = 0.1;

impl Driven {
    /// Drives the traffic in the calling thread.
    pub fn new(kind: Kind) -> Self {
        let Kind { name, what, protocol, to, expected, mark, drive } = kind;
        Self { name, what, protocol, to, expected, mark, outcome: drive() }
    }

    fn is_outbound(&self, record: &Record) -> bool {
        record.protocol == self.protocol && record.destination == self.to
    }

    fn is_either_way(&self, record: &Record) -> bool {
        self.is_outbound(record) || record.protocol == self.protocol && record.source == self.to
    }

    /// The row for this traffic.
    pub fn judge(&self, wires: &Wires) -> Row {
        let on = |captured: &Captured, outgoing: bool| -> Vec<Record> {
            let records = captured.records.iter();
            records.filter(|r| r.outgoing == outgoing && self.is_outbound(r)).cloned().collect()
        };
        let clear = on(&wires.lan, false);
        let external = on(&wires.wan, true);
        let tunneled = on(&wires.gateway, true);
        let external: BTreeSet<SocketAddr> = external.iter().map(|record| record.source).collect();
        let dscp: BTreeSet<u8> = clear.iter().chain(&tunneled).map(Record::dscp).collect();
        let seen = self.path(&clear, &tunneled);
        let problems = self.problems(seen, &dscp, &external);
        let microseconds = |quantile: f64| {
            let trips = &self.outcome.round_trips;
            (!trips.is_empty()).then(|| trips.value_at_quantile(quantile) as f64 / 1000.0)
        };
        Row {
            kind: self.name.to_owned(),
            what: self.what.to_owned(),
            protocol: if self.protocol == protocol::TCP { "tcp" } else { "udp" }.to_owned(),
            destination: self.to.to_string(),
            sent: self.outcome.sent,
            answered: self.outcome.answered,
            path_expected: self.expected,
            path_seen: seen,
            packets_in_clear: clear.len() as u64,
            packets_behind_gateway: tunneled.len() as u64,
            dscp: dscp.into_iter().collect(),
            dscp_back: self.outcome.dscp_back.iter().copied().collect(),
            external: external.iter().map(ToString::to_string).collect(),
            rtt_p50_us: microseconds(0.5),
            rtt_p99_us: microseconds(0.99),
            jitter_us: self.outcome.jitter_ns.map(|ns| ns / 1000.0),
            loss: self.outcome.loss(),
            ok: problems.is_empty(),
            problems,
        }
    }

    fn path(&self, clear: &[Record], tunneled: &[Record]) -> Path {
        match (clear.is_empty(), tunneled.is_empty()) {
            (true, true) if self.refused_at_once() => Path::Refused,
            (true, true) => Path::Dropped,
            (true, false) => Path::Tunnel,
            (false, false) => Path::Both,
            (false, true) => self.path_in_clear(clear),
        }
    }

    fn path_in_clear(&self, clear: &[Record]) -> Path {
        let Some(local) = self.outcome.local else { return Path::Direct };
        if clear.iter().any(|record| record.source != local) {
            return Path::Bypass;
        }
        // Who bypasses with the application's own address is only known by the mark, which the application did not give.
        let marked = self.mark.is_some_and(|mark| clear.iter().all(|record| record.dscp() == mark.value()));
        if marked && self.expected == Path::BypassOwnAddress { Path::BypassOwnAddress } else { Path::Direct }
    }

    fn refused_at_once(&self) -> bool {
        self.outcome.failure.as_ref().is_some_and(|failure| failure.refused && failure.after < AT_ONCE)
    }

    fn problems(&self, seen: Path, dscp: &BTreeSet<u8>, external: &BTreeSet<SocketAddr>) -> Vec<String> {
        let mut problems = Vec::new();
        if seen != self.expected {
            problems.push(format!("expected {}, seen {}", self.expected.name(), seen.name()));
        }
        if let Some(mark) = self.mark {
            let lost = |dscp: &BTreeSet<u8>| dscp.iter().any(|value| *value != mark.value());
            if lost(dscp) {
                problems.push(format!("the mark {mark} was lost on the way out"));
            }
            if lost(&self.outcome.dscp_back) {
                problems.push(format!("the mark {mark} was lost on the way back"));
            }
        }
        if matches!(self.expected, Path::Bypass | Path::BypassOwnAddress) && external.len() > 1 {
            let all: Vec<String> = external.iter().map(ToString::to_string).collect();
            problems.push(format!("left the home with several addresses: {}", all.join(", ")));
        }
        if let Some(problem) = self.answers_problem() {
            problems.push(problem);
        }
        problems
    }

    fn answers_problem(&self) -> Option<String> {
        let failure = || self.outcome.failure.as_ref().map_or("no error".to_owned(), ToString::to_string);
        if self.expected == Path::Refused {
            return (!self.refused_at_once()).then(|| format!("was not refused at once: {}", failure()));
        }
        let ended_early = self.outcome.failure.is_some();
        (ended_early || self.outcome.answered == 0 || self.outcome.loss() > TOLERATED_LOSS)
            .then(|| format!("{} of {} answered: {}", self.outcome.answered, self.outcome.sent, failure()))
    }
}

/// What the captures say about signaling in the clear, and whether they can be believed.
pub fn report(
    driven: &[Driven],
    more: Vec<Row>,
    wires: &Wires,
    gateway: Option<String>,
    took: Duration,
) -> Report {
    let mut rows: Vec<Row> = driven.iter().map(|driven| driven.judge(wires)).collect();
    let leaked = wires.signaling_in_clear();
    let leaking: Vec<&Driven> =
        driven.iter().filter(|driven| leaked.iter().any(|record| driven.is_either_way(record))).collect();
    for row in rows.iter_mut().filter(|row| leaking.iter().any(|driven| driven.name == row.kind)) {
        row.ok = false;
        row.problems.insert(0, "signaling was seen in the clear".to_owned());
    }
    rows.extend(more);
    let others = leaked.iter().filter(|r| !leaking.iter().any(|driven| driven.is_either_way(r))).count();
    let captures = vec![
        point("access router, LAN side", &wires.lan),
        point("access router, WAN side", &wires.wan),
        point("behind the gateway", &wires.gateway),
    ];
    let from_tunnel = wires.tunnel_source_in_clear();
    let verdict = if !leaked.is_empty() || from_tunnel > 0 || rows.iter().any(|row| !row.ok) {
        Verdict::Red
    } else if captures.iter().any(|capture| capture.missed() > 0) {
        Verdict::Unjudged
    } else {
        Verdict::Green
    };
    Report {
        verdict,
        gateway,
        seconds: took.as_secs_f64(),
        signaling_in_clear: leaking.iter().map(|driven| driven.name.to_owned()).collect(),
        other_signaling_in_clear: others as u64,
        tunnel_source_in_clear: from_tunnel as u64,
        daemon_ended: None,
        tunnel_datagrams: wires.tunnel_datagrams() as u64,
        rows,
        captures,
    }
}

fn point(point: &str, captured: &Captured) -> CapturePoint {
    CapturePoint {
        point: point.to_owned(),
        packets: captured.records.len() as u64,
        lost: captured.lost,
        unparsed: captured.unparsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "10.99.0.1:40000";
    const LAN: &str = "192.168.77.10:40000";
    const HOME: &str = "198.51.100.2:40000";
    const DECRYPTED: &str = "198.18.0.2:40000";
    const SIGNALING: &str = "203.0.113.10:443";
    const MEDIA: &str = "52.129.96.10:20000";

    fn captured(packets: &[(bool, &str, &str, u8)]) -> Captured {
        let record = |&(outgoing, source, destination, dscp): &(bool, &str, &str, u8)| Record {
            at_ns: 0,
            outgoing,
            protocol: protocol::UDP,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            tos: dscp << 2,
            ttl: 64,
            len: 100,
            head: Vec::new(),
        };
        Captured { records: packets.iter().map(record).collect(), lost: 0, unparsed: 0 }
    }

    fn wires(
        lan: &[(bool, &str, &str, u8)],
        wan: &[(bool, &str, &str, u8)],
        gateway: &[(bool, &str, &str, u8)],
    ) -> Wires {
        Wires { lan: captured(lan), wan: captured(wan), gateway: captured(gateway) }
    }

    fn bypassed() -> Wires {
        wires(&[(false, LAN, MEDIA, 46), (true, MEDIA, LAN, 46)], &[(true, HOME, MEDIA, 46)], &[])
    }

    fn tunneled() -> Wires {
        wires(&[(false, LAN, "198.18.0.2:51820", 0)], &[], &[(true, DECRYPTED, SIGNALING, 0)])
    }

    fn driven(to: &str, expected: Path, local: &str) -> Driven {
        let outcome =
            Outcome { local: Some(local.parse().unwrap()), sent: 10, answered: 10, ..Default::default() };
        let mark = matches!(expected, Path::Bypass | Path::BypassOwnAddress).then_some(Dscp::EF);
        Driven {
            name: "row",
            what: "",
            protocol: protocol::UDP,
            to: to.parse().unwrap(),
            expected,
            mark,
            outcome,
        }
    }

    fn verdict(driven: Driven, wires: &Wires) -> (Verdict, String) {
        let report = report(&[driven], Vec::new(), wires, None, Duration::ZERO);
        (report.verdict, report.rows[0].problems.join("; "))
    }

    #[test]
    fn a_path_as_expected_is_green() {
        let green = (Verdict::Green, String::new());
        assert_eq!(verdict(driven(MEDIA, Path::Bypass, APP), &bypassed()), green);
        assert_eq!(verdict(driven(MEDIA, Path::BypassOwnAddress, LAN), &bypassed()), green);
        assert_eq!(verdict(driven(SIGNALING, Path::Tunnel, APP), &tunneled()), green);
    }

    #[test]
    fn a_wrong_path_is_red() {
        for (driven, wires, problem) in [
            (driven(MEDIA, Path::Bypass, LAN), bypassed(), "expected bypass, seen direct"),
            (driven(MEDIA, Path::Tunnel, APP), bypassed(), "expected tunnel, seen bypass"),
            (driven(SIGNALING, Path::Direct, APP), tunneled(), "expected direct, seen tunnel"),
            (driven(MEDIA, Path::Bypass, APP), tunneled(), "expected bypass, seen dropped"),
        ] {
            let (verdict, problems) = verdict(driven, &wires);
            assert_eq!(verdict, Verdict::Red);
            assert!(problems.contains(problem), "{problems}");
        }
    }

    #[test]
    fn one_packet_of_signaling_in_the_clear_is_a_leak_even_if_the_rest_was_tunneled() {
        let mut wires = tunneled();
        wires.wan.records.extend(captured(&[(true, HOME, SIGNALING, 0)]).records);
        let report =
            report(&[driven(SIGNALING, Path::Tunnel, APP)], Vec::new(), &wires, None, Duration::ZERO);
        assert_eq!((report.verdict, report.signaling_in_clear), (Verdict::Red, vec!["row".to_owned()]));
    }

    #[test]
    fn signaling_of_no_row_and_the_tunnels_source_are_leaks_too() {
        for packet in [(false, LAN, "203.0.113.99:1", 0), (false, APP, "192.0.2.80:1", 0)] {
            let mut wires = tunneled();
            wires.lan.records.extend(captured(&[packet]).records);
            let (verdict, problems) = verdict(driven(SIGNALING, Path::Tunnel, APP), &wires);
            assert_eq!((verdict, problems), (Verdict::Red, String::new()));
        }
    }

    #[test]
    fn one_packet_without_its_mark_or_from_another_port_is_red() {
        let mut wires = bypassed();
        wires.lan.records.extend(captured(&[(false, LAN, MEDIA, 0)]).records);
        let (verdict_of_mark, problems) = verdict(driven(MEDIA, Path::Bypass, APP), &wires);
        assert_eq!(
            (verdict_of_mark, problems.as_str()),
            (Verdict::Red, "the mark ef was lost on the way out")
        );

        let mut wires = bypassed();
        wires.wan.records.extend(captured(&[(true, "198.51.100.2:40001", MEDIA, 46)]).records);
        let (verdict_of_port, problems) = verdict(driven(MEDIA, Path::Bypass, APP), &wires);
        assert_eq!(verdict_of_port, Verdict::Red);
        assert!(problems.contains("several addresses"), "{problems}");

        let mut back = driven(MEDIA, Path::Bypass, APP);
        back.outcome.dscp_back = [46, 0].into();
        assert_eq!(verdict(back, &bypassed()).1, "the mark ef was lost on the way back");
    }

    #[test]
    fn a_right_path_that_breaks_off_is_red() {
        let mut broken = driven(SIGNALING, Path::Tunnel, APP);
        broken.outcome.fail(&std::io::ErrorKind::ConnectionReset.into(), Duration::from_secs(2));
        let (verdict, problems) = verdict(broken, &tunneled());
        assert_eq!(
            (verdict, problems.as_str()),
            (Verdict::Red, "10 of 10 answered: connection reset after 2000 ms")
        );
    }

    #[test]
    fn silence_is_no_refusal() {
        let nothing = wires(&[], &[], &[]);
        let mut silent = driven(MEDIA, Path::Refused, APP);
        silent.outcome.answered = 0;
        assert_eq!(verdict(silent.clone(), &nothing).0, Verdict::Red);
        silent.outcome.fail(&std::io::ErrorKind::ConnectionRefused.into(), Duration::from_millis(5));
        assert_eq!(verdict(silent.clone(), &nothing).0, Verdict::Green);
        silent.outcome.fail(&std::io::ErrorKind::ConnectionRefused.into(), Duration::from_secs(2));
        assert_eq!(verdict(silent, &nothing).0, Verdict::Red);
    }

    #[test]
    fn a_capture_with_holes_proves_nothing_but_still_convicts() {
        let mut wires = tunneled();
        wires.lan.lost = 1;
        assert_eq!(verdict(driven(SIGNALING, Path::Tunnel, APP), &wires).0, Verdict::Unjudged);
        (wires.lan.lost, wires.wan.unparsed) = (0, 1);
        assert_eq!(verdict(driven(SIGNALING, Path::Tunnel, APP), &wires).0, Verdict::Unjudged);
        assert_eq!(verdict(driven(SIGNALING, Path::Direct, APP), &wires).0, Verdict::Red);
    }
}

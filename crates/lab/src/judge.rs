//! From what captures saw to which path each kind of traffic took.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use packet::{Dscp, protocol};

use crate::capture::{Captured, Record};
use crate::internet::SIGNALING_NET;
use crate::internet::addresses::{AGENT, GATEWAY, GATEWAY_PORT};
use crate::report::{CapturePoint, Path, Report, Row, Verdict};
use crate::traffic::{Kind, Outcome};

/// What was captured where, from before the first packet to after the last.
#[derive(Debug)]
pub struct Wires {
    /// The access router's side of the agent's wire.
    pub lan: Captured,
    /// Behind the access router's NAT.
    pub wan: Captured,
    /// The gateway's only wire: tunnel datagrams, and what it decrypted and sends on.
    pub gateway: Captured,
}

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
        (self.outcome.answered == 0 || self.outcome.loss() > TOLERATED_LOSS)
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
    let leaked: Vec<&Record> = [&wires.lan, &wires.wan]
        .into_iter()
        .flat_map(|wire| &wire.records)
        .filter(|r| is_signaling(r))
        .collect();
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
    let verdict = if !leaked.is_empty() || rows.iter().any(|row| !row.ok) {
        Verdict::Red
    } else if captures.iter().any(|capture| capture.lost > 0) {
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
        tunnel_datagrams: wires.lan.records.iter().filter(|record| is_tunnel(record)).count() as u64,
        rows,
        captures,
    }
}

fn is_signaling(record: &Record) -> bool {
    let is = |address: IpAddr| matches!(address, IpAddr::V4(v4) if SIGNALING_NET.contains(&v4));
    is(record.source.ip()) || is(record.destination.ip())
}

fn is_tunnel(record: &Record) -> bool {
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let agent = IpAddr::from(AGENT);
    record.protocol == protocol::UDP
        && (record.source.ip() == agent && record.destination == gateway
            || record.source == gateway && record.destination.ip() == agent)
}

fn point(point: &str, captured: &Captured) -> CapturePoint {
    CapturePoint {
        point: point.to_owned(),
        packets: captured.records.len() as u64,
        lost: captured.lost,
        unparsed: captured.unparsed,
    }
}

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use packet::{FiveTuple, Headers, TcpFlags, Tos, Transport, protocol};
use policy::{Facts, Mark, Path, RuleId, Snapshot, Verdict};

use super::cache::{CacheState, Moved};
use super::mapping::{MAPPING_LIFE, MappingId};
use crate::rtp::{HEAD, RtpStream};
use crate::{Direction, FlowReport};

/// RFC 5382 REQ-5: an established connection is kept for 2 h 4 min, any other state for 4 min.
const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
const TCP_TRANSITORY: Duration = Duration::from_secs(240);
/// RFC 5508 REQ-1.
const ICMP: Duration = Duration::from_secs(60);

/// A pinned flow.
pub(super) struct Flow {
    /// As the application wrote it.
    pub(super) tuple: FiveTuple,
    /// Of its first packet, so that a later policy can judge it again.
    facts: Facts,
    pub(super) path: Path,
    rule: RuleId,
    pub(super) mark: Mark,
    /// Of a bypass flow from the TUN's address; `None` on the identity mapping.
    pub(super) mapping: Option<MappingId>,
    /// Of a tunnel flow.
    pub(super) gateway: u8,
    /// Whose rule and mark these are.
    snapshot: Arc<Snapshot>,
    /// Who judged it last: one that would choose another path, yet lets this one be, gives no rule.
    judged_by: Arc<Snapshot>,
    pub(super) cache: CacheState,
    tcp: TcpState,
    out_packets: u64,
    out_bytes: u64,
    in_packets: u64,
    in_bytes: u64,
    last_out: Instant,
    last_in: Option<Instant>,
    /// Outbound and inbound; the cache's while it measures them.
    pub(super) rtp: [RtpStream; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TcpState {
    Opening,
    Established,
    Closing,
}

impl Flow {
    pub(super) fn new(
        tuple: FiveTuple,
        facts: Facts,
        verdict: Verdict,
        mapping: Option<MappingId>,
        gateway: u8,
        snapshot: Arc<Snapshot>,
        now: Instant,
    ) -> Self {
        Self {
            tuple,
            facts,
            path: verdict.path,
            rule: verdict.rule,
            mark: verdict.mark,
            mapping,
            gateway,
            judged_by: Arc::clone(&snapshot),
            snapshot,
            cache: CacheState::default(),
            tcp: TcpState::Opening,
            out_packets: 0,
            out_bytes: 0,
            in_packets: 0,
            in_bytes: 0,
            last_out: now,
            last_in: None,
            rtp: [RtpStream::default(); 2],
        }
    }

    pub(super) fn is_judged_by(&self, snapshot: &Arc<Snapshot>) -> bool {
        Arc::ptr_eq(&self.judged_by, snapshot)
    }

    /// Judges it by this policy, if that has not been done. `true`: that has cut it.
    pub(super) fn judge_again(&mut self, snapshot: &Arc<Snapshot>) -> bool {
        if self.is_judged_by(snapshot) {
            return false;
        }
        self.judged_by = Arc::clone(snapshot);
        let verdict = snapshot.classify(&self.facts);
        let forbidden =
            verdict.path == Path::Reject || self.path == Path::Bypass && verdict.path == Path::Tunnel;
        let cut = forbidden && self.path != Path::Reject;
        if forbidden {
            self.path = Path::Reject;
        }
        if forbidden || verdict.path == self.path {
            self.rule = verdict.rule;
            self.mark = verdict.mark;
            self.snapshot = Arc::clone(snapshot);
        }
        cut
    }

    /// `from` is silent, and `to` is another NAT: what is not known beyond it moves, a connection that is, is cut. Whether it was and was live.
    pub(super) fn fail_over(&mut self, from: u8, to: u8) -> bool {
        if self.path != Path::Tunnel || self.gateway != from {
            return false;
        }
        if self.tuple.protocol == protocol::TCP && self.last_in.is_some() {
            self.path = Path::Reject;
            return self.tcp != TcpState::Closing;
        }
        self.gateway = to;
        false
    }

    pub(super) fn sent(&mut self, headers: &Headers, now: Instant) {
        self.follow_tcp(headers);
        self.out_packets += 1;
        self.out_bytes += u64::from(headers.len);
        self.last_out = now;
    }

    pub(super) fn received(&mut self, headers: &Headers, now: Instant) {
        self.follow_tcp(headers);
        self.count_in(headers.len as usize, now);
    }

    pub(super) fn count_in(&mut self, bytes: usize, now: Instant) {
        self.in_packets += 1;
        self.in_bytes += bytes as u64;
        self.last_in = Some(now);
    }

    pub(super) fn moved(&mut self, sent: Moved, received: Moved) {
        self.out_packets += sent.packets;
        self.out_bytes += sent.bytes;
        self.last_out = sent.last.map_or(self.last_out, |last| self.last_out.max(last));
        self.in_packets += received.packets;
        self.in_bytes += received.bytes;
        self.last_in = self.last_in.max(received.last);
        for direction in [Direction::Outbound, Direction::Inbound] {
            if *direction.of(&self.cache.measures) {
                *direction.of_mut(&mut self.rtp) = direction.of(&[sent, received]).rtp;
            }
        }
    }

    /// Looks at what was sent for RTP. The payload is several datagrams of `segment` bytes, the last one maybe smaller, or one.
    /// `arrival` is as [`Arrivals`](super::arrival::Arrivals) has it.
    pub(super) fn measure_out(&mut self, payload: &[u8], segment: Option<u16>, tos: Tos, arrival: u64) {
        match segment {
            None => self.measure(Direction::Outbound, [payload], tos, arrival),
            Some(size) => {
                let datagrams = payload.chunks(usize::from(size).max(1));
                self.measure(Direction::Outbound, datagrams, tos, arrival);
            }
        }
    }

    pub(super) fn measure_in(&mut self, payload: &[u8], tos: Tos, arrival: u64) {
        self.measure(Direction::Inbound, [payload], tos, arrival);
    }

    fn measure<'a>(
        &mut self,
        direction: Direction,
        datagrams: impl IntoIterator<Item = &'a [u8]>,
        tos: Tos,
        arrival: u64,
    ) {
        if *direction.of(&self.cache.measures) {
            return;
        }
        let stream = direction.of_mut(&mut self.rtp);
        for datagram in datagrams {
            stream.seen(datagram.get(..HEAD).unwrap_or(datagram), datagram.len(), arrival, tos.0);
        }
    }

    pub(super) fn expired(&self, now: Instant) -> bool {
        self.refreshed().checked_add(self.life()).is_some_and(|end| end <= now)
    }

    /// How long no packet went either way.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_in.unwrap_or(self.last_out).max(self.last_out))
    }

    pub(super) fn report(&self, mapping: Option<SocketAddr>, now: Instant) -> FlowReport {
        FlowReport {
            tuple: self.tuple,
            path: self.path,
            rule: self.snapshot.rule_name(self.rule).to_owned(),
            gateway: (self.path == Path::Tunnel).then_some(self.gateway.into()),
            mapping,
            mark: match self.mark {
                Mark::Keep => "keep".to_owned(),
                Mark::Voice(dscp) => dscp.to_string(),
            },
            out_packets: self.out_packets,
            out_bytes: self.out_bytes,
            in_packets: self.in_packets,
            in_bytes: self.in_bytes,
            in_kernel: self.cache.cached,
            idle: self.idle(now),
            out_rtp: Direction::Outbound.of(&self.rtp).report(),
            in_rtp: Direction::Inbound.of(&self.rtp).report(),
        }
    }

    /// RFC 4787 REQ-6: a bypass flow, like its mapping, lives by what its application sends; others by either direction.
    fn refreshed(&self) -> Instant {
        match self.path {
            Path::Bypass => self.last_out,
            Path::Tunnel | Path::Reject => self.last_in.unwrap_or(self.last_out).max(self.last_out),
        }
    }

    pub(super) fn life(&self) -> Duration {
        match self.tuple.protocol {
            protocol::TCP if self.tcp == TcpState::Established => TCP_ESTABLISHED,
            protocol::TCP => TCP_TRANSITORY,
            protocol::ICMP | protocol::ICMPV6 => ICMP,
            _ => MAPPING_LIFE,
        }
    }

    fn follow_tcp(&mut self, headers: &Headers) {
        let Transport::Tcp { flags, .. } = headers.transport else { return };
        if flags.has(TcpFlags::SYN) {
            self.tcp = TcpState::Opening;
        } else if flags.has(TcpFlags::FIN) || flags.has(TcpFlags::RST) {
            self.tcp = TcpState::Closing;
        } else if self.tcp == TcpState::Opening {
            self.tcp = TcpState::Established;
        }
    }
}

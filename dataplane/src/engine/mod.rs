//! Flows, NAT and actions, without I/O: packets and `now` in, actions out.

mod arrival;
mod cache;
mod fail_over;
mod flow;
mod fragment;
mod limit;
mod mapping;
mod table;

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use packet::{FiveTuple, Headers, Packet, PacketMut, TcpFlags, Tos, Transport, build, protocol};
use policy::{Facts, Path, Snapshot};

use crate::{Counters, DropReason, FlowReport, Underlay};
use arrival::Arrivals;
pub use cache::{Cacheable, Moved, Note};
use flow::Flow;
use fragment::Fragments;
use limit::RateLimit;
pub use mapping::{LINGER, MappingId};
use mapping::{Mapping, Mappings};
use table::{FlowId, FlowTable};

/// Destinations of refused packets that are remembered.
const MAX_REFUSED: usize = 1024;

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// An agent's machine has tens of flows; this bounds memory (about 450 B each) under a flood.
    pub flows: usize,
    /// Each mapping holds a socket.
    pub mappings: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 65_536, mappings: 4_096 }
    }
}

/// Judges every packet and remembers what it decided.
pub struct Engine {
    snapshot: Arc<Snapshot>,
    addresses: Vec<IpAddr>,
    underlay: Underlay,
    /// Where new tunnel flows go.
    gateway: u8,
    flows: FlowTable,
    mappings: Mappings,
    fragments: Fragments,
    refusals: RateLimit,
    /// Where packets were to go that were refused since that was asked last.
    refused: HashSet<IpAddr, ahash::RandomState>,
    /// Parts of the flows that the policy swapped in last has judged again, and how many flows it has cut.
    judged_parts: usize,
    cut: usize,
    counters: Arc<Counters>,
    arrivals: Arrivals,
    noting: bool,
    /// When the ways out were last found to have changed.
    routes_since: Option<Instant>,
    notes: VecDeque<(FiveTuple, Note)>,
}

/// What the pump does with a packet that it read from the TUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Seal it for this gateway. Its mark is already applied.
    Tunnel {
        gateway: u8,
    },
    /// Send its payload from the mapping's socket.
    Bypass {
        mapping: MappingId,
        destination: SocketAddr,
        tos: Tos,
        ttl: u8,
    },
    /// Send it whole as it is: its source is the physical interface's own. Its mark is already applied.
    Identity,
    /// Reserve an external port for this internal endpoint, tell [`Engine::reserved`], then judge the packet again.
    Reserve {
        internal: SocketAddr,
        external: IpAddr,
    },
    Refuse(Refusal),
    Drop,
}

/// A datagram that arrived at a mapping's socket.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub from: SocketAddr,
    /// As it arrived.
    pub tos: Tos,
    pub payload: &'a [u8],
}

/// How a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// ICMP administratively prohibited.
    Prohibited,
    /// TCP reset.
    Reset,
}

impl Engine {
    /// `addresses` are the TUN's own; the last is a moment and the time since boot at it, by which arrivals are measured.
    pub fn new(
        snapshot: Arc<Snapshot>,
        addresses: Vec<IpAddr>,
        underlay: Underlay,
        limits: Limits,
        counters: Arc<Counters>,
        (now, since_boot): (Instant, Duration),
    ) -> Self {
        Self {
            snapshot,
            addresses,
            underlay,
            gateway: 0,
            flows: FlowTable::new(limits.flows),
            mappings: Mappings::new(limits.mappings),
            fragments: Fragments::default(),
            refusals: RateLimit::default(),
            refused: HashSet::with_capacity_and_hasher(MAX_REFUSED, ahash::RandomState::default()),
            judged_parts: 0,
            cut: 0,
            counters,
            arrivals: Arrivals::new(now, since_boot),
            noting: false,
            routes_since: None,
            notes: VecDeque::new(),
        }
    }

    /// Judges a packet that an application sent; one with a `segment` is a super-packet, whose payload that size divides. Its flow's mark is
    /// applied to it, unless it goes to the bypass, where the mark goes with the action.
    pub fn outbound(&mut self, packet: &mut PacketMut<'_>, segment: Option<u16>, now: Instant) -> Action {
        let headers = packet.headers();
        if headers.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return self.later_fragment(headers, now);
        }
        // The packet as a whole is only looked at where that is needed: it would be copied.
        let is_error = matches!(headers.transport, Transport::Icmp(icmp) if icmp.is_error);
        let quoted = if is_error { packet.as_packet().quoted() } else { None };
        let Some(id) = self.outbound_flow(headers, quoted, now) else {
            return self.judge(packet, segment, now);
        };
        let Some(flow) = self.flows.get_mut(id) else { return Action::Drop };

        match flow.path {
            // A connection of its own, though the ports are those of one that was cut.
            Path::Reject if begins_connection(headers) => {
                self.flows.remove(id);
                self.judge(packet, segment, now)
            }
            Path::Reject => self.refuse(headers, DropReason::Cut, Refusal::Reset, now),
            Path::Tunnel => {
                flow.sent(headers, now);
                let (tos, gateway) = (flow.mark.apply(headers.tos), flow.gateway);
                if headers.fragment.is_some() {
                    self.fragments.follow(headers, gateway, now);
                }
                if tos != headers.tos {
                    packet.set_dscp(tos.dscp());
                }
                Action::Tunnel { gateway }
            }
            Path::Bypass => self.bypass(id, packet, segment, now),
        }
    }

    /// The pump reserved `external` for `internal`. `None` if the table is full: the port is to be given back.
    pub fn reserved(
        &mut self,
        internal: SocketAddr,
        external: SocketAddr,
        now: Instant,
    ) -> Option<MappingId> {
        self.mappings.insert(Mapping::new(internal, external, now), now)
    }

    /// The port reserved last cannot be used after all.
    pub fn given_back(&mut self, mapping: MappingId) {
        self.mappings.end(mapping);
    }

    /// No port could be reserved for the packet's flow: refuse it.
    pub fn unreserved(&mut self, headers: &Headers, now: Instant) -> Action {
        self.refuse(headers, DropReason::NoPort, Refusal::Prohibited, now)
    }

    /// No port could be reserved since the underlay's address is gone, which the engine has not been told yet. The sender is told nothing: its
    /// next try finds the new address, where an error would end a call that has just begun.
    pub fn address_gone(&mut self) -> Action {
        self.counters.count_drop(DropReason::NoUnderlay);
        Action::Drop
    }

    /// Judges a packet that came out of the tunnel to this gateway: only what belongs to a flow that the agent opened there gets in.
    pub fn from_tunnel(&mut self, packet: &Packet<'_>, gateway: u8, now: Instant) -> Result<(), DropReason> {
        let accepted = self.accept_from_tunnel(packet, gateway, now);
        match accepted {
            Ok(()) => self.counters.count_in(Path::Tunnel, packet.headers().len as usize),
            Err(reason) => self.counters.count_drop(reason),
        }
        accepted
    }

    /// Judges what arrived at a mapping's socket; tells to which internal endpoint it goes.
    pub fn from_bypass(
        &mut self,
        mapping: MappingId,
        answer: &Answer<'_>,
        now: Instant,
    ) -> Result<SocketAddr, DropReason> {
        let ip_len = build::udp_header_len(&answer.from) + answer.payload.len();
        let internal = self.accept_from_bypass(mapping, answer, ip_len, now);
        match internal {
            Ok(_) => self.counters.count_in(Path::Bypass, ip_len),
            Err(reason) => self.counters.count_drop(reason),
        }
        internal
    }

    /// To whom an error about a datagram from `mapping` to `remote` is to be told; `None` if nothing went there: the error is forged or
    /// late.
    pub fn told_of_error(&self, mapping: MappingId, remote: IpAddr) -> Option<SocketAddr> {
        let mapping = self.mappings.get(mapping).filter(|mapping| mapping.talked_to(remote))?;
        Some(mapping.internal)
    }

    /// The tunnel is down and cannot take a packet that was meant for it.
    pub fn tunnel_down(&mut self, headers: &Headers, now: Instant) -> Action {
        // A connection that is up may outlive the outage: ICMP is only advice to it (RFC 5461), a reset would end it.
        let up = is_tcp(headers, |flags| !flags.has(TcpFlags::SYN));
        let refusal = if up { Refusal::Prohibited } else { Refusal::Reset };
        self.refuse(headers, DropReason::TunnelDown, refusal, now)
    }

    /// Takes note of the physical side as it is now. Mappings whose address is gone linger; those whose address is back serve on.
    pub fn set_underlay(&mut self, underlay: Underlay, now: Instant) {
        self.mappings.follow_addresses(&underlay, now);
        self.underlay = underlay;
    }

    /// Swaps the policy in: it judges every packet from now on, a live flow's before the flow's turn in [`Engine::judge_again`] too. A
    /// live flow keeps its path; one that the new policy refuses, or would no longer let go out directly, is cut.
    pub fn swap(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        (self.judged_parts, self.cut) = (0, 0);
    }

    /// To be called after [`Engine::swap`] until it tells how many live flows were cut. Each call judges a bounded number of them.
    pub fn judge_again(&mut self) -> Option<usize> {
        let Some(flows) = self.flows.part_mut(self.judged_parts) else { return Some(self.cut) };
        self.judged_parts += 1;
        let mut notes = VecDeque::new();
        for flow in flows {
            let (cut, note) = cache::judge_again(flow, &self.snapshot);
            self.cut += usize::from(cut);
            notes.extend(note);
        }
        self.flows.ended.append(&mut notes);
        None
    }

    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// When [`Engine::sweep`] wants to be called; `None` while there is nothing to expire.
    pub fn deadline(&self) -> Option<Instant> {
        match (self.flows.deadline(), self.mappings.deadline()) {
            (Some(flows), Some(mappings)) => Some(flows.min(mappings)),
            (flows, mappings) => flows.or(mappings),
        }
    }

    /// Ends what has been idle too long: a bounded number of flows at each call. Mappings that ended are given to `closed`.
    pub fn sweep(&mut self, now: Instant, closed: impl FnMut(MappingId)) {
        self.flows.sweep(now);
        self.mappings.sweep(now, closed);
        if !self.noting {
            self.mappings.ended.clear();
        }
    }

    /// A part of the flows, bounded in number; `None` behind the last. A flow stays in its part, counted from 0, as long as it lives.
    pub fn flows(&self, part: usize, now: Instant) -> Option<Vec<FlowReport>> {
        let flows = self.flows.part(part)?;
        Some(flows.map(|flow| flow.report(self.external_of(flow), now)).collect())
    }

    /// Where the flows of such a part lead.
    pub fn destinations(&self, part: usize) -> Option<Vec<IpAddr>> {
        Some(self.flows.part(part)?.map(|flow| flow.tuple.destination.ip()).collect())
    }

    /// Where packets were to go that were refused since this was asked last: the first 1024 addresses.
    pub fn take_refused(&mut self) -> impl Iterator<Item = IpAddr> {
        self.refused.drain()
    }

    /// A flow, judged by the policy that is in force.
    fn find(&mut self, tuple: &FiveTuple) -> Option<FlowId> {
        let id = self.flows.find(tuple)?;
        let flow = self.flows.get_mut(id)?;
        if !flow.is_judged_by(&self.snapshot) {
            let (cut, note) = cache::judge_again(flow, &self.snapshot);
            self.cut += usize::from(cut);
            self.flows.ended.extend(note);
        }
        Some(id)
    }

    /// `quoted` is the flow that an ICMP error is about.
    fn outbound_flow(
        &mut self,
        headers: &Headers,
        quoted: Option<FiveTuple>,
        now: Instant,
    ) -> Option<FlowId> {
        // An error about a packet that came out of the tunnel travels with that packet's flow.
        if let Some(quoted) = quoted {
            let id = self.find(&quoted.reversed())?;
            return (self.flows.get_mut(id)?.path == Path::Tunnel).then_some(id);
        }
        let id = self.find(&tuple_of(headers))?;
        let flow = self.flows.get_mut(id)?;
        // How idle a cached flow is the engine hears at each sweep only.
        let ended = flow.expired(now) && !flow.cache.cached
            || flow.mapping.is_some_and(|mapping| !self.mappings.serves(mapping, &self.underlay));
        if ended {
            self.flows.remove(id);
            return None;
        }
        Some(id)
    }

    /// Judges a flow's first packet and pins the flow.
    fn judge(&mut self, packet: &mut PacketMut<'_>, segment: Option<u16>, now: Instant) -> Action {
        let headers = *packet.headers();
        if matches!(headers.transport, Transport::Icmp(icmp) if icmp.is_error) {
            self.counters.count_drop(DropReason::Unsolicited);
            return Action::Drop;
        }
        let facts = Facts::of(&packet.as_packet());
        let verdict = self.snapshot.classify(&facts);
        let ours = self.addresses.contains(&headers.source);

        match verdict.path {
            Path::Reject => return self.refuse(&headers, DropReason::Policy, Refusal::Reset, now),
            Path::Tunnel if !ours => {
                return self.refuse(&headers, DropReason::ForeignSource, Refusal::Reset, now);
            }
            Path::Bypass if headers.fragment.is_some() => {
                return self.refuse(&headers, DropReason::FragmentedMedia, Refusal::Prohibited, now);
            }
            Path::Bypass if !ours && !self.underlay.has(headers.source) => {
                return self.refuse(&headers, DropReason::ForeignSource, Refusal::Prohibited, now);
            }
            Path::Tunnel | Path::Bypass => {}
        }

        let tuple = tuple_of(&headers);
        let mapping = if verdict.path == Path::Bypass && ours {
            match self.mapping_for(tuple.source) {
                Ok(mapping) => Some(mapping),
                Err(Some(_)) if !self.mappings.has_room(now) => {
                    return self.refuse(&headers, DropReason::TableFull, Refusal::Prohibited, now);
                }
                Err(Some(external)) => return Action::Reserve { internal: tuple.source, external },
                Err(None) => {
                    self.counters.count_drop(DropReason::NoUnderlay);
                    return Action::Drop;
                }
            }
        } else {
            None
        };
        let snapshot = Arc::clone(&self.snapshot);
        let flow = Flow::new(tuple, facts, verdict, mapping, self.gateway, snapshot, now);
        if self.flows.insert(flow, now).is_none() {
            return self.refuse(&headers, DropReason::TableFull, Refusal::Prohibited, now);
        }
        // The flow exists now, so this goes one level deep.
        self.outbound(packet, segment, now)
    }

    /// The mapping of an internal endpoint; else the address to reserve one at, if there is any.
    fn mapping_for(&self, internal: SocketAddr) -> Result<MappingId, Option<IpAddr>> {
        match self.mappings.of(internal) {
            Some(id) if self.mappings.serves(id, &self.underlay) => Ok(id),
            _ => Err(self.underlay.source_for(internal.ip())),
        }
    }

    fn bypass(
        &mut self,
        id: FlowId,
        packet: &mut PacketMut<'_>,
        segment: Option<u16>,
        now: Instant,
    ) -> Action {
        let headers = packet.headers();
        if headers.fragment.is_some() {
            return self.refuse(headers, DropReason::FragmentedMedia, Refusal::Prohibited, now);
        }
        let Some(flow) = self.flows.get_mut(id) else { return Action::Drop };
        flow.sent(headers, now);
        let payload = packet.bytes().get(headers.payload_at.into()..headers.len as usize).unwrap_or_default();
        flow.measure_out(payload, segment, headers.tos, self.arrivals.at(now));
        let tos = flow.mark.apply(headers.tos);
        let destination = flow.tuple.destination;
        let Some(mapping) = flow.mapping else {
            if !self.underlay.has(headers.source) {
                self.counters.count_drop(DropReason::NoUnderlay);
                return Action::Drop;
            }
            self.counters.count_out(Path::Bypass, headers.len as usize);
            if tos != headers.tos {
                packet.set_dscp(tos.dscp());
            }
            self.note_sent(id, now);
            return Action::Identity;
        };
        if !self.mappings.sent(mapping, destination.ip(), now) {
            self.counters.count_drop(DropReason::NoUnderlay);
            return Action::Drop;
        }
        self.counters.count_out(Path::Bypass, headers.len as usize);
        self.note_sent(id, now);
        Action::Bypass { mapping, destination, tos, ttl: headers.ttl }
    }

    /// A later fragment has no ports: it follows the first one, which only the tunnel takes.
    fn later_fragment(&mut self, headers: &Headers, now: Instant) -> Action {
        if let Some(gateway) = self.fragments.gateways(headers, now).next() {
            return Action::Tunnel { gateway };
        }
        self.counters.count_drop(DropReason::OrphanFragment);
        Action::Drop
    }

    fn accept_from_tunnel(
        &mut self,
        packet: &Packet<'_>,
        gateway: u8,
        now: Instant,
    ) -> Result<(), DropReason> {
        let headers = packet.headers();
        if !self.addresses.contains(&headers.destination) {
            return Err(DropReason::NotOurs);
        }
        if headers.fragment.is_some_and(|fragment| fragment.offset > 0) {
            let is_known = self.fragments.gateways(headers, now).any(|passed| passed == gateway);
            return is_known.then_some(()).ok_or(DropReason::OrphanFragment);
        }
        let about = packet.quoted();
        let tuple = about.unwrap_or_else(|| tuple_of(headers).reversed());
        let flow = self.find(&tuple).and_then(|id| self.flows.get_mut(id));
        let Some(flow) = flow.filter(|flow| flow.path != Path::Bypass && !flow.expired(now)) else {
            return Err(DropReason::Unsolicited);
        };
        if flow.path == Path::Reject {
            return Err(DropReason::Cut);
        }
        if flow.gateway != gateway {
            return Err(DropReason::Unsolicited);
        }
        if about.is_none() {
            flow.received(headers, now);
        }
        if headers.fragment.is_some() {
            self.fragments.follow(headers, gateway, now);
        }
        Ok(())
    }

    fn accept_from_bypass(
        &mut self,
        mapping: MappingId,
        &Answer { from, tos, payload }: &Answer<'_>,
        ip_len: usize,
        now: Instant,
    ) -> Result<SocketAddr, DropReason> {
        let mapping = self.mappings.get(mapping).ok_or(DropReason::Stranger)?;
        // RFC 4787 §5, address-dependent filtering: a media server may answer from another port, a stranger may not.
        if !mapping.talked_to(from.ip()) {
            return Err(DropReason::Stranger);
        }
        let internal = mapping.internal;
        let tuple = FiveTuple { protocol: protocol::UDP, source: internal, destination: from };
        let id = self.find(&tuple);
        if let Some((id, flow)) = id.and_then(|id| Some((id, self.flows.get_mut(id)?))) {
            match flow.path {
                Path::Reject => return Err(DropReason::Cut),
                Path::Tunnel => return Err(DropReason::Stranger),
                Path::Bypass => {
                    flow.count_in(ip_len, now);
                    flow.measure_in(payload, tos, self.arrivals.at(now));
                }
            }
            self.note_received(id);
        }
        Ok(internal)
    }

    fn refuse(&mut self, headers: &Headers, reason: DropReason, refusal: Refusal, now: Instant) -> Action {
        self.counters.count_drop(reason);
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(headers.destination);
        }
        if is_tcp(headers, |flags| flags.has(TcpFlags::RST)) {
            return Action::Drop;
        }
        if !self.refusals.take(now) {
            self.counters.count_drop(DropReason::RefusalLimited);
            return Action::Drop;
        }
        self.counters.count_out(Path::Reject, headers.len as usize);
        let resets = refusal == Refusal::Reset && is_tcp(headers, |_| true);
        Action::Refuse(if resets { Refusal::Reset } else { Refusal::Prohibited })
    }

    fn external_of(&self, flow: &Flow) -> Option<SocketAddr> {
        match flow.mapping {
            Some(id) => self.mappings.get(id).map(|mapping| mapping.external),
            None => (flow.path == Path::Bypass).then_some(flow.tuple.source),
        }
    }
}

fn begins_connection(headers: &Headers) -> bool {
    is_tcp(headers, |flags| flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK))
}

fn is_tcp(headers: &Headers, holds: impl Fn(TcpFlags) -> bool) -> bool {
    matches!(headers.transport, Transport::Tcp { flags, .. } if holds(flags))
}

/// What names the packet's flow; protocols without ports have port 0 on both sides.
fn tuple_of(headers: &Headers) -> FiveTuple {
    headers.five_tuple().unwrap_or(FiveTuple {
        protocol: headers.protocol,
        source: SocketAddr::new(headers.source, 0),
        destination: SocketAddr::new(headers.destination, 0),
    })
}

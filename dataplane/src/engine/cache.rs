use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use packet::{FiveTuple, protocol};
use policy::{Mark, Path, Snapshot};

use super::flow::Flow;
use super::{Engine, FlowId, MappingId};
use crate::Direction;
use crate::rtp::RtpStream;

/// After the fast path did not take a flow, unless routes change before.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What became of a bypass flow that a cache of the flows has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A packet that its application sent came here instead of being moved by the cache, which may not know the flow.
    Sent,
    /// An answer came here, although the cache knows the flow.
    Received,
    /// It moves no packet any more.
    Ended,
    /// It is judged otherwise than when the cache learned of it.
    Changed,
}

/// What moving a flow's packets takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cacheable {
    pub tuple: FiveTuple,
    pub external: SocketAddr,
    /// `None` on the identity mapping.
    pub mapping: Option<MappingId>,
    pub mark: Mark,
    /// How long the flow lives without a packet that its application sends.
    pub life: Duration,
    /// What was measured so far, outbound and inbound; arrivals are since boot.
    pub rtp: [RtpStream; 2],
}

/// What a cache moved of one direction of a flow since it told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub packets: u64,
    /// IP headers included.
    pub bytes: u64,
    /// When it moved the last one.
    pub last: Option<Instant>,
    /// What it knows of this direction by now; arrivals are since boot.
    pub rtp: RtpStream,
}

/// How a flow stands with the cache.
#[derive(Clone, Copy, Default)]
pub(super) struct CacheState {
    pub(super) cached: bool,
    /// Whether it is the one that measures a direction.
    pub(super) measures: [bool; 2],
    noted_sent: bool,
    noted_received: bool,
    refused: Option<Instant>,
}

impl CacheState {
    /// Whether the cache did not take the flow a moment ago, on the same routes.
    fn is_refused(&self, routes_since: Option<Instant>, now: Instant) -> bool {
        self.refused
            .is_some_and(|time| now < time + TRY_AGAIN && routes_since.is_none_or(|since| time >= since))
    }
}

/// The fast path's side of the engine: which flows it may move, and what it moved.
impl Engine {
    /// From now on notes are taken. Without a cache they would pile up.
    pub fn take_notes(&mut self) {
        self.noting = true;
    }

    /// What the cache did not take on the routes before is offered to it again.
    pub fn routes_changed(&mut self, now: Instant) {
        self.routes_since = Some(now);
    }

    /// The next flow that the cache has to forget ([`Note::Ended`]) or to learn anew ([`Note::Changed`]).
    pub fn next_ended(&mut self) -> Option<(FiveTuple, Note)> {
        self.flows.ended.pop_front()
    }

    /// The mappings that have ended since this was asked last, in order: their external ports may be others'.
    pub fn ended_mappings(&mut self) -> Vec<MappingId> {
        let mut ended = std::mem::take(&mut self.mappings.ended);
        ended.sort_unstable_by_key(|id| (id.slot, id.generation));
        ended
    }

    /// The next note about a packet, oldest first.
    pub fn next_note(&mut self) -> Option<(FiveTuple, Note)> {
        let (tuple, note) = self.notes.pop_front()?;
        if let Some(flow) = self.flows.find(&tuple).and_then(|id| self.flows.get_mut(id)) {
            match note {
                Note::Received => flow.cache.noted_received = false,
                _ => flow.cache.noted_sent = false,
            }
        }
        Some((tuple, note))
    }

    /// A live bypass flow as a cache may move it. `None` also for one that it did not take a moment ago.
    pub fn cacheable(&mut self, tuple: &FiveTuple, now: Instant) -> Option<Cacheable> {
        let flow = self.flows.find(tuple).and_then(|id| self.flows.get_mut(id))?;
        let refused = flow.cache.is_refused(self.routes_since, now);
        let (mapping, mark, life) = (flow.mapping, flow.mark, flow.life());
        let rtp = flow.rtp;
        if flow.path != Path::Bypass || refused {
            return None;
        }
        let external = match mapping {
            Some(id) if self.mappings.is_stranded(id) => return None,
            Some(id) => self.mappings.get(id)?.external,
            None if !self.underlay.has(tuple.source.ip()) => return None,
            None => tuple.source,
        };
        Some(Cacheable { tuple: *tuple, external, mapping, mark, life, rtp })
    }

    /// Whether a cache has the flow from now on. What comes here on its way to one that does is measured here until
    /// [`Engine::measured_by_cache`].
    pub fn set_cached(&mut self, tuple: &FiveTuple, cached: bool) {
        if let Some(flow) = self.flows.find(tuple).and_then(|id| self.flows.get_mut(id)) {
            flow.cache.cached = cached;
            // Answers on the identity mapping never come here.
            flow.cache.measures = [false, cached && flow.mapping.is_none()];
        }
    }

    /// What was measured of one direction of a flow that a cache has; `None` if the cache measures it.
    pub fn measured(&mut self, tuple: &FiveTuple, direction: Direction) -> Option<RtpStream> {
        let flow = self.flows.find(tuple).and_then(|id| self.flows.get_mut(id))?;
        (!direction.of(&flow.cache.measures)).then_some(*direction.of(&flow.rtp))
    }

    /// The cache has taken over what [`Engine::measured`] told, and measures all packets of this direction from there on.
    pub fn measured_by_cache(&mut self, tuple: &FiveTuple, direction: Direction) {
        if let Some(flow) = self.flows.find(tuple).and_then(|id| self.flows.get_mut(id)) {
            *direction.of_mut(&mut flow.cache.measures) = flow.cache.cached;
        }
    }

    /// Whether no cache is to have the flow for now: it did not take it, or a packet of it could not be sent.
    pub fn is_refused(&mut self, tuple: &FiveTuple, now: Instant) -> bool {
        let flow = self.flows.find(tuple).and_then(|id| self.flows.get_mut(id));
        flow.is_some_and(|flow| flow.cache.is_refused(self.routes_since, now))
    }

    /// The cache did not take the flow: it is noted again only after a while, or when routes have changed.
    pub fn not_cached(&mut self, tuple: &FiveTuple, now: Instant) {
        if let Some(flow) = self.flows.find(tuple).and_then(|id| self.flows.get_mut(id)) {
            flow.cache.refused = Some(now);
        }
    }

    /// A packet through `mapping` could not be sent, by a firewall's will perhaps: no cache is to send the flow's next ones, or to keep it.
    pub fn not_sent(&mut self, mapping: MappingId, destination: SocketAddr, now: Instant) {
        let Some(source) = self.mappings.get(mapping).map(|mapping| mapping.internal) else { return };
        self.not_cached(&FiveTuple { protocol: protocol::UDP, source, destination }, now);
    }

    /// Counts what a cache moved, and keeps the flow and its mapping alive by it.
    pub fn moved(&mut self, tuple: &FiveTuple, sent: Moved, received: Moved) {
        self.counters.count_moved(Path::Bypass, sent, received);
        let Some(flow) = self.flows.find(tuple).and_then(|id| self.flows.get_mut(id)) else { return };
        flow.moved(sent, received);
        if let (Some(mapping), Some(last)) = (flow.mapping, sent.last) {
            self.mappings.sent(mapping, tuple.destination.ip(), last);
        }
    }

    pub(super) fn note_sent(&mut self, id: FlowId, now: Instant) {
        if !self.noting {
            return;
        }
        let Some(flow) = self.flows.get_mut(id) else { return };
        let state = &mut flow.cache;
        // A cache that has the flow hears of it all the same: it waits for the packets that it left to us.
        if state.noted_sent || !state.cached && state.is_refused(self.routes_since, now) {
            return;
        }
        state.noted_sent = true;
        self.notes.push_back((flow.tuple, Note::Sent));
    }

    pub(super) fn note_received(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let state = &mut flow.cache;
        if state.cached && !state.noted_received {
            state.noted_received = true;
            self.notes.push_back((flow.tuple, Note::Received));
        }
    }
}

/// Judges a flow by this policy, if that has not been done. Whether that has cut it, and what a cache has to know.
pub(super) fn judge_again(flow: &mut Flow, snapshot: &Arc<Snapshot>) -> (bool, Option<(FiveTuple, Note)>) {
    let mark = flow.mark;
    let cut = flow.judge_again(snapshot);
    let note = match flow.path {
        _ if !flow.cache.cached => None,
        Path::Bypass => (flow.mark != mark).then_some(Note::Changed),
        _ => Some(Note::Ended),
    };
    if note == Some(Note::Ended) {
        flow.cache.cached = false;
    }
    (cut, note.map(|note| (flow.tuple, note)))
}

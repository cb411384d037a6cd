use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use packet::FiveTuple;

use super::cache::Note;
use super::flow::Flow;

/// All flows are looked at once in this time…
const SWEEP_PERIOD: Duration = Duration::from_secs(30);
/// …so many at a time (about 50 µs) that packets hardly wait for it, and a full table takes no more than one step in a second.
const SWEEP_STEP: usize = 2560;
/// A live call sends every 20 ms and renews its consent every 5 s (RFC 7675): nothing idle for less is evicted.
const MIN_IDLE_TO_EVICT: Duration = Duration::from_secs(60);
const EVICTION_WINDOW: usize = 64;
/// Places looked at together by who looks at all: at up to 0.3 µs for a report or a verdict, under 0.1 ms for which packets wait.
const PART: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowId(u32);

/// The pinned flows, bounded. At the bound the idlest of a window makes room, if it has been idle for a minute; otherwise the new flow is
/// refused, since no live flow gives way.
pub(super) struct FlowTable {
    ids: HashMap<FiveTuple, FlowId, ahash::RandomState>,
    slots: Vec<Option<Flow>>,
    free: Vec<FlowId>,
    limit: usize,
    hand: usize,
    next_sweep: Option<Instant>,
    /// Flows that a cache has and must forget, or learn anew.
    pub(super) ended: VecDeque<(FiveTuple, Note)>,
}

impl FlowTable {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            ids: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            limit: limit.min(u32::MAX as usize),
            hand: 0,
            next_sweep: None,
            ended: VecDeque::new(),
        }
    }

    pub(super) fn find(&self, tuple: &FiveTuple) -> Option<FlowId> {
        self.ids.get(tuple).copied()
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// The flows of one part of the table; `None` behind its end.
    pub(super) fn part(&self, part: usize) -> Option<impl Iterator<Item = &Flow>> {
        Some(self.slots.chunks(PART).nth(part)?.iter().flatten())
    }

    pub(super) fn part_mut(&mut self, part: usize) -> Option<impl Iterator<Item = &mut Flow>> {
        Some(self.slots.chunks_mut(PART).nth(part)?.iter_mut().flatten())
    }

    pub(super) fn insert(&mut self, flow: Flow, now: Instant) -> Option<FlowId> {
        if self.ids.len() >= self.limit && !self.evict(now) {
            return None;
        }
        let id = self.free.pop().unwrap_or(FlowId(self.slots.len() as u32));
        let tuple = flow.tuple;
        match self.slots.get_mut(id.0 as usize) {
            Some(slot) => *slot = Some(flow),
            None => self.slots.push(Some(flow)),
        }
        self.ids.insert(tuple, id);
        self.next_sweep.get_or_insert(now + SWEEP_PERIOD);
        Some(id)
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        let Some(flow) = self.slots.get_mut(id.0 as usize).and_then(Option::take) else { return };
        self.ids.remove(&flow.tuple);
        if flow.cache.cached {
            self.ended.push_back((flow.tuple, Note::Ended));
        }
        self.free.push(id);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_sweep
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        if self.next_sweep.is_none_or(|due| due > now) {
            return;
        }
        for _ in 0..SWEEP_STEP.min(self.slots.len()) {
            let id = self.next_slot();
            if self.get_mut(id).is_some_and(|flow| flow.expired(now)) {
                self.remove(id);
            }
        }
        let steps = self.slots.len().div_ceil(SWEEP_STEP).max(1);
        self.next_sweep = (!self.ids.is_empty()).then(|| now + SWEEP_PERIOD / steps as u32);
    }

    fn evict(&mut self, now: Instant) -> bool {
        let mut idlest = None;
        for _ in 0..EVICTION_WINDOW.min(self.slots.len()) {
            let id = self.next_slot();
            let idle = self.get_mut(id).map(|flow| flow.idle(now));
            if idle >= Some(MIN_IDLE_TO_EVICT) && idlest.is_none_or(|(most, _)| idle > most) {
                idlest = Some((idle, id));
            }
        }
        let Some((_, id)) = idlest else { return false };
        self.remove(id);
        true
    }

    fn next_slot(&mut self) -> FlowId {
        self.hand = (self.hand + 1) % self.slots.len().max(1);
        FlowId(self.hand as u32)
    }
}

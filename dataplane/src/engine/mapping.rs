use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::Underlay;

/// RFC 4787 REQ-5 recommends five minutes and demands two.
pub(super) const MAPPING_LIFE: Duration = Duration::from_secs(300);
/// How long a mapping whose address is gone waits for it to return.
pub const LINGER: Duration = Duration::from_secs(10);
const SWEEP_PERIOD: Duration = Duration::from_secs(30);
/// Mappings of calls that ended together end together, rather than waking the daemon one by one.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
const MIN_IDLE_TO_EVICT: Duration = Duration::from_secs(120);
/// Remote addresses one endpoint may hear from. ICE pairs one socket with a handful of candidates; the oldest gives way.
const MAX_REMOTES: usize = 64;

/// A mapping's place in the table, and which of that place's tenants it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingId {
    pub slot: u16,
    pub generation: u16,
}

/// An internal endpoint's external one (RFC 4787 §4.1, endpoint-independent).
pub(super) struct Mapping {
    pub(super) internal: SocketAddr,
    pub(super) external: SocketAddr,
    remotes: Vec<IpAddr>,
    last_out: Instant,
    /// Since when the external address is gone.
    vanished: Option<Instant>,
}

pub(super) struct Mappings {
    by_internal: HashMap<SocketAddr, MappingId, ahash::RandomState>,
    slots: Vec<Slot>,
    limit: usize,
    evicted: Vec<MappingId>,
    /// All that ended, for a cache of their flows.
    pub(super) ended: Vec<MappingId>,
    next_sweep: Option<Instant>,
}

#[derive(Default)]
struct Slot {
    generation: u16,
    mapping: Option<Mapping>,
}

impl Mapping {
    pub(super) fn new(internal: SocketAddr, external: SocketAddr, now: Instant) -> Self {
        Self { internal, external, remotes: Vec::new(), last_out: now, vanished: None }
    }

    pub(super) fn talked_to(&self, remote: IpAddr) -> bool {
        self.remotes.contains(&remote)
    }

    fn ends(&self) -> Instant {
        let idle = self.last_out + MAPPING_LIFE;
        self.vanished.map_or(idle, |since| idle.min(since + LINGER))
    }
}

impl Slot {
    /// Whether it is free, or its tenant idle for long enough.
    fn gives_way(&self, now: Instant) -> bool {
        self.mapping
            .as_ref()
            .is_none_or(|mapping| now.saturating_duration_since(mapping.last_out) >= MIN_IDLE_TO_EVICT)
    }
}

impl Mappings {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            by_internal: HashMap::default(),
            slots: Vec::new(),
            limit: limit.min(usize::from(u16::MAX)),
            evicted: Vec::new(),
            ended: Vec::new(),
            next_sweep: None,
        }
    }

    pub(super) fn get(&self, id: MappingId) -> Option<&Mapping> {
        let slot = self.slots.get(usize::from(id.slot))?;
        slot.mapping.as_ref().filter(|_| slot.generation == id.generation)
    }

    /// The mapping that an internal endpoint's new flows use.
    pub(super) fn of(&self, internal: SocketAddr) -> Option<MappingId> {
        self.by_internal.get(&internal).copied()
    }

    /// Whether the mapping exists and its flows stay with it: its address is there, or gone without another to turn to.
    pub(super) fn serves(&self, id: MappingId, underlay: &Underlay) -> bool {
        self.get(id).is_some_and(|mapping| {
            mapping.vanished.is_none() || underlay.source_for(mapping.external.ip()).is_none()
        })
    }

    /// Whether it is gone, or its address.
    pub(super) fn is_stranded(&self, id: MappingId) -> bool {
        self.get(id).is_none_or(|mapping| mapping.vanished.is_some())
    }

    /// Whether one more could be inserted.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.slots.len() < self.limit || self.slots.iter().any(|slot| slot.gives_way(now))
    }

    pub(super) fn insert(&mut self, mapping: Mapping, now: Instant) -> Option<MappingId> {
        let free = self.slots.iter().position(|slot| slot.mapping.is_none());
        let place = match free {
            Some(place) => place,
            None if self.slots.len() < self.limit => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => self.evict(now)?,
        };
        let slot = self.slots.get_mut(place)?;
        let id = MappingId { slot: place as u16, generation: slot.generation };
        self.by_internal.insert(mapping.internal, id);
        slot.mapping = Some(mapping);
        self.next_sweep.get_or_insert(now + SWEEP_PERIOD);
        Some(id)
    }

    /// Something goes to `remote`; `false` if it cannot: it [is stranded](Mappings::is_stranded).
    pub(super) fn sent(&mut self, id: MappingId, remote: IpAddr, now: Instant) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(id.slot)) else { return false };
        let mapping = slot.mapping.as_mut().filter(|_| slot.generation == id.generation);
        let Some(mapping) = mapping.filter(|mapping| mapping.vanished.is_none()) else { return false };
        mapping.last_out = mapping.last_out.max(now);
        if mapping.talked_to(remote) {
            return true;
        }
        if mapping.remotes.len() == MAX_REMOTES {
            mapping.remotes.remove(0);
        }
        mapping.remotes.push(remote);
        true
    }

    pub(super) fn follow_addresses(&mut self, underlay: &Underlay, now: Instant) {
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let id = MappingId { slot: place as u16, generation: slot.generation };
            let Some(mapping) = &mut slot.mapping else { continue };
            if !underlay.has(mapping.external.ip()) {
                mapping.vanished.get_or_insert(now);
                self.next_sweep = self.next_sweep.map(|due| due.min(now + LINGER));
            } else if mapping.vanished.take().is_some() {
                // Whatever was made for the endpoint in the meantime, its flows go on here, so its new ones do too (RFC 4787 REQ-1).
                self.by_internal.insert(mapping.internal, id);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_sweep
    }

    pub(super) fn sweep(&mut self, now: Instant, mut closed: impl FnMut(MappingId)) {
        self.evicted.drain(..).for_each(&mut closed);
        if self.next_sweep.is_none_or(|due| due > now) {
            return;
        }
        for place in 0..self.slots.len() {
            let ended = |slot: &Slot| slot.mapping.as_ref().is_some_and(|mapping| mapping.ends() <= now);
            if self.slots.get(place).is_some_and(ended)
                && let Some(id) = self.remove(place)
            {
                closed(id);
            }
        }
        let next_end = self.slots.iter().filter_map(|slot| slot.mapping.as_ref()).map(Mapping::ends).min();
        self.next_sweep = next_end.map(|end| end.clamp(now + SWEEP_PAUSE, now + SWEEP_PERIOD));
    }

    fn evict(&mut self, now: Instant) -> Option<usize> {
        let candidates = self.slots.iter().enumerate().filter(|(_, slot)| slot.gives_way(now));
        let (place, _) =
            candidates.min_by_key(|(_, slot)| slot.mapping.as_ref().map(|mapping| mapping.last_out))?;
        let id = self.remove(place)?;
        self.evicted.push(id);
        Some(place)
    }

    /// Ends a mapping before its time.
    pub(super) fn end(&mut self, id: MappingId) {
        if self.get(id).is_some() {
            self.remove(usize::from(id.slot));
        }
    }

    fn remove(&mut self, place: usize) -> Option<MappingId> {
        let slot = self.slots.get_mut(place)?;
        let mapping = slot.mapping.take()?;
        let id = MappingId { slot: place as u16, generation: slot.generation };
        slot.generation = slot.generation.wrapping_add(1);
        if self.by_internal.get(&mapping.internal) == Some(&id) {
            self.by_internal.remove(&mapping.internal);
        }
        self.ended.push(id);
        Some(id)
    }
}

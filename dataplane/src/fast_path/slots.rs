use std::collections::VecDeque;
use std::time::Duration;

use super::EntryId;

/// A program that found an entry before it was removed is done with it in microseconds.
const REST: Duration = Duration::from_secs(1);

/// Which entries are in use.
pub(super) struct Slots {
    limit: u32,
    used: Vec<Slot>,
    /// Free ones, the longest free first, and since when.
    resting: VecDeque<(u32, Duration)>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    generation: u32,
    taken: bool,
}

impl Slots {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, used: Vec::new(), resting: VecDeque::new() }
    }

    /// A slot that no program can still have in hand.
    pub(super) fn take(&mut self, now: Duration) -> Option<EntryId> {
        let slot = match self.resting.front() {
            Some((slot, since)) if now.saturating_sub(*since) >= REST => {
                let slot = *slot;
                self.resting.pop_front();
                slot
            }
            _ if self.used.len() < self.limit as usize => {
                self.used.push(Slot::default());
                self.used.len() as u32 - 1
            }
            _ => return None,
        };
        let place = self.used.get_mut(slot as usize)?;
        place.taken = true;
        Some(EntryId { slot, generation: place.generation })
    }

    /// `false` if it was free already.
    pub(super) fn give_back(&mut self, id: EntryId, now: Duration) -> bool {
        let Some(place) = self.used.get_mut(id.slot as usize) else { return false };
        if !place.taken || place.generation != id.generation {
            return false;
        }
        *place = Slot { generation: place.generation.wrapping_add(1), taken: false };
        self.resting.push_back((id.slot, now));
        true
    }

    pub(super) fn holds(&self, id: EntryId) -> bool {
        self.used.get(id.slot as usize).is_some_and(|slot| slot.taken && slot.generation == id.generation)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = EntryId> {
        let taken = self.used.iter().zip(0..).filter(|(slot, _)| slot.taken);
        taken.map(|(slot, place)| EntryId { slot: place, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_rests_before_it_is_taken_again() {
        let mut slots = Slots::new(2);
        let (first, second) = (slots.take(Duration::ZERO).unwrap(), slots.take(Duration::ZERO).unwrap());
        assert_eq!(slots.take(Duration::ZERO), None, "full");
        assert!(slots.give_back(first, Duration::ZERO));
        assert!(!slots.give_back(first, Duration::ZERO), "once");
        assert_eq!(slots.take(REST - Duration::from_nanos(1)), None, "it still rests");
        let again = slots.take(REST).unwrap();
        assert_eq!(again, EntryId { slot: first.slot, generation: first.generation + 1 });
        assert!(!slots.holds(first) && slots.holds(second) && slots.holds(again));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [again, second]);
    }
}

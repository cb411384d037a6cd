use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Packets that wait for a handshake at most.
pub const MAX_QUEUED: usize = 256;
/// How long a packet waits at most.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(5);

/// Packets that wait for a session, and those that waited in vain.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: VecDeque<Waiting>,
    refused: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Waiting {
    padded: Vec<u8>,
    length: usize,
    since: Instant,
}

impl Queue {
    /// Takes a padded packet, whose own length is `length`; `false` if there is no room.
    pub(crate) fn push(&mut self, padded: &[u8], length: usize, now: Instant) -> bool {
        if self.waiting.len() >= MAX_QUEUED {
            return false;
        }
        self.waiting.push_back(Waiting { padded: padded.to_vec(), length, since: now });
        true
    }

    /// The packet that has waited longest, padded.
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop_front().map(|waiting| waiting.padded)
    }

    /// As [`Queue::pop`], without its padding.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop_front().map(Waiting::unpadded)
    }

    /// What [`Queue::pop`] would give.
    pub(crate) fn next(&self) -> Option<&[u8]> {
        self.waiting.front().map(|waiting| waiting.padded.as_slice())
    }

    /// When the oldest packet has waited long enough.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.since + MAX_WAIT)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Refuses what has waited its time.
    pub(crate) fn refuse_overdue(&mut self, now: Instant) {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            self.refuse_oldest();
        }
    }

    pub(crate) fn refuse_all(&mut self) {
        while !self.is_empty() {
            self.refuse_oldest();
        }
    }

    /// A packet to refuse, without its padding.
    pub(crate) fn take_refused(&mut self) -> Option<Vec<u8>> {
        self.refused.pop_front()
    }

    fn refuse_oldest(&mut self) {
        let Some(packet) = self.take() else { return };
        if self.refused.len() >= MAX_QUEUED {
            self.refused.pop_front();
        }
        self.refused.push_back(packet);
    }
}

impl Waiting {
    fn unpadded(mut self) -> Vec<u8> {
        self.padded.truncate(self.length);
        self.padded
    }
}

//! Answers, kept as long as their TTL says and room allows.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::BinEncodable;

use crate::answer::Answer;

/// A name, lowercase and without trailing dot, and the type asked for.
pub type Key = (Arc<str>, RecordType);

/// What an entry takes beside its records, roughly, in bytes.
const OVERHEAD: usize = 256;

/// Full, it forgets what would expire first.
#[derive(Debug)]
pub struct Cache {
    max_entries: usize,
    max_bytes: usize,
    entries: HashMap<Key, Entry>,
    /// Each entry once, the first to expire in front.
    order: BTreeSet<(Instant, Arc<str>, u16)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<Answer>,
    expires: Instant,
    bytes: usize,
}

impl Cache {
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { max_entries, max_bytes, entries: HashMap::new(), order: BTreeSet::new(), bytes: 0 }
    }

    /// The answer and how much longer it holds, which is never nothing.
    pub fn get(&self, key: &Key, now: Instant) -> Option<(Arc<Answer>, Duration)> {
        let entry = self.entries.get(key)?;
        let remaining = entry.expires.checked_duration_since(now)?;
        (!remaining.is_zero()).then(|| (entry.answer.clone(), remaining))
    }

    /// Keeps the answer for its TTL; one without, or larger than all the room there is, not at all.
    pub fn put(&mut self, key: Key, answer: Arc<Answer>, now: Instant) {
        self.remove(&key);
        let bytes = size(&key, &answer);
        if answer.ttl.is_zero() || bytes > self.max_bytes || self.max_entries == 0 {
            return;
        }
        while self.entries.len() >= self.max_entries || self.bytes + bytes > self.max_bytes {
            self.forget_first();
        }
        let expires = now + answer.ttl;
        self.order.insert((expires, key.0.clone(), key.1.into()));
        self.bytes += bytes;
        self.entries.insert(key, Entry { answer, expires, bytes });
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        self.bytes = 0;
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// About how much memory the entries take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn forget_first(&mut self) {
        if let Some((_, name, query_type)) = self.order.first().cloned() {
            self.remove(&(name, query_type.into()));
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&(entry.expires, key.0.clone(), key.1.into()));
            self.bytes -= entry.bytes;
        }
    }
}

fn size(key: &Key, answer: &Answer) -> usize {
    let records: usize = answer
        .records
        .iter()
        .map(|data| OVERHEAD + BinEncodable::to_bytes(data).map_or(0, |data| data.len()))
        .sum();
    // The name stands in both the map and the order.
    OVERHEAD + 2 * key.0.len() + records
}

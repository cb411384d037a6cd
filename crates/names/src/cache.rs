//! Answers, kept as long as their TTL says and room allows.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::BinEncodable;

use crate::answer::Answer;

/// A name, lowercase and without trailing dot, and the type asked for.
pub type Key = (Arc<str>, RecordType);

/// What an entry takes beside its records, roughly, in bytes.
const OVERHEAD: usize = 256;

/// Full, it forgets what would expire first. Times count from the machine's start, sleep included: a TTL goes on meanwhile.
#[derive(Debug)]
pub struct Cache {
    max_entries: usize,
    max_bytes: usize,
    entries: HashMap<Key, Entry>,
    /// Each entry once, the first to expire in front.
    order: BTreeSet<(Duration, Arc<str>, u16)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<Answer>,
    expires: Duration,
    bytes: usize,
}

impl Cache {
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { max_entries, max_bytes, entries: HashMap::new(), order: BTreeSet::new(), bytes: 0 }
    }

    /// The answer and how much longer it holds, which is never nothing.
    pub fn get(&self, key: &Key, now: Duration) -> Option<(Arc<Answer>, Duration)> {
        let entry = self.entries.get(key)?;
        let remaining = entry.expires.checked_sub(now)?;
        (!remaining.is_zero()).then(|| (entry.answer.clone(), remaining))
    }

    /// Keeps the answer for its TTL; one without, or larger than all the room there is, not at all.
    pub fn put(&mut self, key: Key, answer: Arc<Answer>, now: Duration) {
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

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;
    use proptest::prelude::*;

    use super::*;

    const MAX_ENTRIES: usize = 6;
    const MAX_BYTES: usize = 6000;
    const NAMES: usize = 10;

    #[derive(Debug, Clone)]
    enum Step {
        Put { name: usize, ttl: u64, records: usize },
        Pass(u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..NAMES, 0..20_u64, 0..30_usize).prop_map(|(name, ttl, records)| Step::Put { name, ttl, records }),
            4 => (0..12_u64).prop_map(Step::Pass),
            1 => Just(Step::Clear),
        ]
    }

    fn key(name: usize) -> Key {
        (format!("{name}.example.com").into(), RecordType::A)
    }

    fn answer(ttl: u64, records: usize) -> Arc<Answer> {
        let records = vec![RData::A(A::new(203, 0, 113, 1)); records];
        Arc::new(Answer { records, ttl: Duration::from_secs(ttl), ..Answer::empty() })
    }

    proptest! {
        #[test]
        fn it_knows_the_last_answer_within_its_ttl_and_its_bounds(steps in prop::collection::vec(step(), 1..80)) {
            let mut cache = Cache::new(MAX_ENTRIES, MAX_BYTES);
            let mut now = Duration::from_secs(1000);
            let mut last: HashMap<usize, (Arc<Answer>, Duration)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Put { name, ttl, records } => {
                        let answer = answer(ttl, records);
                        cache.put(key(name), answer.clone(), now);
                        last.insert(name, (answer, now + Duration::from_secs(ttl)));
                        let fits = ttl > 0 && size(&key(name), &last[&name].0) <= MAX_BYTES;
                        prop_assert_eq!(cache.get(&key(name), now).is_some(), fits);
                    }
                    Step::Pass(seconds) => now += Duration::from_secs(seconds),
                    Step::Clear => {
                        cache.clear();
                        last.clear();
                        prop_assert!(cache.is_empty());
                    }
                }
                for name in 0..NAMES {
                    if let Some((answer, remaining)) = cache.get(&key(name), now) {
                        let (expected, expires) = &last[&name];
                        prop_assert!(Arc::ptr_eq(&answer, expected));
                        prop_assert_eq!(now + remaining, *expires);
                        prop_assert!(!remaining.is_zero());
                    }
                }
                prop_assert!(cache.len() <= MAX_ENTRIES && cache.bytes() <= MAX_BYTES);
                prop_assert_eq!(cache.order.len(), cache.len());
                prop_assert_eq!(cache.bytes(), cache.entries.values().map(|entry| entry.bytes).sum::<usize>());
            }
        }
    }

    #[test]
    fn full_it_forgets_what_expires_first() {
        let mut cache = Cache::new(3, MAX_BYTES);
        let now = Duration::from_secs(1000);
        for (name, ttl) in [(0, 30), (1, 10), (2, 20), (3, 40)] {
            cache.put(key(name), answer(ttl, 1), now);
        }
        let known: Vec<_> = (0..4).filter(|name| cache.get(&key(*name), now).is_some()).collect();
        assert_eq!(known, [0, 2, 3]);
    }
}

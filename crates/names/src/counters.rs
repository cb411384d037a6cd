use std::sync::atomic::{AtomicU64, Ordering};

/// What the resolver did since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions for the policy's names.
    pub asked: u64,
    /// Of these, answered from the cache.
    pub cached: u64,
    /// Questions put to the DNS servers behind the tunnel; equal ones asked at the same time count once.
    pub exchanges: u64,
    /// Questions for other names, passed on.
    pub relayed: u64,
    /// Questions of either kind that were answered SERVFAIL by us.
    pub failed: u64,
    /// Questions refused for what they are: malformed, of another class, of a type that is not answered.
    pub refused: u64,
    /// Packets at a query's own port that do not answer it: spoofed, late or confused.
    pub strays: u64,
    /// Queries from other machines, dropped.
    pub strangers: u64,
    /// Private and loopback addresses taken out of answers.
    pub blocked: u64,
    /// Answers in the cache now.
    pub entries: u64,
    /// Their size in bytes, about.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub asked: Counter,
    pub cached: Counter,
    pub exchanges: Counter,
    pub relayed: Counter,
    pub failed: Counter,
    pub refused: Counter,
    pub strays: Counter,
    pub strangers: Counter,
    pub blocked: Counter,
}

impl Counters {
    pub fn counts(&self, entries: usize, bytes: usize) -> Counts {
        Counts {
            asked: self.asked.get(),
            cached: self.cached.get(),
            exchanges: self.exchanges.get(),
            relayed: self.relayed.get(),
            failed: self.failed.get(),
            refused: self.refused.get(),
            strays: self.strays.get(),
            strangers: self.strangers.get(),
            blocked: self.blocked.get(),
            entries: entries as u64,
            bytes: bytes as u64,
        }
    }
}

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

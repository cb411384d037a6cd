use std::time::{Duration, Instant};

/// RFC 1812 §4.3.2.8: errors are limited in rate. An application that retries is told each time; a flood is not answered in kind.
const PER_SECOND: u32 = 200;
const BURST: u32 = 200;

/// A token bucket.
#[derive(Default)]
pub(super) struct RateLimit {
    spent: Duration,
    last: Option<Instant>,
}

impl RateLimit {
    pub(super) fn take(&mut self, now: Instant) -> bool {
        const COST: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
        let passed = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.spent = self.spent.saturating_sub(passed);
        if self.spent + COST > COST * BURST {
            return false;
        }
        self.spent += COST;
        true
    }
}

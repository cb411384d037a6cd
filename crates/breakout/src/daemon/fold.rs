//! Lines of the log that somebody else can bring about as often as he likes.

use std::time::{Duration, Instant};

/// So many are told one after the other, afterwards ...
const AT_ONCE: u32 = 20;
/// ... one in this time.
const EVERY: Duration = Duration::from_secs(10);

pub struct Fold {
    /// When as many as [`AT_ONCE`] may be told again.
    full: Instant,
    untold: u64,
}

impl Fold {
    pub fn new(now: Instant) -> Self {
        Self { full: now, untold: 0 }
    }

    /// Whether to tell one now: then how many have not been told since the last one.
    pub fn tell(&mut self, now: Instant) -> Option<u64> {
        let full = self.full.max(now) + EVERY;
        if full > now + EVERY * AT_ONCE {
            self.untold += 1;
            return None;
        }
        self.full = full;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_told_and_then_one_in_ten_seconds_says_how_many_there_were() {
        let mut now = Instant::now();
        let mut fold = Fold::new(now);
        for _ in 0..AT_ONCE {
            assert_eq!(fold.tell(now), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(fold.tell(now), None);
        }
        now += EVERY;
        assert_eq!([fold.tell(now), fold.tell(now)], [Some(3), None]);
        now += EVERY * AT_ONCE;
        assert_eq!(fold.tell(now), Some(1));
        assert_eq!((1..AT_ONCE).filter_map(|_| fold.tell(now)).count(), 19);
    }
}

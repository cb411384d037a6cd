use std::time::{Duration, Instant};

use crate::fast_path::QUIET;

/// How long after a direction began to wait for the kernel it is looked at.
const SOON: Duration = QUIET.saturating_mul(2);
/// At most so long between two looks where nothing gets quiet.
const SELDOM: Duration = Duration::from_millis(64);

/// When the pump looks for the end of its queues, so that the kernel may have what waits for that. A look costs a wake-up and system calls.
#[derive(Default)]
pub(super) struct Looks {
    due: Option<Instant>,
    after: Duration,
    since: Option<Instant>,
}

impl Looks {
    /// When to [`Looks::begin`] one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Since when the pump looks.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Something new waits. To be told once of each: what never gets quiet would put off everybody's look for ever.
    pub(super) fn soon(&mut self, now: Instant) {
        let soon = now + SOON;
        self.after = SOON;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        self.due = None;
    }

    /// `settled`: something that had waited is the kernel's now; `waiting`: something waits on.
    pub(super) fn end(&mut self, settled: bool, waiting: bool, now: Instant) {
        self.since = None;
        // What is new since the look began does not wait for what is never quiet.
        let is_new = self.due.is_some();
        self.after = if settled || is_new { SOON } else { (self.after * 2).min(SELDOM) };
        let next = now + self.after;
        self.due = waiting.then(|| self.due.map_or(next, |due| due.min(next)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Looks without success; returns how long after the one before.
    fn in_vain(looks: &mut Looks, now: &mut Instant) -> Duration {
        let due = looks.due().expect("something waits");
        let waited = due - *now;
        *now = due;
        looks.begin(due);
        assert_eq!((looks.due(), looks.since()), (None, Some(due)));
        looks.end(false, true, due);
        waited
    }

    #[test]
    fn what_does_not_get_quiet_is_looked_at_more_and_more_seldom() {
        let (mut looks, mut now) = (Looks::default(), Instant::now());
        looks.soon(now);
        let waited: Vec<_> = (0..8).map(|_| in_vain(&mut looks, &mut now).as_millis()).collect();
        assert_eq!(waited, [2, 4, 8, 16, 32, 64, 64, 64]);
    }

    #[test]
    fn what_is_new_does_not_wait_for_what_is_never_quiet() {
        let (mut looks, mut now) = (Looks::default(), Instant::now());
        looks.soon(now);
        for _ in 0..8 {
            in_vain(&mut looks, &mut now);
        }
        looks.soon(now + MILLISECOND);
        assert_eq!(looks.due(), Some(now + MILLISECOND + SOON));
        looks.soon(now + 2 * MILLISECOND);
        assert_eq!(looks.due(), Some(now + MILLISECOND + SOON), "a look that is due is never put off");

        now += 3 * MILLISECOND;
        looks.begin(now);
        looks.soon(now);
        looks.end(false, true, now);
        assert_eq!(looks.due(), Some(now + SOON), "it came while the pump looked");
    }

    #[test]
    fn after_a_success_the_rest_is_looked_at_soon_and_nothing_where_nothing_waits() {
        let (mut looks, mut now) = (Looks::default(), Instant::now());
        looks.soon(now);
        for _ in 0..8 {
            in_vain(&mut looks, &mut now);
        }
        looks.begin(now);
        looks.end(true, true, now);
        assert_eq!(looks.due(), Some(now + SOON));
        looks.begin(now);
        looks.end(true, false, now);
        assert_eq!((looks.due(), looks.since()), (None, None));
    }
}

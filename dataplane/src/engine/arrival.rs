use std::time::{Duration, Instant};

/// The clock by which arrivals are measured: nanoseconds since boot, as the kernel's programs measure them. All packets of a batch have one
/// `now`, so that it is converted once.
pub(super) struct Arrivals {
    begun: Instant,
    begun_at: u64,
    now: Instant,
    arrival: u64,
}

impl Arrivals {
    /// `since_boot` is the time since boot at `now`.
    pub(super) fn new(now: Instant, since_boot: Duration) -> Self {
        let arrival = nanoseconds(since_boot);
        Self { begun: now, begun_at: arrival, now, arrival }
    }

    pub(super) fn at(&mut self, now: Instant) -> u64 {
        if now != self.now {
            let since = now.saturating_duration_since(self.begun);
            self.now = now;
            self.arrival = self.begun_at.wrapping_add(nanoseconds(since));
        }
        self.arrival
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_secs().wrapping_mul(1_000_000_000).wrapping_add(time.subsec_nanos().into())
}

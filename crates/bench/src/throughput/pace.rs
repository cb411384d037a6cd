use std::time::{Duration, Instant};

/// Holds a sender to a rate.
#[derive(Debug)]
pub struct Pace {
    /// Bit/s; `None`: as fast as it goes.
    rate: Option<u64>,
    begun: Instant,
    sent: u64,
}

impl Pace {
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, begun: Instant::now(), sent: 0 }
    }

    /// Counts `bytes` and sleeps while they are ahead of time.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return };
        let due = Duration::from_secs_f64(self.sent as f64 * 8.0 / rate as f64);
        let ahead = due.saturating_sub(self.begun.elapsed());
        if !ahead.is_zero() {
            std::thread::sleep(ahead);
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

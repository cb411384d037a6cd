use std::time::{Duration, Instant};

// WireGuard paper §6.1.
pub(crate) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
pub(crate) const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// §6.3: keys are erased this long after the last session began.
pub(crate) const ERASE_AFTER_TIME: Duration = Duration::from_secs(3 * 180);
/// §6.2: on receiving, an initiator renews a session of this age.
pub(crate) const REKEY_ON_RECEIVE_TIME: Duration = Duration::from_secs(180 - 10 - 5);
const MAX_JITTER_MS: u64 = 333;

/// When something is due because of what was sent and received.
#[derive(Debug)]
pub(crate) struct Timers {
    interval: Option<Duration>,
    /// Persistent keepalive.
    pub(crate) persistent: Option<Instant>,
    /// Data was received and nothing sent since: a keepalive tells the peer that we are there.
    pub(crate) passive: Option<Instant>,
    /// Data was sent and nothing came back: a new handshake finds out why.
    pub(crate) unanswered: Option<Instant>,
    /// When data began to wait for anything to come back: sent, or for want of a session not even that.
    pub(crate) waits_since: Option<Instant>,
    pub(crate) last_received: Option<Instant>,
}

impl Timers {
    pub(crate) fn new(interval: Option<Duration>, now: Instant) -> Self {
        let interval = interval.filter(|interval| !interval.is_zero());
        Self {
            interval,
            persistent: interval.map(|_| now),
            passive: None,
            unanswered: None,
            waits_since: None,
            last_received: None,
        }
    }

    /// Notes a message sent; keepalives and handshakes are not `data`.
    pub(crate) fn sent(&mut self, data: bool, now: Instant) {
        self.passive = None;
        self.persistent = self.interval.map(|interval| now + interval);
        if data {
            self.unanswered.get_or_insert(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
            self.waits(now);
        }
    }

    /// Notes data that may wait for an answer from now on.
    pub(crate) fn waits(&mut self, now: Instant) {
        self.waits_since.get_or_insert(now);
    }

    /// Notes an authentic message received; keepalives and handshakes are not `data`.
    pub(crate) fn received(&mut self, data: bool, now: Instant) {
        self.unanswered = None;
        self.waits_since = None;
        self.last_received = Some(now);
        if data {
            self.passive.get_or_insert(now + KEEPALIVE_TIMEOUT);
        }
    }

    /// A keepalive is due at this time, if a session can carry it.
    pub(crate) fn keepalive(&self) -> Option<Instant> {
        earliest([self.persistent, self.passive])
    }
}

pub(crate) fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().flatten().min()
}

pub(crate) fn due(time: Option<Instant>, now: Instant) -> bool {
    time.is_some_and(|time| time <= now)
}

/// Keeps two peers from retrying in step (§6.4). Spreads, keeps no secret.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u32) -> Self {
        Self(u64::from(seed) | 1 << 32)
    }

    /// 0 to 333 ms.
    pub(crate) fn next(&mut self) -> Duration {
        // xorshift64 (Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_millis(self.0 % (MAX_JITTER_MS + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_spreads_over_its_whole_range() {
        let mut jitter = Jitter::new(0);
        let drawn: Vec<_> = (0..10_000).map(|_| jitter.next().as_millis() as u64).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&0), Some(&MAX_JITTER_MS)));
    }
}

//! Somebody else who writes /etc/resolv.conf whenever we have: neither gives in, but ours does not have to be back at once.

use std::time::Duration;

use tokio::time::Instant;

/// So often in a row ours is put back at once, afterwards ...
const AT_ONCE: u32 = 8;
const BEGINS: u32 = AT_ONCE + 1;
/// ... as often as this. Who writes more seldom than that is never waited for.
const EVERY: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Fight {
    /// How often theirs was found in a row.
    rounds: u32,
    /// When there was one for each [`EVERY`]; then it is over.
    even: Instant,
    /// The first line of what they have written last.
    theirs: String,
}

impl Fight {
    pub fn new(now: Instant) -> Self {
        Self { rounds: 0, even: now, theirs: String::new() }
    }

    /// Theirs stood where ours should, and ours is put back. What is to be told of that: of a fight only that it is one.
    pub fn found(&mut self, theirs: &[u8], now: Instant) -> Option<String> {
        const OURS: &str = "our /etc/resolv.conf";
        if now >= self.even {
            *self = Self::new(now);
        }
        self.rounds += 1;
        self.even = (self.even + EVERY).min(now + EVERY * BEGINS);
        let line = theirs.split(|byte| *byte == b'\n').next().unwrap_or_default();
        self.theirs = String::from_utf8_lossy(line).into_owned();
        match self.rounds {
            ..=AT_ONCE => Some(OURS.to_owned()),
            BEGINS => Some(format!("{OURS}; {}", self.said())),
            _ => None,
        }
    }

    /// How long theirs may stand now.
    pub fn pause(&self, now: Instant) -> Duration {
        self.even.saturating_duration_since(now).saturating_sub(EVERY * AT_ONCE)
    }

    /// Who is fought with; `None`: nobody.
    pub fn state(&self, now: Instant) -> Option<String> {
        (self.rounds >= BEGINS && now < self.even).then(|| self.said())
    }

    /// When it is over if nobody writes until then.
    pub fn end(&self) -> Instant {
        self.even
    }

    fn said(&self) -> String {
        let Self { rounds, theirs, .. } = self;
        let every = EVERY.as_secs();
        format!(
            "somebody else keeps writing it, {rounds} times in a row by now (the last one begins with {theirs:?}): \
             ours is put back every {every} s only"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_answered_at_once_and_then_one_in_three_seconds() {
        let mut now = Instant::now();
        let mut fight = Fight::new(now);
        let plain = Some("our /etc/resolv.conf".to_owned());
        for _ in 0..AT_ONCE {
            assert_eq!((fight.pause(now), fight.state(now)), (Duration::ZERO, None));
            assert_eq!(fight.found(b"nameserver 10.7.0.1\n", now), plain);
        }
        let mut waited = Vec::new();
        let mut told = Vec::new();
        for _ in 0..3 {
            waited.push(fight.pause(now));
            now += fight.pause(now);
            told.push(fight.found(b"# x\x1b\nnameserver 10.7.0.1\n", now).is_some());
        }
        assert_eq!((waited, told), (vec![Duration::ZERO, EVERY, EVERY], vec![true, false, false]));
        let state = fight.state(now).unwrap();
        assert!(state.contains("11 times in a row") && state.contains(r##""# x\u{1b}""##), "{state}");

        let end = fight.end();
        assert_eq!((end - now, fight.state(end)), (EVERY * BEGINS, None));
        assert_eq!((fight.pause(end), fight.found(b"", end)), (Duration::ZERO, plain));
        assert_eq!(fight.state(end), None);
    }

    #[test]
    fn who_writes_seldom_is_answered_at_once_for_ever() {
        let mut now = Instant::now();
        let mut fight = Fight::new(now);
        for _ in 0..1000 {
            assert!(fight.found(b"", now).is_some());
            assert_eq!((fight.pause(now), fight.state(now)), (Duration::ZERO, None));
            now += EVERY;
        }
    }
}

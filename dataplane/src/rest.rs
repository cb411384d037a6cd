use std::io;
use std::time::Duration;

use mio::{Events, Poll};

/// Nothing has come for so long: the thread's load is over.
const QUIET: Duration = Duration::from_millis(500);
/// Turns after which buffers are taken for touched. A load makes thousands in a second, an idle session's keepalives two in 25 s: those buy
/// one wake-up more in several minutes.
const TURNS: u32 = 32;

/// A thread's waiting. After a load its buffers stay touched, megabytes that nobody needs: where nothing came for a while, it is told to give
/// them back.
#[derive(Default)]
pub(crate) struct Rest {
    turns: u32,
}

impl Rest {
    /// Waits for events; a thread that is busy only looks for them. `true`: there were none for a while, after many turns.
    pub(crate) fn wait(&mut self, poll: &mut Poll, events: &mut Events, busy: bool) -> io::Result<bool> {
        let is_owed = self.turns >= TURNS;
        let timeout = match busy {
            true => Some(Duration::ZERO),
            false => is_owed.then_some(QUIET),
        };
        match poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let rests = is_owed && !busy && events.is_empty();
        self.turns = if rests { 0 } else { self.turns.saturating_add(1) };
        Ok(rests)
    }
}

#[cfg(test)]
mod tests {
    use mio::{Token, Waker};

    use super::*;

    #[test]
    fn who_had_much_to_do_gives_back_once_and_waits_on() {
        let mut poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        let (mut events, mut rest) = (Events::with_capacity(1), Rest::default());
        for _ in 0..TURNS {
            waker.wake().unwrap();
            assert!(!rest.wait(&mut poll, &mut events, false).unwrap());
            assert!(!events.is_empty());
        }
        assert!(!rest.wait(&mut poll, &mut events, true).unwrap(), "busy");
        assert!(rest.wait(&mut poll, &mut events, false).unwrap());

        waker.wake().unwrap();
        assert!(!rest.wait(&mut poll, &mut events, false).unwrap());
        assert_eq!(rest.turns, 1, "a timeout is set after many turns only");
    }
}

use std::time::Instant;

use crate::timers::{REJECT_AFTER_TIME, REKEY_TIMEOUT};

/// Our record of a session that boringtun holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    /// Our index of it.
    pub(crate) local: u32,
    pub(crate) established: Instant,
    /// Only the initiator renews a session (WireGuard paper §6.2).
    pub(crate) initiator: bool,
    /// A responder sends only after the initiator has used the session (§5.1).
    pub(crate) confirmed: bool,
}

/// Mirrors boringtun's ring of sessions, so that we know which one it would use before we ask it to.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    ring: [Option<Session>; RING],
    /// Boringtun sends with whatever session lies in this index's place.
    current: u32,
}

/// Boringtun's `N_SESSIONS`: a session's place is its index modulo this.
const RING: usize = 8;

impl Session {
    pub(crate) fn valid(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.established) < REJECT_AFTER_TIME
    }
}

impl Sessions {
    /// The session to send with: current, confirmed and younger than [`REJECT_AFTER_TIME`].
    pub(crate) fn sending(&self, now: Instant) -> Option<&Session> {
        self.place(self.current).filter(|session| session.confirmed && session.valid(now))
    }

    pub(crate) fn get(&self, local: u32) -> Option<&Session> {
        self.place(local).filter(|session| session.local == local)
    }

    /// When the current session ends or ended.
    pub(crate) fn end(&self) -> Option<Instant> {
        self.place(self.current).map(|session| session.established + REJECT_AFTER_TIME)
    }

    /// Since when a peer's first use of a fresh session is waited for.
    pub(crate) fn awaited(&self, now: Instant) -> Option<Instant> {
        self.ring
            .iter()
            .flatten()
            .filter(|session| !session.confirmed)
            .map(|session| session.established)
            .filter(|established| now.saturating_duration_since(*established) < REKEY_TIMEOUT)
            .max()
    }

    pub(crate) fn insert(&mut self, session: Session) {
        if let Some(place) = self.place_mut(session.local) {
            *place = Some(session);
        }
        if session.confirmed {
            self.make_current(session.local);
        }
    }

    /// Notes an authentic packet in session `local`; returns the session if that was the first.
    pub(crate) fn used(&mut self, local: u32) -> Option<Session> {
        let session = self.place_mut(local)?.as_mut()?;
        let first = !session.confirmed;
        session.confirmed = true;
        let session = *session;
        self.make_current(local);
        first.then_some(session)
    }

    pub(crate) fn drop_current(&mut self) {
        if let Some(place) = self.place_mut(self.current) {
            *place = None;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.ring = Default::default();
    }

    /// As boringtun does: a packet that comes late in an older session does not bring it back.
    fn make_current(&mut self, local: u32) {
        if local == self.current {
            return;
        }
        let established = |index| self.place(index).map(|session| session.established);
        if established(local) >= established(self.current) {
            self.current = local;
        }
    }

    fn place(&self, local: u32) -> Option<&Session> {
        self.ring.get(local as usize % RING)?.as_ref()
    }

    fn place_mut(&mut self, local: u32) -> Option<&mut Option<Session>> {
        self.ring.get_mut(local as usize % RING)
    }
}

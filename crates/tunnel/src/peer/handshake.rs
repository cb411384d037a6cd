//! The handshake's side of a peer: when one begins, is repeated, given up, answered.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;

use super::{DATAGRAM_OVERHEAD, LATE_ANSWER, LEAST_BETWEEN_QUESTIONS, Peer};
use crate::message::{Message, sender_index};
use crate::outcome::{OpenError, Opened, State};
use crate::session::Session;
use crate::timers::{ERASE_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, due};

/// A handshake of ours that has not been answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// When it began to be unanswered; retries do not move it.
    pub(super) started: Instant,
    /// When the latest initiation went out.
    pub(super) sent: Instant,
    /// The latest initiation's sender index.
    pub(super) index: u32,
    /// The one before it: boringtun takes answers to the last two.
    pub(super) previous: Option<(u32, Instant)>,
    /// `None`: given up until somebody wants to send.
    pub(super) retry_at: Option<Instant>,
    /// Begun by [`Peer::ask`], and nobody has wanted to send since. Nothing is refused because it is not answered.
    pub(super) is_question: bool,
}

impl Attempt {
    pub(super) fn down_at(&self) -> Instant {
        self.started + REKEY_TIMEOUT
    }

    /// When the initiation of this index went out, if its answer is still taken.
    fn sent_as(&self, index: u32) -> Option<Instant> {
        let previous = self.previous.filter(|(previous, _)| *previous == index);
        if self.index == index { Some(self.sent) } else { previous.map(|(_, sent)| sent) }
    }
}

impl Peer {
    pub(super) fn open_handshake<'a>(
        &mut self,
        datagram: &[u8],
        message: Message,
        source: Option<IpAddr>,
        out: &'a mut [u8],
        now: Instant,
    ) -> Result<Opened<'a>, OpenError> {
        self.refresh(now);
        self.limiter.reset_count();
        let reply: &[u8] = match self.tunn.decapsulate(source, datagram, out) {
            TunnResult::WriteToNetwork(reply) => reply,
            TunnResult::Err(error) => {
                self.undecryptable_response |=
                    matches!((message, &error), (Message::Response { .. }, WireGuardError::InvalidAeadTag));
                return Err(error.into());
            }
            _ => return Ok(Opened::Nothing),
        };
        match (message, Message::parse(reply)) {
            (Message::Initiation, Some(Message::Response { .. })) => {
                self.answered_initiation(datagram.len(), reply, now);
            }
            (Message::Response { receiver }, Some(Message::Data { .. })) => {
                self.answered_by(receiver, datagram.len(), reply.len(), now);
            }
            // A cookie: the sender has proved nothing yet.
            _ => {}
        }
        Ok(Opened::Reply(reply))
    }

    /// As responder: the session is made, and is used once the initiator has used it. That the initiator begins a handshake is no answer to
    /// anything: it may have heard nothing of us, and then goes on so every 5 s.
    fn answered_initiation(&mut self, received: usize, reply: &[u8], now: Instant) {
        let Some(local) = sender_index(reply) else { return };
        self.sessions.insert(Session { local, established: now, initiator: false, confirmed: false });
        self.unconfirmed = self.unconfirmed.saturating_add(1);
        self.erase_at = Some(now + ERASE_AFTER_TIME);
        self.stats.received_bytes += received as u64;
        self.sent(reply.len(), false, now);
    }

    /// As initiator: the session is up.
    fn answered_by(&mut self, local: u32, received: usize, sent: usize, now: Instant) {
        let was_up = matches!(self.state(now), State::Up { .. });
        // An answer may have waited while the machine slept; the other side counts from when it answered.
        let asked = self.attempt.and_then(|attempt| attempt.sent_as(local));
        let established = asked.unwrap_or(now);
        let session = Session { local, established, initiator: true, confirmed: true };
        self.sessions.insert(session);
        // The answer to an earlier initiation leaves the latest one open in boringtun, which would drop all sessions
        // after 90 s: it goes on being retried.
        self.attempt.take_if(|attempt| attempt.index == local);
        if let Some(asked) = asked {
            self.stats.round_trip = Some(now.saturating_duration_since(asked));
            self.stats.round_trip_at = Some(now);
        }
        self.stats.received_bytes += received as u64;
        self.timers.received(false, now);
        self.sent(sent, false, now);
        self.session_up(session, was_up, now);
    }

    pub(super) fn session_up(&mut self, session: Session, was_up: bool, now: Instant) {
        if !was_up {
            self.up_since = now;
        }
        self.rekey_at = None;
        self.unconfirmed = 0;
        self.undecryptable_response = false;
        self.erase_at = Some(now + ERASE_AFTER_TIME);
        self.stats.handshakes += 1;
        self.stats.last_handshake = Some(session.established);
    }

    pub(super) fn handshake_due(&mut self, now: Instant) -> bool {
        if due(self.timers.unanswered, now) {
            self.timers.unanswered = None;
            match self.attempt {
                Some(attempt) if attempt.retry_at.is_some() && !attempt.is_question => {
                    // Something came back since it began, so its 5 s count from now.
                    let started = if self.heard_since(&attempt) { now } else { attempt.started };
                    self.attempt = Some(Attempt { started, ..attempt });
                }
                _ => {
                    self.attempt = None;
                    self.rekey_at = Some(now);
                }
            }
        }
        let goes_on = self.goes_on(now);
        let renews = due(self.rekey_at, now);
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| !(attempt.is_question && renews)) else {
            self.attempt = None;
            return renews;
        };
        self.rekey_at = None;
        if !due(attempt.retry_at, now) {
            return false;
        }
        if !goes_on {
            attempt.retry_at = None;
        }
        goes_on
    }

    /// Whether an unanswered handshake is repeated. A question is while its session lives: boringtun drops all sessions 90 s
    /// after a handshake that is not answered.
    fn goes_on(&self, now: Instant) -> bool {
        self.wanted(now) || self.is_asked() && self.sessions.sending(now).is_some()
    }

    fn is_asked(&self) -> bool {
        self.attempt.is_some_and(|attempt| attempt.is_question)
    }

    /// Somebody wants to send: from now on a question counts as any handshake does.
    pub(super) fn answer_is_wanted(&mut self, now: Instant) {
        let Some(asked) = self.attempt.filter(|attempt| attempt.is_question) else { return };
        let next = self.next_question(&asked);
        let Some(attempt) = &mut self.attempt else { return };
        attempt.is_question = false;
        attempt.started = now;
        attempt.retry_at = Some(now.max(next));
    }

    /// From when on it may be asked again. A third initiation makes the answer to the first worthless.
    pub(super) fn next_question(&self, attempt: &Attempt) -> Instant {
        let is_of_this_underlay = self.stats.round_trip_at > self.underlay_told;
        let round_trip = self.stats.round_trip.filter(|_| is_of_this_underlay).unwrap_or(Duration::ZERO);
        let round_trip = round_trip.min(REKEY_TIMEOUT);
        let next = attempt.sent + LEAST_BETWEEN_QUESTIONS.max(round_trip);
        let previous = attempt.previous.filter(|(_, sent)| Some(*sent) > self.underlay_told);
        previous.map_or(next, |(_, sent)| next.max(sent + LATE_ANSWER.max(round_trip)))
    }

    /// Begins or repeats a handshake.
    pub(super) fn initiate(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
        self.refresh(now);
        (self.rekey_at, self.ask_at) = (None, None);
        let TunnResult::WriteToNetwork(initiation) = self.tunn.format_handshake_initiation(out, true) else {
            return None;
        };
        let (sent, index) = (initiation.len(), sender_index(initiation)?);
        let retry_at = Some(now + REKEY_TIMEOUT + self.jitter.next());
        let begun = Attempt { started: now, sent: now, index, previous: None, retry_at, is_question: false };
        self.attempt = Some(match self.attempt {
            Some(last) => {
                self.stats.handshakes_failed += 1;
                let previous = Some((last.index, last.sent));
                let Attempt { started, is_question, .. } = last;
                Attempt { started, previous, is_question, ..begun }
            }
            None => {
                self.last_wanted = Some(now);
                begun
            }
        });
        self.erase_at = Some(now + ERASE_AFTER_TIME);
        self.sent(sent, false, now);
        Some(sent)
    }

    /// Begins or repeats a handshake for [`Peer::ask`].
    pub(super) fn put_question(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
        let last_wanted = self.last_wanted;
        let begins = self.attempt.is_none() && self.queue.is_empty();
        let sent = self.initiate(out, now);
        self.last_wanted = last_wanted;
        if let Some(attempt) = &mut self.attempt {
            attempt.is_question |= begins;
        }
        let goes_on = self.goes_on(now);
        if let Some(attempt) = self.attempt.as_mut().filter(|_| !goes_on) {
            attempt.retry_at = None;
        }
        sent
    }

    /// Sends a keepalive; where there is no session and persistent keepalives are wanted, a handshake.
    pub(super) fn keepalive(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
        let persistent = due(self.timers.persistent, now);
        self.timers.sent(false, now);
        if self.can_send(now) {
            return self.transmit(&[], out, now);
        }
        match self.attempt.map(|attempt| attempt.retry_at) {
            _ if !persistent => None,
            None => self.initiate(out, now),
            Some(Some(_retrying)) => None,
            Some(None) => {
                let sent = self.initiate(out, now);
                if let Some(attempt) = &mut self.attempt {
                    attempt.retry_at = None;
                }
                sent
            }
        }
    }

    /// Brings boringtun's clock up to date and lets it erase what is old. It also decides to send things then, from a clock
    /// that stood still: the buffer is too short for a handshake, and a keepalive is discarded.
    pub(super) fn refresh(&mut self, now: Instant) {
        let mut discarded = [0; DATAGRAM_OVERHEAD];
        let result = self.tunn.update_timers(&mut discarded);
        if !matches!(result, TunnResult::Err(WireGuardError::ConnectionExpired)) {
            return;
        }
        // Boringtun has forgotten its sessions and the handshake on its way.
        self.sessions.clear();
        if let Some(retry_at) = self.attempt.as_mut().and_then(|attempt| attempt.retry_at.as_mut()) {
            *retry_at = now;
        }
    }

    pub(super) fn heard_since(&self, attempt: &Attempt) -> bool {
        self.timers.last_received.is_some_and(|received| received >= attempt.started)
    }

    /// Handshakes are repeated for 90 s after the last wish to send (WireGuard paper §6.4).
    pub(super) fn wanted(&self, now: Instant) -> bool {
        self.last_wanted.is_some_and(|wanted| now.saturating_duration_since(wanted) < REKEY_ATTEMPT_TIME)
    }
}

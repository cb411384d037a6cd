use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use crate::message::{DATA_OVERHEAD, INITIATION_LEN, MAX_DATAGRAM, Message, sender_index};
use crate::outcome::{OpenError, Opened, SealError, Sealed, State, Stats};
use crate::queue::Queue;
use crate::session::{Session, Sessions};
use crate::timers::{
    ERASE_AFTER_TIME, Jitter, REJECT_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_ATTEMPT_TIME,
    REKEY_ON_RECEIVE_TIME, REKEY_TIMEOUT, Timers, due, earliest,
};
use crate::{PresharedKey, PrivateKey, PublicKey, Trouble};

/// What a sealed packet is longer than the (padded) packet inside: 16 bytes of header, 16 of authentication tag.
pub const DATAGRAM_OVERHEAD: usize = DATA_OVERHEAD;
/// The least an `out` buffer may hold: a handshake initiation.
pub const MIN_OUT: usize = INITIATION_LEN;

pub struct PeerConfig {
    pub private_key: PrivateKey,
    pub peer_public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    /// Sends something at least this often and so keeps a session up.
    pub keepalive: Option<Duration>,
    /// 24 random bits, so that the sender index cannot be guessed.
    pub index: u32,
    /// The largest packet in the tunnel; padding never goes beyond it.
    pub mtu: u16,
}

/// One WireGuard peer.
///
/// `now` never goes back, and counts the time the machine slept. After each call, [`Peer::deadline`] may be earlier than before.
pub struct Peer {
    tunn: Tunn,
    mtu: usize,
    sessions: Sessions,
    attempt: Option<Attempt>,
    timers: Timers,
    jitter: Jitter,
    queue: Queue,
    /// A session wants to be renewed.
    rekey_at: Option<Instant>,
    erase_at: Option<Instant>,
    last_wanted: Option<Instant>,
    underlay_lost: Option<Instant>,
    up_since: Instant,
    undecryptable_response: bool,
    unconfirmed: u32,
    stats: Stats,
}

/// A handshake of ours that has not been answered yet.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    /// When it began to be unanswered; retries do not move it.
    started: Instant,
    /// When the latest initiation went out.
    sent: Instant,
    /// The latest initiation's sender index.
    index: u32,
    /// `None`: given up until somebody wants to send.
    retry_at: Option<Instant>,
}

impl Attempt {
    fn down_at(&self) -> Instant {
        self.started + REKEY_TIMEOUT
    }
}

impl Peer {
    pub fn new(config: PeerConfig, now: Instant) -> Self {
        Self::with_limiter(config, None, now)
    }

    pub(crate) fn with_limiter(config: PeerConfig, limiter: Option<Arc<RateLimiter>>, now: Instant) -> Self {
        let index = config.index & 0x00ff_ffff;
        let tunn = Tunn::new(
            config.private_key.secret(),
            x25519::PublicKey::from(config.peer_public_key.0),
            config.preshared_key.as_ref().map(PresharedKey::bytes),
            None,
            index,
            limiter,
        );
        Self {
            tunn,
            mtu: usize::from(config.mtu),
            sessions: Sessions::default(),
            attempt: None,
            timers: Timers::new(config.keepalive, now),
            jitter: Jitter::new(index),
            queue: Queue::default(),
            rekey_at: None,
            erase_at: None,
            last_wanted: None,
            underlay_lost: None,
            up_since: now,
            undecryptable_response: false,
            unconfirmed: 0,
            stats: Stats::default(),
        }
    }

    /// Seals the packet in the first `length` bytes of `packet` into `out`.
    ///
    /// Behind the packet there must be room up to the next multiple of 16, which is overwritten with zeros: padding costs
    /// no copy. `out` must hold the padded packet and [`DATAGRAM_OVERHEAD`] more, and never less than [`MIN_OUT`].
    pub fn seal<'a>(
        &mut self,
        packet: &mut [u8],
        length: usize,
        out: &'a mut [u8],
        now: Instant,
    ) -> Result<Sealed<'a>, SealError> {
        let padded = self.pad(packet, length)?;
        let need = (padded.len() + DATAGRAM_OVERHEAD).max(MIN_OUT);
        if out.len() < need {
            return Err(SealError::Out { need, have: out.len() });
        }
        self.last_wanted = Some(now);
        if self.can_send(now)
            && let Some(sealed) = self.transmit(padded, out, now)
        {
            return Ok(Sealed::Datagram(head(out, sealed)));
        }
        Ok(self.wait(padded, length, out, now))
    }

    /// Opens one datagram into `out`, which must be at least as long as it and never less than [`MIN_OUT`].
    pub fn open<'a>(
        &mut self,
        datagram: &[u8],
        out: &'a mut [u8],
        now: Instant,
    ) -> Result<Opened<'a>, OpenError> {
        self.open_from(datagram, None, out, now)
    }

    /// As [`Peer::open`]; with the sender's address, boringtun can ask it for a cookie under load.
    pub(crate) fn open_from<'a>(
        &mut self,
        datagram: &[u8],
        source: Option<IpAddr>,
        out: &'a mut [u8],
        now: Instant,
    ) -> Result<Opened<'a>, OpenError> {
        if out.len() < datagram.len().max(MIN_OUT) {
            return Err(OpenError::Buffer);
        }
        let opened = match Message::parse(datagram) {
            Some(Message::Data { receiver, counter }) => {
                self.open_data(datagram, receiver, counter, out, now)
            }
            Some(message) => self.open_handshake(datagram, message, source, out, now),
            None => Err(OpenError::NotWireGuard),
        };
        opened.inspect_err(|error| self.stats.count(*error))
    }

    /// The next packet that waited for the session that is up now, sealed; call until `None`. `out` as for [`Peer::seal`]:
    /// a packet that does not fit goes on waiting.
    pub fn flush<'a>(&mut self, out: &'a mut [u8], now: Instant) -> Option<&'a [u8]> {
        self.queue.refuse_overdue(now);
        let need = (self.queue.next_len()? + DATAGRAM_OVERHEAD).max(MIN_OUT);
        if out.len() < need || !self.can_send(now) {
            return None;
        }
        let packet = self.queue.pop()?;
        let sealed = self.transmit(&packet, out, now)?;
        Some(head(out, sealed))
    }

    /// The next packet that waited in vain (the peer went down), to be refused; call until `None`.
    pub fn take_refused(&mut self) -> Option<Vec<u8>> {
        self.queue.take_refused()
    }

    /// When [`Peer::on_deadline`] wants to be called; `None` while there is nothing to wait for.
    pub fn deadline(&self) -> Option<Instant> {
        if self.underlay_lost.is_some() {
            return self.erase_at;
        }
        let attempt = self.attempt.as_ref();
        earliest([
            attempt.and_then(|attempt| attempt.retry_at),
            attempt
                .filter(|attempt| !self.queue.is_empty() && !self.heard_since(attempt))
                .map(Attempt::down_at),
            self.queue.deadline(),
            self.rekey_at,
            self.timers.unanswered,
            self.timers.keepalive(),
            self.erase_at,
        ])
    }

    /// Does what is due: handshake, retry, keepalive, expiry. Returns a datagram to send; call again while
    /// [`Peer::deadline`] is not after `now`. Also to be called at once after the machine slept.
    /// `out` must hold [`MIN_OUT`] bytes, or nothing is done.
    pub fn on_deadline<'a>(&mut self, out: &'a mut [u8], now: Instant) -> Option<&'a [u8]> {
        let sent = self.act(out, now)?;
        Some(head(out, sent))
    }

    /// As [`Peer::on_deadline`]; returns the length of what was written.
    pub(crate) fn act(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
        if out.len() < MIN_OUT {
            return None;
        }
        self.expire(now);
        if self.underlay_lost.is_some() {
            return None;
        }
        if self.handshake_due(now) {
            return self.initiate(out, now);
        }
        if due(self.timers.keepalive(), now) {
            return self.keepalive(out, now);
        }
        None
    }

    /// Tells whether a route to the gateway exists. Without one the peer is down at once. With a new one it tries again
    /// at once, and where a session lives, a keepalive tells the gateway the new address: tell also when the route
    /// only changed.
    pub fn set_underlay(&mut self, present: bool, now: Instant) {
        if !present {
            self.underlay_lost.get_or_insert(now);
            self.queue.refuse_all();
            return;
        }
        self.underlay_lost = None;
        let sending = self.sessions.sending(now).is_some();
        if sending {
            self.timers.passive = Some(now);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.started = now;
            attempt.retry_at = Some(now);
            self.last_wanted = Some(now);
        } else if !sending && self.wanted(now) {
            self.rekey_at = Some(now);
        }
    }

    /// A responder's peer has no endpoint, and so no underlay, until it was heard.
    pub(crate) fn heard(&mut self) {
        self.underlay_lost = None;
    }

    pub fn state(&self, now: Instant) -> State {
        if let Some(since) = self.underlay_lost {
            return State::Down { since };
        }
        let sending = self.sessions.sending(now).is_some();
        let Some(attempt) = &self.attempt else {
            return match self.sessions.awaited(now) {
                _ if sending => State::Up { since: self.up_since },
                Some(since) => State::Connecting { since },
                None => State::Idle,
            };
        };
        let heard = self.heard_since(attempt);
        if sending && (heard || now < attempt.down_at()) {
            return State::Up { since: self.up_since };
        }
        if now < attempt.down_at() {
            return State::Connecting { since: attempt.started };
        }
        let session_end = self.sessions.end().filter(|end| heard && *end <= now);
        State::Down { since: session_end.map_or(attempt.down_at(), |end| end.max(attempt.down_at())) }
    }

    pub fn stats(&self) -> Stats {
        Stats { last_received: self.timers.last_received, ..self.stats }
    }

    /// Why the peer is not up, if that can be told.
    pub fn trouble(&self, now: Instant) -> Option<Trouble> {
        if self.underlay_lost.is_some() {
            return Some(Trouble::NoRoute);
        }
        match self.state(now) {
            State::Up { .. } => None,
            _ if self.undecryptable_response => Some(Trouble::PresharedKey),
            _ if self.unconfirmed > 1 => Some(Trouble::NeverConfirmed),
            State::Down { since } => {
                Some(Trouble::NoAnswer(now.saturating_duration_since(since) + REKEY_TIMEOUT))
            }
            State::Idle | State::Connecting { .. } => None,
        }
    }

    /// The packet with its padding (WireGuard paper §5.4.6).
    fn pad<'p>(&self, packet: &'p mut [u8], length: usize) -> Result<&'p [u8], SealError> {
        if length == 0 || length > MAX_DATAGRAM - DATAGRAM_OVERHEAD {
            return Err(SealError::Length(length));
        }
        let need =
            length.next_multiple_of(16).min(length.max(self.mtu)).min(MAX_DATAGRAM - DATAGRAM_OVERHEAD);
        let have = packet.len();
        let padded = packet.get_mut(..need).ok_or(SealError::Padding { need, have })?;
        if let Some(padding) = padded.get_mut(length..) {
            padding.fill(0);
        }
        Ok(padded)
    }

    fn can_send(&self, now: Instant) -> bool {
        self.underlay_lost.is_none()
            && self.sessions.sending(now).is_some()
            && (self.attempt.is_none() || matches!(self.state(now), State::Up { .. }))
    }

    /// Seals `packet` (empty: a keepalive) in the current session. `None` if boringtun has dropped that session.
    fn transmit(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Option<usize> {
        let session = *self.sessions.sending(now)?;
        let sealed = match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(datagram)
                if matches!(Message::parse(datagram), Some(Message::Data { .. })) =>
            {
                datagram.len()
            }
            _ => {
                self.sessions.drop_current();
                return None;
            }
        };
        self.sent(sealed, !packet.is_empty(), now);
        let age = now.saturating_duration_since(session.established);
        if session.initiator && age >= REKEY_AFTER_TIME && self.attempt.is_none() {
            self.rekey_at.get_or_insert(now);
        }
        Some(sealed)
    }

    /// Queues a packet that cannot be sent now, or says that it is refused.
    fn wait<'a>(&mut self, padded: &[u8], length: usize, out: &'a mut [u8], now: Instant) -> Sealed<'a> {
        if let State::Down { .. } = self.state(now) {
            if let Some(attempt) = &mut self.attempt {
                attempt.retry_at.get_or_insert(now);
            }
            return Sealed::Down;
        }
        if !self.queue.push(padded, length, now) {
            return Sealed::Full;
        }
        if self.attempt.is_some() || self.sessions.awaited(now).is_some() {
            return Sealed::Queued { handshake: None };
        }
        let handshake = self.initiate(out, now);
        Sealed::Queued { handshake: handshake.map(|length| head(out, length)) }
    }

    fn open_data<'a>(
        &mut self,
        datagram: &[u8],
        receiver: u32,
        counter: u64,
        out: &'a mut [u8],
        now: Instant,
    ) -> Result<Opened<'a>, OpenError> {
        let session = *self.sessions.get(receiver).ok_or(OpenError::NoSession)?;
        // Boringtun's window overflows on counters beyond this limit.
        if !session.valid(now) || counter >= REJECT_AFTER_MESSAGES {
            return Err(OpenError::Expired);
        }
        let opened = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Ok(Opened::Packet(packet))
            }
            TunnResult::Done => Ok(Opened::Keepalive),
            TunnResult::Err(WireGuardError::InvalidPacket) => Err(OpenError::NotIp),
            TunnResult::Err(error) => return Err(error.into()),
            TunnResult::WriteToNetwork(_) => return Err(OpenError::NotWireGuard),
        };
        let data = !matches!(opened, Ok(Opened::Keepalive));
        self.received(session, datagram.len(), data, now);
        opened
    }

    fn open_handshake<'a>(
        &mut self,
        datagram: &[u8],
        message: Message,
        source: Option<IpAddr>,
        out: &'a mut [u8],
        now: Instant,
    ) -> Result<Opened<'a>, OpenError> {
        self.refresh(now);
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

    /// As responder: the session is made, and is used once the initiator has used it.
    fn answered_initiation(&mut self, received: usize, reply: &[u8], now: Instant) {
        let Some(local) = sender_index(reply) else { return };
        self.sessions.insert(Session { local, established: now, initiator: false, confirmed: false });
        self.unconfirmed = self.unconfirmed.saturating_add(1);
        self.erase_at = Some(now + ERASE_AFTER_TIME);
        self.stats.received_bytes += received as u64;
        self.timers.received(false, now);
        self.sent(reply.len(), false, now);
    }

    /// As initiator: the session is up.
    fn answered_by(&mut self, local: u32, received: usize, sent: usize, now: Instant) {
        let was_up = matches!(self.state(now), State::Up { .. });
        let session = Session { local, established: now, initiator: true, confirmed: true };
        self.sessions.insert(session);
        // The answer to an earlier initiation leaves the latest one open in boringtun, which would drop all sessions
        // after 90 s: it goes on being retried.
        if self.attempt.is_some_and(|attempt| attempt.index == local) {
            self.attempt = None;
        }
        self.stats.received_bytes += received as u64;
        self.timers.received(false, now);
        self.sent(sent, false, now);
        self.session_up(session, was_up, now);
    }

    fn received(&mut self, session: Session, bytes: usize, data: bool, now: Instant) {
        let steady = session.confirmed && self.attempt.is_none();
        let was_up = steady || matches!(self.state(now), State::Up { .. });
        self.stats.received_bytes += bytes as u64;
        self.stats.received_packets += u64::from(data);
        self.timers.received(data, now);
        if let Some(session) = self.sessions.used(session.local) {
            if self.attempt.is_some_and(|attempt| attempt.sent <= session.established) {
                self.attempt = None;
            }
            self.session_up(session, was_up, now);
        } else if !was_up {
            self.up_since = now;
        }
        let Some(current) = self.sessions.sending(now) else { return };
        let age = now.saturating_duration_since(current.established);
        if current.initiator && age >= REKEY_ON_RECEIVE_TIME && self.attempt.is_none() {
            self.rekey_at.get_or_insert(now);
        }
    }

    fn session_up(&mut self, session: Session, was_up: bool, now: Instant) {
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

    fn sent(&mut self, bytes: usize, data: bool, now: Instant) {
        self.stats.sent_bytes += bytes as u64;
        self.stats.sent_packets += u64::from(data);
        self.timers.sent(data, now);
    }

    fn handshake_due(&mut self, now: Instant) -> bool {
        if due(self.timers.unanswered, now) {
            self.timers.unanswered = None;
            match self.attempt {
                Some(attempt) if attempt.retry_at.is_some() => {
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
        let wanted = self.wanted(now);
        let Some(attempt) = &mut self.attempt else { return due(self.rekey_at, now) };
        self.rekey_at = None;
        if !due(attempt.retry_at, now) {
            return false;
        }
        if !wanted {
            attempt.retry_at = None;
        }
        wanted
    }

    /// Begins or repeats a handshake.
    fn initiate(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
        self.refresh(now);
        self.rekey_at = None;
        let TunnResult::WriteToNetwork(initiation) = self.tunn.format_handshake_initiation(out, true) else {
            return None;
        };
        let (sent, index) = (initiation.len(), sender_index(initiation)?);
        let started = match &self.attempt {
            Some(attempt) => {
                self.stats.handshakes_failed += 1;
                attempt.started
            }
            None => {
                self.last_wanted = Some(now);
                now
            }
        };
        let retry_at = Some(now + REKEY_TIMEOUT + self.jitter.next());
        self.attempt = Some(Attempt { started, sent: now, index, retry_at });
        self.erase_at = Some(now + ERASE_AFTER_TIME);
        self.sent(sent, false, now);
        Some(sent)
    }

    /// Sends a keepalive; where there is no session and persistent keepalives are wanted, a handshake.
    fn keepalive(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
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

    fn expire(&mut self, now: Instant) {
        match self.state(now) {
            State::Down { .. } => self.queue.refuse_all(),
            _ => self.queue.refuse_overdue(now),
        }
        if due(self.erase_at, now) {
            self.erase_at = None;
            self.refresh(now);
            self.sessions.clear();
        }
    }

    /// Brings boringtun's clock up to date and lets it erase what is old. It also decides to send things then, from a clock
    /// that stood still: the buffer is too short for a handshake, and a keepalive is discarded.
    fn refresh(&mut self, now: Instant) {
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

    fn heard_since(&self, attempt: &Attempt) -> bool {
        self.timers.last_received.is_some_and(|received| received >= attempt.started)
    }

    /// Handshakes are repeated for 90 s after the last wish to send (WireGuard paper §6.4).
    fn wanted(&self, now: Instant) -> bool {
        self.last_wanted.is_some_and(|wanted| now.saturating_duration_since(wanted) < REKEY_ATTEMPT_TIME)
    }
}

fn head(out: &[u8], length: usize) -> &[u8] {
    out.get(..length).unwrap_or_default()
}

mod handshake;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use handshake::Attempt;

use crate::message::{DATA_OVERHEAD, INITIATION_LEN, MAX_DATAGRAM, Message};
use crate::outcome::{OpenError, Opened, SealError, Sealed, State, Stats};
use crate::queue::Queue;
use crate::session::{Session, Sessions};
use crate::timers::{
    Jitter, REJECT_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_ON_RECEIVE_TIME, REKEY_TIMEOUT, Timers, due,
    earliest,
};
use crate::{PresharedKey, PrivateKey, PublicKey, Trouble};

/// What a sealed packet is longer than the (padded) packet inside: 16 bytes of header, 16 of authentication tag.
pub const DATAGRAM_OVERHEAD: usize = DATA_OVERHEAD;
/// The least an `out` buffer may hold: a handshake initiation.
pub const MIN_OUT: usize = INITIATION_LEN;
/// Handshake messages with our key's MAC that are looked at, at about 0.1 ms each. Low enough to bound the work, high
/// enough that a flood does not keep out the gateway's answers.
const HANDSHAKES_PER_SECOND: u64 = 500;
/// For [`Peer::ask`], or the last round trip if that is more.
const LEAST_BETWEEN_QUESTIONS: Duration = Duration::from_millis(500);
/// How long an answer may take though the last ones were faster, as where an uplink is filled.
const LATE_ANSWER: Duration = Duration::from_secs(3);

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
    limiter: Arc<RateLimiter>,
    mtu: u16,
    sessions: Sessions,
    attempt: Option<Attempt>,
    timers: Timers,
    jitter: Jitter,
    queue: Queue,
    /// A session wants to be renewed.
    rekey_at: Option<Instant>,
    ask_at: Option<Instant>,
    erase_at: Option<Instant>,
    last_wanted: Option<Instant>,
    underlay_lost: Option<Instant>,
    /// How long packets wait for a lost underlay.
    patience: Duration,
    /// The latest word of an underlay.
    underlay_told: Option<Instant>,
    up_since: Instant,
    undecryptable_response: bool,
    unconfirmed: u32,
    stats: Stats,
}

impl Peer {
    pub fn new(config: PeerConfig, now: Instant) -> Self {
        let public = x25519::PublicKey::from(config.private_key.public_key().0);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Self::with_limiter(config, limiter, now)
    }

    pub(crate) fn with_limiter(config: PeerConfig, limiter: Arc<RateLimiter>, now: Instant) -> Self {
        let index = config.index & 0x00ff_ffff;
        let tunn = Tunn::new(
            config.private_key.secret(),
            x25519::PublicKey::from(config.peer_public_key.0),
            config.preshared_key.as_ref().map(PresharedKey::bytes),
            None,
            index,
            Some(limiter.clone()),
        );
        Self {
            tunn,
            limiter,
            mtu: config.mtu,
            sessions: Sessions::default(),
            attempt: None,
            timers: Timers::new(config.keepalive, now),
            jitter: Jitter::new(index),
            queue: Queue::default(),
            rekey_at: None,
            ask_at: None,
            erase_at: None,
            last_wanted: None,
            underlay_lost: None,
            patience: Duration::ZERO,
            underlay_told: None,
            up_since: now,
            undecryptable_response: false,
            unconfirmed: 0,
            stats: Stats::default(),
        }
    }

    /// As set last.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Padding never makes a packet larger than this from now on; packets that are, are not padded.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
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
        if self.attempt.is_some() {
            self.answer_is_wanted(now);
        }
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

    /// The packet that [`Peer::flush`] with the same `now` would seal, with its padding.
    pub fn waiting(&mut self, now: Instant) -> Option<&[u8]> {
        self.queue.refuse_overdue(now);
        self.queue.next()
    }

    /// The next packet that waited for the session that is up now, sealed; call until `None`. `out` as for [`Peer::seal`]:
    /// a packet that does not fit goes on waiting.
    pub fn flush<'a>(&mut self, out: &'a mut [u8], now: Instant) -> Option<&'a [u8]> {
        let need = (self.waiting(now)?.len() + DATAGRAM_OVERHEAD).max(MIN_OUT);
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
        if let Some(lost) = self.underlay_lost {
            let refuses = (!self.queue.is_empty()).then_some(lost + self.patience);
            return earliest([self.erase_at, refuses, self.queue.deadline()]);
        }
        let attempt = self.attempt.as_ref();
        earliest([
            attempt.and_then(|attempt| attempt.retry_at),
            attempt
                .filter(|attempt| !self.queue.is_empty() && !self.heard_since(attempt))
                .map(Attempt::down_at),
            self.queue.deadline(),
            self.rekey_at,
            self.ask_at,
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
        // Before a question, which would count as one.
        if due(self.timers.keepalive(), now)
            && let Some(sent) = self.keepalive(out, now)
        {
            return Some(sent);
        }
        if due(self.ask_at, now) {
            return self.put_question(out, now);
        }
        None
    }

    /// Has the peer show whether it is there: a handshake begins, or is repeated if that was not done a moment ago: 500 ms or the last round trip,
    /// and 3 s if it was done twice. It keeps up no session, is repeated of itself only while one lives, and as long as nobody wants to send, no answer
    /// does not make the peer down.
    pub fn ask(&mut self, now: Instant) {
        let is_asked = self.attempt.is_some_and(|attempt| {
            Some(attempt.sent) > self.underlay_told && now < self.next_question(&attempt)
        });
        if self.underlay_lost.is_none() && !is_asked {
            self.ask_at = Some(now);
        }
    }

    /// Since when data waits for anything authentic to come back; `None`: since then something did, or nothing was to be sent.
    pub fn waits_since(&self) -> Option<Instant> {
        self.timers.waits_since
    }

    /// Whether somebody wanted to send something within the time for which handshakes are repeated (90 s).
    pub fn is_wanted(&self, now: Instant) -> bool {
        self.wanted(now)
    }

    /// The next packet that waits for a session, to be sent another way; call until `None`.
    pub fn take_waiting(&mut self) -> Option<Vec<u8>> {
        self.queue.take()
    }

    /// Where there is another way than through this peer: packets wait so long for an underlay that is gone before they are refused, to be
    /// [taken away](Peer::take_waiting) meanwhile. Of itself a peer refuses them at once.
    pub fn wait_for_underlay(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Tells whether a route to the gateway exists. Without one the peer is down at once. With a new one it tries again
    /// at once, and where a session lives, a keepalive tells the gateway the new address: tell also when the route
    /// only changed, or the gateway's address.
    pub fn set_underlay(&mut self, present: bool, now: Instant) {
        if !present {
            self.underlay_lost.get_or_insert(now);
            self.expire(now);
            return;
        }
        self.underlay_lost = None;
        self.underlay_told = Some(now);
        let sending = self.sessions.sending(now).is_some();
        if sending {
            self.timers.passive = Some(now);
        }
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| !attempt.is_question) {
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
        let Some(attempt) = self.attempt.as_ref().filter(|attempt| !attempt.is_question) else {
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
        let need = length
            .next_multiple_of(16)
            .min(length.max(self.mtu.into()))
            .min(MAX_DATAGRAM - DATAGRAM_OVERHEAD);
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
        self.timers.waits(now);
        if self.refuses(now) {
            if let Some(attempt) = &mut self.attempt {
                attempt.retry_at.get_or_insert(now);
            }
            return Sealed::Down;
        }
        if !self.queue.push(padded, length, now) {
            return Sealed::Full;
        }
        if self.attempt.is_some() || self.sessions.awaited(now).is_some() || self.underlay_lost.is_some() {
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
        if current.initiator && age >= REKEY_ON_RECEIVE_TIME && self.attempt.is_none_or(|it| it.is_question) {
            self.rekey_at.get_or_insert(now);
        }
    }

    fn refuses(&self, now: Instant) -> bool {
        match self.underlay_lost {
            Some(lost) => now >= lost + self.patience,
            None => matches!(self.state(now), State::Down { .. }),
        }
    }

    fn sent(&mut self, bytes: usize, data: bool, now: Instant) {
        self.stats.sent_bytes += bytes as u64;
        self.stats.sent_packets += u64::from(data);
        self.timers.sent(data, now);
    }

    fn expire(&mut self, now: Instant) {
        match self.refuses(now) {
            true => self.queue.refuse_all(),
            false => self.queue.refuse_overdue(now),
        }
        if due(self.erase_at, now) {
            self.erase_at = None;
            self.refresh(now);
            self.sessions.clear();
        }
    }
}

fn head(out: &[u8], length: usize) -> &[u8] {
    out.get(..length).unwrap_or_default()
}

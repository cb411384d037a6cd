use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;

use crate::message::Message;

/// What became of a packet given to [`Peer::seal`](crate::Peer::seal).
#[derive(Debug, PartialEq, Eq)]
pub enum Sealed<'a> {
    /// Send this to the peer.
    Datagram(&'a [u8]),
    /// The packet waits for a session. If a handshake message has to go out now, it is `handshake`.
    Queued { handshake: Option<&'a [u8]> },
    /// The peer is down: refuse the packet.
    Down,
    /// The queue is full: drop the packet.
    Full,
}

/// The caller's buffers do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("a packet has 1 to 65503 bytes, this one {0}")]
    Length(usize),
    #[error("the packet needs {need} bytes with its padding, its buffer has {have}")]
    Padding { need: usize, have: usize },
    #[error("the datagram needs a buffer of {need} bytes, this one has {have}")]
    Out { need: usize, have: usize },
}

/// What a datagram from the peer was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// An authenticated packet, without its padding.
    Packet(&'a mut [u8]),
    /// An authenticated keepalive.
    Keepalive,
    /// A message to send back to where the datagram came from. Where a session came up with it,
    /// [`Peer::flush`](crate::Peer::flush) gives what waited.
    Reply(&'a [u8]),
    /// Taken in, nothing to send.
    Nothing,
}

impl Opened<'_> {
    /// Whether it proves that the peer is where the datagram came from: a cookie, asked for or received, does not, since anyone who sees
    /// our messages and knows the peer's public key can make one.
    pub fn is_authentic(&self) -> bool {
        match self {
            Self::Packet(_) | Self::Keepalive => true,
            Self::Reply(reply) => !matches!(Message::parse(reply), Some(Message::CookieReply { .. })),
            Self::Nothing => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("not a WireGuard message")]
    NotWireGuard,
    #[error("no session and no handshake has this index")]
    NoSession,
    #[error("seen before, or too old")]
    Replayed,
    #[error("not authentic: a wrong key, pre-shared key, or a forgery")]
    NotAuthentic,
    #[error("the session is older than WireGuard allows")]
    Expired,
    #[error("handshakes are limited under load")]
    RateLimited,
    #[error("authentic, but what is inside is not a whole IP packet")]
    NotIp,
    #[error("the handshake is of a key that is not among the peers")]
    UnknownPeer,
    #[error("authentic, but the packet's source address is not among the peer's allowed_ips")]
    SourceNotAllowed,
    #[error("the buffer is shorter than the datagram, or than 148 bytes")]
    Buffer,
}

impl From<WireGuardError> for OpenError {
    fn from(error: WireGuardError) -> Self {
        match error {
            WireGuardError::InvalidMac | WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => {
                Self::NotAuthentic
            }
            WireGuardError::InvalidCounter
            | WireGuardError::DuplicateCounter
            | WireGuardError::WrongTai64nTimestamp => Self::Replayed,
            WireGuardError::WrongIndex
            | WireGuardError::UnexpectedPacket
            | WireGuardError::NoCurrentSession => Self::NoSession,
            WireGuardError::ConnectionExpired => Self::Expired,
            WireGuardError::UnderLoad => Self::RateLimited,
            WireGuardError::DestinationBufferTooSmall => Self::Buffer,
            WireGuardError::InvalidPacket
            | WireGuardError::IncorrectPacketLength
            | WireGuardError::WrongPacketType
            | WireGuardError::InvalidTai64nTimestamp
            | WireGuardError::LockFailed => Self::NotWireGuard,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No session and none asked for.
    Idle,
    /// A handshake is on its way since `since`; packets wait.
    Connecting { since: Instant },
    /// Packets flow, without a break since `since`.
    Up { since: Instant },
    /// A handshake has been unanswered for 5 s, or there is no underlay route. Packets are refused.
    Down { since: Instant },
}

/// Totals since the peer was made. Bytes are those of whole datagrams, handshakes and keepalives included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Packets carried, without keepalives.
    pub sent_packets: u64,
    pub received_packets: u64,
    /// Handshakes completed, by either side.
    pub handshakes: u64,
    /// Our handshake messages that were never answered.
    pub handshakes_failed: u64,
    pub last_handshake: Option<Instant>,
    /// Of the last handshake that we began: from the initiation to its answer.
    pub round_trip: Option<Duration>,
    /// When that was measured.
    pub round_trip_at: Option<Instant>,
    /// When something authentic last came from the peer.
    pub last_received: Option<Instant>,
    /// Datagrams refused, by reason.
    pub not_authentic: u64,
    pub replayed: u64,
    pub expired: u64,
    pub no_session: u64,
    pub malformed: u64,
    pub rate_limited: u64,
}

impl Stats {
    pub(crate) fn count(&mut self, error: OpenError) {
        let counter = match error {
            OpenError::NotAuthentic => &mut self.not_authentic,
            OpenError::Replayed => &mut self.replayed,
            OpenError::Expired => &mut self.expired,
            OpenError::NoSession => &mut self.no_session,
            OpenError::RateLimited => &mut self.rate_limited,
            OpenError::NotWireGuard | OpenError::NotIp => &mut self.malformed,
            // The caller's, or counted by the responder.
            OpenError::Buffer | OpenError::UnknownPeer | OpenError::SourceNotAllowed => return,
        };
        *counter += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_proves_nothing_of_its_sender() {
        let (mut response, mut cookie) = ([0; 92], [0; 64]);
        (response[0], cookie[0]) = (2, 3);
        assert!(Opened::Reply(&response).is_authentic() && Opened::Keepalive.is_authentic());
        assert!(!Opened::Reply(&cookie).is_authentic() && !Opened::Nothing.is_authentic());
    }
}

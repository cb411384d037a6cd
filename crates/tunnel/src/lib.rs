//! A WireGuard peer without I/O: boringtun inside, its defects mended.
//!
//! Bytes and `now` in, bytes out. Two exceptions to that rule, both boringtun's: it reads the clock and draws random
//! numbers itself, and it copies each packet once.
//!
//! Boringtun does the Noise handshake, the ciphers, the cookies and the replay window (1024 packets). *When* something
//! happens is decided here alone, from our own record of what was sent, received and agreed: its timers are only run to
//! keep its clock fresh, and what they would send is discarded.
#![forbid(unsafe_code)]

mod allowed;
mod deadlines;
mod keys;
mod message;
mod outcome;
mod peer;
mod queue;
mod responder;
mod session;
mod timers;
mod trouble;

pub use deadlines::Deadlines;
pub use keys::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use outcome::{OpenError, Opened, SealError, Sealed, State, Stats};
pub use peer::{DATAGRAM_OVERHEAD, MIN_OUT, Peer, PeerConfig};
pub use queue::MAX_QUEUED;
pub use responder::{Responder, ResponderError, ResponderPeer, Route};
pub use trouble::Trouble;

//! Bulk: TCP and UDP transfers between plain sockets and a far end that counts what arrives.

mod far;
mod pace;
mod protocol;
mod transfer;
mod udp;
mod watch;

pub use far::{Limits, listen, serve};
pub use protocol::Count;
pub use transfer::{Direction, Moved, Protocol, Transfer};
pub use watch::Watch;

//! Calls: RTP at telephony's pace, echoed by the far end, each packet's delay counted from when it was due.

mod caller;
mod echo;
mod packet;
mod quality;
mod receive;
mod result;
#[cfg(test)]
mod tests;

pub use caller::{Calls, Heard, OpenCalls, Sample};
pub use echo::{Stamps, echo, open, serve, serve_marked};
pub use packet::PAYLOAD;
pub(crate) use packet::Packet;
pub use quality::{Jitter, e_model_mos, genesys_mos};
pub use result::{Delays, Quality, clock_offset};

use std::time::Duration;

/// Packetization time of practically all telephony.
pub const INTERVAL: Duration = Duration::from_millis(20);
/// The type-of-service byte of Expedited Forwarding (RFC 3246).
pub const EF_TOS: u8 = 0xb8;

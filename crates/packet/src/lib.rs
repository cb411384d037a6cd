//! What a packet says: borrowed views of IP, UDP, TCP and ICMP, in-place edits that keep every checksum right,
//! and the two packets that refuse another one (ICMP errors and TCP resets).
//!
//! No I/O, no clock, no allocation per packet.
#![forbid(unsafe_code)]

pub mod build;
pub mod checksum;
mod dscp;
mod echo;
mod edit;
mod encapsulation;
mod headers;
mod mss;
mod parse;

pub use dscp::{Dscp, ParseDscpError, Tos};
pub use echo::{Echo, may_be_icmp};
pub use edit::{Checksum, PacketMut};
pub use encapsulation::{Ecn, OuterDscp, ParseOuterDscpError, decapsulate};
pub use headers::{FiveTuple, Fragment, Headers, Icmp, TcpFlags, Transport, protocol};
pub use mss::clamp_mss;
pub use parse::{Packet, ParseError};

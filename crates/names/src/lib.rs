//! The resolver for the policy's names: split DNS on the tunnel's side.
//!
//! A question for one of the policy's names goes to the DNS servers behind the tunnel, and the addresses in the answer
//! are handed to the daemon, to be routed into the TUN, *before* the application gets them. Any other question goes where
//! it went before, byte for byte.
//!
//! An answer carries its records at the name that was asked for, without the CNAMEs that led there: a stub resolver that
//! followed such a chain itself would ask for a name outside of the policy, in the clear.
//!
//! [`question`], [`answer`], [`reply`], [`exchange`] and [`cache`] do no I/O: bytes and `now` in, bytes and judgements out.
#![forbid(unsafe_code)]

pub mod answer;
pub mod cache;
pub mod exchange;
pub mod question;
pub mod reply;

mod address;
mod counters;
mod doh;
mod failure;
mod finder;
mod name;
mod policy;
mod race;
mod relay;
mod resolver;
mod search;
mod server;
mod servers;
mod service;
mod sockets;
mod upstream;
mod wire;

pub use address::is_public;
pub use counters::Counts;
pub use failure::{BindError, Failure};
pub use policy::{Policy, Transport};
pub use question::CANARIES;
pub use resolver::{Handle, Learn, Resolver, Settings};
pub use search::SearchList;

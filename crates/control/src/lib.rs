//! The local control socket: messages, server, client.
//!
//! A Unix stream socket that carries one JSON object per line. A request is
//! `{"version":2,"command":"status"}`; its answer `{"version":2,"reply":{"status":{…}}}`.
//! One connection may carry several requests, one after the other.
#![forbid(unsafe_code)]

mod client;
mod line;
mod messages;
mod server;

pub use client::{Client, ClientError};
pub use messages::{
    Command, DohServer, Drops, Failover, Feature, Flow, Flows, Gateway, Interface, LearnedAddress, Names,
    PathCount, Refusal, RefusalKind, Reloaded, Reply, Resolver, Rtp, Status, Tunnel, Underlay, Voice,
};
pub use server::{Access, BindError, Call, Server};

/// Raised whenever a message changes its meaning; client and daemon must have the same.
pub const VERSION: u32 = 2;
/// The longest request in bytes, its newline included.
pub const MAX_REQUEST: usize = 4 * 1024;
/// The longest answer in bytes, its newline included.
pub const MAX_REPLY: usize = 12 * 1024 * 1024;
/// The most flows in one answer: at under 1000 bytes each they fit into [`MAX_REPLY`].
pub const MAX_FLOWS: usize = 10_000;

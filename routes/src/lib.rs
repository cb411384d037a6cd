//! Getting packets to the TUN: addresses, routes, rules, sysctls, firewall, DNS; and putting all of it back.
//! Also the small netlink and nftables pieces that the lab builds its internet with.
//!
//! [`State::open`] says that nobody else is at work, [`Routes::apply`] sends the captured prefixes into the TUN, [`Routes::learn`]
//! the addresses that names lead to, [`Routes::teardown`] leaves the machine as it was. A daemon that dies leaves signaling refused;
//! the next [`Routes::apply`] takes that over, [`clean`] removes it.
#![forbid(unsafe_code)]

mod apply;
mod change;
mod clean;
pub mod connections;
pub mod crash_point;
pub mod dns;
mod error;
mod ip_protocol;
mod journal;
mod kill_switch;
mod learned;
mod namespace;
pub mod netlink;
pub mod nft;
mod place;
mod plan;
mod process;
mod state;
mod sysctl;
mod underlay;

pub use apply::{Routes, Settings, Wanted};
pub use clean::{Cleaned, clean, open_up};
pub use error::Error;
pub use journal::Undo;
pub use kill_switch::{KILL_SWITCH, KillSwitchReport};
pub use plan::{
    METRIC_PROHIBIT, METRIC_THROW, METRIC_TUN, PRIORITY_CAPTURED, PRIORITY_LEARNED_ALL,
    PRIORITY_LEARNED_PORTS, PRIORITY_LEARNED_PROTOCOL, PRIORITY_SOURCE, PROTOCOL, TABLE_CAPTURED,
    TABLE_LEARNED, TABLE_SOURCE,
};
pub use process::Process;
pub use state::{Holder, Leftovers, State, running};
pub use underlay::{Conflict, Leg, PhysicalAddress, Underlay, conflicts, underlay};

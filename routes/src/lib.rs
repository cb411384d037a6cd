//! Getting packets to the TUN: addresses, routes, rules, sysctls, firewall; and putting all of it back.
//! Also the small netlink and nftables pieces that the lab builds its internet with.
//!
//! [`State::open`] says that nobody else is at work, [`Routes::apply`] sends the captured prefixes into the TUN,
//! [`Routes::teardown`] leaves the machine as it was. A daemon that dies leaves signaling refused;
//! the next [`Routes::apply`] takes that over, [`clean`] removes it.
#![forbid(unsafe_code)]

mod apply;
mod change;
mod error;
pub mod netlink;
pub mod nft;
mod plan;
mod state;
mod sysctl;
mod underlay;

pub use apply::{Cleaned, Routes, Settings, clean};
pub use error::Error;
pub use plan::{
    METRIC_PROHIBIT, METRIC_THROW, METRIC_TUN, PRIORITY_CAPTURED, PRIORITY_SOURCE, PROTOCOL, TABLE_CAPTURED,
    TABLE_SOURCE,
};
pub use state::State;
pub use underlay::{Conflict, Leg, PhysicalAddress, Underlay, conflicts, underlay};

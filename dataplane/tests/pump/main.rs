//! The pump on a real TUN, between namespaces: what applications, far ends and gateways see of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails here should stop"
)]

mod applications;
mod gateways;
mod machine;
mod marked;
mod outer_header;
mod tiers;

//! This machine's routes, rules, nftables and DNS: in namespaces of their own, so that its own stay untouched.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

mod common;
mod dns;
mod dns_managers;
mod kill_switch;
mod learned;
mod learned_crash;
mod nft;
mod routes;

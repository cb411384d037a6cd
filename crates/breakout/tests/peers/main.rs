//! Breakout among programs by other authors, in a small internet of network namespaces.
//!
//! What needs root or a program that is not there says so and is skipped; BREAKOUT_REQUIRE_ALL makes that a failure.
//! BREAKOUT_LONG lets calls last a minute and waits for WireGuard's own two-minute rekey.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy's exception for tests does not reach their helpers"
)]

mod by_name;
mod bypass;
mod closed;
mod common;
mod crash;
mod download;
mod gateways;
mod journal;
mod leaks;
mod learning;
mod machine;
mod mtu;
mod names;
mod portal;
mod resolvers;
mod roaming;
mod sip;
mod suspension;
mod tiers;
mod webrtc;
mod wireguard;

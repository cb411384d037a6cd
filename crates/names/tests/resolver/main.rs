//! The resolver as applications and DNS servers meet it, on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod answers;
mod common;
mod dnsmasq;
mod queries;
mod relay;
mod upstreams;

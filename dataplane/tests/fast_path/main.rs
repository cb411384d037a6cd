//! The kernel fast path by itself: its programs against crate `packet`, and at work between network namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails here should stop"
)]

mod differential;
#[path = "../pump/machine.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod machine;
#[path = "../pump/marked.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod marked;
mod network;
mod object;
#[path = "../../../crates/packet/tests/packet/support.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod packets;
mod partial;
mod programs;
mod tun;
mod wire;

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has done its job"
)]

mod encapsulation;
mod path;
mod properties;
mod support;
mod tables;

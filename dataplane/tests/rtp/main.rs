//! What is told of RTP streams: case by case, and against RFC 3550's own algorithms in floating point.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails here should stop"
)]

mod kernel;
mod reference;
mod stream;
mod table;

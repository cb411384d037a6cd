//! Any sequence of packets, times, network changes and reloads: no panic, and the promises of pinning and NAT hold.
#![no_main]

#[path = "../../dataplane/tests/scenario/mod.rs"]
#[allow(dead_code)]
mod scenario;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| scenario::run(bytes));

//! Any bytes as a DNS query and as an upstream's answer to it: no panic, the question that was asked, and no address that must not come out.
#![no_main]

#[path = "../../crates/names/tests/scenario/mod.rs"]
mod scenario;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    scenario::run(bytes);
});

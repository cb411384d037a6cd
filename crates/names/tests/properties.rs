//! Whatever clients and upstreams send: nothing panics, and no address comes out that must not. With BREAKOUT_LONG a
//! million inputs, else some thousands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod scenario;

use std::collections::HashMap;

use proptest::prelude::*;
use scenario::Reached;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        scenario::run(&bytes);
    }
}

#[test]
fn many_inputs_reach_every_end() {
    let inputs: u64 = if std::env::var_os("BREAKOUT_LONG").is_some() { 1_000_000 } else { 20_000 };
    let mut reached: HashMap<Reached, u64> = HashMap::new();
    for seed in 0..inputs {
        let named = Named(seed);
        *reached.entry(scenario::run(&random_bytes(seed))).or_default() += 1;
        drop(named);
    }
    println!("{inputs} inputs: {reached:?}");
    let ends = [
        Reached::NoAnswer,
        Reached::Failed,
        Reached::Elsewhere,
        Reached::Empty,
        Reached::Addresses,
        Reached::Leads,
        Reached::Records,
    ];
    for end in ends {
        assert!(reached.get(&end).is_some_and(|count| *count > inputs / 1000), "{end:?}: {reached:?}");
    }
}

/// Says which input it was that a test failed for.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("with seed {}", self.0);
        }
    }
}

/// SplitMix64, as many bytes as the first number says.
fn random_bytes(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    let words = next() % 48;
    (0..words).flat_map(|_| next().to_le_bytes()).collect()
}

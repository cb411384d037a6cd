//! Where a test may let the process die: before each change of the machine, and within each write of what a crash must not lose.
//! A release build has none of it.

/// Ends the process with SIGKILL at the step whose number, counted from 1, `BREAKOUT_CRASH_AT` gives.
#[cfg(debug_assertions)]
pub fn reached() {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    static AT: OnceLock<Option<u64>> = OnceLock::new();
    static STEP: AtomicU64 = AtomicU64::new(0);

    let step = STEP.fetch_add(1, Ordering::Relaxed) + 1;
    let at = AT.get_or_init(|| std::env::var("BREAKOUT_CRASH_AT").ok()?.parse().ok());
    if *at == Some(step) {
        // It does not come back.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub fn reached() {}

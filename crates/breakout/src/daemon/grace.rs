//! How long what no configuration and no answer says any more stays in the tunnel.

use std::time::Duration;

/// Applications keep what they resolved for longer than they may; an address that no longer counts is reached directly.
const GRACE: Duration = Duration::from_secs(3600);
/// The pump remembers a flow for four minutes at least: each use is seen once.
const LOOK: Duration = Duration::from_secs(180);

/// How long an address counts beyond its TTL, and after it was last used. A test may give it, in seconds; a release build does not ask.
#[cfg(debug_assertions)]
pub fn grace() -> Duration {
    use std::sync::LazyLock;

    static GIVEN: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("BREAKOUT_GRACE_SECONDS").ok()?.parse().ok());
    GIVEN.map_or(GRACE, Duration::from_secs)
}

#[cfg(not(debug_assertions))]
pub fn grace() -> Duration {
    GRACE
}

/// Between two looks at what is used.
pub fn look() -> Duration {
    LOOK.min(grace() / 4)
}

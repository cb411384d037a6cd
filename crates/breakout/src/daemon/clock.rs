use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the machine's start, without that when it was suspended.
pub fn awake() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Time since the machine's start, suspension included.
pub fn since_boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Into::into)
}

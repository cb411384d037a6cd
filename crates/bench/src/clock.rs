//! One clock for all times, CLOCK_MONOTONIC: nobody sets it, and both ends of a wire on one machine have it in common.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// Nanoseconds since the machine started.
pub fn now_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Of the wall clock, nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// When the kernel took a stamp, which it does by the wall clock. A clock that is set in between falsifies this one, and none that was
/// taken before or is taken later.
pub fn of_stamp(stamp: TimeSpec) -> u64 {
    now_ns().saturating_sub(wall_ns().saturating_sub(nanoseconds(stamp)))
}

/// By the wall clock, a time that is not long ago.
pub fn to_wall(at: u64) -> u64 {
    wall_ns().saturating_sub(now_ns().saturating_sub(at))
}

/// Sleeps until `at` nanoseconds since the machine started; returns at once if that is past.
pub fn sleep_until(at: u64) {
    let until = TimeSpec::from_duration(Duration::from_nanos(at));
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &until)
        == Err(Errno::EINTR)
    {}
}

fn read(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, nanoseconds)
}

fn nanoseconds(time: TimeSpec) -> u64 {
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_the_clock_that_nobody_sets() {
        // In hundredths of a second; it also counts what the machine slept.
        let now = now_ns() as f64 / 1e9;
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!(now > 0.0 && now <= uptime + 0.02, "{now} {uptime}");
        assert!(wall_ns() > 1_700_000_000_000_000_000 && now_ns() < 1_700_000_000_000_000_000);
    }

    #[test]
    fn a_stamp_of_the_wall_clock_becomes_a_time_and_back() {
        let before = now_ns();
        let stamp = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
        let after = now_ns();
        std::thread::sleep(Duration::from_millis(20));
        let (at, slack) = (of_stamp(stamp), 1_000_000);
        assert!((before.saturating_sub(slack)..=after + slack).contains(&at), "{before} {at} {after}");
        assert!(to_wall(at).abs_diff(nanoseconds(stamp)) < slack);
    }
}

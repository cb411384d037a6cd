use std::time::{Duration, Instant};

/// A clock that goes on while the machine sleeps (CLOCK_BOOTTIME), told as `Instant` so that the core knows one kind of time.
pub(crate) struct Clock {
    origin: Instant,
    boot_at_origin: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now(), boot_at_origin: since_boot() }
    }

    pub(crate) fn now(&self) -> Instant {
        self.origin + since_boot().saturating_sub(self.boot_at_origin)
    }
}

fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill; CLOCK_BOOTTIME exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

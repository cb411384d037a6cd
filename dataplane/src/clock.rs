use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// A deadline that whoever is to meet it cannot move would otherwise keep a thread from ever waiting.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// A clock that goes on while the machine sleeps (CLOCK_BOOTTIME), told as `Instant` so that the core knows one kind of time.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
    boot_at_origin: Duration,
}

/// Rings by a [`Clock`], so that what fell due while the machine slept is done on waking up. Epoll's own timeout stands still meanwhile.
pub(crate) struct Alarm {
    clock: Clock,
    timer: OwnedFd,
    set_for: Option<Instant>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now(), boot_at_origin: since_boot() }
    }

    pub(crate) fn now(&self) -> Instant {
        self.at(since_boot())
    }

    /// A moment, and the time since boot at it.
    pub(crate) fn origin(&self) -> (Instant, Duration) {
        (self.origin, self.boot_at_origin)
    }

    /// The same moment as this time since boot.
    pub(crate) fn at(&self, since_boot: Duration) -> Instant {
        self.origin + since_boot.saturating_sub(self.boot_at_origin)
    }

    /// The time since boot at this moment.
    pub(crate) fn since_boot(&self, moment: Instant) -> Duration {
        self.boot_at_origin + moment.saturating_duration_since(self.origin)
    }
}

impl Alarm {
    pub(crate) fn new(clock: Clock) -> io::Result<Self> {
        // SAFETY: takes no pointers; the descriptor it returns is new and nobody else's.
        let timer = unsafe {
            match libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Self { clock, timer, set_for: None })
    }

    /// Rings at `due` at the latest; maybe earlier, since deadlines mostly move away and a system call for each move would be dear.
    pub(crate) fn ring_at(&mut self, due: Option<Instant>, now: Instant) {
        let Some(due) = due else { return };
        if self.set_for.is_some_and(|set_for| set_for <= due) {
            return;
        }
        let due = due.max(now + LEAST_WAIT);
        self.set_for = Some(due);
        let since_boot = self.clock.since_boot(due);
        let setting = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: since_boot.as_secs() as libc::time_t,
                tv_nsec: since_boot.subsec_nanos().into(),
            },
        };
        // SAFETY: `setting` is a valid itimerspec, which the kernel only reads; the old setting is not asked for.
        unsafe {
            libc::timerfd_settime(
                self.timer.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const setting,
                std::ptr::null_mut(),
            );
        }
    }

    /// To be told when it has rung. Each ring is an edge of its own: nothing need be read.
    pub(crate) fn rang(&mut self) {
        self.set_for = None;
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

/// Time since boot, suspension included (CLOCK_BOOTTIME).
pub(crate) fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill; CLOCK_BOOTTIME exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};

    use super::*;

    const ASLEEP: Duration = Duration::from_secs(200);
    /// As ASLEEP, to /proc/self/timens_offsets (time_namespaces(7)).
    const OFFSETS: &[u8] = b"boottime 200 0\n";
    const UNABLE: i32 = 2;

    #[test]
    fn it_rings_for_the_earliest_deadline_again_and_again() {
        let clock = Clock::start();
        let (mut alarm, mut poll) = (Alarm::new(clock).unwrap(), Poll::new().unwrap());
        poll.registry().register(&mut SourceFd(&alarm.as_raw_fd()), Token(0), Interest::READABLE).unwrap();
        let mut events = Events::with_capacity(1);
        for milliseconds in [20, 0, 5] {
            let now = clock.now();
            let due = now + Duration::from_millis(milliseconds);
            alarm.ring_at(Some(now + Duration::from_secs(3600)), now);
            alarm.ring_at(Some(due), now);
            alarm.ring_at(Some(now + Duration::from_secs(60)), now);
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert_eq!(events.iter().count(), 1);
            assert!(clock.now() >= due.max(now + LEAST_WAIT));
            alarm.rang();
        }
        poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert!(events.is_empty(), "once rung, it is silent");
    }

    /// A time namespace is entered whose time since boot is later, as when waking up; Linux's own clocks but for that one stand still. Only
    /// a process with a single thread may do so: a child of this one.
    #[test]
    fn it_goes_on_while_the_machine_sleeps() {
        // SAFETY: the child makes system calls only, allocates nothing, and ends here.
        let child = unsafe {
            match libc::fork() {
                0 => libc::_exit(sleep().map_or(UNABLE, |counts| i32::from(!counts))),
                child => child,
            }
        };
        assert!(child > 0, "{}", io::Error::last_os_error());
        let mut status = 0;
        // SAFETY: `status` is there for the kernel to fill.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        match libc::WEXITSTATUS(status) {
            UNABLE => println!("skipped, because time namespaces need root and CONFIG_TIME_NS"),
            code => assert!(libc::WIFEXITED(status) && code == 0, "status {status}"),
        }
    }

    /// Whether the clock has counted it; `None`: it cannot be done here.
    fn sleep() -> Option<bool> {
        // SAFETY: constant strings end with a zero, and the rest are descriptors and lengths.
        let namespace = unsafe {
            if libc::unshare(libc::CLONE_NEWTIME) != 0 {
                return None;
            }
            let offsets = libc::open(c"/proc/self/timens_offsets".as_ptr(), libc::O_WRONLY);
            if libc::write(offsets, OFFSETS.as_ptr().cast(), OFFSETS.len()) != OFFSETS.len() as isize {
                return None;
            }
            libc::open(c"/proc/self/ns/time_for_children".as_ptr(), libc::O_RDONLY)
        };
        let clock = Clock::start();
        let (before, monotonic) = (clock.now(), Instant::now());
        // SAFETY: no memory is passed.
        if unsafe { libc::setns(namespace, libc::CLONE_NEWTIME) } != 0 {
            return None;
        }
        let passed = clock.now().saturating_duration_since(before);
        Some(passed >= ASLEEP && monotonic.elapsed() < ASLEEP / 2)
    }
}

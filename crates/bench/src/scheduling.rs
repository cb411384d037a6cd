use std::io;
use std::thread::available_parallelism;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::unistd::Pid;

/// Of voice endpoints: above any thread that carries their packets, so that what is measured is the carrying.
const PRIORITY: i32 = 60;

/// Makes the calling thread SCHED_FIFO; `false` where this user may not. It then at least sleeps no longer than it is told to: the kernel
/// otherwise adds up to 50 µs (PR_SET_TIMERSLACK).
pub fn take_realtime() -> bool {
    let is_realtime = ask_for_realtime();
    if !is_realtime {
        // Refused by no kernel that knows it; where it is, sleeps are as long as anybody's.
        let _ = prctl::set_timerslack(1);
    }
    is_realtime
}

fn ask_for_realtime() -> bool {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the kernel reads one sched_param, which lives here; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) == 0 }
}

/// Whether [`take_realtime`] would be granted; tried in a thread of its own.
pub fn realtime_is_permitted() -> bool {
    std::thread::spawn(take_realtime).join().unwrap_or(false)
}

/// Whether a thread of the process runs SCHED_FIFO or SCHED_RR.
pub fn has_realtime_thread(pid: u32) -> bool {
    let is_realtime = |thread: Pid| {
        // SAFETY: takes a number and touches no memory of ours.
        let policy = unsafe { libc::sched_getscheduler(thread.as_raw()) } & !libc::SCHED_RESET_ON_FORK;
        matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR)
    };
    threads(pid).is_ok_and(|threads| threads.into_iter().any(is_realtime))
}

/// Binds the calling thread to a processor.
pub fn pin_this_thread(processor: usize) -> io::Result<()> {
    Ok(sched_setaffinity(Pid::from_raw(0), &one(processor)?)?)
}

/// A process whose threads are bound to one processor until this is dropped.
#[derive(Debug)]
pub struct Pinned(Vec<(Pid, CpuSet)>);

impl Pinned {
    pub fn pin(pid: u32, processor: usize) -> io::Result<Self> {
        let mut pinned = Self(Vec::new());
        for thread in threads(pid)? {
            let before = sched_getaffinity(thread)?;
            sched_setaffinity(thread, &one(processor)?)?;
            pinned.0.push((thread, before));
        }
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for (thread, before) in &self.0 {
            // Fails only for a thread that has ended.
            let _ = sched_setaffinity(*thread, before);
        }
    }
}

fn threads(pid: u32) -> io::Result<Vec<Pid>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let number = |name: std::ffi::OsString| name.to_str()?.parse().ok().map(Pid::from_raw);
    Ok(tasks.filter_map(|task| number(task.ok()?.file_name())).collect())
}

/// The n-th of the processors that this process may use.
fn one(processor: usize) -> io::Result<CpuSet> {
    let permitted = sched_getaffinity(Pid::this())?;
    let mut usable = (0..CpuSet::count()).filter(|cpu| permitted.is_set(*cpu).unwrap_or(false));
    let cpu = usable.nth(processor).ok_or_else(|| {
        let all = available_parallelism().map_or(0, usize::from);
        io::Error::other(format!("there is no processor {processor}, of {all}"))
    })?;
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(set)
}

/// Runs `body` in a thread of its own that may not become real-time.
#[cfg(test)]
pub fn without_realtime<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    const NOBODY: libc::c_long = 65534;
    let unprivileged = || {
        if ask_for_realtime() {
            // SAFETY: takes numbers; the system call, unlike the C library's function, is about this thread alone.
            let gave_up = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(gave_up, 0);
            let ordinary = libc::sched_param { sched_priority: 0 };
            // SAFETY: the kernel reads one sched_param, which lives here; 0 is the calling thread.
            let gave_up = unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ordinary) };
            assert_eq!(gave_up, 0);
        }
        assert!(!take_realtime());
        body()
    };
    std::thread::scope(|scope| scope.spawn(unprivileged).join().unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_may_not_be_realtime_sleeps_no_longer_than_told() {
        assert_eq!(without_realtime(prctl::get_timerslack), Ok(1));
    }

    #[test]
    fn a_process_is_pinned_and_let_go() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let before = sched_getaffinity(pid).unwrap();
        let pinned = Pinned::pin(child.id(), 0).unwrap();
        assert_eq!(sched_getaffinity(pid).unwrap(), one(0).unwrap());
        drop(pinned);
        assert_eq!(sched_getaffinity(pid).unwrap(), before);
        assert!(!has_realtime_thread(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

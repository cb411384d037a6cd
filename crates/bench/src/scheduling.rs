/// Of voice endpoints: above any thread that carries their packets, so that what is measured is the carrying.
const PRIORITY: i32 = 60;

/// Makes the calling thread SCHED_FIFO; `false` where this user may not.
pub fn take_realtime() -> bool {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the kernel reads one sched_param, which lives here; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) == 0 }
}

/// Whether [`take_realtime`] would be granted; tried in a thread of its own.
pub fn realtime_is_permitted() -> bool {
    std::thread::spawn(take_realtime).join().unwrap_or(false)
}

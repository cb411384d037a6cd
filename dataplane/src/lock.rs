use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// A lock whose holder runs at the priority of whoever waits for it (PTHREAD_PRIO_INHERIT, futex(2) FUTEX_LOCK_PI): the real-time voice
/// thread never waits behind work that ordinary threads put before the holder. Not for recursive use.
pub(crate) struct PiMutex<T> {
    /// Boxed, since a mutex may not move (POSIX).
    mutex: Box<UnsafeCell<libc::pthread_mutex_t>>,
    value: UnsafeCell<T>,
}

pub(crate) struct Guard<'a, T> {
    lock: &'a PiMutex<T>,
    /// A mutex is unlocked by the thread that locked it.
    not_send: PhantomData<*const ()>,
}

// SAFETY: the mutex lets one thread at a time reach the value, which may be reached from any.
unsafe impl<T: Send> Send for PiMutex<T> {}
// SAFETY: as above; `&PiMutex` gives `&mut T` to one thread at a time, for which `T: Send` is enough.
unsafe impl<T: Send> Sync for PiMutex<T> {}

impl<T> PiMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        let mutex = Box::new(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));
        init(&mutex);
        Self { mutex, value: UnsafeCell::new(value) }
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        // SAFETY: the mutex was initialised where it lies, and has not moved.
        let status = unsafe { libc::pthread_mutex_lock(self.mutex.get()) };
        if status != 0 {
            // Only a thread that holds it already gets here (EDEADLK, PTHREAD_MUTEX_ERRORCHECK): there is no way on.
            std::process::abort();
        }
        Guard { lock: self, not_send: PhantomData }
    }
}

impl<T> Drop for PiMutex<T> {
    fn drop(&mut self) {
        // SAFETY: nobody holds it, since a guard borrows `self`; it is not used again.
        unsafe { libc::pthread_mutex_destroy(self.mutex.get()) };
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread holds the mutex as long as the guard lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread locked it.
        unsafe { libc::pthread_mutex_unlock(self.lock.mutex.get()) };
    }
}

/// Without priority inheritance where the kernel does not have it (CONFIG_FUTEX_PI).
fn init(mutex: &UnsafeCell<libc::pthread_mutex_t>) {
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: the first call initialises what the others use; the mutex copies what it needs of it, so that it may be destroyed. Nobody
    // else knows the mutex yet. It holds a plain one's initial value, so that a failure on the way leaves a plain one.
    unsafe {
        if libc::pthread_mutexattr_init(attributes.as_mut_ptr()) == 0 {
            libc::pthread_mutexattr_settype(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ERRORCHECK);
            libc::pthread_mutexattr_setprotocol(attributes.as_mut_ptr(), libc::PTHREAD_PRIO_INHERIT);
            libc::pthread_mutex_init(mutex.get(), attributes.as_ptr());
            libc::pthread_mutexattr_destroy(attributes.as_mut_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn one_thread_at_a_time() {
        let count = PiMutex::new(0_u64);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| *count.lock() += 1));
            }
        });
        assert_eq!(*count.lock(), 40_000);
    }

    #[test]
    fn who_holds_it_already_does_not_wait_for_ever() {
        let mutex = PiMutex::new(());
        let _held = mutex.lock();
        // SAFETY: the mutex is initialised; it is not taken, as this thread holds it.
        let status = unsafe { libc::pthread_mutex_lock(mutex.mutex.get()) };
        assert_eq!(status, libc::EDEADLK);
    }
}

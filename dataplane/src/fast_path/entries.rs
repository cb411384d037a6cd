use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layout::{Counts, Entry, Rules};
use crate::rtp::RtpStream;

/// `finished` while the kernel is to leave a direction alone: `handed_up` never gets there.
pub(super) const NEVER: u64 = u64::MAX;

/// The array of entries, in the memory of kernel and daemon at once.
pub(super) struct Entries {
    first: NonNull<Entry>,
    count: usize,
}

// SAFETY: the memory belongs to this value alone and is the same for every thread.
unsafe impl Send for Entries {}
// SAFETY: through a shared reference only atomics are reached.
unsafe impl Sync for Entries {}

impl Entries {
    /// Maps the array of `count` entries behind `map`.
    pub(super) fn map(map: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        let count = count as usize;
        // SAFETY: a new mapping, of a file that stays open as long as it is mapped; the kernel made the array at least this long.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<Entry>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(memory.cast()) {
            Some(first) if memory != libc::MAP_FAILED => Ok(Self { first, count }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        let slot = slot as usize;
        // SAFETY: the mapping holds `count` entries, all-zero or written by us, and lives as long as `self`. What the kernel changes is
        // atomic.
        (slot < self.count).then(|| unsafe { self.first.add(slot).as_ref() })
    }

    /// Makes an entry new, which no program may be able to find: neither direction is the kernel's.
    pub(super) fn write(&mut self, slot: u32, rules: Rules, rtp: [RtpStream; 2], now: Duration) {
        let Some(entry) = self.get(slot) else { return };
        let now = now.as_nanos() as u64;
        entry.finished.iter().for_each(|finished| finished.store(NEVER, Ordering::Relaxed));
        // SAFETY: we hold `self` alone, and no program looks at the entry.
        unsafe { entry.rules.get().write(rules) };
        for counts in &entry.counts {
            let Counts { handed_up, last_handed_up, packets, bytes, last_seen, .. } = counts;
            [handed_up, packets, bytes].iter().for_each(|count| count.store(0, Ordering::Relaxed));
            [last_handed_up, last_seen].iter().for_each(|time| time.store(now, Ordering::Relaxed));
        }
        entry.rtp.iter().zip(rtp).for_each(|(to, stream)| to.store(stream));
    }

    /// The rules of an entry that is not being written.
    pub(super) fn rules(&mut self, slot: u32) -> Option<Rules> {
        // SAFETY: we hold `self` alone, and programs only read the rules.
        self.get(slot).map(|entry| unsafe { entry.rules.get().read() })
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped; no reference into it outlives `self`.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<Entry>()) };
    }
}

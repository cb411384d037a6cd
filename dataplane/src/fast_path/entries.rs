use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layout::{Counts, Entry, Rules};
use crate::rtp::RtpStream;

/// `finished` while the kernel is to leave a direction alone: `handed_up` never gets there.
pub(super) const NEVER: u64 = u64::MAX;

/// The least page, and how many entries fill a whole number of such: 7.
const PAGE: usize = 4096;
const ENTRIES_IN_PAGES: usize = 64;
const _: () = assert!((ENTRIES_IN_PAGES * size_of::<Entry>()).is_multiple_of(PAGE));

/// The array of entries, in the memory of kernel and daemon at once. All that is mapped counts as the daemon's, so it is mapped in parts, each
/// when the first of its entries is written.
pub(super) struct Entries {
    map: OwnedFd,
    count: usize,
    parts: Vec<Part>,
    /// Entries in each part but the last, which may have fewer.
    in_part: usize,
}

/// Entries that lie in pages of their own.
struct Part {
    first: NonNull<Entry>,
    count: usize,
}

// SAFETY: the memory belongs to this value alone and is the same for every thread.
unsafe impl Send for Part {}
// SAFETY: through a shared reference only atomics are reached.
unsafe impl Sync for Part {}

impl Entries {
    /// The array of `count` entries behind `map`, of which the first are mapped.
    pub(super) fn map(map: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGE);
        let in_part = page / PAGE * ENTRIES_IN_PAGES;
        let count = count as usize;
        let mut entries = Self { map: map.try_clone_to_owned()?, count, parts: Vec::new(), in_part };
        entries.reach(0)?;
        Ok(entries)
    }

    /// Maps the parts up to this slot's.
    pub(super) fn reach(&mut self, slot: u32) -> io::Result<()> {
        while slot as usize >= self.parts.len() * self.in_part {
            let first = self.parts.len() * self.in_part;
            let count = self.count.saturating_sub(first).min(self.in_part);
            if count == 0 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.parts.push(Part::map(self.map.as_fd(), first, count)?);
        }
        Ok(())
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        let slot = slot as usize;
        let part = self.parts.get(slot / self.in_part)?;
        let place = slot % self.in_part;
        // SAFETY: the part holds `count` entries, all-zero or written by us, and lives as long as `self`. What the kernel changes is atomic.
        (place < part.count).then(|| unsafe { part.first.add(place).as_ref() })
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

impl Part {
    /// `first` begins a page.
    fn map(map: BorrowedFd<'_>, first: usize, count: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, which holds on to what it maps; the kernel made the array at least this long.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<Entry>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                (first * size_of::<Entry>()) as libc::off_t,
            )
        };
        match NonNull::new(memory.cast()) {
            Some(first) if memory != libc::MAP_FAILED => Ok(Self { first, count }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped; no reference into it outlives `self`.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<Entry>()) };
    }
}

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;

/// Zeroed memory in whole pages, of which only those count that were touched.
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, which no thread is bound to.
unsafe impl Send for Pages {}
// SAFETY: as above; `&Pages` only reads.
unsafe impl Sync for Pages {}

impl Pages {
    /// `len` is in bytes, more than 0.
    pub(crate) fn new(len: usize) -> Self {
        // SAFETY: a new mapping at no address that anybody asked for.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let start = NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED);
        let Some(start) = start else {
            handle_alloc_error(Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>()))
        };
        let pages = Self { start, len };
        // Buffers are touched at their beginnings: a huge page (where they are always on) would count whole for each.
        pages.advise(libc::MADV_NOHUGEPAGE);
        pages
    }

    /// Has the system take the memory back until it is touched again; it is zeros from now on.
    pub(crate) fn give_back(&mut self) {
        self.advise(libc::MADV_DONTNEED);
    }

    /// Advice that is not taken is no loss.
    fn advise(&self, advice: libc::c_int) {
        // SAFETY: the range is one mapping of our own. MADV_DONTNEED, which changes what is in it, comes with `&mut self`.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, advice) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range is one mapping of our own, and nobody refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped as long as `self` lives, and initialised, since the system zeroes them.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_does_not_count_until_it_is_touched() {
        const PAGE: usize = 4096;
        let mut pages = Pages::new(64 * PAGE);
        assert_eq!(resident(&pages), 0);
        pages.iter_mut().for_each(|byte| *byte = 1);
        assert!(resident(&pages) > 0);
        pages.give_back();
        assert_eq!(resident(&pages), 0);
        assert!(pages.iter().all(|byte| *byte == 0));
    }

    /// How many pages are (mincore(2)).
    fn resident(pages: &Pages) -> usize {
        let mut each = [0_u8; 64];
        // SAFETY: the range is mapped, and there is a byte for each of its 64 pages, or fewer where pages are larger.
        let result =
            unsafe { libc::mincore(pages.as_ptr().cast_mut().cast(), pages.len(), each.as_mut_ptr()) };
        assert_eq!(result, 0);
        each.iter().filter(|page| **page & 1 == 1).count()
    }
}

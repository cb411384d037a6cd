use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What others see of a transfer while it runs, and how they end it.
#[derive(Debug, Default)]
pub struct Watch {
    enough: AtomicBool,
    moved: AtomicU64,
}

impl Watch {
    /// Ends the transfer.
    pub fn end(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Bytes of payload that have passed this end so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

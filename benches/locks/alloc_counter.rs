//! Heap counters, on request: live bytes and number of allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

/// Off while locks are timed: then an allocation costs one read of a constant flag.
static ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);
static MADE: AtomicI64 = AtomicI64::new(0);

/// Starts to count from zero, in all threads.
pub(crate) fn begin() {
    LIVE.store(0, Relaxed);
    MADE.store(0, Relaxed);
    ON.store(true, Relaxed);
}

/// Returns the live bytes since the start, and the allocations (including reallocations).
pub(crate) fn read() -> (i64, i64) {
    (LIVE.load(Relaxed), MADE.load(Relaxed))
}

/// Returns the live bytes once they no longer change: the workers beyond the quorum drop their last
/// leases a moment after a release.
pub(crate) fn settled() -> i64 {
    let mut last = (0, 0);
    loop {
        thread::sleep(Duration::from_millis(50));
        let now = read();
        if now == last {
            return now.0;
        }
        last = now;
    }
}

pub(crate) fn end() {
    ON.store(false, Relaxed);
}

fn note(bytes: i64, allocations: i64) {
    if ON.load(Relaxed) {
        LIVE.fetch_add(bytes, Relaxed);
        MADE.fetch_add(allocations, Relaxed);
    }
}

/// The system's allocator with the two counters. Its own overhead per block is not counted.
pub(crate) struct Counting;

// SAFETY: every call is forwarded unchanged, and counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64, 1);
        // SAFETY: forwarded unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note(-(layout.size() as i64), 0);
        // SAFETY: forwarded unchanged.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as i64 - layout.size() as i64, 1);
        // SAFETY: forwarded unchanged.
        unsafe { System.realloc(block, layout, size) }
    }
}

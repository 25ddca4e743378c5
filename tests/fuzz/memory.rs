//! Runs one input of a target, and counts what memory this thread has from the allocator while it does.
//!
//! Each thread counts for itself, so that targets may run beside one another. What another thread frees is not seen; no
//! target has one.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use amphipod::fuzzing::TARGETS;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Nothing is counted for a thread that is ending.
    let _ = HELD_BYTES.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK_BYTES.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: all memory comes from and goes to `System` with the layouts that were given; counting touches only plain cells of
// this thread and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the promises of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the promises of `realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the promises of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What this thread holds.
#[allow(dead_code)] // The targets of libFuzzer look at peaks alone.
pub fn held_bytes() -> isize {
    HELD_BYTES.with(Cell::get)
}

/// Runs the target; panics if it does, or if it took more memory at once than it may.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    within(target.memory_bytes_max, || (target.run)(data));
}

/// Panics if more than this is taken at once.
pub fn within(bytes_max: usize, work: impl FnOnce()) {
    let before = HELD_BYTES.with(Cell::get);
    PEAK_BYTES.with(|peak| peak.set(before));
    work();
    let taken = PEAK_BYTES.with(Cell::get) - before;
    assert!(taken <= bytes_max as isize, "{taken} bytes of memory were taken at once, {bytes_max} are allowed");
}

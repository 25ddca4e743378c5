//! Gives memory that was freed back to the kernel.
//!
//! The allocator keeps what a burst has freed, scattered over its arenas, and would keep it for good: after a load this
//! is several times what lives. Asking for it back costs some milliseconds, so it is done when a burst is over.

/// Returns free memory of this process to the kernel.
pub fn give_back() {
    // SAFETY: only returns free memory to the kernel.
    unsafe { libc::malloc_trim(0) };
}

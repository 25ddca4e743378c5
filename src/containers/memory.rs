//! Gives memory that was freed back to the kernel.
//!
//! The allocator keeps what a burst has freed, scattered over its arenas, and would keep it for good: after a load this
//! is several times what lives. Asking for it back costs some milliseconds, so it is done when a burst is over.

/// Returns free memory of this process to the kernel.
pub fn give_back() {
    // SAFETY: only returns free memory to the kernel.
    unsafe { libc::malloc_trim(0) };
}

/// Arenas of the allocator: each keeps what was freed in it, and threads that come and go would have one each.
const ARENAS: libc::c_int = 4;
/// What is larger is mapped by itself, and returned when it is freed.
const MAPPED_BYTES: libc::c_int = 256 << 10;

/// Has the allocator keep little of what is freed, in this process and from now on.
pub fn keep_little() {
    for (parameter, value) in [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, MAPPED_BYTES)] {
        // SAFETY: only sets a parameter of the allocator.
        unsafe { libc::mallopt(parameter, value) };
    }
}

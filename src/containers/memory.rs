//! Gives memory that was freed back to the kernel.
//!
//! The allocator keeps what a burst has freed, scattered over its arenas, and would keep it for good: after a load this
//! is several times what lives. Asking for it back costs some milliseconds, so it is done when a burst is over.

use std::path::Path;

/// Returns free memory of this process to the kernel.
pub fn give_back() {
    // SAFETY: only returns free memory to the kernel.
    unsafe { libc::malloc_trim(0) };
}

/// Lets go of the pages of this executable's code, of which a start or a burst uses far more than what comes after. They stay
/// in the page cache as long as there is room, so what is used again is mapped again without the disk.
pub fn unmap_code() {
    let Ok(own) = std::fs::read_link("/proc/self/exe") else { return };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(|line| code_of(line, &own)) {
        // SAFETY: a private mapping of a file that was never written to reads the same afterwards.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Address and length of a line of `/proc/self/maps`, if it is code of this file.
fn code_of(line: &str, file: &Path) -> Option<(usize, usize)> {
    // Addresses, permissions, offset, device, inode, path.
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp" && Path::new(words.nth(3)?.trim_start()) == file;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    is_code.then_some((start, end.checked_sub(start)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of this executable's code that are mapped.
    fn mapped() -> u64 {
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_code = false;
        let mut total = 0;
        for line in smaps.lines() {
            match line.strip_prefix("Rss:") {
                Some(rest) if is_code => total += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap(),
                Some(_) => {}
                None if line.contains('-') => is_code = code_of(line, &own).is_some(),
                None => {}
            }
        }
        total
    }

    #[test]
    fn code_that_is_not_used_is_let_go_and_comes_back() {
        let before = mapped();
        unmap_code();
        let after = mapped();
        assert!(0 < after && after < before, "{before} KiB before, {after} KiB after");
    }
}

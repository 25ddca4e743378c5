//! How full a file system is.

use std::io;
use std::path::Path;

/// A file system as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStats {
    pub capacity_bytes: u64,
    /// What is free for everybody, without the reserve for root.
    pub available_bytes: u64,
    pub free_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

// === impl FsStats ===

impl FsStats {
    /// The file system on which a path is.
    pub fn of(path: &Path) -> io::Result<Self> {
        let s = rustix::fs::statvfs(path)?;
        Ok(Self {
            capacity_bytes: s.f_blocks.saturating_mul(s.f_frsize),
            available_bytes: s.f_bavail.saturating_mul(s.f_frsize),
            free_bytes: s.f_bfree.saturating_mul(s.f_frsize),
            inodes: s.f_files,
            inodes_free: s.f_ffree,
        })
    }

    /// Rounded up, as the kubelet has it.
    pub fn used_percent(&self) -> u64 {
        100 - (u128::from(self.available_bytes) * 100 / u128::from(self.capacity_bytes.max(1))).min(100) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_room() {
        let directory = tempfile::tempdir().unwrap();
        let space = FsStats::of(directory.path()).unwrap();
        assert!(space.capacity_bytes >= space.free_bytes && space.free_bytes >= space.available_bytes);
        assert!(FsStats::of(&directory.path().join("absent")).is_err());
    }
}

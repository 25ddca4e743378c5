//! Mounts that hold what a path meant when it was resolved.
//!
//! The runtime takes the sources of mounts by name, and a name below a volume may mean something else by then. So what was
//! opened is mounted, from its descriptor, in a directory that no container can reach, and that name is given. The
//! container's own mount is a copy, so ours goes as soon as the container runs: nothing is left to survive a restart.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::base::beneath::Root;
use crate::base::tree;

/// What is mounted for one container until it runs.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    made: Vec<PathBuf>,
}

// === impl Pins ===

impl Pins {
    /// In a directory of its own, which is made when it is needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, made: Vec::new() }
    }

    /// Mounts what a descriptor stands for, with what is mounted below it if that is wanted; answers where.
    pub fn pin(&mut self, source: BorrowedFd<'_>, recursive: bool) -> io::Result<PathBuf> {
        let root = Root::make(&self.directory)?;
        let name = self.made.len().to_string();
        let wanted = rustix::fs::fstat(source)?;
        if FileType::from_raw_mode(wanted.st_mode).is_dir() {
            root.make_directory(name.as_ref(), 0o700)?;
        } else {
            root.write_new(&name, b"", 0o600, None)?;
        }
        let path = self.directory.join(&name);
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let tree = match open_tree(source, "", flags) {
            // Shown to need 5.2, which is older than what this program needs anyway; a filter may forbid it.
            Err(Errno::NOSYS | Errno::PERM) => {
                return Err(io::Error::other("the system calls open_tree and move_mount are needed and not allowed"));
            }
            result => result?,
        };
        move_mount(tree.as_fd(), "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        self.made.push(path.clone());
        let mounted = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let mounted = rustix::fs::fstat(&mounted)?;
        match (mounted.st_dev, mounted.st_ino) == (wanted.st_dev, wanted.st_ino) {
            true => Ok(path),
            false => Err(io::Error::other("something else was mounted than what was opened")),
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            if let Err(error) = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                tracing::warn!(%error, path = %path.display(), "a mount is left until the pod goes");
            }
        }
        // Stops at what is still mounted.
        if !self.made.is_empty() {
            let _ = tree::remove(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_opened_is_mounted_whatever_its_name_means_by_then() {
        let dir = tempfile::tempdir().unwrap();
        let (wanted, other) = (dir.path().join("wanted"), dir.path().join("other"));
        fs::create_dir(&wanted).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(wanted.join("file"), "wanted").unwrap();
        let directory = Root::open(&wanted).unwrap();
        let file = directory.file("file").unwrap();
        fs::rename(&wanted, dir.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(&other, &wanted).unwrap();
        let place = dir.path().join("pins/c");
        let mut pins = Pins::new(place.clone());
        let first = pins.pin(directory.as_fd(), true).expect("run as root");
        let second = pins.pin(file.as_fd(), false).unwrap();
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "wanted");
        assert_eq!(fs::read_to_string(second).unwrap(), "wanted");
        drop(pins);
        assert!(!place.exists());
        assert_eq!(fs::read_to_string(dir.path().join("moved/file")).unwrap(), "wanted");
    }
}

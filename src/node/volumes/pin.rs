//! Mounts that hold what a path meant when it was resolved.
//!
//! The runtime takes the sources of mounts by name, and a name below a volume may mean something else by then. So what was
//! opened is mounted, from its descriptor, in a directory that no container can reach, and that name is given. The
//! container's own mount is a copy, so ours goes as soon as the container runs: nothing is left to survive a restart.
//! Invariant: the end of a pin ends nothing else. Its mounts are peers of the machine's, so they are made private before.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, mount_change, move_mount,
    open_tree, unmount,
};

use crate::base::beneath::Root;
use crate::base::tree;

/// What is mounted for one container until it runs.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    made: Vec<PathBuf>,
    /// The directory is mounted over itself.
    is_apart: bool,
}

// === impl Pins ===

impl Pins {
    /// In a directory of its own, which is made when it is needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, made: Vec::new(), is_apart: false }
    }

    /// Mounts what a descriptor stands for, with what is mounted below it if that is wanted; answers where.
    pub fn pin(&mut self, source: BorrowedFd<'_>, recursive: bool) -> io::Result<PathBuf> {
        if !self.is_apart {
            // A mount of its own that is private: no other mount namespace gets copies of what is pinned below.
            drop(Root::make(&self.directory)?);
            mount_bind(&self.directory, &self.directory)?;
            self.is_apart = true;
            mount_change(&self.directory, MountPropagationFlags::PRIVATE)?;
        }
        let root = Root::open(&self.directory)?;
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
        let apart = self.is_apart.then_some(&self.directory);
        for path in self.made.iter().rev().chain(apart) {
            // Cut off first: the end of what is mounted in a copy would be told to the machine's own mounts.
            let private = mount_change(path, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
            let ended = private.and_then(|()| unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW));
            if let Err(error) = ended {
                tracing::warn!(%error, path = %path.display(), "a mount is left until the pod goes");
            }
        }
        // Stops at what is still mounted.
        if self.is_apart {
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

    /// On most machines every mount is shared: then an end of a copy is told to the original.
    #[test]
    fn the_end_of_a_pin_ends_nothing_that_is_mounted_on_the_machine() {
        use rustix::mount::{MountFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let (host, place) = (dir.path().join("host"), dir.path().join("pins/c"));
        let inner = host.join("inner");
        fs::create_dir(&host).unwrap();
        mount("tmpfs", &host, "tmpfs", MountFlags::empty(), None).expect("run as root");
        mount_change(&host, MountPropagationFlags::SHARED).unwrap();
        fs::create_dir(&inner).unwrap();
        mount("tmpfs", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
        let is_there = || crate::node::volumes::is_mounted(&inner).unwrap();
        let root = Root::open(&host).unwrap();
        let mut pins = Pins::new(place.clone());
        let pinned = pins.pin(root.as_fd(), true).unwrap();
        assert!(crate::node::volumes::is_mounted(&pinned.join("inner")).unwrap(), "with what is mounted below");
        drop(pins);
        let after_drop = is_there();
        // Left by a killed process, and removed by the next.
        let mut pins = Pins::new(place.clone());
        pins.pin(root.as_fd(), true).unwrap();
        std::mem::forget(pins);
        crate::containers::unmount_below(&place).unwrap();
        let after_crash = is_there();
        drop(root);
        let _ = unmount(&inner, UnmountFlags::DETACH);
        unmount(&host, UnmountFlags::DETACH).unwrap();
        assert_eq!([after_drop, after_crash], [true, true]);
    }
}

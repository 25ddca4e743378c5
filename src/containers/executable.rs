//! The executable as shims run it: through a mount of its own that nobody can ever write through.
//!
//! A process that enters a container has the file it was started from behind `/proc/self/exe`. Through an ordinary mount
//! root in the container could change the installed file's mode or owner, or write to it once it rests. A clone of the
//! mount costs no memory, which a sealed copy would. Invariant: the clone is read-only before anything is started from
//! it, and as it belongs to no mount namespace, no process can change that, whatever its capabilities.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::{Error, Result};
use super::idmap::{self, Attributes};

/// A read-only view of the executable.
#[derive(Debug)]
pub(crate) struct Executable {
    file: OwnedFd,
}

impl Executable {
    /// Makes the view of `path`, which may be a link of `/proc`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |source: io::Error| Error::ProtectExecutable { path: path.to_owned(), source };
        Ok(Self { file: read_only_view(path).map_err(failed)? })
    }

    /// What to execute from this process.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

fn read_only_view(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, path, flags)?;
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    idmap::change(tree.as_fd(), &Attributes { set, ..Attributes::default() })?;
    // Closing the tree takes the mount out of its anonymous namespace, where CAP_SYS_ADMIN could still change it; the
    // second descriptor keeps it alive.
    let own = format!("/proc/self/fd/{}", tree.as_raw_fd());
    let file = rustix::fs::open(own, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        rustix::fs::FileType::RegularFile => Ok(file),
        _ => Err(io::Error::other("not a regular file")),
    }
}

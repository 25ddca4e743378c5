//! The executable as shims run it: through a mount of its own that nobody can ever write through.
//!
//! A process that enters a container has the file it was started from behind `/proc/self/exe`. Through an ordinary mount
//! root in the container could change the installed file's mode or owner, or write to it once it rests. A clone of the
//! mount costs no memory, which a sealed copy would. Invariant: the clone is read-only before anything is started from
//! it, and as it belongs to no mount namespace, no process can change that, whatever its capabilities.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::{Error, Result};

/// A read-only view of the executable.
#[derive(Debug)]
pub(crate) struct Executable {
    file: OwnedFd,
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
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
    let attributes = MountAttributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path is a constant, the kernel reads the structure of the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // Closing the tree takes the mount out of its anonymous namespace, where CAP_SYS_ADMIN could still change it; the
    // second descriptor keeps it alive.
    let own = format!("/proc/self/fd/{}", tree.as_raw_fd());
    let file = rustix::fs::open(own, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match fs::metadata(path)?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn nothing_can_be_written_or_changed_through_the_view_and_it_survives_the_files_replacement() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let installed = directory.path().join("installed");
        fs::copy("/bin/true", &installed).unwrap();
        let view = Executable::open(&installed).unwrap();
        let read_only = |result: io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
        read_only(fs::set_permissions(view.path(), fs::Permissions::from_mode(0o4777)));
        read_only(std::os::unix::fs::chown(view.path(), Some(1), None));
        read_only(fs::OpenOptions::new().write(true).open(view.path()).map(drop));
        let remount = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(None::<&str>, &view.path(), None::<&str>, remount, None::<&str>).unwrap_err();
        let writable = MountAttributes { set: 0, clear: libc::MOUNT_ATTR_RDONLY, propagation: 0, user_namespace: 0 };
        for (fd, flags) in [(view.file.as_raw_fd(), libc::AT_EMPTY_PATH)] {
            // SAFETY: as above.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_mount_setattr,
                    fd,
                    c"".as_ptr(),
                    flags,
                    &raw const writable,
                    size_of::<MountAttributes>(),
                )
            };
            assert_eq!(result, -1, "not even with all capabilities");
        }
        assert_eq!(fs::metadata(&installed).unwrap().mode() & 0o7777, 0o755);
        fs::remove_file(&installed).unwrap();
        #[allow(clippy::disallowed_methods, reason = "a test")]
        let status = std::process::Command::new(view.path()).status().unwrap();
        assert!(status.success());
    }
}

//! Mounts that show a file system with the ids of a user namespace (`MOUNT_ATTR_IDMAP`), and clones of mounts to set that on.
//!
//! A clone belongs to no mount namespace until it is moved to its place, so nobody sees it without its ids.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub user_namespace: u64,
}

/// Changes the one mount that the descriptor stands for.
pub(super) fn change(tree: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    // SAFETY: the path is a constant, the kernel reads the structure of the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A clone of what is at a path; a link is followed.
pub(super) fn clone_of(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(rustix::fs::CWD, path, flags)?)
}

/// Gives a clone the ids of a user namespace: what is 0 on the disk is the namespace's root. What is mounted below keeps its
/// own, and shows no ids that the namespace has.
pub(super) fn map(tree: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    let user_namespace = u64::from(users.as_raw_fd().cast_unsigned());
    change(tree, &Attributes { set: libc::MOUNT_ATTR_IDMAP, user_namespace, ..Attributes::default() })
}

/// Mounts a clone at a path.
pub(super) fn attach(tree: OwnedFd, place: &Path) -> io::Result<()> {
    Ok(move_mount(tree.as_fd(), "", rustix::fs::CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

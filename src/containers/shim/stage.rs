//! Where libcontainer works for a container with users of its own: a root with nothing in it but what the container is made of.
//!
//! From the first moment in its user namespace a process is nobody on this machine, and could not even go to the directories
//! where volumes and root file systems are, which are the machine's root's alone. So all of that is cloned first, with the
//! ids that it is to show, and mounted in a small tree. Invariant: nothing of this is seen outside of the process that calls
//! [`enter`] and what it starts.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};
use rustix::fs::FileType;

use super::super::idmap::{self, Attributes};
use super::super::oci::{STAGED_MOUNTS, STAGED_USERS};
use super::super::spec::Users;
use super::super::wire::{Staged, StartRequest};

/// The container's bundle and libcontainer's state, there.
pub(super) const BUNDLE: &str = "/bundle";
pub(super) const STATE: &str = "/state";

/// Moves this process for good into the tree; `state` is libcontainer's directory.
pub(super) fn enter(request: &StartRequest, users: &Users, state: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("preparing mounts: {error}");
    let namespace = File::open(&users.namespace).map_err(failed)?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| failed(error.into()))?;
    // What the machine mounts later may still show up in volumes, nothing the other way.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(|error| failed(error.into()))?;
    let whole = [("/proc", true, "proc"), ("/sys", true, "sys"), ("/dev", false, "dev")]
        .map(|(path, recursive, place)| (Path::new(path), recursive, place));
    let own = [(state, STATE), (&*request.bundle, BUNDLE), (&*users.namespace, STAGED_USERS)]
        .map(|(path, place)| (path, false, &place[1..]));
    let mut trees = Vec::new();
    for (path, recursive, place) in whole.into_iter().chain(own) {
        trees.push((idmap::clone_of(path, recursive).map_err(failed)?, place.to_owned()));
    }
    for (number, staged) in request.staged.iter().enumerate() {
        trees.push((clone(staged, &namespace)?, format!("{}/{number}", &STAGED_MOUNTS[1..])));
    }
    build(trees).map_err(failed)
}

fn clone(staged: &Staged, namespace: &File) -> Result<OwnedFd, String> {
    let path = staged.source.display();
    let tree = idmap::clone_of(&staged.source, true).map_err(|error| format!("mounting {path}: {error}"))?;
    if staged.read_only {
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        idmap::change(tree.as_fd(), &attributes).map_err(|error| format!("mounting {path} read-only: {error}"))?;
    }
    if staged.mapped {
        idmap::map(tree.as_fd(), namespace.as_fd()).map_err(|error| {
            let why = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default()).desc().to_lowercase();
            format!(
                "failed to set MOUNT_ATTR_IDMAP on {path}: {why} (its file system must map ids for hostUsers: false)"
            )
        })?;
    }
    Ok(tree)
}

fn build(trees: Vec<(OwnedFd, String)>) -> io::Result<()> {
    // Over the sandbox's directory, which is as good a place as any and ours.
    let place = std::env::current_dir()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), &place, Some("tmpfs"), flags, Some("mode=755,size=1m"))?;
    chdir(&place)?;
    fs::create_dir(&STAGED_MOUNTS[1..])?;
    for (tree, name) in trees {
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode).is_dir();
        if is_directory {
            fs::create_dir(&name)?
        } else {
            fs::write(&name, "")?
        }
        idmap::attach(tree, Path::new(&name))?;
    }
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

//! Several processes on one store: the agent, and `amphipod image` beside it.
//!
//! Three advisory locks, all of which the kernel drops when their holder dies. `users.lock` is shared by everyone who has
//! the store open: only who is alone may clear what a crash left. `index.lock` is held while the index is replaced.
//! `pulls.lock` is shared by pulls and imports under way: meanwhile nobody takes layers that no image names (yet).

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::Result;
use super::error::io;

/// Held while it lives.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "closing it is what unlocks")] File);

fn open(directory: &Path, name: &str) -> Result<File> {
    let path = directory.join(name);
    crate::base::file::claim_file(&path).map_err(io("setting aside", &path))?;
    OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io("opening", &path))
}

fn wait(directory: &Path, name: &str, operation: FlockOperation) -> Result<Lock> {
    let file = open(directory, name)?;
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Lock(file)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(&directory.join(name))(error)),
        }
    }
}

/// Joins the users of the store; `alone` runs before if there is no other.
pub(super) fn join(directory: &Path, alone: impl FnOnce() -> Result<()>) -> Result<Lock> {
    let file = open(directory, "users.lock")?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        alone()?;
    }
    // Waits for one who was alone and is still at it.
    flock(&file, FlockOperation::LockShared).map_err(failed(&directory.join("users.lock")))?;
    Ok(Lock(file))
}

/// The right to replace the index.
pub(super) fn index(directory: &Path) -> Result<Lock> {
    wait(directory, "index.lock", FlockOperation::LockExclusive)
}

/// Keeps new layers from being taken for unused ones.
pub(super) fn pulling(directory: &Path) -> Result<Lock> {
    wait(directory, "pulls.lock", FlockOperation::LockShared)
}

/// Succeeds if nobody pulls, and keeps pulls from beginning.
pub(super) fn nobody_pulls(directory: &Path) -> Result<Option<Lock>> {
    let file = open(directory, "pulls.lock")?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(Lock(file)))
}

fn failed(path: &Path) -> impl FnOnce(rustix::io::Errno) -> super::ImageError {
    io("locking", path)
}

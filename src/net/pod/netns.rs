//! Network namespaces that outlive their makers: made on a thread of its own, pinned by a bind mount.
//!
//! `unshare` changes only the calling thread, so the thread must never be one that runs other work afterwards.
//! Invariant: a path answers [`is_pinned`] only if a network namespace is mounted on it, never for a left-over file.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const THREAD_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Loopback answers at once, or whoever listens is overwhelmed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Whether a namespace is mounted on the path.
pub(crate) fn is_pinned(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 == NSFS_MAGIC)
}

/// The network namespace of this thread, as a descriptor.
pub(crate) fn current() -> io::Result<File> {
    File::open(THREAD_NAMESPACE)
}

/// Moves this thread into a network namespace.
pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Moves this thread for good into a new network namespace and pins it at `path`.
pub(crate) fn enter_new(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(path)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(Some(THREAD_NAMESPACE), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Moves this thread for good into a network namespace that was made and pinned elsewhere, and pins it at `path` as well.
pub(crate) fn enter_given(given: &Path, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(path)?;
    mount(Some(given), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Whether both paths are pins of one namespace.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| rustix::fs::stat(path).ok().map(|found| (found.st_dev, found.st_ino));
    is_pinned(one) && is_pinned(other) && identity(one) == identity(other)
}

/// Moves this thread for good into the namespace at `path`, and connects there to a port of the loopback.
pub(crate) fn connect_in(path: &Path, port: u16) -> io::Result<TcpStream> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    let connect = |to: SocketAddr| TcpStream::connect_timeout(&to, CONNECT_PATIENCE);
    // The first answer is the one that people understand.
    let stream = connect((Ipv4Addr::LOCALHOST, port).into())
        .or_else(|error| connect((Ipv6Addr::LOCALHOST, port).into()).map_err(|_| error))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Unmounts and removes the pin; fine if there is none.
pub(crate) fn unpin(path: &Path) -> io::Result<()> {
    // A path can be mounted over more than once after a crash at the wrong moment.
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

//! Paths inside a root file system: links are followed as its processes would follow them, never out of it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::super::error::Error;
use super::Result;

/// Longer paths cannot be opened.
pub(super) const PATH_BYTES_MAX: usize = 4095;
/// What is read of a text file of an image.
const READ_IN_BYTES_MAX: u64 = 4 << 20;

pub(super) const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

pub(super) fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

pub(super) fn times(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Opens `path` below `root`, following links inside it, and makes directories where nothing is.
pub(super) fn open_directory(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    open_directory_of(None, root, path)
}

/// Links that lead nowhere yet and are followed on the way to one directory.
pub(super) const LINKS_MAX: usize = 40;

/// The same; what is made is another user's and group's.
pub(super) fn open_directory_of(owner: Option<u32>, root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    open_directory_through(owner, root.as_fd(), path, LINKS_MAX)
}

pub(super) fn open_directory_through(
    owner: Option<u32>,
    root: BorrowedFd<'_>,
    path: &Path,
    links_left: usize,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::openat2(root, path, flags, Mode::empty(), RESOLVE)
    };
    match open(path) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut parent = open(Path::new(""))?;
    let mut done = PathBuf::new();
    // A link's target may climb; the kernel knows where that leads, and not above the root.
    for part in path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir)) {
        let directory = done.clone();
        done.push(part);
        parent = match open(&done) {
            Err(Errno::NOENT) => {
                let name = Path::new(part.as_os_str());
                match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    // A link that leads nowhere: where it leads is made, and the link stays.
                    Err(Errno::EXIST) => {
                        let links_left = links_left.checked_sub(1).ok_or(Errno::LOOP)?;
                        let target = fs::readlinkat(&parent, name, Vec::new())?.into_bytes();
                        let target = as_path(&target);
                        let target = if target.is_absolute() { target.to_owned() } else { directory.join(target) };
                        if target.as_os_str().len() > PATH_BYTES_MAX {
                            return Err(Errno::NAMETOOLONG);
                        }
                        open_directory_through(owner, root, &target, links_left)?
                    }
                    Err(error) => return Err(error),
                    Ok(()) => {
                        let made = open(&done)?;
                        // Whatever our umask is: it belongs to an image or a container.
                        fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                        if let Some(id) = owner {
                            fs::fchown(&made, Some(fs::Uid::from_raw(id)), Some(fs::Gid::from_raw(id)))?;
                        }
                        made
                    }
                }
            }
            result => result?,
        };
    }
    Ok(parent)
}

pub(super) fn list(directory: &OwnedFd) -> Result<Vec<(PathBuf, bool)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let path = as_path(name).to_owned();
            let stat = fs::statat(directory, &path, AtFlags::SYMLINK_NOFOLLOW)?;
            names.push((path, FileType::from_raw_mode(stat.st_mode).is_dir()));
        }
    }
    Ok(names)
}

/// Removes a name with everything below; links are removed, never followed. A missing one is fine.
pub(super) fn remove_tree(parent: &OwnedFd, name: &Path) -> Result<(), Errno> {
    crate::base::tree::remove_at(parent, name).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Makes a directory (with parents) inside a root file system, wherever its links lead inside it.
pub(crate) fn make_directory_in(root: &Path, path: &Path, owner: Option<u32>) -> Result<OwnedFd, Error> {
    let failed = |error: Errno| Error::Io { what: "making directory", path: path.to_owned(), source: error.into() };
    let directory = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::Io { what: "opening root file system", path: root.to_owned(), source: error.into() })?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    open_directory_of(owner, directory, relative).map_err(failed)
}

/// A small text file inside a root file system; empty when it is not there.
pub(crate) fn read_in(root: &Path, path: &Path) -> String {
    let open = || -> Result<OwnedFd, Errno> {
        let directory = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        fs::openat2(directory, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    };
    let mut text = Vec::new();
    if let Ok(file) = open().map_err(io::Error::from).and_then(crate::base::file::regular) {
        let _ = file.take(READ_IN_BYTES_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

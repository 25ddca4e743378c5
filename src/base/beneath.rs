//! Files below a directory that is held open, for directories in which others may write.
//!
//! A name that was checked may mean something else when it is used. So every step here begins at a descriptor, is resolved
//! by the kernel in one call that cannot leave the directory (`openat2`), and what was opened is looked at, never its name
//! again. Modes are set on what was made, whatever the process's umask is.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::file::{make_private_dir, read_whole, regular};

/// The kernel may be unsure about `..` while something is renamed; then it is asked again.
const TRIES_MAX: usize = 64;

/// No link anywhere on the way.
const PLAIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Links are followed as long as they stay inside.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// From the root of the machine every link leads inside.
const ANYWHERE: ResolveFlags = ResolveFlags::NO_MAGICLINKS;

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// What is no file must not keep anybody waiting.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// A directory that is held open.
#[derive(Debug)]
pub struct Root(OwnedFd);

// === impl Root ===

impl Root {
    /// A directory of the host. Whoever names it vouches for the way to it; its last part is no link.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// Makes a directory of the host that only root may enter, with its parents, and opens it.
    pub fn make(path: &Path) -> io::Result<Self> {
        make_private_dir(path)?;
        Self::open(path)
    }

    /// The file or directory as a place, without opening it for reading.
    pub fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// A directory below, with no link on the way.
    pub fn directory(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self(self.open2(path.as_ref(), DIRECTORY, PLAIN)?))
    }

    /// Makes what is missing of the directories on `path`, with no link on the way; new ones get `mode`.
    pub fn make_directory(&self, path: &Path, mode: u32) -> io::Result<Self> {
        make_directories(self.0.as_fd(), path, mode, PLAIN).map(Self)
    }

    /// What a path means, followed through links that stay inside; what is missing is made as directories of `mode`.
    /// `PermissionDenied` if it leads out.
    pub fn resolve_or_make(&self, path: &Path, mode: u32) -> io::Result<OwnedFd> {
        match self.open2(path, PATH, INSIDE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        make_directories(self.0.as_fd(), path, mode, INSIDE)?;
        self.open2(path, PATH, INSIDE)
    }

    /// The directory where the link of one name leads, if it is one of the names beside it.
    pub fn link(&self, name: &str) -> Option<String> {
        let target = rustix::fs::readlinkat(&self.0, name, Vec::new()).ok()?.into_string().ok()?;
        (!target.contains('/') && !matches!(&*target, "" | "." | "..")).then_some(target)
    }

    /// The names in it, with their types.
    pub fn entries(&self) -> io::Result<Vec<(String, FileType)>> {
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                let kind = match entry.file_type() {
                    FileType::Unknown => FileType::from_raw_mode(self.stat_of(name)?.st_mode),
                    kind => kind,
                };
                found.push((name.to_owned(), kind));
            }
        }
        Ok(found)
    }

    fn stat_of(&self, name: &str) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Whether there is anything of this name.
    pub fn has(&self, name: &str) -> bool {
        self.stat_of(name).is_ok()
    }

    /// Whether it is a directory, a file, ..., with its permissions.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.0)?)
    }

    /// A regular file with no link on the way, for reading.
    pub fn file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        regular(self.open2(path.as_ref(), FILE, PLAIN)?)
    }

    /// The content of a regular file; an error if it is longer than `bytes_max`.
    pub fn read(&self, path: impl AsRef<Path>, bytes_max: u64) -> io::Result<Vec<u8>> {
        read_whole(self.file(path)?, bytes_max)
    }

    /// Makes a file that must not be there yet.
    pub fn write_new(&self, name: &str, bytes: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(bytes)?;
        if let Some(group) = group {
            rustix::fs::fchown(&file, None, Some(Gid::from_raw(group)))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(())
    }

    /// Writes a file where it is, so that whoever has it mounted sees it, or makes it; nothing is written if it holds
    /// these bytes already.
    pub fn write_in_place(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let fd = match self.open2(Path::new(name), FILE | OFlags::RDWR, PLAIN) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.write_new(name, bytes, mode, None);
            }
            result => result?,
        };
        let mut file = regular(fd)?;
        // One that a container has let grow is not read to see that.
        let mut old = Vec::new();
        if file.metadata()?.len() == bytes.len() as u64 {
            (&file).take(bytes.len() as u64).read_to_end(&mut old)?;
        }
        if old != bytes {
            file.set_len(0)?;
            io::Seek::rewind(&mut file)?;
            file.write_all(bytes)?;
        }
        Ok(())
    }

    /// Opens a file to add to its end; a new one gets `mode`.
    pub fn append(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match self.open2(Path::new(name), flags, PLAIN) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.write_new(name, b"", mode, None)?;
                regular(self.open2(Path::new(name), flags, PLAIN)?)
            }
            result => regular(result?),
        }
    }

    /// Makes a symbolic link.
    pub fn make_link(&self, target: &str, name: &str) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    /// Gives an entry another name; what has that name goes.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// Removes an entry with everything below it.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        super::tree::remove_at(&self.0, Path::new(name))
    }

    /// Sets the permissions.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.0, Mode::from_raw_mode(mode))?)
    }

    fn open2(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        open2(self.0.as_fd(), path, flags, resolve)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Root> for OwnedFd {
    fn from(root: Root) -> Self {
        root.0
    }
}

/// What an absolute path of the host means now; missing directories are made with `mode` if there is one.
pub fn of_host(path: &Path, mode: Option<u32>) -> io::Result<OwnedFd> {
    let root = rustix::fs::open("/", DIRECTORY, Mode::empty())?;
    let below = path.strip_prefix("/").unwrap_or(path);
    let found = open2(root.as_fd(), below, PATH, ANYWHERE);
    match (found, mode) {
        (Err(error), Some(mode)) if error.kind() == io::ErrorKind::NotFound => {
            make_directories(root.as_fd(), below, mode, ANYWHERE)
        }
        (result, _) => result,
    }
}

fn open2(at: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat2(at, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a link leads out of the directory"));
            }
            result => return Ok(result?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// What is there of `path` is followed as `resolve` says; below that there is nothing, so no link is followed any more.
fn make_directories(at: BorrowedFd<'_>, path: &Path, mode: u32, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a path that is not relative or has '..'");
    if path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(invalid());
    }
    let names: Vec<_> = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let mut missing = 0;
    let mut directory = loop {
        let there: PathBuf = names[..names.len() - missing].iter().collect();
        match open2(at, &there, DIRECTORY, resolve) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && missing < names.len() => missing += 1,
            result => break result?,
        }
    };
    for name in &names[names.len() - missing..] {
        let name: &Path = name.as_ref();
        let made = match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        directory = open2(directory.as_fd(), name, DIRECTORY, PLAIN | ResolveFlags::NO_XDEV)?;
        if made {
            // A directory with the set-group-id bit passes it on.
            let kept = rustix::fs::fstat(&directory)?.st_mode & 0o2000;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode & 0o777 | kept))?;
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_link_that_stays_inside_is_followed_and_one_that_leads_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink("a", inside.join("to-a")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        symlink(&outside, inside.join("out")).unwrap();
        symlink("../outside/new", inside.join("dangling")).unwrap();
        let root = Root::open(&inside).unwrap();
        let at = |path: &str| root.resolve_or_make(Path::new(path), 0o750);
        let stat = |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(stat(at("to-a/b").unwrap()), stat(at("a/b").unwrap()));
        at("to-a/new/deeper").unwrap();
        assert_eq!(mode(&inside.join("a/new/deeper")), 0o750);
        for path in ["up/outside", "out", "out/x", "dangling", "dangling/x", "../outside", "/etc"] {
            let error = at(path).unwrap_err();
            assert!(
                matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput),
                "{path}: {error}"
            );
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn only_regular_files_are_read_and_only_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        fs::write(dir.path().join("long"), vec![b'x'; 5000]).unwrap();
        symlink("long", dir.path().join("link")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(&root, "fifo", fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        assert_eq!(root.read("long", 5000).unwrap().len(), 5000);
        for (name, bytes_max) in [("long", 4999), ("link", 9999), ("fifo", 10), (".", 10), ("absent", 10)] {
            assert!(root.read(name, bytes_max).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_mounted_elsewhere_is_written_in_place_and_a_link_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.write_in_place("f", b"one", 0o644).unwrap();
        let other = dir.path().join("other");
        fs::hard_link(dir.path().join("f"), &other).unwrap();
        root.write_in_place("f", b"three", 0o644).unwrap();
        assert_eq!((fs::read_to_string(&other).unwrap(), mode(&other)), ("three".to_owned(), 0o644));
        symlink(&other, dir.path().join("link")).unwrap();
        assert!(root.write_in_place("link", b"bad", 0o644).is_err());
        assert_eq!(fs::read_to_string(&other).unwrap(), "three");
    }
}

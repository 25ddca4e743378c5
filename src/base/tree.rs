//! Whole trees of files: removing and measuring them, whatever a container has made of them.
//!
//! A tree may be deeper than any stack or path allows, may hold links to anywhere, and may change meanwhile. So the walk is
//! a loop over descriptors: each directory is opened by one name in its parent, without following a link and without
//! crossing into a mount; a few of the innermost stay open; the way back leads through `..`, which counts only if it is the
//! directory that was passed. Invariant: nothing outside the tree is opened, counted or removed, and memory is bounded by 24
//! bytes a level and [`OPEN_MAX`] open directories.

use std::collections::{HashSet, VecDeque};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Gid, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Directories that are open at a time.
const OPEN_MAX: usize = 16;
/// What is deeper is not measured and not removed.
const DEPTH_MAX: usize = 1 << 20;
/// Files with several names that are told apart; beyond these, each name counts.
const LINKED_MAX: usize = 1 << 16;
/// What cannot be removed; beyond this, the rest is left.
const FAILURES_MAX: usize = 1 << 10;
/// A tree that others fill faster than it is measured is not measured whole.
const MEASURED_MAX: u64 = 1 << 26;
/// Some file systems skip entries when others are removed while they are read: then it is read again.
const PASSES_MAX: usize = 8;
/// What a block of `stat` has.
const BLOCK_BYTES: u64 = 512;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// One name, which is no link and no mount.
const ONE_STEP: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What a tree takes of its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    pub bytes: u64,
    pub inodes: u64,
}

/// A way through a tree.
struct Walk {
    root: OwnedFd,
    device: u64,
    /// Every directory from the root to where we are.
    way: Vec<Passed>,
    /// The innermost of them.
    open: VecDeque<Open>,
}

struct Passed {
    inode: u64,
    /// Where its reading goes on after the child that was entered.
    position: i64,
    failed: bool,
}

struct Open {
    directory: Dir,
    /// In its parent; `None` if it was opened from below.
    name: Option<CString>,
}

/// A directory that was left.
struct Left {
    name: Option<CString>,
    failed: bool,
}

// === impl Walk ===

impl Walk {
    fn new(root: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&root)?;
        let directory = Dir::read_from(&root)?;
        Ok(Self {
            root,
            device: stat.st_dev,
            way: vec![Passed { inode: stat.st_ino, position: 0, failed: false }],
            open: VecDeque::from([Open { directory, name: None }]),
        })
    }

    fn current(&mut self) -> &mut Dir {
        &mut self.open.back_mut().expect("the innermost directory is open").directory
    }

    /// The next entry of the directory where we are.
    fn next(&mut self) -> Option<io::Result<DirEntry>> {
        loop {
            match self.current().read()? {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                result => return Some(result.map_err(Into::into)),
            }
        }
    }

    fn stat(&mut self, name: &CStr) -> Result<Stat, Errno> {
        rustix::fs::statat(self.current().fd()?, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    fn unlink(&mut self, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
        rustix::fs::unlinkat(self.current().fd()?, name, flags)
    }

    fn descend(&mut self, entry: &DirEntry) -> Result<(), Errno> {
        if self.way.len() >= DEPTH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let fd = rustix::fs::openat2(self.current().fd()?, entry.file_name(), DIRECTORY, Mode::empty(), ONE_STEP)?;
        let stat = rustix::fs::fstat(&fd)?;
        if stat.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        let directory = Dir::new(fd)?;
        self.way.last_mut().expect("the root stays").position = entry.offset();
        self.way.push(Passed { inode: stat.st_ino, position: 0, failed: false });
        self.open.push_back(Open { directory, name: Some(entry.file_name().to_owned()) });
        if self.open.len() > OPEN_MAX {
            self.open.pop_front();
        }
        Ok(())
    }

    fn fail(&mut self) {
        self.way.last_mut().expect("the root stays").failed = true;
    }

    /// Back to the directory above; `None` at the end of the tree.
    fn ascend(&mut self) -> io::Result<Option<Left>> {
        let (left, passed) = (self.open.pop_back(), self.way.pop());
        let (Some(left), Some(passed)) = (left, passed) else { return Ok(None) };
        let Some(above) = self.way.last_mut() else { return Ok(None) };
        above.failed |= passed.failed;
        if self.open.is_empty() {
            let (inode, position) = (above.inode, above.position);
            let directory = match self.above(&left.directory, inode) {
                Ok(fd) => {
                    let mut directory = Dir::new(fd)?;
                    directory.seek(position)?;
                    directory
                }
                // It was moved meanwhile: what is between is given up.
                Err(_) => {
                    self.way.truncate(1);
                    self.fail();
                    let mut directory = Dir::read_from(&self.root)?;
                    directory.seek(self.way[0].position)?;
                    self.open.push_back(Open { directory, name: None });
                    return Ok(Some(Left { name: None, failed: true }));
                }
            };
            self.open.push_back(Open { directory, name: None });
        }
        Ok(Some(Left { name: left.name, failed: passed.failed }))
    }

    fn above(&self, directory: &Dir, inode: u64) -> io::Result<OwnedFd> {
        let fd = rustix::fs::openat(directory.fd()?, "..", DIRECTORY, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        if (stat.st_dev, stat.st_ino) == (self.device, inode) { Ok(fd) } else { Err(Errno::STALE.into()) }
    }
}

/// Removes a file, a link or a whole tree; nothing there is fine. The path's parent is trusted, what is below it is not. A
/// mount in the tree stays, with an error, and so does what is mounted there.
pub fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path without a name"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => remove_at(parent, Path::new(name)),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The same for one name in an open directory.
pub fn remove_at(parent: impl AsFd, name: &Path) -> io::Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return Ok(result?),
    }
    for _ in 0..PASSES_MAX {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            result => return Ok(result?),
        }
        let root = match rustix::fs::openat2(parent, name, DIRECTORY, Mode::empty(), ONE_STEP) {
            Err(Errno::XDEV) => return Err(Errno::BUSY.into()),
            result => result?,
        };
        let emptied = empty(root)?;
        if emptied.removed == 0 {
            return Err(emptied.first.unwrap_or(Errno::NOTEMPTY).into());
        }
        if let Some(error) = emptied.first {
            return Err(error.into());
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// What became of the content of a directory.
#[derive(Default)]
struct Emptied {
    removed: u64,
    failures: usize,
    first: Option<Errno>,
}

// === impl Emptied ===

impl Emptied {
    /// Counts a removal; false if it failed.
    fn note(&mut self, result: Result<(), Errno>) -> bool {
        match result {
            Ok(()) => self.removed += 1,
            Err(Errno::NOENT) => {}
            Err(error) => {
                self.failures += 1;
                // A mount in the way is told as such.
                self.first.get_or_insert(if error == Errno::XDEV { Errno::BUSY } else { error });
                return false;
            }
        }
        true
    }
}

/// Removes what is in a directory, as far as that is possible.
fn empty(root: OwnedFd) -> io::Result<Emptied> {
    let mut walk = Walk::new(root)?;
    let mut emptied = Emptied::default();
    while emptied.failures < FAILURES_MAX {
        match walk.next() {
            Some(Ok(entry)) => {
                if !remove_entry(&mut walk, &entry, &mut emptied) {
                    walk.fail();
                }
            }
            Some(Err(error)) => return Err(error),
            None => match walk.ascend()? {
                None => break,
                Some(Left { failed: true, .. }) => {}
                Some(Left { name: Some(name), .. }) => {
                    let gone = match walk.unlink(&name, AtFlags::REMOVEDIR) {
                        // Skipped while it was read, or filled anew: the next pass sees.
                        Err(Errno::NOTEMPTY | Errno::EXIST) => true,
                        result => emptied.note(result),
                    };
                    if !gone {
                        walk.fail();
                    }
                }
                // Its name is not known any more: it is found again, empty.
                Some(Left { name: None, .. }) => walk.current().rewind(),
            },
        }
    }
    Ok(emptied)
}

/// Removes one entry or goes into it; false if neither is possible.
fn remove_entry(walk: &mut Walk, entry: &DirEntry, emptied: &mut Emptied) -> bool {
    if entry.file_type() != FileType::Directory {
        match walk.unlink(entry.file_name(), AtFlags::empty()) {
            // Not every file system tells the types.
            Err(Errno::ISDIR | Errno::PERM) if entry.file_type() == FileType::Unknown => {}
            result => return emptied.note(result),
        }
    }
    match walk.unlink(entry.file_name(), AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        result => return emptied.note(result),
    }
    match walk.descend(entry) {
        Ok(()) => true,
        result => emptied.note(result),
    }
}

/// What a file or a whole tree takes; a file with several names counts once, what is mounted in it does not. What cannot be
/// read, or moves meanwhile, is left out.
pub fn measure(path: &Path) -> Taken {
    let Ok(stat) = rustix::fs::lstat(path) else { return Taken::default() };
    let own = Taken { bytes: blocks(&stat), inodes: 1 };
    let opened = rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(io::Error::from);
    match opened.and_then(Walk::new) {
        Ok(walk) => measure_from(walk, own),
        Err(_) => own,
    }
}

/// The same for an open directory.
pub fn measure_at(directory: OwnedFd) -> io::Result<Taken> {
    let own = Taken { bytes: blocks(&rustix::fs::fstat(&directory)?), inodes: 1 };
    Ok(measure_from(Walk::new(directory)?, own))
}

/// What the group may do with a directory that was given to it: all, and what is made in it belongs to the group too.
pub const GROUP_MODE: u32 = 0o2770;
/// What the group may do with a file.
const GROUP_FILE_MODE: u32 = 0o660;
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Gives a directory with everything below it to a group, which may write then; what is mounted in it stays as it is, and what
/// goes meanwhile is left out.
pub fn give_to_group(directory: OwnedFd, group: u32) -> io::Result<()> {
    let group = Some(Gid::from_raw(group));
    let mode = |fd: &dyn Fn(u32) -> rustix::io::Result<()>, stat: &Stat, more: u32| match stat.st_mode & more == more {
        true => Ok(()),
        false => fd((stat.st_mode & 0o7777) | more),
    };
    let own = |directory: BorrowedFd<'_>| -> io::Result<()> {
        let stat = rustix::fs::fstat(directory)?;
        rustix::fs::fchown(directory, None, group)?;
        Ok(mode(&|bits| rustix::fs::fchmod(directory, Mode::from_raw_mode(bits)), &stat, GROUP_MODE)?)
    };
    own(directory.as_fd())?;
    let mut walk = Walk::new(directory)?;
    loop {
        let entry = match walk.next() {
            Some(Ok(entry)) => entry,
            Some(Err(error)) => return Err(error),
            None => match walk.ascend()? {
                Some(_) => continue,
                None => return Ok(()),
            },
        };
        let Ok(stat) = walk.stat(entry.file_name()) else { continue };
        if stat.st_dev != walk.device {
            continue;
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            if walk.descend(&entry).is_ok() {
                own(walk.current().fd()?)?;
            }
            continue;
        }
        let here = walk.current().fd()?;
        // Its mode is set on what is opened, which a name that means something else by then cannot change.
        if kind.is_file()
            && let Ok(file) = rustix::fs::openat2(here, entry.file_name(), FILE, Mode::empty(), ONE_STEP)
            && let Ok(stat) = rustix::fs::fstat(&file)
            && FileType::from_raw_mode(stat.st_mode).is_file()
        {
            rustix::fs::fchown(&file, None, group)?;
            mode(&|bits| rustix::fs::fchmod(&file, Mode::from_raw_mode(bits)), &stat, GROUP_FILE_MODE)?;
            continue;
        }
        match rustix::fs::chownat(here, entry.file_name(), None, group, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            result => result?,
        }
    }
}

fn blocks(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES
}

fn measure_from(mut walk: Walk, mut taken: Taken) -> Taken {
    let mut linked = HashSet::new();
    loop {
        if taken.inodes >= MEASURED_MAX {
            return taken;
        }
        match walk.next() {
            Some(Ok(entry)) => {
                let Ok(stat) = walk.stat(entry.file_name()) else { continue };
                let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
                if stat.st_dev != walk.device {
                    continue;
                }
                if stat.st_nlink > 1 && !is_directory && linked.len() < LINKED_MAX && !linked.insert(stat.st_ino) {
                    continue;
                }
                taken.bytes = taken.bytes.saturating_add(blocks(&stat));
                taken.inodes += 1;
                if is_directory {
                    // One that went or cannot be opened has been counted itself.
                    let _ = walk.descend(&entry);
                }
            }
            // The rest of a directory that cannot be read is left out.
            Some(Err(_)) | None => match walk.ascend() {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return taken,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A chain of directories with a file in each and another directory beside the next.
    fn deep(root: &Path, levels: usize, prefix: &str) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = rustix::fs::open(root, flags, Mode::empty()).unwrap();
        for level in 0..levels {
            let name = format!("{prefix}{}", "d".repeat(level % 3));
            rustix::fs::mkdirat(&directory, &name, Mode::from_raw_mode(0o755)).unwrap();
            let _ = rustix::fs::mkdirat(&directory, "aside", Mode::from_raw_mode(0o755));
            let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&directory, "file", file, Mode::from_raw_mode(0o644)).unwrap();
            directory = rustix::fs::openat(&directory, &name, flags, Mode::empty()).unwrap();
        }
    }

    /// Work on a stack on which no recursion of such a depth fits.
    fn on_a_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::Builder::new().stack_size(128 << 10).spawn(work).unwrap().join().unwrap()
    }

    #[test]
    fn a_tree_of_thirty_thousand_levels_is_measured_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir(&root).unwrap();
        deep(&root, 30_000, "x");
        // A second one that branches off, so that the way back has to go on.
        deep(&root, 300, "y");
        let (taken, removed) = on_a_small_stack(move || (measure(&root), remove(&root)));
        // The root has one "aside" and one "file" for both chains.
        assert_eq!(taken.inodes, 1 + 3 * 30_300 - 2);
        removed.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn many_branches_below_the_open_ones_are_all_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir(&root).unwrap();
        for branch in 0..50 {
            deep(&root, 3 * OPEN_MAX, &format!("b{branch}-"));
        }
        assert_eq!(measure(&root).inodes, 1 + 50 * 3 * 3 * OPEN_MAX as u64 - 2 * 49);
        remove(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, root) = (dir.path().join("outside"), dir.path().join("tree"));
        fs::create_dir_all(outside.join("kept")).unwrap();
        fs::create_dir(&root).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        assert_eq!(measure(&root).inodes, 3);
        remove(&root).unwrap();
        symlink(&outside, &root).unwrap();
        assert_eq!(measure(&root).inodes, 1);
        remove(&root).unwrap();
        remove(&root).unwrap();
        assert!(outside.join("kept").is_dir() && !root.exists());
    }

    #[test]
    fn a_file_with_two_names_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let taken = measure(dir.path());
        assert!(taken.inodes == 2 && taken.bytes < (1 << 20) + (64 << 10), "{taken:?}");
        assert_eq!(measure(&dir.path().join("absent")), Taken::default());
    }

    #[test]
    fn what_is_mounted_in_a_tree_is_neither_counted_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("tree"), dir.path().join("other"));
        fs::create_dir_all(root.join("a/mount")).unwrap();
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        rustix::mount::mount_bind(&other, root.join("a/mount")).expect("run as root");
        fs::write(root.join("gone"), "").unwrap();
        assert_eq!(measure(&root).inodes, 4, "the mount point itself");
        let error = remove(&root).unwrap_err();
        let (kept, gone) = (other.join("kept").exists(), !root.join("gone").exists());
        rustix::mount::unmount(root.join("a/mount"), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(kept && gone);
        remove(&root).unwrap();
        assert!(!root.exists());
    }
}

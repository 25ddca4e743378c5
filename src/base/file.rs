//! Files that are there whole or not at all.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Directories of the machine, which must not become a node's own.
const EVERYBODYS: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/home",
    "/lib",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/tmp",
];

/// Tells apart what this process writes at the same time.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Writes `bytes` to `path` with the given mode, so that after a crash at any instant either the old file is there or
/// the new one, whole and on the disk. The same file may be written by several at once: the last one counts.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{name}.{}-{number}.new", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(directory)?.sync_all()
}

/// Makes a directory (and its parents) that only root may read.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The same; what is no directory and has its name is set aside, so that it cannot keep a node from starting.
pub fn claim_private_dir(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|m| !m.is_dir()) && !path.is_dir() {
        set_aside(path)?;
    }
    make_private_dir(path)
}

/// Sets aside what has a file's name and is none, so that opening it neither fails nor waits.
pub fn claim_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => set_aside(path).map(drop),
        _ => Ok(()),
    }
}

/// Makes the directory in which a node keeps everything, or takes it: it is root's, and nobody else may enter it, whatever
/// it was before. A link to a directory is followed.
pub fn take_private_dir(path: &Path) -> io::Result<()> {
    make_private_dir(path)?;
    let directory = fs::File::open(path)?;
    let metadata = directory.metadata()?;
    let root = rustix::process::geteuid();
    if fs::canonicalize(path)?.to_str().is_some_and(|path| EVERYBODYS.contains(&path)) {
        return Err(io::Error::other("it is everybody's, and a node's own is nobody else's"));
    }
    if metadata.uid() != root.as_raw() {
        rustix::fs::fchown(&directory, Some(root), None)?;
    }
    if metadata.mode() & 0o7777 != 0o700 {
        rustix::fs::fchmod(&directory, rustix::fs::Mode::from_raw_mode(0o700))?;
    }
    Ok(())
}

/// From now on, what this process makes is its own alone, unless it says otherwise. To be called before threads are started.
pub fn keep_new_files_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Makes a directory that everybody may read, with the parents that are missing.
pub fn make_public_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_public_dir(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755))),
    }
}

/// Gives what is damaged a name under which nobody looks for it; an earlier one of that name goes.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".damaged");
    let aside = path.with_file_name(name);
    super::tree::remove(&aside)?;
    fs::rename(path, &aside)?;
    tracing::warn!(path = %path.display(), aside = %aside.display(), "it is damaged and was set aside");
    Ok(aside)
}

/// Has reads and writes of what a descriptor leads to answer at once.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The content of a regular file that is not longer than `bytes_max`; never waits, whatever is there, and follows no link.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_whole(open(path)?, bytes_max)
}

/// The same as text.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Opens a regular file for reading; never waits, whatever is there, and follows no link.
pub fn open(path: &Path) -> io::Result<fs::File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    regular(rustix::fs::open(path, flags, Mode::empty())?)
}

/// An open file, if it is a regular one.
pub fn regular(fd: OwnedFd) -> io::Result<fs::File> {
    let file = fs::File::from(fd);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// All of a file; an error if it is longer than `bytes_max`.
pub fn read_whole(file: fs::File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_atomically(&path, b"one", 0o600).unwrap();
        write_atomically(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn several_may_write_one_file_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        std::thread::scope(|scope| {
            for letter in *b"abcdefgh" {
                let path = &path;
                scope.spawn(move || (0..20).for_each(|_| write_atomically(path, &[letter; 5000], 0o600).unwrap()));
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 5000 && bytes.iter().all(|b| *b == bytes[0]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_nodes_directory_is_nobody_elses_whatever_it_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/data");
        make_public_dir(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(&dir.path().join("a"))), (0o755, 0o755));
        take_private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        let before = mode(Path::new("/tmp"));
        assert!(take_private_dir(Path::new("/tmp/")).is_err());
        assert_eq!(mode(Path::new("/tmp")), before);
    }

    #[test]
    fn what_is_in_the_place_of_a_directory_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        for _ in 0..2 {
            fs::write(&path, "a file").unwrap();
            claim_private_dir(&path).unwrap();
            assert!(path.is_dir());
            assert_eq!(fs::read_to_string(dir.path().join("d.damaged")).unwrap(), "a file");
            fs::remove_dir(&path).unwrap();
        }
    }
}

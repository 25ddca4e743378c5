//! Writing the files of a volume so that readers see all of the old or all of the new.
//!
//! The layout is Kubernetes' own (`AtomicWriter`), which programs know: the files are in a directory of their own with a time
//! for a name, `..data` is a link to it that is swapped by one rename, and each visible name links through `..data`.
//! Invariant: containers have these volumes read-only; even if one had not, every step here begins at a descriptor and
//! follows no link, so nothing outside the volume is written, read or removed.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use rustix::fs::FileType;

use super::files::Files;
use crate::base::beneath::Root;
use crate::base::tree;

/// The link to the directory with the files.
const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";
/// Everybody's, as the kubelet has it; the way to it is root's alone.
const DIRECTORY_MODE: u32 = 0o755;
/// No API object is longer.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Tells apart what is written in the same second.
static WRITTEN: AtomicU32 = AtomicU32::new(0);

/// Makes the volume at `path` show exactly `files`; nothing is written when it does already.
pub fn atomically(path: &Path, files: &Files, group: Option<i64>, now: Timestamp) -> io::Result<()> {
    files.keys().try_for_each(|name| checked(name))?;
    let volume = Root::make(path)?;
    volume.set_mode(DIRECTORY_MODE)?;
    let old = data(&volume);
    let current = match old.filter(|old| shows(&volume, old, files)) {
        Some(old) => old,
        None => replace(&volume, files, group, now)?,
    };
    // Also when nothing is new: a process may have been killed between two steps, or one of them has failed before.
    let linked = link_names(&volume, files);
    linked.and(clear(&volume, &current))
}

/// Writes the files anew, and lets them take the place of those before; answers where they are.
fn replace(volume: &Root, files: &Files, group: Option<i64>, now: Timestamp) -> io::Result<String> {
    let fresh = loop {
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id() << 8);
        let name = format!("{}{number:010}", now.strftime("..%Y_%m_%d_%H_%M_%S."));
        if !volume.has(&name) {
            break name;
        }
    };
    let written = fill(volume, &fresh, files, group).and_then(|()| {
        volume.remove(NEXT)?;
        volume.make_link(&fresh, NEXT)?;
        volume.rename(NEXT, DATA)
    });
    match written {
        Ok(()) => Ok(fresh),
        Err(error) => {
            let _ = volume.remove(&fresh);
            Err(error)
        }
    }
}

/// Removes the files before those in `current`, and what a killed process left. What cannot be removed does not stop the
/// rest; its first error is told at the end.
fn clear(volume: &Root, current: &str) -> io::Result<()> {
    let mut failed = Ok(());
    for (name, _) in volume.entries()?.into_iter().filter(|(name, _)| name.starts_with("..")) {
        if name != DATA && name != current {
            failed = failed.and(volume.remove(&name));
        }
    }
    failed
}

/// Whether the volume has been written.
pub fn is_written(path: &Path) -> bool {
    Root::open(path).is_ok_and(|volume| data(&volume).is_some_and(|data| volume.directory(data).is_ok()))
}

/// A file of the volume as it is now.
pub fn read(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let volume = Root::open(path)?;
    let data = data(&volume).ok_or(io::ErrorKind::NotFound)?;
    volume.directory(data)?.read(name, FILE_BYTES_MAX)
}

fn data(volume: &Root) -> Option<String> {
    volume.link(DATA).filter(|target| target.starts_with(".."))
}

fn fill(volume: &Root, fresh: &str, files: &Files, group: Option<i64>) -> io::Result<()> {
    let directory = volume.make_directory(Path::new(fresh), DIRECTORY_MODE)?;
    for (name, (bytes, mode)) in files {
        let path = Path::new(name);
        let parent = directory.make_directory(path.parent().unwrap_or(Path::new("")), DIRECTORY_MODE)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mode = if group.is_some() { *mode | ((*mode & 0o400) >> 3) } else { *mode };
        parent.write_new(&name, bytes, mode, group.map(|group| group as u32))?;
    }
    Ok(())
}

/// No file of a volume lies outside of it.
fn checked(name: &str) -> io::Result<()> {
    let bad = name.starts_with('/') || name.split('/').any(|p| matches!(p, "" | "." | ".."));
    match bad {
        true => Err(io::Error::other(format!("invalid path {name:?}: must be relative and without '..'"))),
        false => Ok(()),
    }
}

fn shows(volume: &Root, old: &str, files: &Files) -> bool {
    let Ok(directory) = volume.directory(old) else { return false };
    let holds = |(name, (bytes, _)): (&String, &(Vec<u8>, u32))| {
        directory.read(name, bytes.len() as u64).is_ok_and(|there| there == *bytes)
    };
    if !files.iter().all(holds) {
        return false;
    }
    let directories: BTreeSet<&Path> = files.keys().flat_map(|name| Path::new(name).ancestors().skip(1)).collect();
    let inodes = files.len() + directories.len().max(1);
    tree::measure_at(directory.into()).is_ok_and(|taken| taken.inodes == inodes as u64)
}

fn link_names(volume: &Root, files: &Files) -> io::Result<()> {
    let tops: BTreeSet<&str> = files.keys().map(|n| n.split('/').next().unwrap_or(n)).collect();
    let there = volume.entries()?;
    // What is no link is where something else is mounted.
    let mut failed = Ok(());
    for (name, kind) in &there {
        if !name.starts_with("..") && *kind == FileType::Symlink && !tops.contains(name.as_str()) {
            failed = failed.and(volume.remove(name));
        }
    }
    for top in tops.into_iter().filter(|top| !there.iter().any(|(name, _)| name == top)) {
        failed = failed.and(volume.make_link(&format!("{DATA}/{top}"), top));
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn files(all: &[(&str, &str)]) -> Files {
        all.iter().map(|(n, t)| ((*n).to_owned(), (t.as_bytes().to_vec(), 0o644))).collect()
    }

    fn write(path: &Path, all: &[(&str, &str)]) -> io::Result<()> {
        atomically(path, &files(all), None, Timestamp::from_second(1_000_000_000).unwrap())
    }

    #[test]
    fn the_volume_shows_exactly_its_files_and_swaps_them_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        write(&path, &[("a", "1"), ("d/b", "2")]).unwrap();
        assert_eq!(fs::read_to_string(path.join("d/b")).unwrap(), "2");
        let first = fs::read_link(path.join("..data")).unwrap();
        assert!(first.to_str().unwrap().starts_with("..2001_09_09_01_46_40."), "{first:?}");
        write(&path, &[("a", "1"), ("d/b", "2")]).unwrap();
        assert_eq!(fs::read_link(path.join("..data")).unwrap(), first, "nothing new, nothing written");
        assert_eq!(read(&path, "d/b").unwrap(), b"2");
        write(&path, &[("c", "3")]).unwrap();
        assert!(!path.join("a").exists() && !path.join("d").exists());
        assert_eq!(fs::read_to_string(path.join("c")).unwrap(), "3");
        assert!(write(&path, &[("../x", "3")]).is_err());
        assert!(!dir.path().join("x").exists());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 3, "the link, the directory and the name");
        let mode = |part: &str| fs::metadata(path.join(part)).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(""), mode("..data"), mode("c")], [0o755, 0o755, 0o644]);
    }

    #[test]
    fn what_a_killed_process_left_undone_is_done_at_the_next_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        write(&path, &[("a", "1"), ("b", "2")]).unwrap();
        // Killed after the new files took the place of the old ones, before the names, and before the rest was removed.
        fs::remove_file(path.join("b")).unwrap();
        symlink("..data/c", path.join("c")).unwrap();
        fs::create_dir(path.join("..2001_09_09_01_46_39.0000000000")).unwrap();
        symlink("nowhere", path.join("..data_tmp")).unwrap();
        write(&path, &[("a", "1"), ("b", "2")]).unwrap();
        assert_eq!(fs::read_to_string(path.join("b")).unwrap(), "2");
        assert!(path.join("c").symlink_metadata().is_err());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 4, "the link, the directory and two names");
        // A directory that was made for a mount has the name of a key: the others are there all the same.
        fs::create_dir(path.join("late")).unwrap();
        write(&path, &[("a", "1"), ("late", "3"), ("z", "4")]).unwrap();
        assert_eq!(fs::read_to_string(path.join("z")).unwrap(), "4");
        write(&path, &[("a", "5"), ("z", "4")]).unwrap();
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "5");
    }

    /// What a container could do that has the volume writable: each is harmless for the rest of the machine.
    #[test]
    fn links_that_are_put_into_the_volume_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (path, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("a"), "kept").unwrap();
        write(&path, &[("a", "1"), ("d/b", "2")]).unwrap();
        // The directory that the next update removes.
        fs::remove_file(path.join("..data")).unwrap();
        symlink(&outside, path.join("..data")).unwrap();
        write(&path, &[("a", "2"), ("d/b", "2")]).unwrap();
        // One that is exchanged: everything in it would be written, and removed, outside.
        let data = path.join(fs::read_link(path.join("..data")).unwrap());
        fs::remove_dir_all(&data).unwrap();
        symlink(&outside, &data).unwrap();
        write(&path, &[("a", "3"), ("d/b", "2")]).unwrap();
        symlink(&outside, path.join("..data_tmp")).unwrap();
        fs::remove_file(path.join("d")).unwrap();
        symlink(&outside, path.join("d")).unwrap();
        write(&path, &[("a", "4")]).unwrap();
        assert_eq!(fs::read_to_string(outside.join("a")).unwrap(), "kept");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "4");
        fs::remove_dir_all(&path).unwrap();
        symlink(&outside, &path).unwrap();
        assert!(write(&path, &[("a", "5")]).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}

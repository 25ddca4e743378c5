//! Writing the files of a volume so that readers see all of the old or all of the new.
//!
//! The layout is Kubernetes' own (`AtomicWriter`), which programs know: the files are in a directory of their own, `..data`
//! is a link to it that is swapped by one rename, and each visible name links through `..data`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::content::Files;

/// The link to the directory with the files.
pub const DATA: &str = "..data";

/// Makes the volume at `path` show exactly `files`; nothing is written when it does already.
pub fn atomically(path: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    let data = path.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.as_ref().is_some_and(|o| shows(&path.join(o), files)) {
        return Ok(());
    }
    let fresh = (0..).map(|n| format!("..v{n}")).find(|n| !path.join(n).exists()).expect("some number is free");
    let directory = path.join(&fresh);
    fs::create_dir(&directory)?;
    for (name, (bytes, mode)) in files {
        let file = directory.join(checked(name)?);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, bytes)?;
        let mode = if group.is_some() { *mode | ((*mode & 0o400) >> 3) } else { *mode };
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        if let Some(group) = group {
            chown(&file, None, Some(group as u32))?;
        }
    }
    let next = path.join("..data.new");
    let _ = fs::remove_file(&next);
    symlink(&fresh, &next)?;
    fs::rename(&next, &data)?;
    link_names(path, files)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(path.join(old));
    }
    Ok(())
}

/// No file of a volume lies outside of it.
fn checked(name: &str) -> io::Result<&str> {
    let bad = name.is_empty() || name.starts_with('/') || name.split('/').any(|p| p == ".." || p.is_empty());
    if bad {
        Err(io::Error::other(format!("invalid path {name:?}: must be relative and without '..'")))
    } else {
        Ok(name)
    }
}

fn shows(directory: &Path, files: &Files) -> bool {
    fn count(directory: &Path) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
    }
    directory.is_dir()
        && count(directory) == files.len()
        && files.iter().all(|(name, (bytes, _))| fs::read(directory.join(name)).is_ok_and(|b| b == *bytes))
}

fn link_names(path: &Path, files: &Files) -> io::Result<()> {
    let tops: BTreeSet<&str> = files.keys().map(|n| n.split('/').next().unwrap_or(n)).collect();
    for entry in fs::read_dir(path)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !tops.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    for top in tops {
        let link = path.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
        }
    }
    Ok(())
}

/// Mounts memory at a directory.
pub fn mount_tmpfs(path: &Path, size_bytes: Option<i64>) -> io::Result<()> {
    let options =
        size_bytes.filter(|s| *s > 0).map(|s| format!("size={s},mode=0777")).unwrap_or_else(|| "mode=0777".into());
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))
        .map_err(io::Error::from)
}

/// The mount points at or below a directory, innermost first.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(|p| p.replace("\\040", " "));
    let mut found: Vec<PathBuf> = points.map(PathBuf::from).filter(|p| p.starts_with(directory)).collect();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> Files {
        all.iter().map(|(n, t)| ((*n).to_owned(), (t.as_bytes().to_vec(), 0o644))).collect()
    }

    #[test]
    fn the_volume_shows_exactly_its_files_and_swaps_them_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        atomically(&path, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(path.join("d/b")).unwrap(), "2");
        let first = fs::read_link(path.join("..data")).unwrap();
        atomically(&path, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(path.join("..data")).unwrap(), first, "nothing new, nothing written");
        atomically(&path, &files(&[("c", "3")]), None).unwrap();
        assert!(!path.join("a").exists() && !path.join("d").exists());
        assert_eq!(fs::read_to_string(path.join("c")).unwrap(), "3");
        assert!(atomically(&path, &files(&[("../x", "3")]), None).is_err());
        assert!(!dir.path().join("x").exists());
    }
}

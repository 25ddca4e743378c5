//! The directories of this node that are persistent volumes of the class `local-path`.
//!
//! Each is one entry of one directory that only the host writes in, named after its volume, namespace and claim. What the
//! server asks for is checked here again: names of claims are their users' words. Invariant: whatever was asked for, only
//! one entry of that directory is made or removed, by its name below a descriptor.

use std::io;
use std::path::{Path, PathBuf};

use crate::apimachinery::node_access::LocalVolume;
use crate::base::beneath::Root;
use crate::base::labels::{dns_label_error, dns_subdomain_error};

/// The directory of volumes in the data directory.
pub const STORAGE: &str = "storage";
/// Whoever runs in the pods may write, as with the provisioner of this name elsewhere.
const MODE: u32 = 0o777;
/// The longest name of a file.
const NAME_BYTES_MAX: usize = 255;

/// The name of a volume's directory.
fn name(of: &LocalVolume) -> io::Result<String> {
    let wrong = [
        dns_subdomain_error(&of.volume).map(|why| ("volume", why)),
        dns_label_error(&of.namespace).map(|why| ("namespace", why)),
        dns_subdomain_error(&of.claim).map(|why| ("claim", why)),
    ];
    if let Some((what, why)) = wrong.into_iter().flatten().next() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the name of the {what}: {why}")));
    }
    // No name of these has an underscore, so the volume's alone tells directories apart; the rest is for people.
    let mut name = format!("{}_{}_{}", of.volume, of.namespace, of.claim);
    name.truncate(NAME_BYTES_MAX);
    Ok(name)
}

/// Where the directory of a volume is.
pub fn place(storage: &Path, of: &LocalVolume) -> io::Result<PathBuf> {
    Ok(storage.join(name(of)?))
}

/// Makes the directory of a volume, or finds that it is there; answers where.
pub fn make(storage: &Path, of: &LocalVolume) -> io::Result<PathBuf> {
    let name = name(of)?;
    Root::make(storage)?.make_directory(name.as_ref(), MODE)?;
    Ok(storage.join(name))
}

/// Removes the directory of a volume with everything in it; fine if it is not there. Answers where it was.
pub fn remove(storage: &Path, of: &LocalVolume) -> io::Result<PathBuf> {
    let name = name(of)?;
    match Root::open(storage) {
        Ok(root) => root.remove(&name)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(storage.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn of(volume: &str, namespace: &str, claim: &str) -> LocalVolume {
        LocalVolume { volume: volume.into(), namespace: namespace.into(), claim: claim.into() }
    }

    #[test]
    fn a_volume_is_one_directory_that_is_made_once_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("data/storage");
        let volume = of("pvc-1", "n", "data-web-0");
        let path = make(&storage, &volume).unwrap();
        assert_eq!(path, storage.join("pvc-1_n_data-web-0"));
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        fs::create_dir(path.join("inner")).unwrap();
        fs::write(path.join("inner/file"), "kept").unwrap();
        assert_eq!(make(&storage, &volume).unwrap(), path);
        assert_eq!(fs::read_to_string(path.join("inner/file")).unwrap(), "kept");
        symlink(dir.path(), path.join("out")).unwrap();
        fs::write(dir.path().join("outside"), "").unwrap();
        remove(&storage, &volume).unwrap();
        remove(&storage, &volume).unwrap();
        assert!(!path.exists() && dir.path().join("outside").exists());
        remove(&dir.path().join("absent"), &volume).unwrap();
    }

    #[test]
    fn no_name_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("storage");
        fs::create_dir(dir.path().join("victim")).unwrap();
        fs::create_dir(&storage).unwrap();
        for (volume, namespace, claim) in [
            ("../victim", "n", "c"),
            ("v", "..", "c"),
            ("v", "n", "/../../victim"),
            ("v", "n", ".."),
            ("v", "", "c"),
            ("v", "n", "a\0b"),
            ("v", "n", "a_b"),
        ] {
            let volume = of(volume, namespace, claim);
            assert_eq!(make(&storage, &volume).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{volume:?}");
            assert_eq!(remove(&storage, &volume).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{volume:?}");
        }
        assert!(dir.path().join("victim").is_dir() && fs::read_dir(&storage).unwrap().count() == 0);
    }

    #[test]
    fn names_that_are_too_long_together_are_cut_and_stay_apart() {
        let dir = tempfile::tempdir().unwrap();
        let long = ["c".repeat(60).as_str(); 4].join(".");
        let [a, b] = ["a", "b"].map(|v| make(dir.path(), &of(&format!("pvc-{v}"), &"n".repeat(63), &long)).unwrap());
        assert!(a != b && a.is_dir() && b.is_dir());
        assert!(remove(dir.path(), &of("pvc-a", &"n".repeat(63), &long)).is_ok() && !a.exists() && b.exists());
    }
}

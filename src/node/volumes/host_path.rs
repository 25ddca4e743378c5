//! hostPath volumes: what is at a path of the machine, opened once, checked, and mounted from what was opened.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use rustix::fs::{FileType, Mode, OFlags};

use crate::base::beneath;
use crate::node::error::{Error, Result};

/// As the kubelet makes them.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// What the volume is now; made if its type says so. The error is fit for an event.
pub fn open(source: &HostPathVolumeSource) -> Result<OwnedFd> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or("");
    let failed = |e: io::Error| Error::part(source.path.clone())(e.into());
    let fd = match kind {
        // Without a type nothing is checked; the runtime needs something to mount, as Docker makes it.
        "" | "DirectoryOrCreate" => beneath::of_host(path, Some(DIRECTORY_MODE)).map_err(failed)?,
        "FileOrCreate" => match beneath::of_host(path, None) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_file(path).map_err(failed)?,
            result => result.map_err(failed)?,
        },
        _ => match beneath::of_host(path, None) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(wrong(source, kind)),
            result => result.map_err(failed)?,
        },
    };
    let is = FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?.st_mode);
    let fits = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => is == FileType::Directory,
        "File" | "FileOrCreate" => is == FileType::RegularFile,
        "Socket" => is == FileType::Socket,
        "CharDevice" => is == FileType::CharacterDevice,
        "BlockDevice" => is == FileType::BlockDevice,
        _ => return Err(Error::HostPathType { kind: kind.to_owned() }),
    };
    if fits { Ok(fd) } else { Err(wrong(source, kind)) }
}

fn wrong(source: &HostPathVolumeSource, kind: &str) -> Error {
    let wanted = match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
        _ => "file",
    };
    Error::CheckHostPath { path: source.path.clone(), wanted }
}

/// Its directory must be there, as with the kubelet.
fn make_file(path: &Path) -> io::Result<OwnedFd> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = beneath::of_host(parent, None)?;
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(FILE_MODE))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::chain;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn types_are_checked_on_what_will_be_mounted_and_made_with_the_kubelets_modes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &Path, kind: &str| {
            open(&HostPathVolumeSource { path: path.display().to_string(), type_: Some(kind.into()) })
        };
        let inode = |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        symlink(&real, &link).unwrap();
        fs::create_dir(&real).unwrap();
        at(&link.join("a/b"), "DirectoryOrCreate").unwrap();
        at(&link.join("a/f"), "FileOrCreate").unwrap();
        let mode = |part: &str| fs::symlink_metadata(real.join(part)).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode("a"), mode("a/b"), mode("a/f")], [0o755, 0o755, 0o644]);
        assert_eq!(inode(at(&link, "Directory").unwrap()), inode(at(&real, "").unwrap()));
        let said = |part: &str, kind: &str| chain(&at(&real.join(part), kind).unwrap_err());
        assert_eq!(
            said("a/f", "Directory"),
            format!("hostPath type check failed: {} is not a directory", real.join("a/f").display())
        );
        assert!(said("a", "Socket").ends_with("is not a socket file"));
        assert!(said("absent", "CharDevice").ends_with("is not a character device"));
        assert!(said("a", "BlockDevice").ends_with("is not a block device"));
        assert!(said("a", "File").ends_with("is not a file"));
        assert_eq!(said("a", "Pipe"), "Pipe is an invalid hostPath type");
        assert!(said("absent/f", "FileOrCreate").contains("No such file"));
        assert!(at(Path::new("/dev/null"), "CharDevice").is_ok());
    }
}

//! `amphipod.local/hello`: an image made of this executable itself, there without any registry and on every machine.
//!
//! The layer holds a copy, made when a container first needs it and again after the executable has changed. Invariant:
//! no container ever sees the installed file itself, neither by a link nor by a mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::error::io;
use super::{Image, ImageConfig, Reference, Result};

/// The name of the built-in image.
pub const HELLO: &str = "amphipod.local/hello:latest";
const BINARY: &str = "amphipod";

pub(super) fn is_hello(reference: &str) -> bool {
    reference == image().id || Reference::parse(reference).is_ok_and(|reference| reference.to_string() == HELLO)
}

/// Its id changes with the version only, so that all nodes agree.
pub(super) fn image() -> Image {
    let id = super::digest_of(format!("{HELLO} {}", env!("CARGO_PKG_VERSION")).as_bytes());
    Image {
        digests: vec![format!("amphipod.local/hello@{id}")],
        id,
        tags: vec![HELLO.into()],
        size_bytes: 0,
        pinned: true,
        last_used: Timestamp::UNIX_EPOCH,
        config: ImageConfig {
            entrypoint: vec![format!("/{BINARY}"), "hello".into()],
            exposed_ports: vec!["8080/tcp".into()],
            working_dir: "/".into(),
            ..ImageConfig::default()
        },
    }
}

pub(super) fn layer_dir(images: &Path) -> PathBuf {
    images.join("hello")
}

/// Makes the layer, still without the executable.
pub(super) fn install(images: &Path) -> Result<()> {
    let layer = layer_dir(images);
    for path in [layer.clone(), layer.join("etc"), layer.join("tmp")] {
        super::rootfs::make_directory(&path)?;
    }
    let passwd = layer.join("etc/passwd");
    fs::write(&passwd, "root:x:0:0:root:/:/amphipod\nnobody:x:65534:65534:nobody:/:/amphipod\n")
        .and_then(|()| fs::set_permissions(&passwd, fs::Permissions::from_mode(0o644)))
        .map_err(io("writing", &passwd))?;
    fs::set_permissions(&passwd, fs::Permissions::from_mode(0o644)).map_err(io("writing", &passwd))
}

/// One copy at a time is enough for everybody who waits for it.
static COPYING: Mutex<()> = Mutex::new(());

/// Puts a copy of the executable of today into the layer, unless it is there.
pub(super) fn complete(images: &Path, executable: &Path) -> Result<()> {
    let _turn = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    let (binary, stamp) = (layer_dir(images).join(BINARY), images.join("hello.source"));
    let source = fs::metadata(executable).map_err(io("reading", executable))?;
    let wanted =
        format!("{}:{} {} {}.{}", source.dev(), source.ino(), source.len(), source.mtime(), source.mtime_nsec());
    let copied = fs::symlink_metadata(&binary);
    let whole = copied.is_ok_and(|copy| copy.is_file() && copy.len() == source.len() && copy.nlink() == 1);
    if whole && fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    let fresh = images.join("hello.new");
    let _ = fs::remove_file(&fresh);
    // Copied within the kernel, and shared by file systems that can.
    fs::copy(executable, &fresh).map_err(io("copying the executable to", &fresh))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o555)).map_err(io("writing", &fresh))?;
    let _ = fs::remove_file(&stamp);
    fs::rename(&fresh, &binary).map_err(io("renaming", &binary))?;
    fs::write(&stamp, wanted).map_err(io("writing", &stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_image_is_a_copy_of_its_own_and_follows_the_executable() {
        let directory = tempfile::tempdir().unwrap();
        let (images, executable) = (directory.path().join("images"), directory.path().join("installed"));
        fs::write(&executable, b"one").unwrap();
        install(&images).unwrap();
        complete(&images, &executable).unwrap();
        let binary = layer_dir(&images).join(BINARY);
        let installed = fs::metadata(&executable).unwrap();
        let copy = fs::metadata(&binary).unwrap();
        assert_ne!((copy.dev(), copy.ino()), (installed.dev(), installed.ino()));
        assert_eq!((copy.mode() & 0o7777, copy.nlink(), installed.nlink()), (0o555, 1, 1));
        complete(&images, &executable).unwrap();
        assert_eq!(fs::metadata(&binary).unwrap().ino(), copy.ino(), "an unchanged one is not copied again");
        fs::write(directory.path().join("new"), b"three").unwrap();
        fs::rename(directory.path().join("new"), &executable).unwrap();
        complete(&images, &executable).unwrap();
        assert_eq!(fs::read(&binary).unwrap(), b"three");
    }
}

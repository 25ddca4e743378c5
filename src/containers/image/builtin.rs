//! `amphipod.local/hello`: an image made of this executable itself, there without any registry and on every machine.
//!
//! Nothing is copied: the executable is hard-linked into a layer, or, on another file system, bound into the container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::error::io;
use super::{Image, ImageConfig, Reference, Result, rootfs};

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

/// Makes the layer, with the executable of today.
pub(super) fn install(images: &Path, executable: &Path) -> Result<()> {
    let layer = layer_dir(images);
    for path in [layer.clone(), layer.join("etc"), layer.join("tmp")] {
        rootfs::make_directory(&path)?;
    }
    let passwd = layer.join("etc/passwd");
    fs::write(&passwd, "root:x:0:0:root:/:/amphipod\nnobody:x:65534:65534:nobody:/:/amphipod\n")
        .and_then(|()| fs::set_permissions(&passwd, fs::Permissions::from_mode(0o644)))
        .map_err(io("writing", &passwd))?;
    let (binary, fresh) = (layer.join(BINARY), layer.join("amphipod.new"));
    let _ = fs::remove_file(&fresh);
    // Fails across file systems and when the running file was deleted: then an empty file is bound over later.
    let source = fs::canonicalize(executable).unwrap_or_else(|_| executable.to_owned());
    if fs::hard_link(&source, &fresh).is_err() {
        fs::write(&fresh, b"").map_err(io("writing", &fresh))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).map_err(io("writing", &fresh))?;
    }
    fs::rename(&fresh, &binary).map_err(io("renaming", &binary))
}

/// Puts the executable in place where the layer could not hold it.
pub(super) fn complete(root: &Path, executable: &Path) -> Result<()> {
    let binary = root.join(BINARY);
    match fs::metadata(&binary) {
        Ok(metadata) if metadata.len() > 0 => Ok(()),
        _ => rootfs::bind_file(executable, &binary),
    }
}

//! Overlay mounts: layers below, a writable directory on top.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::error::io;
use super::{ImageError, Result};
use crate::containers::{Users, idmap};

/// The kernel takes one page of options.
const OPTIONS_MAX: usize = 4000;

/// Mounts an overlay at `target`. `layers` go from the lowest to the topmost.
pub(super) fn mount_overlay(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    if let Some(strange) = layers
        .iter()
        .map(PathBuf::as_path)
        .chain([upper, work])
        .find(|path| path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b',' | b':' | b'\\')))
    {
        return Err(ImageError::invalid("data directory", format!("{strange:?} holds one of , : \\")));
    }
    named_shortly(layers, options(&[], upper, work).len(), |layers| overlay(&options(layers, upper, work), target))
}

/// Many layers are named by open descriptors, which is short, so that there is room for as many bytes beside them.
fn named_shortly<T>(layers: &[PathBuf], beside: usize, act: impl FnOnce(&[PathBuf]) -> Result<T>) -> Result<T> {
    if lower(layers).len() + beside <= OPTIONS_MAX {
        return act(layers);
    }
    let open: Result<Vec<fs::File>> =
        layers.iter().map(|layer| fs::File::open(layer).map_err(io("opening layer", layer))).collect();
    let open = open?;
    let short: Vec<PathBuf> = open.iter().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()).into()).collect();
    act(&short)
}

fn lower(layers: &[PathBuf]) -> String {
    layers.iter().rev().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":")
}

fn options(layers: &[PathBuf], upper: &Path, work: &Path) -> String {
    format!("lowerdir={},upperdir={},workdir={}", lower(layers), upper.display(), work.display())
}

fn overlay(options: &str, target: &Path) -> Result<()> {
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options))
        .map_err(io("mounting overlay at", target))
}

/// Mounts an overlay at `rootfs` of a container's directory that shows the layers' ids as those of a user namespace. What is
/// written goes into `upper` as it is: the overlay's own work is done by the machine's root, which has no id in a mapped mount.
pub(super) fn mount_mapped_overlay(layers: &[PathBuf], directory: &Path, users: &Users) -> Result<()> {
    let upper = directory.join("upper");
    std::os::unix::fs::chown(&upper, Some(users.first_id), Some(users.first_id))
        .map_err(io("changing owner", &upper))?;
    with_mapped(layers, &directory.join("layers"), users, |mapped| {
        mount_overlay(mapped, &upper, &directory.join("work"), &directory.join("rootfs"))
    })
}

/// Does something with the layers as a user namespace shows them, mounted in a directory that is made for this time.
fn with_mapped(
    layers: &[PathBuf],
    place: &Path,
    users: &Users,
    act: impl FnOnce(&[PathBuf]) -> Result<()>,
) -> Result<()> {
    make_directory(place)?;
    // Private, so that nobody else gets copies. The overlay keeps clones of its own: these go with their place.
    let mounts = || -> std::io::Result<Vec<PathBuf>> {
        let namespace = fs::File::open(&users.namespace)?;
        rustix::mount::mount_bind(place, place)?;
        rustix::mount::mount_change(place, rustix::mount::MountPropagationFlags::PRIVATE)?;
        let mut mapped = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let (tree, at) = (idmap::clone_of(layer, false)?, place.join(number.to_string()));
            idmap::map(tree.as_fd(), namespace.as_fd())?;
            fs::create_dir(&at)?;
            idmap::attach(tree, &at)?;
            mapped.push(at);
        }
        Ok(mapped)
    };
    let done = mounts().map_err(io("mapping the ids of layers at", place)).and_then(|mapped| act(&mapped));
    unmount(place)?;
    let _ = crate::base::tree::remove(place);
    done
}

/// Mounts layers at `target` for reading; nothing there is executed or a device. `empty` is a directory without anything in it.
pub(super) fn mount_for_reading(layers: &[PathBuf], empty: &Path, target: &Path, users: Option<&Users>) -> Result<()> {
    // The kernel wants two layers at least.
    let act = |layers: &[PathBuf]| {
        let all: Vec<PathBuf> = std::iter::once(empty.to_owned()).chain(layers.iter().cloned()).collect();
        named_shortly(&all, "lowerdir=".len(), |all| {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let options = format!("lowerdir={}", lower(all));
            mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))
                .map_err(io("mounting overlay at", target))
        })
    };
    match users {
        None => act(layers),
        Some(users) => with_mapped(layers, &target.with_extension("layers"), users, act),
    }
}

/// Whether overlays can show the ids of a user namespace, tried in an empty directory.
pub(in super::super) fn probe_mapped_overlay(scratch: &Path, users: &Users) -> Result<()> {
    for name in ["lower", "upper", "work", "rootfs"] {
        make_directory(&scratch.join(name))?;
    }
    mount_mapped_overlay(&[scratch.join("lower")], scratch, users)?;
    unmount(&scratch.join("rootfs"))
}

/// Makes a directory as containers see it: the topmost one of a root file system is everybody's, whatever our umask is. The way
/// to it is root's alone.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path).map_err(io("creating", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io("creating", path))
}

/// Whether overlays can be mounted with their writable directory in `scratch`, which is made and must be removed after.
pub fn probe_overlay(scratch: &Path) -> Result<()> {
    let path = |name: &str| scratch.join(name);
    for name in ["lower", "upper", "work", "view"] {
        fs::create_dir_all(path(name)).map_err(io("creating", &path(name)))?;
    }
    mount_overlay(&[path("lower")], &path("upper"), &path("work"), &path("view"))?;
    unmount(&path("view"))
}

/// Whether something is mounted exactly here.
pub(super) fn is_mounted(path: &Path) -> bool {
    let (Ok(own), Some(Ok(parent))) = (rustix::fs::stat(path), path.parent().map(rustix::fs::stat)) else {
        return false;
    };
    own.st_dev != parent.st_dev
}

/// Unmounts one mount point; fine if nothing is mounted.
pub(super) fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(io("unmounting", path)(error)),
    }
}

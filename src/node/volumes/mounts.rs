//! The volume mounts of one container: from names in its spec to places that mean what they meant when they were checked.
//!
//! Containers write into volumes while others start. So a subPath is resolved once, to a descriptor beneath the volume
//! (missing directories are made on the way, through descriptors), and so is a hostPath; what was opened is then pinned.
//! Invariant: what is mounted is what was checked, and a subPath never leaves its volume.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use rustix::fs::FileType;

use super::pin::Pins;
use super::{Paths, VolumeLocation, host_path};
use crate::base::beneath::Root;
use crate::containers::image::make_directory_in;
use crate::containers::{Mount, MountSource};
use crate::node::error::{Error, Result};
use crate::node::{env, spec};

/// A place in a volume that is written by the host alone, where something else is to be mounted.
struct Nested<'a> {
    volume: &'a Path,
    below: PathBuf,
    is_directory: bool,
}

/// The mounts of a container's volumes. `others` are those it has beside them, as files, and `of_image` the directories that its
/// image mounts; `pins` must live until it runs. The error is fit for an event.
pub fn of(
    c: &Container,
    volumes: &Paths,
    variables: &BTreeMap<String, String>,
    others: &[Mount],
    of_image: &[PathBuf],
    pins: &mut Pins,
) -> Result<Vec<Mount>> {
    let mut all = Vec::new();
    // Where each is in the container, and whether it is a directory.
    let others = others.iter().map(|m| (m.container_path.clone(), false));
    let mut places: Vec<(PathBuf, bool)> = others.chain(of_image.iter().map(|path| (path.clone(), true))).collect();
    let mut written: Vec<(&Path, &Path)> = Vec::new();
    for m in c.volume_mounts.iter().flatten() {
        let place = volumes.get(&m.name).ok_or_else(|| Error::FindVolume(m.name.clone()))?;
        let sub = sub_path(m, variables)?;
        let failed = |source: Error| {
            let what = if sub.is_empty() { "volume" } else { "subPath" };
            Error::PrepareMount { what, mount: m.name.clone(), container: c.name.clone(), source: Box::new(source) }
        };
        let (path, is_directory) = source(place, &sub, pins).map_err(failed)?;
        if let (VolumeLocation::Content(volume), true) = (place, sub.is_empty()) {
            written.push((volume, Path::new(&m.mount_path)));
        }
        let read_only = m.read_only == Some(true)
            || matches!(place, VolumeLocation::Content(_) | VolumeLocation::Host { read_only: true, .. });
        all.push(match place {
            VolumeLocation::Image(_) => Mount {
                container_path: m.mount_path.clone().into(),
                read_only: true,
                source: MountSource::Image { host_path: path },
            },
            _ => spec::bind(path, &m.mount_path, read_only, m.mount_propagation.as_deref()),
        });
        places.push((PathBuf::from(&m.mount_path), is_directory));
    }
    for nested in nested(&places, &written) {
        nested.make().map_err(|source| Error::NestMount { volume: nested.volume.to_owned(), source })?;
    }
    Ok(all)
}

/// The mount of a directory of the container's root file system that lies inside of another mount: by its name it would be a part of
/// that. It is made where it is missing, `first_id` is root's there. None for what its links make the whole root.
pub fn of_rootfs(rootfs: &Path, path: &Path, first_id: Option<u32>, pins: &mut Pins) -> Result<Option<Mount>> {
    let made = make_directory_in(rootfs, path, first_id)?;
    let number = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let (own, whole) = (rustix::fs::fstat(&made), rustix::fs::stat(rootfs));
    if own.and_then(|own| Ok(number(own) == number(whole?))).map_err(io::Error::from)? {
        return Ok(None);
    }
    let host_path = pins.pin(made.as_fd(), false).map_err(Error::Pin)?;
    let source = MountSource::OfRootfs { host_path };
    Ok(Some(Mount { container_path: path.to_owned(), read_only: false, source }))
}

/// What of the volume is wanted, as the container's variables have it.
fn sub_path(m: &VolumeMount, variables: &BTreeMap<String, String>) -> Result<String> {
    let sub = match (&m.sub_path_expr, &m.sub_path) {
        (Some(e), _) if !e.is_empty() => env::expand(e, variables),
        (_, sub) => sub.clone().unwrap_or_default(),
    };
    if sub.starts_with('/') {
        return Err(Error::AbsoluteSubPath(sub));
    }
    if sub.split('/').any(|part| part == "..") {
        return Err(Error::ParentInSubPath(sub));
    }
    Ok(sub)
}

/// A path to mount, and whether it is a directory.
fn source(place: &VolumeLocation, sub: &str, pins: &mut Pins) -> Result<(PathBuf, bool)> {
    let volume: OwnedFd = match place {
        // Nobody but the host writes where these are, so their names are good.
        VolumeLocation::Directory(path) | VolumeLocation::Content(path) | VolumeLocation::Image(path)
            if sub.is_empty() =>
        {
            return Ok((path.clone(), true));
        }
        VolumeLocation::Directory(path) | VolumeLocation::Content(path) | VolumeLocation::Image(path) => {
            Root::open(path)?.into()
        }
        VolumeLocation::Host { source, .. } => host_path::open(source)?,
    };
    let stat = |fd: &OwnedFd| rustix::fs::fstat(fd).map_err(io::Error::from);
    // Only a volume of the machine may have something mounted in it that belongs to it.
    let recursive = matches!(place, VolumeLocation::Host { .. });
    let wanted = match sub {
        "" => volume,
        sub => {
            let mode = stat(&volume)?.st_mode;
            let found = Root::of(volume).resolve_or_make(Path::new(sub), mode);
            found.map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => Error::LeaveVolume { sub: sub.to_owned(), source },
                _ => Error::OpenSubPath { sub: sub.to_owned(), source },
            })?
        }
    };
    let is_directory = FileType::from_raw_mode(stat(&wanted)?.st_mode).is_dir();
    let path = pins.pin(wanted.as_fd(), recursive).map_err(Error::Pin)?;
    Ok((path, is_directory))
}

/// Mount points that the runtime could not make, because the volume around them is read-only.
fn nested<'a>(places: &[(PathBuf, bool)], written: &[(&'a Path, &Path)]) -> Vec<Nested<'a>> {
    let mut found = Vec::new();
    for (path, is_directory) in places {
        // The innermost mount around it.
        let around = places.iter().map(|(p, _)| p.as_path()).filter(|p| path.starts_with(p) && *p != path);
        let Some(around) = around.max_by_key(|p| p.components().count()) else { continue };
        let Some((volume, at)) = written.iter().rev().find(|(_, at)| *at == around) else { continue };
        let Ok(below) = path.strip_prefix(at) else { continue };
        found.push(Nested { volume, below: below.to_owned(), is_directory: *is_directory });
    }
    found
}

// === impl Nested ===

impl Nested<'_> {
    /// A name that the volume shows itself is mounted over as it is.
    fn make(&self) -> io::Result<()> {
        let volume = Root::open(self.volume)?;
        let top = self.below.iter().next().map(|name| name.to_string_lossy()).unwrap_or_default();
        if volume.link(&top).is_some() || is_link(&volume, &top)? {
            return Ok(());
        }
        if self.is_directory {
            return volume.make_directory(&self.below, 0o755).map(drop);
        }
        let parent = volume.make_directory(self.below.parent().unwrap_or(Path::new("")), 0o755)?;
        let name = self.below.file_name().unwrap_or_default().to_string_lossy();
        match parent.has(&name) {
            true => Ok(()),
            false => parent.write_new(&name, b"", 0o644, None),
        }
    }
}

fn is_link(volume: &Root, name: &str) -> io::Result<bool> {
    Ok(volume.entries()?.iter().any(|(n, kind)| n == name && *kind == FileType::Symlink))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::chain;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct World {
        dir: tempfile::TempDir,
        volumes: Paths,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            for name in ["scratch/a", "content", "host"] {
                fs::create_dir_all(at(name)).unwrap();
            }
            let host = serde_json::from_value(json!({"path": at("host"), "type": "Directory"})).unwrap();
            let volumes = [
                ("scratch".to_owned(), VolumeLocation::Directory(at("scratch"))),
                ("content".to_owned(), VolumeLocation::Content(at("content"))),
                ("host".to_owned(), VolumeLocation::Host { source: host, read_only: false }),
            ];
            Self { volumes: volumes.into(), dir }
        }

        fn mounts(&self, mounts: serde_json::Value) -> Result<(Vec<Mount>, Pins)> {
            let container = serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).unwrap();
            let variables = BTreeMap::from([("POD".to_owned(), "p0".to_owned()), ("UP".to_owned(), "../x".to_owned())]);
            let mut pins = Pins::new(self.dir.path().join("pins"));
            let others = [spec::bind("/x", "/cfg/termination", false, None)];
            of(&container, &self.volumes, &variables, &others, &["/cfg/of/image".into()], &mut pins)
                .map(|all| (all, pins))
        }
    }

    #[test]
    fn volumes_of_api_objects_are_read_only_whatever_the_container_says() {
        let world = World::new();
        let mounts = json!([{"name": "content", "mountPath": "/cfg", "readOnly": false},
            {"name": "content", "mountPath": "/sub", "subPath": "key"}, {"name": "scratch", "mountPath": "/s"}]);
        let (all, _pins) = world.mounts(mounts).unwrap();
        assert_eq!(all.iter().map(|m| m.read_only).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn mount_points_in_a_read_only_volume_are_made_by_the_host() {
        let world = World::new();
        let path = world.dir.path().join("content");
        symlink("..data/key", path.join("key")).unwrap();
        fs::write(world.dir.path().join("scratch/file"), "").unwrap();
        let mounts = json!([{"name": "content", "mountPath": "/cfg"}, {"name": "scratch", "mountPath": "/cfg/d/e"},
            {"name": "scratch", "mountPath": "/cfg/f", "subPath": "file"}, {"name": "scratch", "mountPath": "/cfg/key/x"}]);
        let (_, _pins) = world.mounts(mounts).unwrap();
        assert!(path.join("d/e").is_dir() && path.join("f").is_file() && path.join("termination").is_file());
        assert!(path.join("of/image").is_dir());
        assert!(fs::read_link(path.join("key")).is_ok());
    }

    #[test]
    fn a_sub_path_that_leads_out_of_its_volume_is_refused_and_nothing_is_made() {
        let world = World::new();
        let scratch = world.dir.path().join("scratch");
        symlink(world.dir.path().join("host"), scratch.join("out")).unwrap();
        symlink("../host", scratch.join("out-too")).unwrap();
        symlink("a", scratch.join("in")).unwrap();
        let at =
            |key: &str, sub: &str| world.mounts(json!([{"name": "scratch", "mountPath": "/m", key: sub}])).map(|_| ());
        for sub in ["out", "out/new", "out-too/new"] {
            let error = chain(&at("subPath", sub).unwrap_err());
            let expect = format!("of container \"c\": subpath {sub:?} not within volume path");
            assert!(error.contains("failed to prepare subPath") && error.contains(&expect), "{error}");
        }
        assert!(at("subPathExpr", "$(UP)").unwrap_err().to_string().contains("must not contain '..'"));
        assert!(at("subPathExpr", "/$(POD)").unwrap_err().to_string().contains("must not be an absolute path"));
        at("subPath", "in/new").unwrap();
        at("subPathExpr", "logs/$(POD)").unwrap();
        assert!(scratch.join("a/new").is_dir() && scratch.join("logs/p0").is_dir());
        assert_eq!(fs::read_dir(world.dir.path().join("host")).unwrap().count(), 0);
        assert!(!world.dir.path().join("pins").exists(), "nothing stays mounted");
    }

    /// What is mounted was checked, although its parent is exchanged all the time.
    #[test]
    fn exchanging_the_parent_of_a_sub_path_never_wins() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use std::sync::atomic::{AtomicBool, Ordering};
        let world = World::new();
        let scratch = world.dir.path().join("scratch");
        fs::create_dir(scratch.join("a/b")).unwrap();
        fs::write(scratch.join("a/b/mine"), "").unwrap();
        fs::create_dir(world.dir.path().join("host/b")).unwrap();
        symlink(world.dir.path().join("host"), scratch.join("evil")).unwrap();
        let (over, mut mounted) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let (a, b) = (scratch.join("a"), scratch.join("evil"));
                    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                }
            });
            for _ in 0..300 {
                let one = world.mounts(json!([{"name": "scratch", "mountPath": "/m", "subPath": "a/b"}]));
                let Ok((all, _pins)) = one else { continue };
                let crate::containers::MountSource::Bind { host_path, .. } = &all[0].source else { panic!() };
                mounted += 1;
                if !host_path.join("mine").exists() {
                    over.store(true, Ordering::Relaxed);
                    panic!("something of the host is mounted");
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(mounted > 0, "the mount never succeeded");
    }
}

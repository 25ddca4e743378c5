//! The volumes of a pod: directories of the host that its containers see.

mod claimed;
mod content;
mod files;
mod host_path;
pub mod local;
pub mod mounts;
pub mod pin;
mod write;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Pod, Volume};
use nix::mount::MsFlags;

use super::Node;
use super::env::DownwardValues;
use super::error::{Error, Result};
use crate::base::file::make_private_dir;
use crate::base::{task, tree};
use crate::containers::unmount_below;

/// Where each volume of a pod is on the host.
pub type Paths = BTreeMap<String, VolumeLocation>;

/// Where a volume is. The names of the first two are good: no container can write around them.
#[derive(Clone, Debug)]
pub enum VolumeLocation {
    /// A directory of the pod's own.
    Directory(PathBuf),
    /// Made of API objects by the host, for reading only.
    Content(PathBuf),
    /// Whatever is there when a container starts.
    Host { source: HostPathVolumeSource, read_only: bool },
    /// An image, for reading only: each container that mounts it has it mounted for itself, here.
    Image(PathBuf),
}

/// Makes (or brings up to date) all volumes of a pod. With `adopted`, what comes from API objects and is there already is
/// left as it is: [`refresh`] comes next, and the API may be away. True if one is to be looked at again soon. The error is fit
/// for a FailedMount event.
pub async fn prepare(node: &Node, pod: &Pod, facts: &DownwardValues, adopted: bool) -> Result<(Paths, bool)> {
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    let (mut paths, mut any_stale) = (Paths::new(), false);
    remove_pins(node, uid);
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let there = content_dir(node, uid, volume);
        let (path, stale) = match adopted && content::is_content(volume) && write::is_written(&there) {
            true => (VolumeLocation::Content(there), false),
            false => one(node, pod, uid, volume, facts, adopted).await.map_err(|e| match e {
                // It says all itself: nothing was mounted yet.
                Error::ProcessClaim { .. } => e,
                e => Error::SetUpVolume { volume: volume.name.clone(), source: Box::new(e) },
            })?,
        };
        paths.insert(volume.name.clone(), path);
        any_stale |= stale;
    }
    Ok((paths, any_stale))
}

/// Brings what comes from API objects up to date in a running pod. One volume that cannot be does not stop the others.
pub async fn refresh(node: &Node, pod: &Pod, facts: &DownwardValues) -> Result<()> {
    let (mut any_stale, mut errors) = (false, Vec::new());
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| content::is_content(v)) {
        match one(node, pod, pod.metadata.uid.as_deref().unwrap_or(""), volume, facts, false).await {
            Ok((_, stale)) => any_stale |= stale,
            Err(why) => errors.push(Error::RefreshVolume { volume: volume.name.clone(), source: Box::new(why) }),
        }
    }
    if any_stale {
        errors.push(Error::RenewToken);
    }
    Error::gather(errors)
}

/// Whether a volume of the pod shows this ConfigMap or Secret.
pub fn mentions(pod: &Pod, is_secret: bool, name: &str) -> bool {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| content::mentions(v, is_secret, name))
}

/// The images that a container mounts as volumes: names of the volumes, references and policies.
pub fn images<'a>(pod: &'a Pod, container: &Container) -> Vec<(&'a str, &'a str, &'a str)> {
    let all = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let is_mounted = |v: &&Volume| container.volume_mounts.iter().flatten().any(|m| m.name == v.name);
    let image = |v: &'a Volume| {
        let image = v.image.as_ref()?;
        let policy = image.pull_policy.as_deref().unwrap_or("IfNotPresent");
        Some((v.name.as_str(), image.reference.as_deref().unwrap_or(""), policy))
    };
    all.filter(is_mounted).filter_map(image).collect()
}

/// Whether a volume of the pod shows its labels or annotations.
pub fn shows_metadata(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(content::shows_metadata)
}

/// Whether a token must be renewed from time to time.
pub fn has_token(pod: &Pod) -> bool {
    let projected = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(|v| v.projected.as_ref());
    projected.flat_map(|p| p.sources.iter().flatten()).any(|s| s.service_account_token.is_some())
}

/// Removes everything that was made for a pod; errors are gathered and do not stop it.
pub async fn remove(node: &Node, uid: &str) -> Result<()> {
    let directories = [node.pod_dir(uid), node.pod_run_dir(uid)];
    // Containers may have made as much as the disk holds.
    let removed = task::blocking(move || remove_all(&directories)).await;
    removed?
}

fn remove_all(directories: &[PathBuf]) -> Result<()> {
    let mut errors = Vec::new();
    for directory in directories {
        if let Err(error) = unmount_below(directory) {
            errors.push(Error::Runtime(error));
        }
        if let Err(error) = tree::remove(directory) {
            errors.push(Error::part(directory.display().to_string())(error.into()));
        }
    }
    Error::gather(errors)
}

/// Where paths are held while containers start.
pub fn pins(node: &Node, uid: &str, container: &str) -> pin::Pins {
    pin::Pins::new(node.pod_run_dir(uid).join(PINS).join(container))
}

/// Those of a process that was killed while a container started.
fn remove_pins(node: &Node, uid: &str) {
    let directory = node.pod_run_dir(uid).join(PINS);
    if directory.exists() {
        let removed = unmount_below(&directory).map_err(|e| crate::base::error::chain(&e));
        if let Err(error) = removed.and_then(|()| tree::remove(&directory).map_err(|e| e.to_string())) {
            tracing::warn!(uid, error, "mounts of an earlier start are left until the pod goes");
        }
    }
}

const PINS: &str = "pins";

/// Where a volume is whose files come from API objects.
fn content_dir(node: &Node, uid: &str, volume: &Volume) -> PathBuf {
    node.pod_run_dir(uid).join("volumes").join(&volume.name)
}

/// Makes one volume, or brings it up to date; true if it is to be looked at again soon.
async fn one(
    node: &Node,
    pod: &Pod,
    uid: &str,
    volume: &Volume,
    facts: &DownwardValues,
    adopted: bool,
) -> Result<(VolumeLocation, bool)> {
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    if let Some(empty) = &volume.empty_dir {
        let path = node.pod_dir(uid).join("volumes/empty-dir").join(&volume.name);
        let fresh = !path.exists();
        make_private_dir(&path)?;
        if empty.medium.as_deref() == Some("Memory") && !is_mounted(&path)? {
            let size = empty.size_limit.as_ref().and_then(|q| q.0.parse::<crate::base::quantity::Quantity>().ok());
            let size = size.map(|q| q.units()).filter(|s| *s > 0);
            let options = size.map_or_else(|| "mode=0777".into(), |s| format!("size={s},mode=0777"));
            mount_tmpfs(&path, MsFlags::empty(), &options)?;
        }
        if fresh {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
            own(&path, group)?;
        }
        return Ok((VolumeLocation::Directory(path), false));
    }
    if let Some(host) = &volume.host_path {
        // Made and checked now, so that a pod whose volume is wrong does not start, and again for each container.
        let location = VolumeLocation::Host { source: host.clone(), read_only: false };
        return host_path::open(host).map(|_| (location, false));
    }
    if let Some(claim) = claimed::claim_of(pod, volume) {
        let (source, read_only) = claimed::open(node, pod, &claim, group, adopted).await?;
        return Ok((VolumeLocation::Host { source, read_only }, false));
    }
    if volume.image.is_some() {
        return Ok((VolumeLocation::Image(PathBuf::new()), false));
    }
    if content::is_content(volume) {
        let path = content_dir(node, uid, volume);
        let content = content::of(node, pod, volume, facts, &path).await?;
        write::atomically(&path, &content.files, group, node.clock.now())?;
        return Ok((VolumeLocation::Content(path), content.stale));
    }
    Err(Error::VolumeType)
}

/// Gives a volume to the pod's group, with the set-group-id bit so that new files belong to it too.
fn own(path: &Path, group: Option<i64>) -> std::io::Result<()> {
    if let Some(group) = group {
        chown(path, None, Some(group as u32))?;
        let mode = std::fs::metadata(path)?.mode() | 0o2070;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Mounts memory at a directory.
pub(super) fn mount_tmpfs(path: &Path, flags: MsFlags, options: &str) -> std::io::Result<()> {
    Ok(nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))?)
}

/// Whether a directory is another file system than the one around it.
pub(super) fn is_mounted(path: &Path) -> std::io::Result<bool> {
    let around = path.parent().unwrap_or(path);
    Ok(std::fs::symlink_metadata(path)?.dev() != std::fs::symlink_metadata(around)?.dev())
}

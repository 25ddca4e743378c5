//! The volumes of a pod: directories of the host that its containers see.

mod content;
mod write;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{HostPathVolumeSource, Pod, Volume};

use super::Node;
use super::env::Facts;

/// Where each volume of a pod is on the host.
pub type Paths = BTreeMap<String, PathBuf>;

/// Makes (or brings up to date) all volumes of a pod. With `adopted`, what comes from API objects and is there already is
/// left as it is: [`refresh`] comes next, and the API may be away. True if one is to be looked at again soon. The error is fit
/// for a FailedMount event.
pub async fn prepare(node: &Node, pod: &Pod, facts: &Facts, adopted: bool) -> Result<(Paths, bool), String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    let (mut paths, mut any_stale) = (Paths::new(), false);
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let there = content_dir(node, uid, volume);
        let (path, stale) = match adopted && content::is_content(volume) && there.join(write::DATA).is_dir() {
            true => (there, false),
            false => one(node, pod, uid, volume, facts)
                .await
                .map_err(|e| format!("MountVolume.SetUp failed for volume {:?} : {e}", volume.name))?,
        };
        paths.insert(volume.name.clone(), path);
        any_stale |= stale;
    }
    Ok((paths, any_stale))
}

/// Brings what comes from API objects up to date in a running pod.
pub async fn refresh(node: &Node, pod: &Pod, facts: &Facts) -> Result<(), String> {
    let mut any_stale = false;
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| content::is_content(v)) {
        any_stale |= one(node, pod, pod.metadata.uid.as_deref().unwrap_or(""), volume, facts).await?.1;
    }
    if any_stale { Err("the server is away, so its token is the one before".into()) } else { Ok(()) }
}

/// Whether a volume of the pod shows this ConfigMap or Secret.
pub fn mentions(pod: &Pod, is_secret: bool, name: &str) -> bool {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| content::mentions(v, is_secret, name))
}

/// Whether a token must be renewed from time to time.
pub fn has_token(pod: &Pod) -> bool {
    let projected = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(|v| v.projected.as_ref());
    projected.flat_map(|p| p.sources.iter().flatten()).any(|s| s.service_account_token.is_some())
}

/// Removes everything that was made for a pod; errors are gathered and do not stop it.
pub fn remove(node: &Node, uid: &str) -> Result<(), String> {
    let mut errors = Vec::new();
    for directory in [node.pod_dir(uid), node.pod_run_dir(uid)] {
        for mount in write::mounts_below(&directory) {
            if let Err(e) = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH) {
                errors.push(format!("{}: {e}", mount.display()));
            }
        }
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => errors.push(format!("{}: {e}", directory.display())),
            _ => {}
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Where a volume is whose files come from API objects.
fn content_dir(node: &Node, uid: &str, volume: &Volume) -> PathBuf {
    node.pod_run_dir(uid).join("volumes").join(&volume.name)
}

/// Makes one volume, or brings it up to date; true if it is to be looked at again soon.
async fn one(node: &Node, pod: &Pod, uid: &str, volume: &Volume, facts: &Facts) -> Result<(PathBuf, bool), String> {
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    let io = |e: std::io::Error| e.to_string();
    if let Some(empty) = &volume.empty_dir {
        let path = node.pod_dir(uid).join("volumes/empty-dir").join(&volume.name);
        let fresh = !path.exists();
        std::fs::create_dir_all(&path).map_err(io)?;
        if empty.medium.as_deref() == Some("Memory") && write::mounts_below(&path).is_empty() {
            let size = empty.size_limit.as_ref().and_then(|q| q.0.parse::<crate::base::quantity::Quantity>().ok());
            write::mount_tmpfs(&path, size.map(|q| q.units())).map_err(io)?;
        }
        if fresh {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).map_err(io)?;
            own(&path, group).map_err(io)?;
        }
        return Ok((path, false));
    }
    if let Some(host) = &volume.host_path {
        return host_path(host).map(|path| (path, false));
    }
    if content::is_content(volume) {
        let path = content_dir(node, uid, volume);
        let content = content::of(node, pod, volume, facts, &path).await?;
        write::atomically(&path, &content.files, group).map_err(io)?;
        return Ok((path, content.stale));
    }
    Err("volumes of this type are not supported yet; supported: emptyDir, hostPath, configMap, secret, downwardAPI, projected".into())
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

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    use std::os::unix::fs::FileTypeExt;
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or("");
    let found = std::fs::metadata(&path).ok();
    let wrong = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    match (kind, found) {
        ("DirectoryOrCreate", None) => std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", source.path))?,
        ("FileOrCreate", None) => drop(std::fs::File::create(&path).map_err(|e| format!("{}: {e}", source.path))?),
        ("", _) => {
            // Without a type nothing is checked; the runtime needs something to mount, as Docker makes it.
            if !path.exists() {
                std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", source.path))?;
            }
        }
        ("Directory" | "DirectoryOrCreate", m) if !m.as_ref().is_some_and(|m| m.is_dir()) => {
            return wrong("a directory");
        }
        ("File" | "FileOrCreate", m) if !m.as_ref().is_some_and(|m| m.is_file()) => return wrong("a file"),
        ("Socket", m) if !m.as_ref().is_some_and(|m| m.file_type().is_socket()) => return wrong("a socket"),
        ("CharDevice", m) if !m.as_ref().is_some_and(|m| m.file_type().is_char_device()) => {
            return wrong("a character device");
        }
        ("BlockDevice", m) if !m.as_ref().is_some_and(|m| m.file_type().is_block_device()) => {
            return wrong("a block device");
        }
        _ => {}
    }
    Ok(path)
}

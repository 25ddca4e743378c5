//! Volumes that pods have by claims: found by the claim, checked, and given to the pod's group.
//!
//! What was found is written down in the run directory, so that a pod that was left running is taken over while the API is
//! away. Invariant: a pod mounts the volume that its own claim is bound to and no other, and one whose claim is at its end
//! does not begin.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::local;
use crate::apimachinery::node_access::LocalVolume;
use crate::apimachinery::status::Status;
use crate::apimachinery::volume::{
    LOCAL_PATH, PROVISIONED_BY, PodClaim, claims_of, is_bound_to, is_owned_by, is_reachable, volume_note, volume_of,
};
use crate::base::beneath::Root;
use crate::base::{task, tree};
use crate::kinds::core::{node, persistentvolume, persistentvolumeclaim};
use crate::node::Node;
use crate::node::error::{Error, Result};

/// Where what was found is written down, below the pod's directory.
const FOUND: &str = "claims";
/// No path is so long.
const FOUND_BYTES_MAX: u64 = 64 << 10;

/// What a claim leads to on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    source: HostPath,
    read_only: bool,
    /// It can be given to the pod's group.
    is_local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HostPath {
    path: String,
    kind: String,
}

/// The claim that a volume of a pod stands for, if it does.
pub(super) fn claim_of(pod: &Pod, volume: &Volume) -> Option<PodClaim> {
    claims_of(pod).find(|of| of.volume == volume.name)
}

/// Finds what a claim leads to, and makes it ready; answers also whether it is for reading only. The error is fit for an event.
pub(super) async fn open(
    node: &Node,
    pod: &Pod,
    of: &PodClaim,
    group: Option<i64>,
    adopted: bool,
) -> Result<(HostPathVolumeSource, bool)> {
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    let directory = node.pod_run_dir(uid).join(FOUND);
    if let Some(found) = adopted.then(|| recall(&directory, &of.volume)).flatten() {
        return Ok(found.location());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let found = find(node, namespace, uid, of).await.map_err(|source| Error::ProcessClaim {
        volume: of.volume.clone(),
        claim: format!("{namespace}/{}", of.claim),
        source: Box::new(source),
    })?;
    let opened = super::host_path::open(&found.host_path())?;
    if let Some(group) = group.filter(|_| found.is_local && !found.read_only) {
        give_to_group(opened, group as u32, always(pod)).await?;
    }
    let text = serde_json::to_vec(&found)?;
    let root = Root::make(&directory)?;
    root.remove(&of.volume)?;
    root.write_new(&of.volume, &text, 0o600, None)?;
    Ok(found.location())
}

fn recall(directory: &Path, volume: &str) -> Option<Found> {
    let bytes = Root::open(directory).ok()?.read(volume, FOUND_BYTES_MAX).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn always(pod: &Pod) -> bool {
    let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    security.and_then(|s| s.fs_group_change_policy.as_deref()) != Some("OnRootMismatch")
}

async fn find(node: &Node, namespace: &str, pod_uid: &str, of: &PodClaim) -> Result<Found> {
    let fetch = |what: &'static str| move |status: Status| Error::FetchClaim { what, source: status };
    let claim = node.client.get(&persistentvolumeclaim::KIND, namespace, &of.claim).await.map_err(fetch("PVC"))?;
    if of.is_ephemeral && !is_owned_by(&claim, pod_uid) {
        return Err(Error::OwnClaim);
    }
    if claim.meta.deleted.is_some() {
        return Err(Error::EndingClaim);
    }
    let typed = claim.typed::<PersistentVolumeClaim>()?;
    let name = volume_of(&typed);
    let phase = typed.status.as_ref().and_then(|s| s.phase.as_deref());
    if name.is_empty() || phase != Some("Bound") {
        return Err(Error::UnboundClaim);
    }
    let object = node.client.get(&persistentvolume::KIND, "", name).await.map_err(fetch("PV"))?;
    let volume = object.typed::<PersistentVolume>()?;
    let is_named = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|r| r.uid.is_some());
    if !is_named || !is_bound_to(&volume, &claim) {
        return Err(Error::VolumeOfAnother(name.to_owned()));
    }
    let here = node.client.informer(&node::KIND).get("", &node.config.name);
    if here.is_some_and(|here| !is_reachable(&volume, &here)) {
        return Err(Error::VolumeElsewhere(name.to_owned()));
    }
    source(&volume, of.read_only, &node.config.data_dir.join(local::STORAGE))
}

/// What a volume is on this machine, if it is something that this version mounts. Where a directory of `local-path` is, this node
/// knows best: the path in the object came from the node that made it, which another one has no reason to believe.
fn source(volume: &PersistentVolume, read_only: bool, storage: &Path) -> Result<Found> {
    let spec = volume.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Error::BlockVolume);
    }
    let (path, kind, is_local) = match (&spec.local, &spec.host_path) {
        (Some(_), _) if volume_note(volume, PROVISIONED_BY) == Some(LOCAL_PATH) => {
            let place = local::place(storage, &LocalVolume::of(volume).unwrap_or_default())?;
            (place.to_string_lossy().into_owned(), "Directory".to_owned(), true)
        }
        (Some(local), _) => (local.path.clone(), "Directory".to_owned(), true),
        (None, Some(host)) => (host.path.clone(), host.type_.clone().unwrap_or_default(), false),
        (None, None) => return Err(Error::PersistentVolumeType),
    };
    if spec.mount_options.is_some_and(|options| !options.is_empty()) {
        return Err(Error::MountOptions);
    }
    Ok(Found { source: HostPath { path, kind }, read_only, is_local })
}

/// Gives a volume with everything in it to the pod's group; without `always` only if the volume itself is not its.
async fn give_to_group(volume: OwnedFd, group: u32, always: bool) -> Result<()> {
    // What was opened is only a place: it is opened for reading by its descriptor.
    let root: OwnedFd = Root::of(volume).directory(".")?.into();
    let given = task::blocking(move || -> io::Result<()> {
        let stat = rustix::fs::fstat(&root)?;
        let fits = stat.st_gid == group && stat.st_mode & tree::GROUP_MODE == tree::GROUP_MODE;
        match FileType::from_raw_mode(stat.st_mode).is_dir() && (always || !fits) {
            true => tree::give_to_group(root, group),
            false => Ok(()),
        }
    });
    Ok(given.await??)
}

// === impl Found ===

impl Found {
    fn host_path(&self) -> HostPathVolumeSource {
        HostPathVolumeSource { path: self.source.path.clone(), type_: Some(self.source.kind.clone()) }
    }

    fn location(&self) -> (HostPathVolumeSource, bool) {
        (self.host_path(), self.read_only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::beneath;
    use serde_json::{Value, json};
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn of(spec: Value) -> Result<Found> {
        let volume = json!({"metadata": {"name": "v"}, "spec": spec});
        source(&serde_json::from_value(volume).unwrap(), false, Path::new("/data/storage"))
    }

    /// An agent that says that it is another node could else have any directory of that one mounted.
    #[test]
    fn what_another_node_says_of_a_place_is_not_believed() {
        let of = |path: &str, name: &str, notes: Value| {
            let reference = json!({"namespace": "n", "name": name, "uid": "u"});
            let spec = json!({"local": {"path": path}, "claimRef": reference});
            let volume = json!({"metadata": {"name": "pvc-1", "annotations": notes}, "spec": spec});
            source(&serde_json::from_value(volume).unwrap(), false, Path::new("/data/storage")).map(|f| f.source.path)
        };
        let ours = json!({PROVISIONED_BY: LOCAL_PATH});
        assert_eq!(of("/etc", "c", ours.clone()).unwrap(), "/data/storage/pvc-1_n_c");
        assert!(of("/etc", "../../etc", ours).is_err());
        assert_eq!(of("/srv", "c", json!({})).unwrap(), "/srv", "an administrator's word");
    }

    #[test]
    fn what_this_version_does_not_mount_is_refused_in_words() {
        let found = of(json!({"local": {"path": "/srv"}})).unwrap();
        assert_eq!(
            (found.source.path.as_str(), found.source.kind.as_str(), found.is_local),
            ("/srv", "Directory", true)
        );
        let found = of(json!({"hostPath": {"path": "/srv", "type": "DirectoryOrCreate"}})).unwrap();
        assert_eq!((found.source.kind.as_str(), found.is_local), ("DirectoryOrCreate", false));
        let why = |spec: Value| of(spec).unwrap_err().to_string();
        assert!(why(json!({"nfs": {"server": "s", "path": "/"}})).contains("supported: hostPath, local"));
        assert!(why(json!({"local": {"path": "/srv"}, "volumeMode": "Block"})).contains("Block"));
        assert!(why(json!({"local": {"path": "/srv"}, "mountOptions": ["ro"]})).contains("mount options"));
    }

    #[tokio::test]
    async fn a_local_volume_belongs_to_the_group_of_its_pod() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        fs::create_dir_all(root.join("inner")).unwrap();
        fs::write(root.join("inner/file"), "").unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let open = || beneath::of_host(&root, None).unwrap();
        let group = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().gid();
        give_to_group(open(), 2000, true).await.unwrap();
        assert_eq!([group(""), group("inner"), group("inner/file"), group("link")], [2000; 4]);
        assert_eq!(fs::symlink_metadata(&outside).unwrap().gid(), 0, "no link is followed");
        let mode = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().mode();
        assert_eq!((mode("inner") & 0o2070, mode("inner/file") & 0o060), (0o2070, 0o060));
        rustix::fs::chown(root.join("inner/file"), None, Some(rustix::fs::Gid::from_raw(7))).unwrap();
        give_to_group(open(), 2000, false).await.unwrap();
        assert_eq!(group("inner/file"), 7, "the root fits already");
        give_to_group(open(), 2000, true).await.unwrap();
        assert_eq!(group("inner/file"), 2000);
    }
}

//! Why things on a node fail.
//!
//! A message is what Kubernetes' events and statuses show; what caused it follows when the whole chain is printed
//! (`base::error::chain`).

use std::io;
use std::path::PathBuf;

use crate::apimachinery::status::Status;
use crate::base::error::chain;
use crate::containers;

/// One variant an operation; messages are fit for a Kubernetes event.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // Environment and downward API.
    #[error("{kind} {name:?} not found")]
    FindObject { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    FindKey { key: String, kind: &'static str, namespace: String, name: String },
    #[error("container {0} not found")]
    FindContainer(String),
    #[error(transparent)]
    Decode(#[from] serde_json::Error),
    #[error("environment variables from files are not supported")]
    FileKeyRef,
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    #[error("unsupported container resource: {0}")]
    ContainerResource(String),
    #[error("{name}: {text:?} is no quantity")]
    ParseQuantity { name: String, text: String },
    #[error("the divisor is no quantity")]
    ParseDivisor,
    // Volumes.
    #[error("references non-existent key: {key} in {name}")]
    ProjectKey { key: String, name: String },
    #[error("a projection of this type is not supported yet")]
    Projection,
    #[error(transparent)]
    RequestToken(Status),
    #[error("the server is away, so its token is the one before")]
    RenewToken,
    #[error(
        "volumes of this type are not supported yet; supported: emptyDir, hostPath, configMap, secret, downwardAPI, projected, image, persistentVolumeClaim, ephemeral"
    )]
    VolumeType,
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: error processing PVC {claim}"
    )]
    ProcessClaim {
        volume: String,
        claim: String,
        #[source]
        source: Box<Error>,
    },
    #[error("failed to fetch {what} from API server")]
    FetchClaim {
        what: &'static str,
        #[source]
        source: Status,
    },
    #[error("PVC is being deleted")]
    EndingClaim,
    #[error("PVC is not bound")]
    UnboundClaim,
    #[error("the claim was not made for this pod (pod is not owner)")]
    OwnClaim,
    #[error("volume {0:?} is bound to another claim")]
    VolumeOfAnother(String),
    #[error("volume {0:?} cannot be reached from this node: its node affinity does not match")]
    VolumeElsewhere(String),
    #[error("volumes of mode Block are not supported by nodes of this version")]
    BlockVolume,
    #[error("persistent volumes of this type are not supported yet; supported: hostPath, local")]
    PersistentVolumeType,
    #[error("mount options are not supported for this volume type")]
    MountOptions,
    #[error("MountVolume.SetUp failed for volume {volume:?} ")]
    SetUpVolume {
        volume: String,
        #[source]
        source: Box<Error>,
    },
    #[error("volume {volume:?}")]
    RefreshVolume {
        volume: String,
        #[source]
        source: Box<Error>,
    },
    #[error("{kind} is an invalid hostPath type")]
    HostPathType { kind: String },
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    CheckHostPath { path: String, wanted: &'static str },
    #[error("volume {0:?} not found")]
    FindVolume(String),
    #[error("failed to prepare {what} for volumeMount {mount:?} of container {container:?}")]
    PrepareMount {
        what: &'static str,
        mount: String,
        container: String,
        #[source]
        source: Box<Error>,
    },
    #[error("no place for a mount in volume {}", volume.display())]
    NestMount {
        volume: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("error SubPath `{0}` must not be an absolute path")]
    AbsoluteSubPath(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    ParentInSubPath(String),
    #[error("subpath {sub:?} not within volume path")]
    LeaveVolume {
        sub: String,
        #[source]
        source: io::Error,
    },
    #[error("subpath {sub:?}")]
    OpenSubPath {
        sub: String,
        #[source]
        source: io::Error,
    },
    #[error("it cannot be held")]
    Pin(#[source] io::Error),
    // Sandboxes.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({max} characters is the max, {} characters requested)",
        fqdn.len()
    )]
    BuildHostname { fqdn: String, max: usize },
    #[error("the sysctl {0:?} is not known to be namespaced")]
    AllowSysctl(String),
    #[error("user namespaces are not supported by this node (hostUsers: false): {0}")]
    UserNamespaces(String),
    #[error("attempting to set memory limit ({limit}) below current usage ({used})")]
    LowerMemoryLimit { limit: u64, used: u64 },
    // Anywhere.
    #[error("{what}")]
    Part {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{}", .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
    #[error(transparent)]
    Runtime(#[from] containers::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Join(#[from] tokio::task::JoinError),
}

/// Results of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub reason: &'static str,
    pub message: String,
}

// === impl Error ===

impl Error {
    /// What failed, as a part of more.
    pub fn part(what: impl Into<String>) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        let what = what.into();
        move |source| Self::Part { what, source }
    }

    /// None of them is fine, more are gathered.
    pub fn gather(errors: Vec<Self>) -> Result<()> {
        if errors.is_empty() { Ok(()) } else { Err(Self::Several(errors)) }
    }
}

pub(super) fn config_error(message: impl ToString) -> Failed {
    Failed { reason: "CreateContainerConfigError", message: message.to_string() }
}

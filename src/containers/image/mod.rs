//! Images: references, registries, a content-addressed store of unpacked layers, and root file systems made of them.
//!
//! Layers are unpacked once, each on top of its parents, into directories that overlayfs takes as they are; what they came
//! as is kept beside them, for other nodes and for export. Invariant: what the index names is complete on disk (content is
//! synced before it is referenced, and references change by atomic rename), so a crash at any instant costs a download at
//! most.

mod access;
mod archive;
mod builtin;
mod client;
mod connect;
mod content;
mod document;
mod error;
mod export;
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
mod gc;
mod inbox;
mod lock;
mod pull;
mod reach;
mod reference;
mod registries;
mod rootfs;
mod source;
mod store;
mod unpack;
mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Users;
use crate::base::signal::Receiver;
use crate::wire::images::{Ask, Found};

pub use builtin::HELLO;
pub use error::ImageError;
pub use gc::{Collected, Policy};
pub use inbox::Taking;
pub use reference::Reference;
pub use registries::Registries;
pub(super) use rootfs::probe_mapped_overlay;
pub use rootfs::probe_overlay;
pub use store::ImageStore;
pub(super) use users::home_in;
pub use users::resolve_user;

pub(crate) use unpack::{make_directory_in, read_in};

/// Results of image operations.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// How to log in to a registry, e.g. from one entry of an `imagePullSecrets` secret. An empty value is anonymous.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// A refresh token; used in place of the password.
    pub identity_token: String,
    /// A ready bearer token; used as it is.
    pub registry_token: String,
    /// Whose they are; the node's own are nobody's.
    pub secret: Option<SecretName>,
}

/// A pod's secret that holds credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SecretName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// An image that is complete in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its configuration, `sha256:...`: what Kubernetes calls the image id.
    pub id: String,
    /// Normalised names with tags, e.g. `docker.io/library/nginx:latest`.
    pub tags: Vec<String>,
    /// Names with manifest digests, e.g. `docker.io/library/nginx@sha256:...`.
    pub digests: Vec<String>,
    /// Unpacked, shared layers counted fully.
    pub size_bytes: u64,
    /// Never removed by garbage collection.
    pub pinned: bool,
    pub last_used: Timestamp,
    pub config: ImageConfig,
}

/// What the image says about its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    /// `name`, `uid`, `name:group`, ...; see [`resolve_user`].
    pub user: String,
    pub working_dir: String,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `SIGQUIT` or a number.
    pub stop_signal: Option<String>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// Where images come from and root file systems are made.
#[async_trait]
pub trait Images: Send + Sync {
    /// Downloads what is missing of an image. Credentials are tried in order, those of the configuration and anonymous
    /// access last. Simultaneous pulls of one reference share one download.
    async fn pull(&self, reference: &str, credentials: &[Credentials]) -> Result<Image>;
    /// The same, but another node's copy will do; the registry is asked only where no node has one.
    async fn obtain(&self, reference: &str, credentials: &[Credentials]) -> Result<Image> {
        self.pull(reference, credentials).await
    }
    /// What another node may have of the images here.
    async fn offer(&self, _ask: &Ask) -> Option<Found> {
        None
    }
    /// An image by name, name with digest, or id (also without `sha256:` and shortened to 12 digits or more).
    async fn status(&self, reference: &str) -> Option<Image>;
    /// Whether whoever has these credentials may use an image that is here, by the name it was asked for: an image that came for
    /// somebody's credentials is not everyone's.
    async fn allows(&self, image: &Image, reference: &str, credentials: &[Credentials]) -> bool {
        let _ = (image, reference, credentials);
        true
    }
    /// All images.
    async fn list(&self) -> Vec<Image>;
    /// Removes a name; with its last name, or given by id, the image and the layers no other image needs.
    async fn remove(&self, reference: &str) -> Result<()>;
    /// Takes in a docker-archive or OCI-layout tar, plain or compressed.
    async fn import(&self, archive: &Path) -> Result<Vec<Image>>;
    /// Mounts a fresh writable root file system for a container; the same one again if it is there already. It shows the ids
    /// of the users that are given, and what is written is theirs.
    async fn prepare_rootfs(&self, image: &str, container: &str, users: Option<&Users>) -> Result<PathBuf>;
    /// Mounts an image for reading, as a volume of a container by this name; it goes with the container's root file system. It shows
    /// the ids of the users that are given.
    async fn prepare_volume(&self, image: &str, container: &str, name: &str, users: Option<&Users>) -> Result<PathBuf> {
        let _ = (image, container, name, users);
        Err(ImageError::invalid("volume", "images cannot be mounted as volumes here"))
    }
    /// Unmounts and deletes it with the volumes; fine if there is none.
    async fn release_rootfs(&self, container: &str) -> Result<()>;
    /// Containers that have a root file system, also left over from before a reboot.
    async fn rootfs_list(&self) -> Vec<String>;
    /// Removes images that nobody needs where the disk is nearly full.
    async fn collect_garbage(&self, policy: &Policy) -> Result<Collected>;
    /// Tells when there may be images that were not there before, also through another process.
    fn came(&self) -> Receiver;
    /// Tells when a container's root file system is gone.
    fn released(&self) -> Receiver;
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

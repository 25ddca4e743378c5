//! What is known of an image that is here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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

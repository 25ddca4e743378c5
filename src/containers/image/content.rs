//! Images as they travel: manifests, configurations and layers, as they came, by digest.
//!
//! They are kept beside the unpacked layers, because nothing else gives the same digests again: this is what other nodes are
//! served from and what is exported. Invariant: what the index names is there, whole and verified; the rest is swept.

use std::fs;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::Result;
use super::error::io;
use super::manifest::{Manifest, parse_manifest};

/// How much of a blob is read at once.
pub(super) const PIECE_BYTES: usize = 256 << 10;

/// What an image is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Content {
    /// What its names mean: the manifest, or the index that the manifest was chosen from.
    pub target: String,
    pub manifest: String,
    pub config: String,
    /// Lowest first.
    pub layers: Vec<String>,
    /// Got with a pod's own credentials, so that other nodes have to show theirs to the registry.
    pub private: bool,
}

// === impl Content ===

impl Content {
    /// The digests of all its parts.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &String> {
        [&self.target, &self.manifest, &self.config].into_iter().chain(&self.layers)
    }
}

/// Documents that an image was described by; the target is the manifest itself where there is no index.
#[derive(Debug, Clone)]
pub(super) struct Documents {
    pub target: Bytes,
    pub manifest: Bytes,
    pub config: Bytes,
}

pub(super) async fn read(mut file: tokio::fs::File, send: mpsc::Sender<Bytes>) {
    loop {
        let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
        match file.read_buf(&mut piece).await {
            Ok(count) if count > 0 => {
                if send.send(piece.freeze()).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// What a manifest or index says it is, and what it looks like where it does not say.
pub(super) fn media_type(bytes: &[u8]) -> String {
    let Manifest { media_type, manifests, .. } = parse_manifest(bytes).unwrap_or_default();
    match (media_type.is_empty(), manifests.is_empty()) {
        (false, _) => media_type,
        (true, true) => "application/vnd.oci.image.manifest.v1+json".into(),
        (true, false) => "application/vnd.oci.image.index.v1+json".into(),
    }
}

/// Digest of a file.
pub(super) fn digest_of_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(io("opening", path))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(io("reading", path))? {
            0 => return Ok(format!("sha256:{}", hex::encode(hasher.finalize()))),
            count => hasher.update(&piece[..count]),
        }
    }
}

//! Images as they travel: manifests, configurations and layers, as they came, by digest.
//!
//! They are kept beside the unpacked layers, because nothing else gives the same digests again: this is what other nodes are
//! served from and what is exported. Invariant: what the index names is there, whole and verified; the rest is swept.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::Result;
use super::error::io;
use super::pull::{Manifest, parse_manifest};
use super::store::{ImageStore, Inner, blob_name};
use crate::base::file::write_atomically;
use crate::base::task;
use crate::wire::images::is_digest;
use crate::wire::images::{Ask, Found, Head, PIECES};

/// How much of a blob is read at once.
const PIECE_BYTES: usize = 256 << 10;

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

impl Inner {
    pub(super) fn content_path(&self, digest: &str) -> Result<PathBuf> {
        Ok(self.directory.join("content").join(blob_name(digest)?))
    }

    pub(super) fn has_content(&self, digest: &str) -> bool {
        self.content_path(digest).is_ok_and(|path| path.is_file())
    }

    /// Keeps a verified file under its digest; the file itself stays.
    pub(super) fn keep_file(&self, file: &Path, digest: &str) -> Result<()> {
        let path = self.content_path(digest)?;
        match fs::hard_link(file, &path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(io("linking", &path)(error)),
            _ => Ok(()),
        }
    }

    fn keep_bytes(&self, bytes: &[u8]) -> Result<String> {
        let digest = super::digest_of(bytes);
        let path = self.content_path(&digest)?;
        if !path.is_file() {
            write_atomically(&path, bytes, 0o600).map_err(io("writing", &path))?;
        }
        Ok(digest)
    }

    /// Keeps the documents of an image whose layers are kept already; `None` where one of these is not.
    pub(super) fn keep(&self, documents: &Documents, layers: Vec<String>, private: bool) -> Result<Option<Content>> {
        if !layers.iter().all(|layer| self.has_content(layer)) {
            return Ok(None);
        }
        let content = Content {
            target: self.keep_bytes(&documents.target)?,
            manifest: self.keep_bytes(&documents.manifest)?,
            config: self.keep_bytes(&documents.config)?,
            layers,
            private,
        };
        super::store::sync_file_system(&self.directory.join("content"))?;
        Ok(Some(content))
    }

    /// The file that another node may have, with what is to be said about it.
    fn offered(&self, ask: &Ask) -> Option<(PathBuf, String)> {
        let digest = match ask {
            Ask::Manifest { version, .. } if is_digest(version) => version.clone(),
            Ask::Manifest { name, version, .. } => self.content(&format!("{name}:{version}"))?.target,
            Ask::Blob { digest, .. } => digest.clone(),
        };
        // Everything that may be served belongs to an image that may be.
        self.serves(&digest).then_some(())?;
        Some((self.content_path(&digest).ok()?, digest))
    }
}

impl ImageStore {
    /// What another node asked for, if it is here and may be given away.
    pub(super) async fn found(&self, ask: &Ask) -> Option<Found> {
        let (path, digest) = self.inner.offered(ask)?;
        let mut file = tokio::fs::File::open(path).await.ok()?;
        let size_bytes = file.metadata().await.ok()?.len();
        if let Ask::Manifest { .. } = ask {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).await.ok()?;
            return Some(Found::whole(&media_type(&bytes), &digest, bytes.into()));
        }
        let (send, pieces) = mpsc::channel(PIECES);
        task::spawn("image blob", read(file, send));
        let head = Head { media_type: "application/octet-stream".into(), digest, size_bytes };
        Some(Found { head, pieces })
    }
}

async fn read(mut file: tokio::fs::File, send: mpsc::Sender<Bytes>) {
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

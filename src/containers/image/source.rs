//! Where a pull takes its parts from: a registry, other nodes, or what the registry names from other nodes.
//!
//! Everything is verified by digest, whoever gave it; what another node gives wrong or not at all comes from the registry.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::client::{DOCUMENT_MAX, Repository};
use super::error::io;
use super::{Credentials, ImageError, Reference, Result};
use crate::base::progress;
use crate::wire::images::is_digest;
use crate::wire::images::{BlobRequest, BlobResponse, PATIENCE, Peers};

/// A source of one image.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// With nodes that may have what the registry means.
    Registry {
        repository: &'a Repository<'a>,
        nearer: Option<&'a PeerNodes<'a>>,
    },
    PeerNodes(&'a PeerNodes<'a>),
}

/// The other nodes, asked for one image.
pub(super) struct PeerNodes<'a> {
    peers: &'a dyn Peers,
    reference: String,
    name: String,
    /// Nobody but the server is believed about what a name means.
    server_only: bool,
}

// === impl Source ===

impl Source<'_> {
    /// A manifest or index; not verified, because only the caller knows by what.
    pub(super) async fn manifest(&self, version: &str) -> Result<Bytes> {
        match self {
            Self::Registry { repository, .. } => repository.manifest(version).await.map(|(_, bytes)| bytes),
            Self::PeerNodes(neighbours) => neighbours.manifest(version).await,
        }
    }

    /// What opened the registry last, if it asked for anything.
    pub(super) fn opened_by(&self) -> Option<Credentials> {
        match self {
            Self::Registry { repository, .. } => repository.opened_by(),
            Self::PeerNodes(_) => None,
        }
    }

    /// The same without nodes that do not have the manifest.
    pub(super) async fn nearest(self, manifest: &str) -> Self {
        match self {
            Self::Registry { repository, nearer: Some(neighbours) } => {
                let nearer = neighbours.manifest(manifest).await.is_ok().then_some(neighbours);
                Self::Registry { repository, nearer }
            }
            same => same,
        }
    }

    /// A small blob, verified.
    pub(super) async fn small_blob(&self, digest: &str) -> Result<Bytes> {
        match self {
            Self::Registry { repository, .. } => repository.small_blob(digest).await,
            Self::PeerNodes(neighbours) => neighbours.small_blob(digest).await,
        }
    }

    /// A blob into a file, verified.
    pub(super) async fn blob(&self, digest: &str, size_bytes: u64, path: &Path) -> Result<()> {
        match self {
            Self::Registry { repository, nearer: None } => repository.blob(digest, size_bytes, path).await,
            Self::Registry { repository, nearer: Some(neighbours) } => {
                match neighbours.blob(digest, size_bytes, path).await {
                    Err(error) if error.is_elsewhere_better() => {
                        tracing::debug!(%error, "a blob comes from the registry after all");
                        repository.blob(digest, size_bytes, path).await
                    }
                    result => result,
                }
            }
            Self::PeerNodes(neighbours) => neighbours.blob(digest, size_bytes, path).await,
        }
    }
}

// === impl PeerNodes ===

impl<'a> PeerNodes<'a> {
    pub(super) fn new(peers: &'a dyn Peers, reference: &Reference, server_only: bool) -> Self {
        Self { peers, reference: reference.to_string(), name: reference.name(), server_only }
    }

    async fn ask(&self, ask: BlobRequest) -> Result<BlobResponse> {
        let registry = || "the other nodes".to_owned();
        let found = self.peers.ask(&ask).await;
        found
            .map_err(|reason| ImageError::Unreachable { registry: registry(), reason })?
            .ok_or_else(|| ImageError::NotFound { reference: self.reference.clone(), registry: registry() })
    }

    async fn document(&self, ask: BlobRequest) -> Result<Bytes> {
        let found = self.ask(ask).await?;
        let expected_bytes = found.head.size_bytes;
        let cut = || ImageError::Truncated { what: "a document of another node".into(), got_bytes: 0, expected_bytes };
        found.collect(DOCUMENT_MAX).await.ok_or_else(cut)
    }

    async fn manifest(&self, version: &str) -> Result<Bytes> {
        let server_only = self.server_only && !is_digest(version);
        self.document(BlobRequest::Manifest { name: self.name.clone(), version: version.to_owned(), server_only }).await
    }

    async fn small_blob(&self, digest: &str) -> Result<Bytes> {
        let bytes = self.document(BlobRequest::Blob { name: self.name.clone(), digest: digest.to_owned() }).await?;
        match super::digest_of(&bytes) {
            actual if actual == digest => Ok(bytes),
            actual => Err(ImageError::WrongDigest { expected: digest.to_owned(), actual }),
        }
    }

    /// From the beginning each time: the way is short.
    async fn blob(&self, digest: &str, size_bytes: u64, path: &Path) -> Result<()> {
        let mut found = self.ask(BlobRequest::Blob { name: self.name.clone(), digest: digest.to_owned() }).await?;
        let mut file = std::fs::File::create(path).map_err(io("creating", path))?;
        let (mut hasher, mut got_bytes) = (Sha256::new(), 0);
        while let Ok(Some(piece)) = tokio::time::timeout(PATIENCE, found.pieces.recv()).await {
            hasher.update(&piece);
            file.write_all(&piece).map_err(io("writing", path))?;
            got_bytes += piece.len() as u64;
            progress::advance(piece.len() as u64);
            if got_bytes > size_bytes {
                break;
            }
        }
        let actual = format!("sha256:{}", hex::encode(hasher.finalize()));
        if actual == digest {
            return Ok(());
        }
        let _ = std::fs::remove_file(path);
        Err(match got_bytes < size_bytes {
            true => ImageError::Truncated { what: format!("blob {digest}"), got_bytes, expected_bytes: size_bytes },
            false => ImageError::WrongDigest { expected: digest.to_owned(), actual },
        })
    }
}

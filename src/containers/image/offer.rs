//! Content that is kept, and what of it other nodes may have.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::Result;
use super::content::{Content, Documents, media_type, read};
use super::digest::{blob_name, digest_of};
use super::error::io;
use super::store::{ImageStore, Inner};
use crate::base::file::write_atomically;
use crate::base::task;
use crate::wire::images::is_digest;
use crate::wire::images::{BlobRequest, BlobResponse, Head, PIECES};

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
        let digest = digest_of(bytes);
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
        crate::containers::image::disk::sync_file_system(&self.directory.join("content"))?;
        Ok(Some(content))
    }

    /// The file that another node may have, with what is to be said about it.
    fn offered(&self, ask: &BlobRequest) -> Option<(PathBuf, String)> {
        let digest = match ask {
            BlobRequest::Manifest { version, .. } if is_digest(version) => version.clone(),
            BlobRequest::Manifest { name, version, .. } => self.content(&format!("{name}:{version}"))?.target,
            BlobRequest::Blob { digest, .. } => digest.clone(),
        };
        // Everything that may be served belongs to an image that may be.
        self.serves(&digest).then_some(())?;
        Some((self.content_path(&digest).ok()?, digest))
    }
}

impl ImageStore {
    /// What another node asked for, if it is here and may be given away.
    pub(super) async fn found(&self, ask: &BlobRequest) -> Option<BlobResponse> {
        let (path, digest) = self.inner.offered(ask)?;
        let mut file = tokio::fs::File::open(path).await.ok()?;
        let size_bytes = file.metadata().await.ok()?.len();
        if let BlobRequest::Manifest { .. } = ask {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).await.ok()?;
            return Some(BlobResponse::whole(&media_type(&bytes), &digest, bytes.into()));
        }
        let (send, pieces) = mpsc::channel(PIECES);
        task::spawn("image blob", read(file, send));
        let head = Head { media_type: "application/octet-stream".into(), digest, size_bytes };
        Some(BlobResponse { head, pieces })
    }
}

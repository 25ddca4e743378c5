//! What nodes ask each other about images, in the words of the OCI distribution protocol: manifests by name, blobs by digest.
//!
//! Whoever asks verifies what comes by its digest, so an answer needs no more trust than the name that was asked for. Pieces
//! wait for their reader; nothing is gathered.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::channel::Channel;
use crate::base::task;

/// Where a server answers; behind it stand the paths of the distribution protocol, with whole names.
pub const IMAGES_PATH: &str = "/v1-amphipod/images/v2/";
/// The header with the digest of what is answered.
pub const DIGEST: &str = "docker-content-digest";
/// Pieces that may wait for their reader.
pub const PIECES: usize = 8;
/// How long an answer may take to begin, and to go on.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked. Names are whole: `docker.io/library/nginx`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobRequest {
    /// `version` is a tag or a digest. Only the server's own node may answer where its word is to count for more than what
    /// the asking node has itself.
    Manifest {
        name: String,
        version: String,
        server_only: bool,
    },
    Blob {
        name: String,
        digest: String,
    },
}

/// Whether a text is a digest, whose content nobody can forge.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// What is known before the first piece.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub media_type: String,
    pub digest: String,
    pub size_bytes: u64,
}

/// Something that was found. A sender that goes away early is told by the size.
#[derive(Debug)]
pub struct BlobResponse {
    pub head: Head,
    pub pieces: mpsc::Receiver<Bytes>,
}

/// The other nodes of the cluster.
#[async_trait]
pub trait Peers: Send + Sync {
    /// What one of them has; `Err` when none can be asked.
    async fn ask(&self, ask: &BlobRequest) -> Result<Option<BlobResponse>, String>;
}

// === impl BlobRequest ===

impl BlobRequest {
    /// The path, with its query, behind which the server answers this.
    pub fn path(&self) -> String {
        let (name, kind, version, query) = match self {
            Self::Manifest { name, version, server_only: true } => (name, "manifests", version, "?server"),
            Self::Manifest { name, version, .. } => (name, "manifests", version, ""),
            Self::Blob { name, digest } => (name, "blobs", digest, ""),
        };
        // The only two signs of a name that a path may not have: they stand around IPv6 addresses.
        let name = name.replace('[', "%5B").replace(']', "%5D");
        format!("{IMAGES_PATH}{name}/{kind}/{version}{query}")
    }

    /// What a path and its query ask.
    pub fn parse(path: &str, query: Option<&str>) -> Option<Self> {
        let (rest, version) = path.strip_prefix(IMAGES_PATH)?.rsplit_once('/')?;
        let (name, kind) = rest.rsplit_once('/')?;
        let (name, version) = (name.replace("%5B", "[").replace("%5D", "]"), version.to_owned());
        match kind {
            _ if name.is_empty() || version.is_empty() => None,
            "manifests" => Some(Self::Manifest { name, version, server_only: query == Some("server") }),
            "blobs" => Some(Self::Blob { name, digest: version }),
            _ => None,
        }
    }
}

impl BlobResponse {
    /// Something small that is all there.
    pub fn whole(media_type: &str, digest: &str, bytes: Bytes) -> Self {
        let (send, pieces) = mpsc::channel(1);
        let head = Head { media_type: media_type.into(), digest: digest.into(), size_bytes: bytes.len() as u64 };
        let _ = send.try_send(bytes);
        Self { head, pieces }
    }

    /// All of it, if it is no longer than `max` and came whole.
    pub async fn collect(mut self, max: usize) -> Option<Bytes> {
        let mut all = bytes::BytesMut::new();
        while let Ok(Some(piece)) = tokio::time::timeout(PATIENCE, self.pieces.recv()).await {
            if all.len() + piece.len() > max {
                return None;
            }
            all.extend_from_slice(&piece);
        }
        (all.len() as u64 == self.head.size_bytes).then(|| all.freeze())
    }
}

/// The server answers for all nodes that it reaches.
#[async_trait]
impl Peers for Channel {
    async fn ask(&self, ask: &BlobRequest) -> Result<Option<BlobResponse>, String> {
        let request = Request::get(ask.path()).body(Full::new(Bytes::new())).map_err(|e| e.to_string())?;
        let sent = tokio::time::timeout(PATIENCE, self.send(request)).await;
        let response = sent.map_err(|_| "no answer in time".to_owned())?.map_err(|e| crate::base::error::chain(&e))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(format!("the server answers {status}")),
        }
        let text =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let size_bytes = text(CONTENT_LENGTH.as_str()).parse().map_err(|_| "an answer without a length".to_owned())?;
        let head = Head { media_type: text(CONTENT_TYPE.as_str()), digest: text(DIGEST), size_bytes };
        let (send, pieces) = mpsc::channel(PIECES);
        task::spawn("image pieces", carry(response.into_body(), send));
        Ok(Some(BlobResponse { head, pieces }))
    }
}

async fn carry(mut body: Incoming, send: mpsc::Sender<Bytes>) {
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(bytes) = frame.into_data()
            && send.send(bytes).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_what_is_asked() {
        for name in ["docker.io/library/nginx", "[::1]:5000/manifests/blobs", "localhost:5000/a"] {
            let asks = [
                BlobRequest::Manifest { name: name.into(), version: "1.2".into(), server_only: false },
                BlobRequest::Manifest { name: name.into(), version: "1.2".into(), server_only: true },
                BlobRequest::Blob { name: name.into(), digest: "sha256:00".into() },
            ];
            for ask in asks {
                let uri: http::Uri = ask.path().parse().unwrap();
                assert_eq!(BlobRequest::parse(uri.path(), uri.query()).unwrap(), ask);
            }
        }
        for wrong in ["a/manifests/", "/manifests/1", "a/tags/list", "manifests/1", ""] {
            assert_eq!(BlobRequest::parse(&format!("{IMAGES_PATH}{wrong}"), None), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_did_not_come_whole_is_nothing() {
        let whole = BlobResponse::whole("m", "d", Bytes::from("abc"));
        assert_eq!(whole.collect(10).await.unwrap(), "abc");
        assert!(BlobResponse::whole("m", "d", Bytes::from("abc")).collect(2).await.is_none());
        let (send, pieces) = mpsc::channel(1);
        send.send(Bytes::from("ab")).await.unwrap();
        drop(send);
        let head = Head { size_bytes: 3, ..Head::default() };
        assert!(BlobResponse { head, pieces }.collect(10).await.is_none());
    }
}

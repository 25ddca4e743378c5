//! How the API reaches what runs on nodes: logs, exec, attach, ports.
//!
//! The node half registers itself here, in-process; agents on other machines are registered with the tunnel that they
//! keep open (`http::tunnel`). The API knows only this trait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::query::Query;
use super::status::{Result, Status};
use crate::base::clock;
use crate::kinds::field::{self, Errors};
use crate::wire::images::{BlobRequest, BlobResponse, is_digest};

/// Nodes that are asked for one image at the same time.
const ASKED_AT_ONCE: usize = 8;

/// The nodes that can be reached, by name.
#[derive(Clone, Default)]
pub struct Nodes(Arc<RwLock<HashMap<String, Arc<dyn NodeAccess>>>>);

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
}

/// `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub since: Option<jiff::Timestamp>,
    /// `Stdout`, `Stderr` or `All`.
    pub stream: String,
}

/// What is run, and which streams are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOptions {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What is asked of a node through its tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NodeRequest {
    Logs(Target, LogOptions),
    Exec(Target, ExecOptions),
    Attach(Target, ExecOptions),
    Connect(Target, u16),
    Dial(Destination),
    Image(BlobRequest),
    Volume(VolumeRequest),
}

/// A directory of a node that is a volume, by the names that it is called after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalVolume {
    pub volume: String,
    pub namespace: String,
    pub claim: String,
}

/// What is done with the directory of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeRequest {
    Make(LocalVolume),
    /// With everything in it.
    Remove(LocalVolume),
}

/// What is reached over HTTP from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// The node's own endpoints: statistics, metrics, logs.
    Endpoints,
    /// A port of the node's own address or of a pod's.
    Address(SocketAddr),
}

pub use crate::wire::tunnel::channel;

/// A running exec or attach.
pub struct Session {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal sizes: columns and rows.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// The exit code, once it has ended; `Err` when it could not be run.
    pub exit: futures::future::BoxFuture<'static, Result<i32, String>>,
}

// === impl LocalVolume ===

impl LocalVolume {
    /// The directory of a volume that a claim has.
    pub fn of(volume: &PersistentVolume) -> Option<Self> {
        let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
        Some(Self {
            volume: volume.metadata.name.clone()?,
            namespace: reference.namespace.clone()?,
            claim: reference.name.clone()?,
        })
    }
}

// === impl LogOptions ===

impl LogOptions {
    /// What the query asks of the log of the pod `name`; what is checked is what `ValidatePodLogOptions` checks.
    pub fn of_query(query: &Query, name: &str, now: jiff::Timestamp) -> Result<Self> {
        let mut errors = Errors::new();
        let mut number = |field: &str, least: i64, why: &str| -> Result<Option<u64>> {
            let n = query.int(field)?;
            if let Some(n) = n.filter(|n| *n < least) {
                errors.push(field::invalid(field, n, why));
            }
            Ok(n.map(i64::cast_unsigned))
        };
        let tail_lines = number("tailLines", 0, "must be greater than or equal to 0")?;
        let limit_bytes = number("limitBytes", 1, "must be greater than 0")?;
        let since_seconds = number("sinceSeconds", 1, "must be greater than 0")?;
        let since_time = match query.get("sinceTime") {
            "" => None,
            text => Some(
                clock::parse_time(text)
                    .ok_or_else(|| Status::bad_request(format!("sinceTime: {text:?} is not an RFC 3339 time")))?,
            ),
        };
        if since_seconds.is_some() && since_time.is_some() {
            errors.push(field::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        let stream = query.get("stream");
        if !matches!(stream, "" | "All" | "Stdout" | "Stderr") {
            errors.push(field::not_supported("stream", stream, &["All", "Stderr", "Stdout"]));
        }
        if tail_lines.is_some() && !matches!(stream, "" | "All") {
            errors.push(field::forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now"));
        }
        if !errors.is_empty() {
            return Err(Status::invalid_options("", "PodLogOptions", name, &errors));
        }
        // What is longer ago than time goes is since ever.
        let ago = |seconds: u64| now.checked_sub(std::time::Duration::from_secs(seconds)).ok();
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail_lines,
            limit_bytes,
            since: since_time.or_else(|| since_seconds.and_then(ago)),
            stream: stream.to_owned(),
        })
    }
}

// === impl Session ===

impl Session {
    /// One that could not begin.
    pub fn failed(why: String) -> Self {
        let (resize, _) = mpsc::channel(1);
        Self { stdin: None, stdout: None, stderr: None, resize, exit: Box::pin(std::future::ready(Err(why))) }
    }
}

/// A connection to a port of a pod.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One node's pods, as the API needs them.
#[async_trait]
pub trait NodeAccess: Send + Sync {
    /// The log; the channel closes at its end (or never, with `follow`, while the container runs).
    async fn logs(&self, target: &Target, options: &LogOptions) -> Result<mpsc::Receiver<Bytes>>;
    /// Runs a command in a container.
    async fn exec(&self, target: &Target, options: &ExecOptions) -> Result<Session>;
    /// Joins the streams of a container's first process.
    async fn attach(&self, target: &Target, options: &ExecOptions) -> Result<Session>;
    /// Connects to a port inside the pod's network namespace.
    async fn connect(&self, target: &Target, port: u16) -> Result<Box<dyn Duplex>>;
    /// Connects as the node itself would; the error says why it could not, in the words of Go's dialer.
    async fn dial(&self, to: &Destination) -> Result<Box<dyn Duplex>>;
    /// A part of an image that the node has and other nodes may have.
    async fn image(&self, ask: &BlobRequest) -> Result<BlobResponse>;
    /// Makes or removes the directory of a volume, which may be so already; answers where it is.
    async fn volume(&self, ask: &VolumeRequest) -> Result<String>;
    /// Whether the node is a part of this process.
    fn is_here(&self) -> bool {
        false
    }
}

// === impl Nodes ===

impl Nodes {
    /// From now on the node is reached like this.
    pub fn register(&self, name: &str, access: Arc<dyn NodeAccess>) {
        self.0.write().expect("no panic while held").insert(name.to_owned(), access);
    }

    /// The node is no longer reached like this; another way that came meanwhile stays.
    pub fn forget(&self, name: &str, access: &Arc<dyn NodeAccess>) {
        let mut nodes = self.0.write().expect("no panic while held");
        if nodes.get(name).is_some_and(|a| Arc::ptr_eq(a, access)) {
            nodes.remove(name);
        }
    }

    /// The node, if it can be reached.
    pub fn get(&self, name: &str) -> Result<Arc<dyn NodeAccess>> {
        let nodes = self.0.read().expect("no panic while held");
        nodes.get(name).cloned().ok_or_else(|| Status::internal(format!("node {name:?} cannot be reached now")))
    }

    /// A part of an image that any node but the one that asks has: the server's own, else the first of the others. What a
    /// tag means is asked only of those that `is_believed`: a digest tells by itself whether an answer is right, a tag does
    /// not.
    pub async fn image(
        &self,
        ask: &BlobRequest,
        asking: &str,
        is_believed: impl Fn(&str) -> bool,
    ) -> Option<BlobResponse> {
        let by_tag = matches!(ask, BlobRequest::Manifest { version, .. } if !is_digest(version));
        let all: Vec<Arc<dyn NodeAccess>> = {
            let nodes = self.0.read().expect("no panic while held");
            let fits = |name: &str, access: &Arc<dyn NodeAccess>| {
                name != asking && (!by_tag || access.is_here() || is_believed(name))
            };
            nodes.iter().filter(|(name, access)| fits(name, access)).map(|(_, access)| access.clone()).collect()
        };
        let (here, away): (Vec<_>, Vec<_>) = all.into_iter().partition(|access| access.is_here());
        for access in here {
            if let Ok(found) = access.image(ask).await {
                return Some(found);
            }
        }
        if matches!(ask, BlobRequest::Manifest { server_only: true, .. }) {
            return None;
        }
        let answers: Vec<BoxFuture<'static, Option<BlobResponse>>> =
            away.into_iter().map(|a| asked(a, ask.clone())).collect();
        let mut answers = futures::stream::iter(answers).buffer_unordered(ASKED_AT_ONCE);
        while let Some(answer) = answers.next().await {
            if answer.is_some() {
                return answer;
            }
        }
        None
    }
}

fn asked(access: Arc<dyn NodeAccess>, ask: BlobRequest) -> BoxFuture<'static, Option<BlobResponse>> {
    Box::pin(async move { access.image(&ask).await.ok() })
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nodes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_log_are_checked_as_kubernetes_checks_them() {
        let now: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let options = |query: &str| LogOptions::of_query(&Query::parse(query), "web", now);
        for (query, field, message) in [
            ("tailLines=-1", "tailLines", "Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes=0", "limitBytes", "Invalid value: 0: must be greater than 0"),
            ("sinceSeconds=0", "sinceSeconds", "Invalid value: 0: must be greater than 0"),
            ("stream=both", "stream", r#"Unsupported value: "both": supported values: "All", "Stderr", "Stdout""#),
            (
                "stream=Stdout&tailLines=1",
                "",
                "Forbidden: `tailLines` and specific `stream` are mutually exclusive for now",
            ),
            (
                "sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z",
                "",
                "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
            ),
        ] {
            let status = options(query).unwrap_err();
            assert_eq!((status.code, status.reason), (422, "Invalid"), "{query}");
            assert_eq!(status.message, format!("PodLogOptions \"web\" is invalid: {field}: {message}"));
            assert_eq!(status.details.causes[0].field, field);
        }
        assert_eq!(options("limitBytes=x").unwrap_err().code, 400);
        let asked = options("tailLines=0&limitBytes=1&sinceSeconds=5").unwrap();
        assert_eq!((asked.tail_lines, asked.limit_bytes), (Some(0), Some(1)));
        assert_eq!(asked.since.unwrap().to_string(), "2026-01-02T03:04:00Z");
        assert_eq!(options("sinceSeconds=9223372036854775807").unwrap().since, None, "since ever, and no panic");
    }
}

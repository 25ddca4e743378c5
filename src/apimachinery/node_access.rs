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
    /// What the query asks of a log.
    pub fn of_query(query: &Query, now: jiff::Timestamp) -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            match query.int(name)? {
                Some(n) if n < 0 => {
                    Err(Status::bad_request(format!("{name} must be greater than or equal to 0, got {n}")))
                }
                n => Ok(n.map(|n| n as u64)),
            }
        };
        let since = match (query.get("sinceTime"), number("sinceSeconds")?) {
            ("", seconds) => seconds.map(|s| now - std::time::Duration::from_secs(s)),
            (time, None) => {
                let parsed = clock::parse_time(time);
                Some(
                    parsed
                        .ok_or_else(|| Status::bad_request(format!("sinceTime: {time:?} is not an RFC 3339 time")))?,
                )
            }
            _ => return Err(Status::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified")),
        };
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail_lines: number("tailLines")?,
            limit_bytes: number("limitBytes")?,
            since,
            stream: query.get("stream").to_owned(),
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

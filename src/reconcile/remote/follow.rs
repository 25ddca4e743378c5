//! Keeps stores equal to what the server has, by one watch for each thing that is followed.
//!
//! A watch begins with all present states and a mark that they are complete (`sendInitialEvents`), and goes on from its last
//! revision after a break. While the server is away nothing is forgotten, and where it is away from the beginning, what an
//! earlier process was told will do. Invariant: what is on a store was there at the server at some time, and after the mark
//! everything that had gone is gone here too.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::server::{Server, collection, status_of};
use super::view::Store;
use crate::apimachinery::status::Status;
use crate::base::json::{at, text};
use crate::base::metrics;
use crate::base::object::{Draft, Object};
use crate::base::task;
use crate::kinds::KindRef;

/// Waits between attempts while the server is away.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long the server may take to tell everything before what was known is used.
const ABSENCE: Duration = Duration::from_secs(3);
/// A line of a watch that is longer than this is no object of ours.
const LINE_BYTES: usize = 8 << 20;

/// What is followed.
#[derive(Clone, Debug)]
pub struct Scope {
    pub kind: KindRef,
    /// Empty: all namespaces.
    pub namespace: String,
    /// As in `fieldSelector`; empty: everything.
    pub fields: String,
}

/// Where the changes go.
pub trait Sink: Send + 'static {
    /// A state; returns when it is on the store.
    fn put(&mut self, object: Arc<Object>) -> impl Future<Output = ()> + Send;
    /// An end.
    fn remove(&mut self, key: &str);
    /// Everything that is there has been told; what is not among `keys` is gone.
    fn complete(&mut self, keys: &HashSet<Arc<str>>);
}

/// Called once if the server does not tell everything soon: puts on the store what was known before.
pub type Fallback = Box<dyn FnOnce() + Send>;

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    of: String,
    object: Value,
}

/// How a watch ended.
enum End {
    /// As every watch does after a while.
    Over,
    /// What it stood on is gone: everything is told anew.
    Lapsed,
    Broken(String),
}

/// Follows `scope` until the task is aborted. `told` turns true when everything was told once, or the server has refused.
pub fn spawn(
    server: Arc<Server>,
    scope: Scope,
    mut sink: impl Sink,
    told: watch::Sender<bool>,
    mut restore: Option<Fallback>,
) -> tokio::task::JoinHandle<Option<()>> {
    task::spawn("follow", async move {
        let mut position = None;
        let mut wait = RETRY_MIN;
        loop {
            let began = Instant::now();
            let end = {
                let attempt = watch_once(&server, &scope, &mut sink, &mut position, &told);
                tokio::pin!(attempt);
                let absent = tokio::time::timeout_at(began + ABSENCE, &mut attempt);
                match restore.take() {
                    None => attempt.await,
                    Some(restore) => match absent.await {
                        Ok(end) => {
                            restore();
                            end
                        }
                        Err(_) => {
                            restore();
                            attempt.await
                        }
                    },
                }
            };
            if matches!(end, End::Lapsed) {
                position = None;
            }
            match end {
                // One that ends as soon as it begins is not asked for again at once.
                End::Over | End::Lapsed if began.elapsed() >= RETRY_MIN => wait = RETRY_MIN,
                End::Over | End::Lapsed => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
                End::Broken(why) => {
                    tracing::debug!(kind = scope.kind.plural(), why, "a watch broke");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    })
}

async fn watch_once(
    server: &Server,
    scope: &Scope,
    sink: &mut impl Sink,
    position: &mut Option<u64>,
    told: &watch::Sender<bool>,
) -> End {
    let request = Request::builder().method(Method::GET).uri(path(scope, *position)).body(Full::default());
    let response = match server.send(request.expect("the path was made by us")).await {
        Ok(response) => response,
        Err(error) => return End::Broken(error.message),
    };
    if response.status() == 410 {
        return End::Lapsed;
    }
    if !response.status().is_success() {
        // Refused for now: nothing of it may be used, and nobody should wait for it.
        let _ = told.send_replace(true);
        let status = status_of(response).await;
        if status.reason == Status::NODE_DELETED {
            // This machine is no part of the cluster any more: nothing of it is there for it.
            *position = None;
            sink.complete(&HashSet::new());
        }
        return End::Broken(status.message);
    }
    let mut body = response.into_body();
    let mut rest: Vec<u8> = Vec::new();
    let mut seen = position.is_none().then(HashSet::new);
    while let Some(frame) = body.frame().await {
        let data: Bytes = match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => data,
            Ok(Err(_)) => continue,
            Err(error) => return End::Broken(error.to_string()),
        };
        rest.extend_from_slice(&data);
        if rest.len() > LINE_BYTES {
            return End::Broken("an endless line".into());
        }
        let mut from = 0;
        while let Some(length) = rest[from..].iter().position(|b| *b == b'\n') {
            let line = &rest[from..from + length];
            from += length + 1;
            let Ok(event) = serde_json::from_slice::<Event>(line) else {
                return End::Broken("a line that is no event".into());
            };
            metrics::TOLD.add();
            if let Some(end) = take(&scope.kind, event, sink, position, &mut seen, told).await {
                return end;
            }
        }
        rest.drain(..from);
    }
    End::Over
}

async fn take(
    kind: &KindRef,
    event: Event,
    sink: &mut impl Sink,
    position: &mut Option<u64>,
    seen: &mut Option<HashSet<Arc<str>>>,
    told: &watch::Sender<bool>,
) -> Option<End> {
    let revision: u64 = text(&event.object, "metadata.resourceVersion").parse().unwrap_or(0);
    match event.of.as_str() {
        "BOOKMARK" => {
            let complete =
                at(&event.object, "metadata.annotations").is_some_and(|a| a.get("k8s.io/initial-events-end").is_some());
            if let Some(keys) = seen.take_if(|_| complete) {
                sink.complete(&keys);
                let _ = told.send_replace(true);
            }
        }
        "ADDED" | "MODIFIED" => {
            let object = decode(kind, event.object);
            if let Some(seen) = seen {
                seen.insert(object.key.clone());
            }
            sink.put(object).await;
        }
        "DELETED" => {
            let key = key(kind, &event.object);
            if let Some(seen) = seen {
                seen.remove(&key);
            }
            sink.remove(&key);
        }
        _ if event.object["code"] == 410 => return Some(End::Lapsed),
        _ => return Some(End::Broken(text(&event.object, "message").to_owned())),
    }
    // Before the mark a break means to begin again.
    if seen.is_none() && revision > 0 {
        *position = Some(revision);
    }
    None
}

fn key(kind: &KindRef, value: &Value) -> Arc<str> {
    kind.key(text(value, "metadata.namespace"), text(value, "metadata.name"))
}

/// An object as it came over the wire.
pub fn decode(kind: &KindRef, mut value: Value) -> Arc<Object> {
    let revision = text(&value, "metadata.resourceVersion").parse().unwrap_or(0);
    let key = key(kind, &value);
    kind.convert_to_stored(&mut value);
    let fields = kind.stored().field_values(&value);
    Arc::new(Draft::new(key, &value, fields).at(revision))
}

fn path(scope: &Scope, position: Option<u64>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("watch", "true").append_pair("allowWatchBookmarks", "true");
    if !scope.fields.is_empty() {
        query.append_pair("fieldSelector", &scope.fields);
    }
    match position {
        Some(revision) => query.append_pair("resourceVersion", &revision.to_string()),
        None => query.append_pair("sendInitialEvents", "true").append_pair("resourceVersionMatch", "NotOlderThan"),
    };
    format!("{}?{}", collection(&scope.kind, &scope.namespace), query.finish())
}

/// Everything of a kind, or a selection of it: the whole store belongs to this one watch.
pub struct Whole(pub Arc<Store>);

impl Sink for Whole {
    async fn put(&mut self, object: Arc<Object>) {
        self.0.put(object);
    }

    fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    fn complete(&mut self, keys: &HashSet<Arc<str>>) {
        for key in self.0.keys().iter().filter(|k| !keys.contains(*k)) {
            self.0.remove(key);
        }
        self.0.fill();
    }
}

/// One object of a store that it shares with others.
pub struct One {
    pub store: Arc<Store>,
    pub key: Arc<str>,
}

impl Sink for One {
    async fn put(&mut self, object: Arc<Object>) {
        self.store.put(object);
    }

    fn remove(&mut self, key: &str) {
        self.store.remove(key);
    }

    fn complete(&mut self, keys: &HashSet<Arc<str>>) {
        if !keys.contains(&self.key) {
            self.store.remove(&self.key);
        }
    }
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Broken(status.message)
    }
}

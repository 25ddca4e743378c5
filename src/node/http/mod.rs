//! The node's own HTTP endpoints, as the kubelet has them: what it runs, what that uses, and its logs.
//!
//! The API reaches them in this process, or through the agent's tunnel, over a stream on which HTTP/1.1 is spoken
//! ([`serve`]), and decides itself whether somebody may ask (`nodes/proxy`). Everybody else asks at a [`port`] of the machine. Invariant:
//! nothing is measured while nobody asks, and what is not known is left out, never made up.

mod disk;
mod logs;
mod memory;
mod metrics;
mod network;
pub mod port;
mod summary;
mod usage;

pub use memory::Memory;

use std::path::Path;
use std::sync::LazyLock;

use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::{Extension, Router};
use bytes::Bytes;
use http::{Method, Response, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_stream::wrappers::ReceiverStream;
use tower::Service;

use self::usage::{Snapshot, Want};
use super::access::Access;
use super::heartbeat;
use crate::apimachinery::http::{Body, answer};
use crate::apimachinery::node_access::{LogOptions, NodeAccess, Target};
use crate::apimachinery::query::Query;
use crate::apimachinery::status::Status;
use crate::base::{metrics as counters, task};
use crate::containers::ContainerState;
use crate::kinds::core::pod;
use crate::node::capacity;

/// Where the machine's logs are.
const LOGS: &str = "/var/log";
/// What may wait in the stream to whoever asks.
const PIPE_BYTES: usize = 64 << 10;
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// What a path can have unescaped.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A stream whose other end answers HTTP/1.1 requests.
pub fn serve(access: Access) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(access.clone());
        written_plainly(request.uri_mut());
        router().call(request)
    });
    task::spawn("node endpoints", async move {
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a question to the node's endpoints broke off");
        }
    });
    ours
}

/// The endpoints of the node whose [`Access`] is in the request's extensions.
fn router() -> Router {
    static ROUTES: LazyLock<Router> = LazyLock::new(|| {
        let (healthy, log) = (healthy.with_state(()), log_file.with_state(()));
        Router::new()
            .route_service("/healthz", healthy.clone())
            .route_service("/healthz/ping", healthy.clone())
            .route_service("/healthz/log", healthy.clone())
            .route_service("/healthz/syncloop", healthy)
            .route_service("/pods", pods.with_state(()))
            .route_service("/runningpods", running_pods.with_state(()))
            .route_service("/configz", configuration.with_state(()))
            .route_service("/stats/summary", summarized.with_state(()))
            .route_service("/metrics", own_metrics.with_state(()))
            .route_service("/metrics/probes", probe_metrics.with_state(()))
            .route_service("/metrics/resource", resource_metrics.with_state(()))
            .route_service("/metrics/cadvisor", cadvisor_metrics.with_state(()))
            .route_service("/logs", logs_moved.with_state(()))
            .route_service("/logs/", log.clone())
            .route_service("/logs/{*path}", log)
            .route_service("/containerLogs/{*path}", container_log.with_state(()))
            .fallback_service(nothing.with_state(()))
            .layer(middleware::from_fn(reading))
    });
    ROUTES.clone()
}

/// The path with escapes only where they are needed, and without slashes at its end, where it is no file's: what is decided
/// on and what is answered are then found by the same path.
fn written_plainly(uri: &mut Uri) {
    let written = uri.path();
    if !written.contains('%') && !written.ends_with('/') {
        return;
    }
    let decoded = percent_decode_str(written).decode_utf8_lossy();
    let mut path = &*decoded;
    if !["/logs/", "/containerLogs/"].iter().any(|files| path.starts_with(files)) {
        path = path.trim_end_matches('/');
    }
    let path = if path.is_empty() { "/" } else { path };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let plain = format!("{}{query}", utf8_percent_encode(path, IN_PATH));
    *uri = plain.parse().unwrap_or_default();
}

/// Nothing is changed here; only for a summary may one ask by any method.
async fn reading(request: Request, next: Next) -> Response<Body> {
    let may = matches!(*request.method(), Method::GET | Method::HEAD);
    if may || request.uri().path().starts_with("/stats/summary") {
        next.run(request).await
    } else {
        answer::text(405, "405: Method Not Allowed")
    }
}

async fn healthy() -> Response<Body> {
    answer::text(200, "ok")
}

async fn nothing() -> Response<Body> {
    answer::text(404, "404 page not found\n")
}

/// The path of a request, as it is told apart by.
fn path_of(request: &Request) -> String {
    percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned()
}

fn query_of(request: &Request) -> Query {
    Query::parse(request.uri().query().unwrap_or_default())
}

fn prometheus(text: String) -> Response<Body> {
    answer::typed(200, TEXT, answer::full(Bytes::from(text)))
}

/// What this node uses, now.
async fn gathered(access: &Access, rates: bool, disks: bool) -> Snapshot {
    access.memory.0.gather(&access.node, Want { rates, disks }).await
}

async fn summarized(Extension(access): Extension<Access>, request: Request) -> Response<Body> {
    let everything = !query_of(&request).flag("only_cpu_and_memory");
    let snapshot = gathered(&access, true, everything).await;
    let (name, memory) = (&access.node.config.name, access.node.capacity.memory_bytes);
    answer::json(200, &summary::of(&snapshot, name, memory, everything))
}

async fn own_metrics(Extension(access): Extension<Access>) -> Response<Body> {
    let snapshot = gathered(&access, false, false).await;
    prometheus(counters::text() + &metrics::own(&snapshot, &access.node.config.name))
}

async fn probe_metrics(Extension(access): Extension<Access>) -> Response<Body> {
    prometheus(metrics::probes(&access.node.probe_results.all()))
}

async fn resource_metrics(Extension(access): Extension<Access>) -> Response<Body> {
    prometheus(metrics::resource(&gathered(&access, false, false).await))
}

async fn cadvisor_metrics(Extension(access): Extension<Access>) -> Response<Body> {
    let snapshot = gathered(&access, false, true).await;
    let (cgroup, capacity) = (&access.node.config.cgroup_root, &access.node.capacity);
    prometheus(metrics::cadvisor(&snapshot, cgroup, capacity.cpus, capacity.memory_bytes))
}

async fn logs_moved() -> Response<Body> {
    logs::moved("/logs/")
}

/// A file of the machine's logs, or a directory of them.
async fn log_file(request: Request) -> Response<Body> {
    let path = path_of(&request);
    let path = path.strip_prefix("/logs/").unwrap_or_default();
    logs::respond(Path::new(LOGS), path, request.method(), request.headers()).await
}

/// The pods that are bound to this node.
async fn pods(Extension(access): Extension<Access>) -> Response<Body> {
    let node = &access.node;
    let all = node.client.informer(&pod::KIND).list("");
    let mine = all.iter().filter(|o| {
        o.typed::<Pod>().is_ok_and(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&node.config.name))
    });
    pod_list(mine.map(|o| o.value()).collect())
}

fn pod_list(items: Vec<Value>) -> Response<Body> {
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    answer::json(200, &list)
}

/// The pods that run, as the runtime knows them.
async fn running_pods(Extension(access): Extension<Access>) -> Response<Body> {
    let mut items = Vec::new();
    for sandbox in access.node.runtime.list().await.into_iter().filter(|s| s.alive) {
        let spec = &sandbox.spec;
        let containers = sandbox.containers.iter().filter(|c| matches!(c.state, ContainerState::Running { .. }));
        let containers: Vec<Value> = containers.map(|c| json!({"name": c.name, "resources": {}})).collect();
        let metadata = json!({"name": spec.pod_name, "namespace": spec.pod_namespace, "uid": spec.pod_uid});
        items.push(json!({"metadata": metadata, "spec": {"containers": containers}, "status": {}}));
    }
    pod_list(items)
}

/// The settings that there are here, under the kubelet's names.
async fn configuration(Extension(access): Extension<Access>) -> Response<Body> {
    let config = &access.node.config;
    let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
    let configuration = json!({"kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "clusterDomain": config.cluster_domain, "clusterDNS": dns, "maxPods": capacity::PODS,
        "podLogsDir": config.log_dir, "cgroupRoot": format!("/{}", config.cgroup_root),
        "nodeStatusReportFrequency": format!("{}s", heartbeat::REPORT.as_secs()),
    }});
    answer::json(200, &configuration)
}

/// `{namespace}/{pod}/{container}`, with the options of `kubectl logs`.
async fn container_log(Extension(access): Extension<Access>, request: Request) -> Response<Body> {
    let path = path_of(&request);
    let parts: Vec<&str> = path.strip_prefix("/containerLogs/").unwrap_or_default().split('/').collect();
    let [namespace, name, container] = parts[..] else { return answer::text(404, "404 page not found\n") };
    if container.is_empty() {
        return answer::text(400, "{\"message\": \"Missing container name.\"}");
    }
    let Some(object) = access.node.client.informer(&pod::KIND).get(namespace, name) else {
        return answer::text(404, format!("{{\"message\": \"Pod \\\"{name}\\\" does not exist\"}}"));
    };
    let target = Target {
        namespace: namespace.into(),
        pod: name.into(),
        uid: object.meta.uid.to_string(),
        container: container.into(),
    };
    let failed = |status: Status| answer::text(status.code, status.message);
    let options = match LogOptions::of_query(&query_of(&request), name, access.node.clock.now()) {
        Ok(options) => options,
        Err(status) => return failed(status),
    };
    match access.logs(&target, &options).await {
        Ok(pieces) => answer::typed(200, "text/plain", answer::streamed(ReceiverStream::new(pieces))),
        Err(status) => failed(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_in_one_way_before_anything_is_decided() {
        for (written, plain) in [
            ("/", "/"),
            ("/pods", "/pods"),
            ("/pods//", "/pods"),
            ("//pods", "//pods"),
            ("/%70ods%2F", "/pods"),
            ("/metrics%2Fcadvisor?a=%2F", "/metrics/cadvisor?a=%2F"),
            ("/stats/summary/?only_cpu_and_memory=true", "/stats/summary?only_cpu_and_memory=true"),
            ("/logs/", "/logs/"),
            ("/%6cogs/a%20b/", "/logs/a%20b/"),
            ("/logs/%2561", "/logs/%2561"),
            ("/logs%2f..%2fpods", "/logs/../pods"),
            ("/containerLogs/n/p/c/", "/containerLogs/n/p/c/"),
            ("/%ff", "/%EF%BF%BD"),
        ] {
            let mut uri: Uri = written.parse().unwrap();
            for _ in 0..2 {
                written_plainly(&mut uri);
                assert_eq!(uri, plain, "{written}");
            }
        }
    }

    #[tokio::test]
    async fn only_a_summary_may_be_asked_for_by_any_method() {
        let code = async |method: &str, path: &str| {
            let request = http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            router().call(request).await.unwrap().status().as_u16()
        };
        for (method, path, expected) in [
            ("GET", "/healthz/syncloop", 200),
            ("HEAD", "/healthz", 200),
            ("GET", "/healthz/nope", 404),
            ("POST", "/healthz", 405),
            ("POST", "/nope", 405),
            ("POST", "/stats/summaryx", 404),
            ("GET", "/logs", 301),
            ("GET", "/containerLogs", 404),
            ("GET", "/containerLogs/", 404),
            ("GET", "/run/n/p/c", 404),
        ] {
            assert_eq!(code(method, path).await, expected, "{method} {path}");
        }
    }
}

//! Requests to the server, and its failures.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;
use crate::base::metrics::{self, ClientLabels};
use crate::kinds::KindRef;
use crate::wire::channel::Channel;

/// How long a request may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The longest answer that is read whole.
pub(super) const ANSWER_BYTES: usize = 64 << 20;

/// The server, as requests see it.
#[derive(Debug)]
pub struct Server(pub(super) Arc<Channel>);

pub(super) fn method_of<B>(request: &Request<B>) -> &'static str {
    match request.method().as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

pub(super) async fn whole(body: Incoming) -> Result<Bytes> {
    let read = tokio::time::timeout(PATIENCE, Limited::new(body, ANSWER_BYTES).collect()).await;
    match read {
        Ok(Ok(all)) => Ok(all.to_bytes()),
        Ok(Err(error)) => Err(Status::unavailable(format!("the server's answer broke off: {error}"))),
        Err(_) => Err(Status::unavailable("the server's answer does not end")),
    }
}

/// A failure, as the server put it.
pub(super) async fn status_of(response: Response<Incoming>) -> Status {
    let code = response.status().as_u16();
    let body = whole(response.into_body()).await.unwrap_or_default();
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = match text(&value, "message") {
        "" => String::from_utf8_lossy(&body).chars().take(500).collect(),
        message => message.to_owned(),
    };
    Status::received(code, text(&value, "reason"), message)
}

/// The path of a kind's objects in a namespace (empty: all).
pub(super) fn collection(kind: &KindRef, namespace: &str) -> String {
    let root = if kind.group().is_empty() {
        format!("/api/{}", kind.version())
    } else {
        format!("/apis/{}", kind.api_version())
    };
    match namespace {
        namespace if kind.namespaced() && !namespace.is_empty() => {
            format!("{root}/namespaces/{namespace}/{}", kind.plural())
        }
        _ => format!("{root}/{}", kind.plural()),
    }
}

// === impl Server ===

impl Server {
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let (begun, method) = (tokio::time::Instant::now(), method_of(&request));
        let sent = tokio::time::timeout(PATIENCE, self.0.send(request)).await;
        let labels = |code| ClientLabels { host: self.0.address(), method, code };
        let code = sent.as_ref().ok().and_then(|s| s.as_ref().ok()).map_or(0, |r| r.status().as_u16());
        metrics::CLIENT_REQUESTS.add(labels(Some(code)));
        metrics::CLIENT_DURATIONS.observe(labels(None), begun.elapsed());
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Status::unavailable(crate::base::error::chain(&error))),
            Err(_) => Err(Status::unavailable(format!("{} does not answer", self.0.address()))),
        }
    }

    pub(super) async fn call(&self, method: Method, path: &str, content: &str, body: Option<&Value>) -> Result<Value> {
        let bytes = body.map(|b| serde_json::to_vec(b).expect("a value is JSON")).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content);
        let request = request.body(Full::new(bytes.into())).map_err(|e| Status::internal(e.to_string()))?;
        let response = self.send(request).await?;
        if !response.status().is_success() {
            return Err(status_of(response).await);
        }
        let bytes = whole(response.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|e| Status::internal(format!("the server's answer is no JSON: {e}")))
    }
}

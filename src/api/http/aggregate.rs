//! Requests that another server of the API answers: handed on with the name of who asks (`kube-aggregator/pkg/apiserver`).
//!
//! Who may ask was decided here, as for everything else. Invariant: nothing that opens this server goes there, the answer of
//! a request that does not stay open ends in time, and a switch of protocols or a redirect happens only as it was asked for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use hyper::body::{Frame, Incoming, SizeHint};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use tokio::time::{Instant, Sleep};

use super::proxy::{IN_PATH, headers_back, headers_there, switched};
use super::route::{Route, Target};
use super::{Body, answer};
use crate::api::Api;
use crate::api::aggregate::{Remote, name_user};
use crate::apimachinery::http::peer::Origin;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;
use crate::base::error;
use crate::wire::relay;

/// How long a request may take that does not stay open, as every request to Kubernetes' API.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The server that answers a request in the place of this one.
pub(super) fn remote_of(api: &Api, route: &Route) -> Option<Arc<Remote>> {
    match &route.target {
        Target::Resource(resource) => api.remote(&resource.group, &resource.version),
        Target::Path(path) => {
            let path = path.trim_end_matches('/');
            if path == "/api" || path == "/api/v1" {
                return api.remote("", "v1");
            }
            let (group, version) = path.strip_prefix("/apis/")?.split_once('/')?;
            api.remote(group, version)
        }
    }
}

/// The server whose OpenAPI document is at a path.
pub(super) fn remote_documented(api: &Api, path: &str) -> Option<Arc<Remote>> {
    let (group, version) = path.strip_prefix("/openapi/v3/apis/")?.trim_end_matches('/').split_once('/')?;
    api.remote(group, version)
}

/// Hands a request on.
pub(super) async fn respond(
    api: &Api,
    remote: &Remote,
    user: &User,
    route: &Route,
    http: http::Request<Body>,
) -> Result<Response<Body>> {
    if !remote.is_available {
        return Ok(refused(503, "service unavailable"));
    }
    if route.is_long_running() {
        return Ok(handed_on(api, remote, user, http).await);
    }
    let deadline = Instant::now() + TIMEOUT;
    match tokio::time::timeout_at(deadline, handed_on(api, remote, user, http)).await {
        Ok(response) => {
            Ok(response.map(|body| Body::new(Timely { body, late: Box::pin(tokio::time::sleep_until(deadline)) })))
        }
        Err(_) => {
            let why = "request did not complete within the allotted timeout";
            Err(Status::new(504, "Timeout", format!("Timeout: {why}")))
        }
    }
}

/// A failure as the aggregator tells it: in words, not as a Status.
fn refused(code: u16, why: &str) -> Response<Body> {
    answer::text(code, format!("{why}\n"))
}

async fn handed_on(api: &Api, remote: &Remote, user: &User, http: http::Request<Body>) -> Response<Body> {
    let upgrade = relay::upgrade_of(http.headers());
    let (request, client) = match prepared(http, remote, user, upgrade.clone()) {
        Ok(prepared) => prepared,
        Err(why) => return refused(500, why),
    };
    let unreachable = |why: String| refused(503, &format!("error trying to reach service: {why}"));
    let stream = match remote.connect(api).await {
        Ok(stream) => stream,
        Err(why) => return unreachable(why),
    };
    let response = match relay::send(stream, request).await {
        Ok(response) => response,
        Err(why) => return unreachable(error::chain(&why)),
    };
    match upgrade {
        Some(_) if response.status() == StatusCode::SWITCHING_PROTOCOLS => switched(response, client),
        _ => handed_back(response),
    }
}

/// The request as the server gets it, and the client's end of an upgrade.
fn prepared(
    mut http: http::Request<Body>,
    remote: &Remote,
    user: &User,
    upgrade: Option<HeaderValue>,
) -> std::result::Result<(http::Request<Body>, hyper::upgrade::OnUpgrade), &'static str> {
    let client = hyper::upgrade::on(&mut http);
    let from = http.extensions().get::<Origin>().map(|f| f.0);
    let (parts, body) = http.into_parts();
    let mut request = http::Request::new(body);
    *request.method_mut() = if parts.method == Method::HEAD { Method::HEAD } else { parts.method };
    *request.uri_mut() = as_authorized(&parts.uri).ok_or("the path cannot be handed on")?;
    let path = request.uri().path().to_owned();
    let headers = request.headers_mut();
    *headers = parts.headers;
    headers_there(headers, &remote.authority(), from, &path);
    name_user(headers, user).map_err(|()| "the user's name cannot be handed on")?;
    if let Some(to) = upgrade {
        relay::set_upgrade(headers, to);
    }
    Ok((request, client))
}

/// The path as it was read here, written anew: what was allowed is what is asked for.
fn as_authorized(uri: &Uri) -> Option<Uri> {
    let path = percent_decode_str(uri.path()).decode_utf8().ok()?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{query}", utf8_percent_encode(&path, IN_PATH)).parse().ok()
}

/// The answer as it comes.
fn handed_back(response: Response<Incoming>) -> Response<Body> {
    let status = response.status();
    if status.is_informational() {
        return refused(503, &format!("error trying to reach service: unexpected status code {}", status.as_u16()));
    }
    if status.is_redirection() && response.headers().contains_key(header::LOCATION) {
        // Whoever follows would take their credentials along.
        let why = "the backend attempted to redirect this request, which is not permitted";
        let mut response = answer::empty(502);
        *response.body_mut() = answer::full(Bytes::from_static(why.as_bytes()));
        return response;
    }
    let (mut parts, body) = response.into_parts();
    headers_back(&mut parts.headers);
    let mut out = Response::new(Body::new(body));
    *out.status_mut() = parts.status;
    *out.headers_mut() = parts.headers;
    out
}

/// A body that ends in time.
struct Timely {
    body: Body,
    late: Pin<Box<Sleep>>,
}

impl hyper::body::Body for Timely {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        if self.late.as_mut().poll(cx).is_ready() {
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the server behind does not end its answer");
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allowed_is_what_is_asked_for() {
        for (path, there) in [
            (
                "/apis/w.example/v1/namespaces/n/flunders?watch=1&x=%20",
                "/apis/w.example/v1/namespaces/n/flunders?watch=1&x=%20",
            ),
            ("/apis/w.example/v1/a%2Fb", "/apis/w.example/v1/a/b"),
            ("/apis/w.example/v1/a%252Fb", "/apis/w.example/v1/a%252Fb"),
            ("/apis/w.example/v1/a%20b", "/apis/w.example/v1/a%20b"),
            ("/apis/w.example/v1/a%3Fb", "/apis/w.example/v1/a%3Fb"),
        ] {
            assert_eq!(as_authorized(&path.parse().unwrap()).unwrap().to_string(), there, "{path}");
        }
    }
}

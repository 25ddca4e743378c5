//! A backend's answer as the client gets it.

use http::header::HeaderName;
use http::{HeaderMap, Response};
use hyper::body::Incoming;

use super::super::Body;
use crate::wire::relay;

/// The headers as the client gets them. Whether scripts of other sites may read an answer is not the backend's to say.
pub(in crate::api::http) fn headers_back(headers: &mut HeaderMap) {
    relay::strip_hop_by_hop(headers);
    let foreign = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    for name in headers.keys().filter(foreign).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// The answer as it comes.
pub(super) fn carried(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    headers_back(&mut parts.headers);
    with_parts(parts, Body::new(body))
}

/// An answer with the status and the headers of another, in our own version of HTTP.
pub(super) fn with_parts(parts: http::response::Parts, body: Body) -> Response<Body> {
    let mut out = Response::new(body);
    *out.status_mut() = parts.status;
    *out.headers_mut() = parts.headers;
    out
}

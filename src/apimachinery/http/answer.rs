//! Plain answers: text, JSON, bytes that come in pieces.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::Value;

use crate::apimachinery::status::written_in_order;

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Body::from(bytes.into())
}

/// A body that comes in pieces.
pub fn streamed<S>(pieces: S) -> Body
where
    S: futures::Stream<Item = Bytes> + Send + 'static,
{
    Body::new(StreamBody::new(pieces.map(|b| Ok::<_, Infallible>(Frame::data(b)))))
}

/// An answer of a media type.
pub fn typed(code: u16, media: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// An answer without a body.
pub fn empty(code: u16) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// Plain text.
pub fn text(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    typed(code, "text/plain; charset=utf-8", full(body))
}

/// JSON that is already text.
pub fn json_bytes(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    typed(code, "application/json", full(body))
}

/// A value as JSON.
pub fn json(code: u16, value: &Value) -> Response<Body> {
    if value["kind"] == "Status" && value["apiVersion"] == "v1" {
        return json_bytes(code, written_in_order(value));
    }
    json_bytes(code, serde_json::to_vec(value).unwrap_or_default())
}

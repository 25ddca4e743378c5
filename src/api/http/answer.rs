//! Answers: statuses, objects and lists, spliced from the bytes that objects already are.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use futures::TryFutureExt;
use http::header::{HeaderValue, WARNING};
use http::{Method, Response};
use hyper::body::{Frame, SizeHint};
use jiff::Timestamp;
use serde_json::{Value, json};
use tower::service_fn;

use super::layer::Next;
use super::negotiate::{Form, Offer, Shape};
use super::{Body, negotiate, table};
use crate::api::form;
use crate::api::read::List;
pub use crate::apimachinery::http::answer::{empty, full, json, json_bytes, streamed, text, typed};
use crate::apimachinery::status::{Result, Status};
use crate::base::object::Object;
use crate::kinds::KindRef;

/// How many bytes of a list are gathered before they are sent.
const CHUNK: usize = 64 << 10;

/// All warnings of an answer have so many characters, or each is cut.
const WARNINGS_RUNES_MAX: usize = 4 << 10;
/// What is left of a warning that is cut.
const WARNING_RUNES_MAX: usize = 256;

/// What Go's own multiplexer says.
pub(super) fn unknown() -> Response<Body> {
    text(404, "404 page not found\n")
}

/// A value in the negotiated format.
pub fn value(code: u16, form: Form, value: &Value) -> Response<Body> {
    let beta;
    let value = match form.beta {
        true => {
            beta = table::as_beta(value.clone());
            &beta
        }
        false => value,
    };
    if form.yaml {
        let yaml = serde_yaml::to_string(value).unwrap_or_default();
        return typed(code, "application/yaml", full(yaml));
    }
    json(code, value)
}

/// A failure.
pub fn status(status: &Status, form: Form) -> Response<Body> {
    let mut response = match form.yaml {
        true => value(status.code, form, &status.to_json()),
        false => json_bytes(status.code, status.to_bytes()),
    };
    if let Some(seconds) = status.details.retry_after_seconds {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    warn(response, &status.details.warnings)
}

/// A failure on its way through the layers: [`write_failures`] writes it, which knows what the client accepts.
impl IntoResponse for Status {
    fn into_response(self) -> Response<Body> {
        let mut response = empty(self.code);
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes failures in the form that the client accepts.
pub(super) fn write_failures<S: Next>(mut inner: S) -> impl Next {
    service_fn(move |request: Request| {
        let form = negotiate::accept(request.headers(), Offer::Transformed).unwrap_or_default();
        let is_head = *request.method() == Method::HEAD;
        inner.call(request).map_ok(move |mut response| {
            let Some(failure) = response.extensions_mut().remove::<Status>() else { return response };
            let mut response = status(&failure, form);
            if is_head {
                *response.body_mut() = Body::empty();
            }
            response
        })
    })
}

/// Adds `Warning` headers: each text once, and all of them in 4 KiB of text, if need be by cutting each (as
/// `k8s.io/apiserver/pkg/endpoints/filters/warning.go` does).
pub fn warn(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    let mut seen = HashSet::new();
    let texts: Vec<&str> = warnings
        .iter()
        .map(String::as_str)
        .filter(|w| !w.is_empty() && seen.insert(*w))
        .take(WARNINGS_RUNES_MAX)
        .collect();
    let all: usize = texts.iter().map(|w| w.len()).sum();
    let cut = all > WARNINGS_RUNES_MAX && texts.iter().map(|w| w.chars().count()).sum::<usize>() > WARNINGS_RUNES_MAX;
    let mut written = 0;
    for text in texts {
        if cut && written >= WARNINGS_RUNES_MAX {
            break;
        }
        let runes = if cut { WARNING_RUNES_MAX } else { usize::MAX };
        let mut quoted = String::with_capacity(text.len().min(WARNINGS_RUNES_MAX));
        for c in text.chars().take(runes) {
            written += 1;
            if matches!(c, '\\' | '"') {
                quoted.push('\\');
            }
            quoted.push(if c.is_control() { ' ' } else { c });
        }
        if let Ok(header) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, header);
        }
    }
    response
}

/// One object.
pub fn object(
    code: u16,
    form: Form,
    kind: &KindRef,
    object: &Arc<Object>,
    include: table::Include,
    now: Timestamp,
) -> Result<Response<Body>> {
    match form.shape {
        Shape::Object if !form.yaml && kind.owns_storage() => Ok(json_bytes(code, wire(kind, object))),
        Shape::Object => Ok(value(code, form, &served(kind, object))),
        Shape::PartialMetadata => Ok(value(code, form, &table::partial(&served(kind, object)))),
        Shape::Table => {
            Ok(value(code, form, &table::of(kind, std::slice::from_ref(object), object.revision, include, now)))
        }
        Shape::PartialMetadataList => Err(Status::not_acceptable("a single object is no list")),
    }
}

/// A list with nothing in it.
pub fn empty_list(form: Form, api_version: &str, kind: &str, revision: u64) -> Response<Body> {
    let list = json!({
        "kind": format!("{kind}List"), "apiVersion": api_version,
        "metadata": {"resourceVersion": revision.to_string()}, "items": [],
    });
    value(200, form, &list)
}

/// A list.
pub fn list(form: Form, kind: &KindRef, list: List, include: table::Include, now: Timestamp) -> Result<Response<Body>> {
    match form.shape {
        Shape::Object if !form.yaml && kind.owns_storage() => Ok(typed(200, "application/json", spliced(kind, list))),
        Shape::Table => {
            let mut table = table::of(kind, &list.items, list.revision, include, now);
            list_metadata(&mut table, &list);
            Ok(value(200, form, &table))
        }
        Shape::PartialMetadata => Err(Status::not_acceptable("a list is no single object")),
        Shape::Object | Shape::PartialMetadataList => {
            let partial = form.shape == Shape::PartialMetadataList;
            let items: Vec<Value> = list.items.iter().map(|o| item(kind, o, partial)).collect();
            // An empty list of metadata is no list at all (Kubernetes 1.36).
            let items = if partial && items.is_empty() { Value::Null } else { items.into() };
            let (version, name) = if partial {
                ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned())
            } else {
                (kind.api_version(), format!("{}List", kind.kind()))
            };
            let mut out = json!({"kind": name, "apiVersion": version, "metadata": {"resourceVersion": list.revision.to_string()}, "items": items});
            list_metadata(&mut out, &list);
            Ok(value(200, form, &out))
        }
    }
}

fn item(kind: &KindRef, object: &Object, partial: bool) -> Value {
    let mut value = served(kind, object);
    if partial {
        return table::partial(&value);
    }
    if let Some(map) = value.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    value
}

fn list_metadata(out: &mut Value, list: &List) {
    if !list.continue_token.is_empty() {
        out["metadata"]["continue"] = list.continue_token.as_str().into();
    }
    if let Some(remaining) = list.remaining {
        out["metadata"]["remainingItemCount"] = remaining.into();
    }
}

/// An object in the asked version, decoded.
pub fn served(kind: &KindRef, object: &Object) -> Value {
    form::served(kind, object.value())
}

/// An object's bytes with `kind` and `apiVersion` in front.
pub fn wire(kind: &KindRef, object: &Object) -> Bytes {
    let mut out = BytesMut::with_capacity(object.body().len() + 64);
    splice(&mut out, kind, object);
    out.freeze()
}

/// Appends an object's bytes with `kind` and `apiVersion` in front.
pub fn splice(out: &mut BytesMut, kind: &KindRef, object: &Object) {
    for part in [r#"{"kind":""#, kind.kind(), r#"","apiVersion":""#] {
        out.extend_from_slice(part.as_bytes());
    }
    if !kind.group().is_empty() {
        out.extend_from_slice(kind.group().as_bytes());
        out.extend_from_slice(b"/");
    }
    out.extend_from_slice(kind.version().as_bytes());
    out.extend_from_slice(br#"","#);
    out.extend_from_slice(&object.body()[1..]);
}

/// A list whose items are copied as they are, a chunk at a time.
fn spliced(kind: &KindRef, list: List) -> Body {
    let mut metadata = json!({"resourceVersion": list.revision.to_string()});
    if !list.continue_token.is_empty() {
        metadata["continue"] = list.continue_token.as_str().into();
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let head = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        kind.kind(),
        kind.api_version()
    );
    let total: usize = list.items.iter().map(|o| o.body().len() + 1).sum();
    if total < CHUNK {
        let mut out = BytesMut::with_capacity(total + head.len() + 2);
        out.extend_from_slice(head.as_bytes());
        append(&mut out, &mut list.items.into_iter().enumerate(), usize::MAX);
        out.extend_from_slice(b"]}");
        return full(out.freeze());
    }
    let bytes_min = (head.len() + total) as u64;
    let mut items = list.items.into_iter().enumerate();
    let mut head = Some(head);
    let mut ended = false;
    let pieces = std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut out = BytesMut::with_capacity(CHUNK + 8192);
        out.extend_from_slice(head.take().unwrap_or_default().as_bytes());
        if !append(&mut out, &mut items, CHUNK) {
            out.extend_from_slice(b"]}");
            ended = true;
        }
        Some(out.freeze())
    });
    Body::new(Pieces { pieces, bytes_min })
}

/// A body in pieces, which says how long it is at least: it has no `Content-Length`, but may be worth compression.
struct Pieces<I> {
    pieces: I,
    bytes_min: u64,
}

impl<I: Iterator<Item = Bytes> + Unpin> hyper::body::Body for Pieces<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        self.bytes_min = self.bytes_min.saturating_sub(piece.as_ref().map_or(0, |p| p.len() as u64));
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.bytes_min);
        hint
    }
}

/// Appends items until `limit` bytes; false at the end.
fn append(out: &mut BytesMut, items: &mut impl Iterator<Item = (usize, Arc<Object>)>, limit: usize) -> bool {
    for (i, object) in items {
        if i > 0 {
            out.extend_from_slice(b",");
        }
        out.extend_from_slice(object.body());
        if out.len() >= limit {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(warnings: &[String]) -> Vec<String> {
        let response = warn(empty(200), warnings);
        response.headers().get_all(WARNING).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn warnings_are_told_once_and_in_four_kilobytes() {
        let short: Vec<String> = ["a", "b", "a", "", "c\"d\\e\n"].map(str::to_owned).into();
        assert_eq!(headers(&short), ["299 - \"a\"", "299 - \"b\"", "299 - \"c\\\"d\\\\e \""]);
        let long: Vec<String> =
            (0..100_000).map(|i| format!("unknown field \"spec.{}{i}\"", "x".repeat(500))).collect();
        let told = headers(&long);
        assert_eq!(told.len(), 16, "each is cut to 256 characters");
        let many: Vec<String> = (0..100_000).map(|i| format!("unknown field \"x{i}\"")).collect();
        let told = headers(&many);
        assert!(
            (190..240).contains(&told.len()) && told.iter().map(String::len).sum::<usize>() < 8192,
            "{}",
            told.len()
        );
        let one = headers(&["y".repeat(4096)]);
        assert_eq!(one[0].len(), 4096 + 8);
    }
}

//! Answers: statuses, objects and lists, spliced from the bytes that objects already are.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::Request;
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use futures::TryFutureExt;
use http::header::{HeaderValue, WARNING};
use http::{Method, Response};
use jiff::Timestamp;
use serde_json::Value;
use tower::service_fn;

use super::flow_control::{HeldBytes, KeepsObjects, LEVEL_UID, SCHEMA_UID};
use super::layer::Next;
use super::negotiate::{MediaType, Offer, Shape};
use super::spliced::Spliced;
use super::{Body, negotiate, table};
use crate::api::form;
use crate::api::sending::{PIECE_BYTES, STREAM_BYTES};
pub use crate::apimachinery::http::answer::{empty, full, json, json_bytes, streamed, text, typed};
use crate::apimachinery::status::{Result, Status};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::KindRef;

/// All warnings of an answer have so many characters, or each is cut.
const WARNINGS_RUNES_MAX: usize = 4 << 10;
/// What is left of a warning that is cut.
const WARNING_RUNES_MAX: usize = 256;

/// What Go's own multiplexer says.
pub(super) fn unknown() -> Response<Body> {
    text(404, "404 page not found\n")
}

/// A value in the negotiated format.
pub fn value(code: u16, form: MediaType, value: &Value) -> Response<Body> {
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
pub fn status(status: &Status, form: MediaType) -> Response<Body> {
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
            let names = [&SCHEMA_UID, &LEVEL_UID];
            let told = names.map(|name| response.headers_mut().remove(name));
            let mut response = status(&failure, form);
            for (name, uid) in names.into_iter().zip(told) {
                response.headers_mut().extend(uid.map(|uid| (name.clone(), uid)));
            }
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
    form: MediaType,
    kind: &KindRef,
    object: &Arc<Object>,
    include: table::Include,
    now: Timestamp,
) -> Result<Response<Body>> {
    in_turn(object.body().len(), || match form.shape {
        Shape::Object if !form.yaml && kind.has_form_of(object) => Ok(stored(code, kind, object)),
        Shape::Object => Ok(value(code, form, &served(kind, object))),
        Shape::PartialMetadata => Ok(value(code, form, &table::partial(&served(kind, object)))),
        Shape::Table => {
            Ok(value(code, form, &table::of(kind, std::slice::from_ref(object), object.revision, include, now)))
        }
        Shape::PartialMetadataList => Err(Status::not_acceptable("a single object is no list")),
    })
}

/// Makes something of an object of so many bytes. Large ones take turns: what is decoded is many times as large, for a moment.
pub(super) fn in_turn<T>(bytes: usize, make: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    if bytes <= form::LONG_BYTES {
        return make();
    }
    task::in_place(true, || {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        make()
    })
}

/// What an object's answer holds until it is sent, about; 0 where that is little, or shared with the cache.
pub fn held_bytes(form: MediaType, kind: &KindRef, object: &Object) -> usize {
    let is_shared =
        form.shape == Shape::Object && !form.yaml && kind.has_form_of(object) && !kind.is_converted_by_webhook();
    if is_shared || object.body().len() < PIECE_BYTES / 4 {
        return 0;
    }
    2 * object.body().len() + STREAM_BYTES
}

/// An object in the asked version, decoded.
pub fn served(kind: &KindRef, object: &Object) -> Value {
    form::served(kind, object)
}

/// An object as it is; a large one is not copied whole.
fn stored(code: u16, kind: &KindRef, object: &Arc<Object>) -> Response<Body> {
    if object.body().len() < PIECE_BYTES {
        return json_bytes(code, wire(kind, object));
    }
    let mut head = BytesMut::with_capacity(128);
    begin(&mut head, kind);
    let spliced = Spliced { head: head.freeze(), object: object.clone(), at: 1 };
    let mut response = typed(code, "application/json", Body::new(spliced));
    response.extensions_mut().insert(HeldBytes(STREAM_BYTES));
    response.extensions_mut().insert(KeepsObjects);
    response
}

/// An object's bytes with `kind` and `apiVersion` in front.
pub fn wire(kind: &KindRef, object: &Object) -> Bytes {
    let mut out = BytesMut::with_capacity(object.body().len() + 64);
    splice(&mut out, kind, object);
    out.freeze()
}

/// Appends an object's bytes with `kind` and `apiVersion` in front.
pub fn splice(out: &mut BytesMut, kind: &KindRef, object: &Object) {
    begin(out, kind);
    out.extend_from_slice(&object.body()[1..]);
}

/// `{"kind":...,"apiVersion":...,`
pub(super) fn begin(out: &mut BytesMut, kind: &KindRef) {
    for part in [r#"{"kind":""#, kind.kind(), r#"","apiVersion":""#] {
        out.extend_from_slice(part.as_bytes());
    }
    if !kind.group().is_empty() {
        out.extend_from_slice(kind.group().as_bytes());
        out.extend_from_slice(b"/");
    }
    out.extend_from_slice(kind.version().as_bytes());
    out.extend_from_slice(br#"","#);
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

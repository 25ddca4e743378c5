//! Lists on the wire, in every form: written item by item while they are sent, from the objects that the cache has anyway.
//!
//! Only what is long is sent in pieces; what fits into one is there at once, with its length. Invariant: a list that is on
//! its way holds a piece, one item that is longer than that, and where the others are. What has been given to a connection is
//! a copy: a part of an object's own text would keep all of it, and nobody would know (`api::evicted`).

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use hyper::body::{Frame, SizeHint};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::flow_control::{HeldBytes, KeepsObjects};
use super::negotiate::{MediaType, Shape};
use super::table::Include;
use super::{Body, answer, table};
use crate::api::read::List;
use crate::api::sending::{PIECE_BYTES, Room, STREAM_BYTES};
use crate::apimachinery::status::{Result, Status};
use crate::base::object::Object;
use crate::kinds::KindRef;

/// How many bytes of a list are gathered before they are sent.
const CHUNK: usize = PIECE_BYTES;
/// How many bytes of objects are read for a piece, also if little of them is written.
const READ_BYTES: usize = 4 * CHUNK;
/// What is longer is sent in pieces: the least that is compressed for whoever accepts it.
const WHOLE_BYTES: usize = 128 << 10;
/// How many bytes of objects become YAML at once.
const YAML_BYTES: usize = CHUNK / 2;
/// The text of one item may be this long: indented by its depth, a small object may be any size.
const ITEM_BYTES_MAX: usize = 16 << 20;
/// What the text of an item takes at most, as a rule, for a byte of the object.
const EXPANSION: usize = 3;

/// How a list is to be written.
pub struct Written {
    pub form: MediaType,
    pub include: Include,
    pub now: Timestamp,
}

// === impl Written ===

impl Written {
    /// What a list holds while it is sent; 0 where that is what it is long.
    pub fn held_bytes(&self, kind: &KindRef, list: &List) -> usize {
        let lengths = list.items.iter().map(|object| object.body().len());
        let (total, longest) = lengths.fold((0, 0), |(total, longest), bytes| (total + bytes, bytes.max(longest)));
        if total < CHUNK && list.own_bytes == 0 {
            return 0;
        }
        let item = match self.is_as_stored(kind) && (kind.as_custom().is_none() || all_as(kind, list)) {
            true => 0,
            false => EXPANSION * longest,
        };
        STREAM_BYTES + item + list.items.len() * size_of::<Arc<Object>>() + list.own_bytes
    }

    fn is_as_stored(&self, kind: &KindRef) -> bool {
        self.form.shape == Shape::Object && !self.form.yaml && copies(kind)
    }

    /// The answer; `held_bytes` is what [`Written::held_bytes`] says of the list, `room` what it may take, if that is counted.
    pub fn answer(
        self,
        kind: &KindRef,
        list: List,
        held_bytes: usize,
        room: Option<Arc<Room>>,
    ) -> Result<Response<Body>> {
        if self.form.shape == Shape::PartialMetadata {
            return Err(Status::not_acceptable("a list is no single object"));
        }
        let (frame, key) = self.frame(kind, &list);
        if list.items.is_empty() {
            return Ok(answer::value(200, self.form, &frame));
        }
        let (head, tail) = split(&frame, key, self.form.yaml);
        let media = if self.form.yaml { "application/yaml" } else { "application/json" };
        let encoding = match () {
            () if self.is_as_stored(kind) && kind.as_custom().is_some() => Encoding::Named,
            () if self.is_as_stored(kind) => Encoding::AsStored,
            () if self.form.shape == Shape::PartialMetadataList && !self.form.yaml && copies(kind) => {
                Encoding::Metadata
            }
            () => Encoding::Made,
        };
        let known = matches!(encoding, Encoding::AsStored).then(|| {
            let items: usize = list.items.iter().map(|object| object.body().len() + 1).sum();
            head.len() + items + tail.len() - 1
        });
        let mut pieces = Pieces {
            written: self,
            kind: kind.clone(),
            encoding,
            items: list.items.into_iter(),
            is_first: true,
            is_ended: false,
            tail,
            rest: Bytes::new(),
            rest_of: None,
            begun: BytesMut::from(head.as_bytes()),
            bytes_min: 0,
            room,
            failed: false,
        };
        let whole = known.map_or(WHOLE_BYTES, |bytes| if bytes < CHUNK { CHUNK } else { 0 });
        let mut begun = BytesMut::new();
        while begun.len() < whole && !pieces.failed {
            match pieces.next() {
                Some(piece) if begun.is_empty() => begun = BytesMut::from(piece),
                Some(piece) => begun.extend_from_slice(&piece),
                None if pieces.failed => break,
                None => return Ok(answer::typed(200, media, answer::full(begun.freeze()))),
            }
        }
        if pieces.failed {
            return Err(Status::internal("an item is too large in this form"));
        }
        if pieces.is_ended && pieces.rest.is_empty() {
            return Ok(answer::typed(200, media, answer::full(begun.freeze())));
        }
        pieces.bytes_min = known.unwrap_or(begun.len()) as u64;
        pieces.rest = begun.freeze();
        let mut response = answer::typed(200, media, Body::new(pieces));
        response.extensions_mut().insert(HeldBytes(held_bytes));
        response.extensions_mut().insert(KeepsObjects);
        Ok(response)
    }

    /// The list without its items, and what they are called.
    fn frame(&self, kind: &KindRef, list: &List) -> (Value, &'static str) {
        let is_empty = list.items.is_empty();
        let place = if is_empty { json!([]) } else { json!([true]) };
        let (mut frame, key) = match self.form.shape {
            Shape::Table => {
                let mut table = table::of(kind, &[], list.revision, self.include, self.now);
                table["rows"] = place;
                (table, "rows")
            }
            shape => {
                let partial = shape == Shape::PartialMetadataList;
                let (version, name) = if partial {
                    ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned())
                } else {
                    (kind.api_version(), kind.list_kind().into_owned())
                };
                // An empty list of metadata is no list at all (Kubernetes 1.36).
                let items = if partial && is_empty { Value::Null } else { place };
                let metadata = json!({"resourceVersion": list.revision.to_string()});
                (json!({"kind": name, "apiVersion": version, "metadata": metadata, "items": items}), "items")
            }
        };
        // What has no type of Go is written with everything that it has.
        let untyped = kind.as_custom().is_some() && self.form.shape == Shape::Object;
        if !list.continue_token.is_empty() || untyped {
            frame["metadata"]["continue"] = list.continue_token.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            frame["metadata"]["remainingItemCount"] = remaining.into();
        }
        if self.form.beta && !is_empty {
            frame = table::as_beta(frame);
        }
        (frame, key)
    }
}

/// Whether the text of a kind's objects is what is sent of them, at least of those that have its form.
fn copies(kind: &KindRef) -> bool {
    kind.as_custom().is_some() || kind.owns_storage()
}

fn all_as(kind: &KindRef, list: &List) -> bool {
    list.items.iter().all(|object| kind.has_form_of(object))
}

/// What of a list stands before and behind its items. In a text neither of the marks can stand by itself: a quotation mark in
/// JSON is escaped there, and a line of YAML indented.
fn split(frame: &Value, key: &str, yaml: bool) -> (String, String) {
    let (text, mark) = match yaml {
        true => (serde_yaml::to_string(frame).unwrap_or_default(), format!("\n{key}:\n- true\n")),
        false => (frame.to_string(), format!("\"{key}\":[true]")),
    };
    let (head, tail) = text.split_once(&mark).unwrap_or_default();
    match yaml {
        true => (format!("{head}\n{key}:\n"), tail.to_owned()),
        false => (format!("{head}\"{key}\":["), format!("]{tail}")),
    }
}

/// How items become text.
#[derive(Clone, Copy)]
enum Encoding {
    /// They are text already.
    AsStored,
    /// As that, with their kind and version in front: items of custom kinds say what they are.
    Named,
    /// Of their text only the metadata, as they are.
    Metadata,
    /// Decoded, made into what is asked for, and written.
    Made,
}

/// A list that is written while it is sent. It has no `Content-Length`, but says how long it is at least.
struct Pieces {
    written: Written,
    kind: KindRef,
    encoding: Encoding,
    items: std::vec::IntoIter<Arc<Object>>,
    is_first: bool,
    /// The end was written.
    is_ended: bool,
    tail: String,
    /// Text that is to be sent as it is, and the object that it is of.
    rest: Bytes,
    rest_of: Option<Arc<Object>>,
    /// Text to which the next is added.
    begun: BytesMut,
    bytes_min: u64,
    room: Option<Arc<Room>>,
    failed: bool,
}

// === impl Pieces ===

impl Pieces {
    /// The next piece, or nothing at the end, or when [`Pieces::failed`].
    fn next(&mut self) -> Option<Bytes> {
        if !self.rest.is_empty() {
            let piece = self.rest.split_to(self.rest.len().min(CHUNK));
            return Some(match &self.rest_of {
                None => piece,
                Some(_) => {
                    let piece = Bytes::copy_from_slice(&piece);
                    if self.rest.is_empty() {
                        self.rest = Bytes::new();
                        self.rest_of = None;
                    }
                    piece
                }
            });
        }
        if self.is_ended || self.failed {
            return None;
        }
        let mut out = std::mem::take(&mut self.begun);
        if out.is_empty() {
            out.reserve(CHUNK + (8 << 10));
        }
        let mut read = 0;
        while out.len() < CHUNK && read < READ_BYTES {
            let Some(object) = self.items.next() else {
                out.extend_from_slice(self.tail.as_bytes());
                self.is_ended = true;
                break;
            };
            read += object.body().len();
            if !std::mem::take(&mut self.is_first) && !self.written.form.yaml {
                out.extend_from_slice(b",");
            }
            let encoding = match self.encoding {
                Encoding::Named if !self.kind.has_form_of(&object) => Encoding::Made,
                encoding => encoding,
            };
            if matches!(encoding, Encoding::AsStored | Encoding::Named) {
                let mut at = 0;
                if matches!(encoding, Encoding::Named) {
                    answer::begin(&mut out, &self.kind);
                    at = 1;
                }
                if object.body().len() > CHUNK {
                    self.rest = object.body().slice(at..);
                    self.rest_of = Some(object);
                    break;
                }
                out.extend_from_slice(&object.body()[at..]);
                continue;
            }
            let (before, mut bytes, mut objects) = (out.len(), object.body().len(), vec![object]);
            // A writer of YAML is worth more than one.
            let room = if self.written.form.yaml { YAML_BYTES } else { 0 };
            while let Some(next) = self.items.as_slice().first().filter(|next| bytes + next.body().len() < room) {
                bytes += next.body().len();
                objects.extend(self.items.next());
            }
            let written = answer::in_turn(bytes, || self.write(&objects, &mut out));
            self.failed = written.is_err() || !self.has_room(out.len() - before);
            if self.failed {
                return None;
            }
        }
        Some(out.freeze())
    }

    /// Whether an item of this length may be kept: nobody knows before it is written.
    fn has_room(&self, bytes: usize) -> bool {
        let Some(room) = self.room.as_ref().filter(|_| bytes > CHUNK) else { return true };
        let wanted = STREAM_BYTES + bytes + self.items.len() * size_of::<Arc<Object>>();
        wanted <= room.bytes() || room.resize(wanted, false)
    }

    /// Writes objects of YAML, or else one.
    fn write(&self, objects: &[Arc<Object>], out: &mut BytesMut) -> io::Result<()> {
        let mut out = Limited { out: out.writer(), left: ITEM_BYTES_MAX };
        if self.written.form.yaml {
            // Items of the outermost list are written as those of a list alone.
            let items: Vec<Value> = objects.iter().map(|object| self.item(object)).collect();
            return serde_yaml::to_writer(out, &items).map_err(io::Error::other);
        }
        for object in objects {
            if matches!(self.encoding, Encoding::Metadata) {
                let version = if self.written.form.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" };
                write!(out, r#"{{"apiVersion":"{version}","kind":"PartialObjectMetadata","metadata":"#)?;
                out.write_all(metadata(object)?.get().as_bytes())?;
                out.write_all(b"}")?;
            } else {
                serde_json::to_writer(&mut out, &self.item(object)).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    fn item(&self, object: &Arc<Object>) -> Value {
        let Written { form, include, now } = &self.written;
        match form.shape {
            Shape::Table => {
                let mut row = table::row(&self.kind, object, *include, *now);
                if form.beta {
                    table::rename_to_beta(&mut row["object"]);
                }
                row
            }
            Shape::PartialMetadata | Shape::PartialMetadataList => {
                let mut item = table::partial(&answer::served(&self.kind, object));
                if form.beta {
                    table::rename_to_beta(&mut item);
                }
                item
            }
            Shape::Object => {
                let mut item = answer::served(&self.kind, object);
                if let Some(map) = item.as_object_mut().filter(|_| self.kind.as_custom().is_none()) {
                    map.remove("kind");
                    map.remove("apiVersion");
                }
                item
            }
        }
    }
}

/// The text of an object's metadata, with which its own begins: what follows is not looked at.
fn metadata(object: &Object) -> io::Result<&RawValue> {
    let text = object.body().strip_prefix(br#"{"metadata":"#).ok_or(io::ErrorKind::InvalidData)?;
    <&RawValue>::deserialize(&mut serde_json::Deserializer::from_slice(text)).map_err(io::Error::other)
}

/// A text that ends where it is too long.
struct Limited<W> {
    out: W,
    left: usize,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let piece = self.next();
        self.bytes_min = self.bytes_min.saturating_sub(piece.as_ref().map_or(0, |p| p.len() as u64));
        if piece.is_none() && self.failed {
            let failed = io::Error::new(io::ErrorKind::FileTooLarge, "an item is too large in this form");
            return Poll::Ready(Some(Err(axum::Error::new(failed))));
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.bytes_min);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::kinds::{apps, core};

    fn object(kind: &KindRef, i: usize, text: &str) -> Arc<Object> {
        let value = json!({
            "metadata": {"name": format!("o{i}"), "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"rows": "\nrows:\n- true\n\"items\":[true]", "t": text}},
            "data": {"a": "- true\nitems:\n", "b": "", "c": "0x1f", "d": "  x\n\n y\n", "e": text},
            "list": [[1, [2.5, null]], [], {}, {"a": [{"b": "c"}]}],
        });
        let key = format!("{}n/o{i}", kind.prefix());
        Arc::new(Object::new(key.into(), 7 + i as u64, &value, Box::default()))
    }

    fn list(kind: &KindRef, items: usize, text: &str) -> List {
        let items = (0..items).map(|i| object(kind, i, text)).collect();
        List { items, revision: 99, continue_token: "abc".into(), remaining: Some(3), own_bytes: 0 }
    }

    /// The list made whole, which is what every form is to be.
    fn whole(form: MediaType, kind: &KindRef, list: &List, now: Timestamp) -> Value {
        let objects = list.items.iter().map(|o| answer::served(kind, o));
        let mut whole = match form.shape {
            Shape::Table => table::of(kind, &list.items, list.revision, Include::Object, now),
            Shape::PartialMetadataList => json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "items": objects.map(|o| table::partial(&o)).collect::<Vec<_>>()}),
            _ => {
                let items = objects.map(|mut o| {
                    o.as_object_mut().unwrap().retain(|key, _| key != "kind" && key != "apiVersion");
                    o
                });
                json!({"kind": format!("{}List", kind.kind()), "apiVersion": kind.api_version(), "items": items.collect::<Vec<_>>()})
            }
        };
        whole["metadata"] = json!({"resourceVersion": "99", "continue": "abc", "remainingItemCount": 3});
        if form.beta { table::as_beta(whole) } else { whole }
    }

    fn forms() -> Vec<MediaType> {
        let mut forms = Vec::new();
        for shape in [Shape::Object, Shape::Table, Shape::PartialMetadataList] {
            for yaml in [false, true] {
                forms.extend([false, true].map(|beta| MediaType { yaml, shape, beta: beta && shape != Shape::Object }));
            }
        }
        forms
    }

    #[tokio::test]
    async fn a_list_that_is_written_in_pieces_is_the_list_that_is_made_whole() {
        let (maps, sets) = (core::configmap::KIND.clone(), apps::replicaset::KIND.clone());
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for kind in [&maps, &sets] {
            for (items, text) in
                [(1, "a".to_owned()), (3, "a".to_owned()), (40, "xy\n".repeat(3000)), (3, "z".repeat(200_000))]
            {
                for form in forms() {
                    let list = list(kind, items, &text);
                    let expected = whole(form, kind, &list, now);
                    let written = Written { form, include: Include::Object, now };
                    let body = written.answer(kind, list, 0, None).unwrap().into_body();
                    let text = body.collect().await.unwrap().to_bytes();
                    if form.yaml {
                        let whole = serde_yaml::to_string(&expected).unwrap();
                        assert!(text == whole.as_bytes(), "{form:?}\n{:.3000}", String::from_utf8_lossy(&text));
                    } else {
                        let found: Value = serde_json::from_slice(&text).unwrap();
                        assert!(found == expected, "{form:?}\n{:.3000}", String::from_utf8_lossy(&text));
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_list_holds_a_piece_and_the_item_that_it_is_at() {
        let maps = core::configmap::KIND.clone();
        for form in forms() {
            let list = list(&maps, 400, &"a".repeat(10_000));
            let written = Written { form, include: Include::Object, now: Timestamp::UNIX_EPOCH };
            let held = written.held_bytes(&maps, &list);
            assert!(held < STREAM_BYTES + (90 << 10), "{form:?}: {held}");
            let mut body = written.answer(&maps, list, held, None).unwrap().into_body();
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                bytes += piece.len();
                assert!(piece.len() < CHUNK + (32 << 10), "{form:?}: {} at once", piece.len());
            }
            assert!(bytes > 400 * 10_000);
        }
    }

    #[tokio::test]
    async fn what_grows_without_end_by_its_form_ends_the_answer() {
        let mut deep = json!((0..20_000).collect::<Vec<_>>());
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let maps = core::configmap::KIND.clone();
        let value =
            json!({"metadata": {"name": "deep", "annotations": {"a": "b".repeat(100_000)}}, "x": vec![deep; 8]});
        let items = vec![Arc::new(Object::new("/k/n/deep".into(), 1, &value, Box::default()))];
        let list = List { items, revision: 9, continue_token: String::new(), remaining: None, own_bytes: 0 };
        let form = MediaType { yaml: true, ..MediaType::default() };
        let written = Written { form, include: Include::None, now: Timestamp::UNIX_EPOCH };
        assert!(written.answer(&maps, list, 0, None).is_err(), "it would have {} MiB", (160_000 * 200) >> 20);
    }
}

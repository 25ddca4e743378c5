//! Watches on the wire: a line of JSON an event.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::context::RequestContext;
use super::negotiate::{MediaType, Shape};
use super::table::{self, Include};
use super::{Body, answer, socket};
use crate::api::watch::{Watch, WatchEvent, WatchOptions};
use crate::apimachinery::status::Result;
use crate::base::budget::Budget;
use crate::base::clock::Clock;
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::wire::websocket;

/// Bookmarks come this often, where something has happened.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch that names no end lasts between this and twice this.
const LIFETIME_SECONDS: u64 = 1800;
/// Events are gathered to about this much before they are sent.
const CHUNK: usize = 32 << 10;

/// Begins a watch and answers its events as they come.
pub(super) fn respond(context: &RequestContext, form: MediaType, http: http::Request<Body>) -> Result<Response<Body>> {
    let initial_events = context.query.has("sendInitialEvents").then(|| context.query.flag("sendInitialEvents"));
    context.list_parameters(true).check()?;
    let options = WatchOptions {
        resource_version: context.query.get("resourceVersion").to_owned(),
        initial_events,
        bookmarks: context.query.flag("allowWatchBookmarks"),
    };
    let lifetime = match context.query.int("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds as u64,
        _ => LIFETIME_SECONDS + context.api.clock.random_u64() % LIFETIME_SECONDS,
    };
    let watch = context.api.watch(&context.request, context.selection()?, &options)?;
    let now = tokio::time::Instant::now();
    let events = Events {
        watch,
        kind: context.request.kind.clone(),
        form,
        include: Include::parse(context.query.get("includeObject"))?,
        clock: context.api.clock.clone(),
        header_sent: false,
        end: now + Duration::from_secs(lifetime),
        bookmark_at: options.bookmarks.then(|| now + BOOKMARK_EVERY),
        bookmarked: 0,
        over: false,
    };
    let pieces = futures::stream::unfold(events, |mut events| async move { events.piece().await.map(|b| (b, events)) });
    if websocket::is_wanted(http.headers()) {
        // A watch has no sub-protocol of its own: what the client names first is what it hears.
        let protocol = websocket::offered(http.headers()).first().map(|p| (*p).to_owned());
        return Ok(socket::tell(http, protocol.as_deref(), pieces.flat_map(messages)));
    }
    Ok(answer::typed(200, "application/json", answer::streamed(pieces)))
}

/// A message an event: none has a line break in it.
fn messages(lines: Bytes) -> impl futures::Stream<Item = Message> {
    let mut rest = lines;
    futures::stream::iter(std::iter::from_fn(move || {
        let end = rest.iter().position(|b| *b == b'\n')? + 1;
        Some(rest.split_to(end))
    }))
    .filter_map(|line| std::future::ready(Utf8Bytes::try_from(line).ok().map(Message::Text)))
}

struct Events {
    watch: Watch,
    kind: KindRef,
    form: MediaType,
    include: Include,
    clock: Clock,
    /// A table's column definitions go with its first event only.
    header_sent: bool,
    end: tokio::time::Instant,
    bookmark_at: Option<tokio::time::Instant>,
    bookmarked: u64,
    over: bool,
}

// === impl Events ===

impl Events {
    /// The next bytes to send; `None` ends the answer.
    async fn piece(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.is_empty() {
            if self.over {
                return None;
            }
            let wake = self.bookmark_at.map_or(self.end, |b| b.min(self.end));
            tokio::select! {
                biased;
                seen = self.watch.next() => self.take(seen, &mut out),
                () = tokio::time::sleep_until(wake) => self.tick(&mut out),
            }
        }
        // Whatever else is ready goes along.
        while out.len() < CHUNK && !self.over {
            match self.watch.ready() {
                Ok(Some(seen)) => self.write(&seen, &mut out),
                Ok(None) => break,
                Err(status) => self.take(Err(status), &mut out),
            }
        }
        // Nobody knows when the client takes this.
        self.watch.release();
        Some(out.freeze())
    }

    fn tick(&mut self, out: &mut BytesMut) {
        let now = tokio::time::Instant::now();
        if now >= self.end {
            self.over = true;
        }
        if self.bookmark_at.is_some_and(|at| now >= at) {
            self.bookmark_at = Some(now + BOOKMARK_EVERY);
            if let Ok(WatchEvent::Bookmark { revision, initial }) = self.watch.bookmark()
                && revision > self.bookmarked
            {
                self.bookmarked = revision;
                self.write(&WatchEvent::Bookmark { revision, initial }, out);
            }
        }
    }

    fn take(&mut self, seen: Result<WatchEvent>, out: &mut BytesMut) {
        match seen {
            Ok(seen) => self.write(&seen, out),
            Err(status) => {
                self.over = true;
                out.put_slice(br#"{"type":"ERROR","object":"#);
                out.put_slice(status.to_bytes().trim_ascii_end());
                out.put_slice(b"}\n");
            }
        }
    }

    fn write(&mut self, seen: &WatchEvent, out: &mut BytesMut) {
        let (name, object) = match seen {
            WatchEvent::Added(o) => ("ADDED", o),
            WatchEvent::Modified(o) => ("MODIFIED", o),
            WatchEvent::Deleted(o) => ("DELETED", o),
            WatchEvent::Bookmark { revision, initial } => return self.write_bookmark(*revision, *initial, out),
        };
        if self.form.shape == Shape::Object && self.kind.has_form_of(object) {
            out.put_slice(br#"{"type":""#);
            out.put_slice(name.as_bytes());
            out.put_slice(br#"","object":"#);
            answer::splice(out, &self.kind, object);
            out.put_slice(b"}\n");
            return;
        }
        // A list is no event: Kubernetes ends such a watch without a word.
        if self.form.shape == Shape::PartialMetadataList {
            self.over = true;
            return;
        }
        let shown = self.shown(object, self.clock.now());
        let shown = if self.form.beta { table::as_beta(shown) } else { shown };
        line(out, &json!({"type": name, "object": shown}));
    }

    fn shown(&mut self, object: &std::sync::Arc<Object>, now: Timestamp) -> Value {
        match self.form.shape {
            Shape::Object => answer::served(&self.kind, object),
            Shape::PartialMetadata | Shape::PartialMetadataList => table::partial(&answer::served(&self.kind, object)),
            Shape::Table => {
                let mut table = table::of(&self.kind, std::slice::from_ref(object), object.revision, self.include, now);
                self.columns_once(&mut table);
                table
            }
        }
    }

    fn columns_once(&mut self, table: &mut Value) {
        if self.header_sent {
            table["columnDefinitions"] = Value::Null;
        }
        self.header_sent = true;
    }

    fn write_bookmark(&mut self, revision: u64, initial: bool, out: &mut BytesMut) {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form.shape {
            Shape::Object => {
                let mut zero = json!({"metadata": metadata});
                let _ = crate::schema::decode(&mut zero, &self.kind.type_ref(), &mut Budget::new());
                zero["kind"] = self.kind.kind().into();
                zero["apiVersion"] = self.kind.api_version().into();
                zero
            }
            Shape::Table => {
                let mut table = table::of(&self.kind, &[], revision, self.include, self.clock.now());
                let object =
                    json!({"kind": self.kind.kind(), "apiVersion": self.kind.api_version(), "metadata": metadata});
                table["rows"] =
                    json!([{"cells": vec![Value::Null; self.kind.columns().len()], "object": table::partial(&object)}]);
                self.columns_once(&mut table);
                table
            }
            Shape::PartialMetadata | Shape::PartialMetadataList => table::partial(&json!({"metadata": metadata})),
        };
        line(out, &json!({"type": "BOOKMARK", "object": object}));
    }
}

fn line(out: &mut BytesMut, value: &Value) {
    let _ = serde_json::to_writer((&mut *out).writer(), value);
    out.put_slice(b"\n");
}

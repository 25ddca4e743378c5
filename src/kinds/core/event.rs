//! Event of the core group, which is also how the events of events.k8s.io are stored.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{at, int, text};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string, wide};
use crate::kinds::{BUILTIN, Column, Field, Kind, KindRef, Strategy, Volatile};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    create_on_update: true,
    columns: COLUMNS,
    row,
    fields: FIELDS,
    strategy: Strategy { volatile: Volatile::Always, validate, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"involvedObject":{"kind":"Pod","name":"p"}}"#,
    ..Kind::BASE
});

/// Columns of both groups' events.
pub const COLUMNS: &[Column] = &[
    string("Last Seen", "When it was seen last."),
    string("Type", "Normal or Warning."),
    string("Reason", "What happened, in one word."),
    string("Object", "The object it is about."),
    wide("Subobject", "The part of the object it is about."),
    wide("Source", "Who reports it."),
    string("Message", "What happened, for people."),
    wide("First Seen", "When it was seen first."),
    wide("Count", "How often it was seen."),
    Column { priority: 1, ..table::NAME },
];

const FIELDS: &[Field] = &[
    Field { name: "involvedObject.kind", get: |e| text(e, "involvedObject.kind").into() },
    Field { name: "involvedObject.namespace", get: |e| text(e, "involvedObject.namespace").into() },
    Field { name: "involvedObject.name", get: |e| text(e, "involvedObject.name").into() },
    Field { name: "involvedObject.uid", get: |e| text(e, "involvedObject.uid").into() },
    Field { name: "involvedObject.apiVersion", get: |e| text(e, "involvedObject.apiVersion").into() },
    Field { name: "involvedObject.resourceVersion", get: |e| text(e, "involvedObject.resourceVersion").into() },
    Field { name: "involvedObject.fieldPath", get: |e| text(e, "involvedObject.fieldPath").into() },
    Field { name: "reason", get: |e| text(e, "reason").into() },
    Field { name: "reportingComponent", get: |e| text(e, "reportingComponent").into() },
    Field { name: "source", get: source },
    Field { name: "type", get: |e| text(e, "type").into() },
];

fn source(event: &Value) -> String {
    match text(event, "source.component") {
        "" => text(event, "reportingComponent"),
        component => component,
    }
    .into()
}

/// The cells, for an event in the core form.
pub fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let time = |path: &str| Some(text(event, path)).filter(|t| !t.is_empty());
    let first = time("firstTimestamp").or_else(|| time("eventTime"));
    let last = time("series.lastObservedTime").or_else(|| time("lastTimestamp")).or(first);
    let since = |t: Option<&str>| t.map_or("<unknown>".to_owned(), |t| table::since(t, now));
    let count = int(event, "series.count").or_else(|| int(event, "count")).filter(|n| *n != 0).unwrap_or(1);
    let (component, host) = match text(event, "source.component") {
        "" => (text(event, "reportingComponent"), text(event, "reportingInstance")),
        component => (component, text(event, "source.host")),
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    let kind = text(event, "involvedObject.kind").to_lowercase();
    vec![
        since(last).into(),
        text(event, "type").into(),
        text(event, "reason").into(),
        format!("{kind}/{}", text(event, "involvedObject.name")).into(),
        text(event, "involvedObject.fieldPath").into(),
        source.into(),
        text(event, "message").trim().into(),
        since(first).into(),
        count.into(),
        table::name(event),
    ]
}

/// The namespace of an event is that of its object; events of cluster-scoped objects are in `default`.
fn validate(event: &Value) -> Errors {
    let (namespace, object) = (text(event, "metadata.namespace"), text(event, "involvedObject.namespace"));
    let mut errors = Errors::new();
    let path = "involvedObject.namespace";
    const WHY: &str = "does not match event.namespace";
    if object.is_empty() {
        let mut cluster_wide = at(event, "involvedObject.kind").is_some();
        cluster_wide &= matches!(namespace, "" | "default");
        if !cluster_wide && !matches!(namespace, "" | "default") {
            errors.push(field::invalid(path, object, WHY));
        }
    } else if object != namespace {
        errors.push(field::invalid(path, object, WHY));
    }
    errors
}

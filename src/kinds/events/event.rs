//! Event of events.k8s.io: the same stored objects as core events, under other field names.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{at, int, text};
use crate::kinds::check;
use crate::kinds::field::{self, Errors};
use crate::kinds::{BUILTIN, Conversion, Field, Kind, KindRef, Strategy, Volatile, core};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.events.v1.Event",
    columns: core::event::COLUMNS,
    row,
    fields: FIELDS,
    create_on_update: true,
    stored_as: Some(&CONVERSION),
    // Kubernetes compares a changed event with itself: nothing of it is immutable.
    strategy: Strategy { volatile: Volatile::Always, validate, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"eventTime":"2020-01-01T00:00:00.000000Z","action":"A","reason":"R",
        "type":"Normal","regarding":{"kind":"Pod","name":"p"},"reportingController":"a.b/c","reportingInstance":"i"}"#,
    ..Kind::BASE
});

static CONVERSION: Conversion = Conversion { stored: &core::event::KIND, from_stored, to_stored };

/// In the order of core's fields: the values are taken from the stored form.
const FIELDS: &[Field] = &[
    Field { name: "regarding.kind", get: |e| text(e, "regarding.kind").into() },
    Field { name: "regarding.namespace", get: |e| text(e, "regarding.namespace").into() },
    Field { name: "regarding.name", get: |e| text(e, "regarding.name").into() },
    Field { name: "regarding.uid", get: |e| text(e, "regarding.uid").into() },
    Field { name: "regarding.apiVersion", get: |e| text(e, "regarding.apiVersion").into() },
    Field { name: "regarding.resourceVersion", get: |e| text(e, "regarding.resourceVersion").into() },
    Field { name: "regarding.fieldPath", get: |e| text(e, "regarding.fieldPath").into() },
    Field { name: "reason", get: |e| text(e, "reason").into() },
    Field { name: "reportingController", get: |e| text(e, "reportingController").into() },
    Field { name: "deprecatedSource.component", get: |e| text(e, "deprecatedSource.component").into() },
    Field { name: "type", get: |e| text(e, "type").into() },
];

/// Core's name of a field, and this group's.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];
/// Longest action, reason and instance.
const NAME_BYTES: usize = 128;
/// Longest note.
const NOTE_BYTES: usize = 1024;

fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let mut stored = event.clone();
    to_stored(&mut stored);
    core::event::row(&stored, now)
}

/// Fields that each group writes though they are unset, and how.
const CORE_ALWAYS: &[&str] =
    &["firstTimestamp", "lastTimestamp", "reportingComponent", "reportingInstance", "source", "involvedObject"];
const OWN_ALWAYS: &[&str] = &["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedSource", "regarding"];

fn from_stored(value: &mut Value) {
    rename(value, |pair| *pair);
    let Some(map) = value.as_object_mut() else { return };
    for key in ["reportingController", "reportingInstance"] {
        if map.get(key).is_some_and(|v| v == "") {
            map.remove(key);
        }
    }
    complete(map, OWN_ALWAYS);
}

fn to_stored(value: &mut Value) {
    rename(value, |pair| (pair.1, pair.0));
    if let Some(map) = value.as_object_mut() {
        complete(map, CORE_ALWAYS);
    }
}

fn complete(map: &mut serde_json::Map<String, Value>, always: &[&str]) {
    for key in always {
        let zero = match *key {
            k if k.ends_with("Timestamp") => Value::Null,
            k if k.starts_with("reporting") => "".into(),
            _ => serde_json::json!({}),
        };
        map.entry(*key).or_insert(zero);
    }
}

fn rename(value: &mut Value, direction: fn(&(&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(map) = value.as_object_mut() else { return };
    for (from, to) in RENAMED.iter().map(direction) {
        if let Some(v) = map.remove(from) {
            map.insert(to.to_owned(), v);
        }
    }
}

fn validate(event: &Value) -> Errors {
    let mut errors = Errors::new();
    let set = |key: &str| at(event, key).is_some_and(|v| !v.is_null());
    // What is left of an event of the old kind has no time of its own.
    if !set("eventTime") && set("deprecatedFirstTimestamp") && at(event, "metadata.resourceVersion").is_some() {
        return errors;
    }
    if !set("eventTime") {
        errors.push(field::required("eventTime", ""));
    }
    if !["Normal", "Warning"].contains(&text(event, "type")) {
        errors.push(field::invalid("type", text(event, "type"), "has invalid value"));
    }
    for key in ["reportingController", "reportingInstance", "action", "reason"] {
        let value = text(event, key);
        if value.is_empty() {
            errors.push(field::required(key, ""));
        } else if key == "reportingController" {
            check::qualified(&mut errors, &check::Path::root(key), value);
        } else if value.len() > NAME_BYTES {
            errors.push(field::invalid(key, "", format!("can have at most {NAME_BYTES} characters")));
        }
    }
    if text(event, "note").len() > NOTE_BYTES {
        errors.push(field::invalid("message", "", format!("can have at most {NOTE_BYTES} characters")));
    }
    if event.get("series").is_some_and(Value::is_object) {
        if int(event, "series.count").unwrap_or(0) < 2 {
            errors.push(field::invalid("series.count", "", "should be at least 2"));
        }
        if !set("series.lastObservedTime") {
            errors.push(field::required("series.lastObservedTime", ""));
        }
    }
    if int(event, "deprecatedCount").is_some_and(|n| n != 0) {
        errors.push(field::invalid("count", "", "needs to be unset"));
    }
    for (own, core) in [("deprecatedFirstTimestamp", "firstTimestamp"), ("deprecatedLastTimestamp", "lastTimestamp")] {
        if set(own) {
            errors.push(field::invalid(core, "", "needs to be unset"));
        }
    }
    if event.get("deprecatedSource").and_then(Value::as_object).is_some_and(|s| !s.is_empty()) {
        errors.push(field::invalid("source", "", "needs to be unset"));
    }
    errors
}

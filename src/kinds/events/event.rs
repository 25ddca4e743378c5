//! Event of events.k8s.io: the same stored objects as core events, under other field names.

use serde_json::Value;

use crate::kinds::{Conversion, Kind, core};

/// The kind.
pub static KIND: Kind = Kind {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.events.v1.Event",
    columns: core::event::KIND.columns,
    create_on_update: true,
    volatile: |_| true,
    stored_as: Some(&CONVERSION),
    ..Kind::BASE
};

static CONVERSION: Conversion = Conversion { stored: &core::event::KIND, from_stored, to_stored };

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

fn from_stored(value: &mut Value) {
    rename(value, |pair| *pair);
}

fn to_stored(value: &mut Value) {
    rename(value, |pair| (pair.1, pair.0));
}

fn rename(value: &mut Value, direction: fn(&(&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(map) = value.as_object_mut() else { return };
    for (from, to) in RENAMED.iter().map(direction) {
        if let Some(v) = map.remove(from) {
            map.insert(to.to_owned(), v);
        }
    }
}

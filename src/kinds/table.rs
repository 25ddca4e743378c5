//! Cells that many kinds' tables share.

use jiff::Timestamp;
use serde_json::Value;

use super::Column;
use crate::base::clock::{between, human_duration, parse_time};
use crate::base::json::text;

/// The description that Kubernetes gives the Name column.
pub const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
    resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for \
    creation idempotence and configuration definition. Cannot be updated. More info: \
    https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
/// The description that Kubernetes gives the Age column.
pub const AGE_DESCRIPTION: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is \
    not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is \
    represented in RFC3339 form and is in UTC.";

/// The Name column.
pub const NAME: Column<'static> =
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DESCRIPTION };
/// The Age column.
pub const AGE: Column<'static> = string("Age", AGE_DESCRIPTION);
/// The columns of kinds that show nothing of their own.
pub const NAME_AGE: &[Column<'static>] = &[NAME, AGE];

/// A column that every kind with a template of pods has with `-o wide`.
pub const CONTAINERS: Column<'static> = wide("Containers", "Names of the containers in the template.");
/// A column that every kind with a template of pods has with `-o wide`.
pub const IMAGES: Column<'static> = wide("Images", "Images of the containers in the template.");
/// A column that most kinds with a template of pods have with `-o wide`.
pub const SELECTOR: Column<'static> = wide("Selector", "Labels of its pods.");

/// A string column that is always shown.
pub const fn string(name: &'static str, description: &'static str) -> Column<'static> {
    Column { name, kind: "string", format: "", priority: 0, description }
}

/// A string column of the wide output.
pub const fn wide(name: &'static str, description: &'static str) -> Column<'static> {
    Column { name, kind: "string", format: "", priority: 1, description }
}

/// An integer column that is always shown.
pub const fn integer(name: &'static str, description: &'static str) -> Column<'static> {
    Column { name, kind: "integer", format: "", priority: 0, description }
}

/// The cells of [`NAME_AGE`].
pub fn name_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// The Name cell.
pub fn name(object: &Value) -> Value {
    text(object, "metadata.name").into()
}

/// The Age cell.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(text(object, "metadata.creationTimestamp"), now).into()
}

/// How long ago a time was, `<unknown>` where there is none.
pub fn since(time: &str, now: Timestamp) -> String {
    match parse_time(time) {
        Some(t) => human_duration(between(t, now)),
        None => "<unknown>".into(),
    }
}

/// A map of labels as `a=b,c=d`.
pub fn labels(labels: Option<&serde_json::Map<String, Value>>) -> String {
    let pairs: Vec<String> =
        labels.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// The cells Containers and Images, of a template's containers.
pub fn container_cells(containers: &[Value]) -> [Value; 2] {
    let join = |key: &str| containers.iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
    [join("name").into(), join("image").into()]
}

/// A label selector as kubectl would parse it again.
pub fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector.filter(|s| s.is_object()) else { return "<none>".into() };
    let pairs = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut parts: Vec<(&str, String)> =
        pairs.map(|(k, v)| (k.as_str(), format!("{k}={}", v.as_str().unwrap_or("")))).collect();
    for e in crate::base::json::list(selector, "matchExpressions") {
        let key = text(e, "key");
        let mut values: Vec<&str> = crate::base::json::list(e, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let part = match text(e, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key, part));
    }
    parts.sort_by_key(|(key, _)| *key);
    let parts: Vec<String> = parts.into_iter().map(|(_, part)| part).collect();
    if parts.is_empty() { "<none>".into() } else { parts.join(",") }
}

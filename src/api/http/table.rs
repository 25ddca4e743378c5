//! Tables and bare metadata: what kubectl prints and what metadata clients read.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::form;
use crate::base::json::remove;
use crate::base::object::Object;
use crate::kinds::{self, Column, KindRef};

/// What of the object goes with each row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

// === impl Include ===

impl Include {
    /// From the `includeObject` parameter.
    pub fn parse(text: &str) -> crate::apimachinery::status::Result<Self> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(crate::apimachinery::status::Status::bad_request(format!(
                "unrecognized includeObject value: {other:?}"
            ))),
        }
    }
}

/// The objects as a table.
pub fn of(kind: &KindRef, objects: &[Arc<Object>], revision: u64, include: Include, now: Timestamp) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": if revision == 0 { json!({}) } else { json!({"resourceVersion": revision.to_string()}) },
        "columnDefinitions": kind.columns().iter().map(definition).collect::<Vec<_>>(),
        "rows": objects.iter().map(|o| row(kind, o, include, now)).collect::<Vec<_>>(),
    })
}

fn definition(c: &Column) -> Value {
    json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
}

/// An object's row.
pub fn row(kind: &KindRef, object: &Object, include: Include, now: Timestamp) -> Value {
    let mut value = form::served(kind, object);
    if object.revision == 0 {
        // What a trial would have made.
        remove(&mut value, "metadata.resourceVersion");
    }
    let mut row = json!({"cells": kind.row(&value, now)});
    if let Some((reason, message)) = kind.completed(&value) {
        row["conditions"] = json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]);
    }
    row["object"] = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(&value),
        Include::Object => value,
    };
    row
}

/// Only the metadata.
pub fn partial(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

/// The older version of what is in `meta.k8s.io/v1`, which looks the same.
pub fn as_beta(mut value: Value) -> Value {
    rename_to_beta(&mut value);
    for (list, inner) in [("rows", "object"), ("items", "")] {
        for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            match inner {
                "" => rename_to_beta(item),
                _ => item.get_mut(inner).into_iter().for_each(rename_to_beta),
            }
        }
    }
    value
}

/// As [`as_beta`], without what is in it.
pub fn rename_to_beta(value: &mut Value) {
    if let Some(version) = value.get_mut("apiVersion").filter(|version| **version == "meta.k8s.io/v1") {
        *version = "meta.k8s.io/v1beta1".into();
    }
}

/// A Scale as a table.
pub fn of_scale(scale: &Value, now: Timestamp) -> Value {
    let column =
        |name: &str, kind: &str| json!({"name": name, "type": kind, "format": "", "description": "", "priority": 0});
    let count = |path: &str| scale.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let cells = json!([
        scale["metadata"]["name"],
        count("/spec/replicas"),
        count("/status/replicas"),
        kinds::table::age(scale, now)
    ]);
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": scale["metadata"]["resourceVersion"]},
        "columnDefinitions": [
            column("Name", "string"), column("Desired", "integer"), column("Available", "integer"), column("Age", "string"),
        ],
        "rows": [{"cells": cells, "object": partial(scale)}],
    })
}

//! Schemas as expressions see them (`k8s.io/apiserver/pkg/cel/common/schemas.go`).
//!
//! What a schema leaves open cannot be named in expressions: unknown members that are kept, and lists and maps of such.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::base::json::{at, flag, list, map, text};
use crate::cel::{Decl, DeclKind, Field, ObjectType, Order, REQUEST_BYTES_MAX, escape};

/// The longest name of an object.
const NAME_LETTERS_MAX: i64 = 253;
const DURATION_BYTES_MAX: u64 = 32;
const DURATION_BYTES_MIN: u64 = 3;
const DATE_BYTES: u64 = 12;
const DATE_TIME_BYTES_MAX: u64 = 32;
const DATE_TIME_BYTES_MIN: u64 = 21;

/// What a schema says, if expressions can see it; `is_resource` where it is that of an object with metadata of its own.
pub fn declare(schema: &Value, is_resource: bool, name: &str) -> Option<Arc<Decl>> {
    let kind = of(schema, is_resource, name)?;
    Some(Arc::new(Decl { nullable: flag(schema, "nullable"), ..kind }))
}

/// Whether a schema is that of an object in an object.
pub fn is_embedded(schema: &Value) -> bool {
    schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true))
}

fn of(schema: &Value, is_resource: bool, name: &str) -> Option<Decl> {
    let limit = |key: &str| schema.get(key).and_then(Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0));
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        let most = limit("maxLength").map_or(REQUEST_BYTES_MAX - 2, |n| n.saturating_mul(4));
        return Some(Decl::new(DeclKind::IntOrString, most, 1));
    }
    let with_metadata = is_resource.then(|| described(schema));
    let schema = with_metadata.as_ref().unwrap_or(schema);
    match text(schema, "type") {
        "array" => {
            let items = schema.get("items").filter(|i| i.is_object())?;
            let item = declare(items, is_embedded(items), &format!("{name}.@idx"))?;
            let most = limit("maxItems").unwrap_or((REQUEST_BYTES_MAX - 2) / (item.bytes_min + 1));
            Some(Decl::new(DeclKind::List(item, order(schema)), most, 2))
        }
        "object" => match schema.get("additionalProperties").filter(|a| a.is_object()) {
            Some(additional) => {
                let value = declare(additional, is_embedded(additional), &format!("{name}.@elem"))?;
                let most = limit("maxProperties").unwrap_or((REQUEST_BYTES_MAX - 2) / (value.bytes_min + 6));
                Some(Decl::new(DeclKind::Map(value), most, 2))
            }
            None => Some(object(schema, name)),
        },
        "string" => Some(string(schema, limit("maxLength"))),
        "boolean" => Some(Decl::new(DeclKind::Bool, 0, 4)),
        "number" => Some(Decl::new(DeclKind::Double, 0, 1)),
        "integer" => Some(Decl::new(DeclKind::Int, 0, 1)),
        _ => None,
    }
}

fn order(schema: &Value) -> Order {
    match text(schema, "x-kubernetes-list-type") {
        "set" => Order::Set,
        "map" => {
            let keys = list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
            Order::Map(keys.map(Box::from).collect())
        }
        _ => Order::Atomic,
    }
}

fn object(schema: &Value, name: &str) -> Decl {
    let required = list(schema, "required");
    let mut fields = BTreeMap::new();
    let mut bytes_min = 2;
    for (member, of) in map(schema, "properties").into_iter().flatten() {
        let Some(decl) = declare(of, is_embedded(of), &format!("{name}.{member}")) else { continue };
        if required.iter().any(|r| r == member) && of.get("default").is_none_or(Value::is_null) {
            bytes_min += member.len() as u64 + decl.bytes_min + 4;
        }
        if let Some(escaped) = escape(member) {
            fields.insert(escaped, Field { name: member.as_str().into(), decl });
        }
    }
    let object = ObjectType { name: name.into(), fields };
    Decl::new(DeclKind::Object(Arc::new(object)), 0, bytes_min)
}

fn string(schema: &Value, length_max: Option<u64>) -> Decl {
    let whole = REQUEST_BYTES_MAX - 2;
    match text(schema, "format") {
        "byte" => Decl::new(DeclKind::Bytes, length_max.unwrap_or(whole), 2),
        "duration" => Decl::new(DeclKind::Duration, DURATION_BYTES_MAX, DURATION_BYTES_MIN),
        "date" => Decl::new(DeclKind::Date, DATE_BYTES, DATE_BYTES),
        "date-time" => Decl::new(DeclKind::DateTime, DATE_TIME_BYTES_MAX, DATE_TIME_BYTES_MIN),
        _ => {
            let longest = || list(schema, "enum").iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0);
            let most = match length_max {
                Some(length) => length.saturating_mul(4),
                None if !list(schema, "enum").is_empty() => longest() as u64,
                None => whole,
            };
            Decl::new(DeclKind::String, most, 2)
        }
    }
}

/// The schema with what every object has: of its metadata only the names are seen.
fn described(schema: &Value) -> Value {
    let is = |path: &str, of: &str| at(schema, path).is_some_and(|s| text(s, "type") == of);
    let names = ["properties.metadata.properties.name", "properties.metadata.properties.generateName"];
    let said = is("properties.kind", "string")
        && is("properties.apiVersion", "string")
        && is("properties.metadata", "object")
        && names.iter().all(|path| is(path, "string"));
    let mut out = schema.clone();
    if said {
        return out;
    }
    let capped = |path: &str, most: i64| {
        let given = at(schema, path).and_then(|s| s.get("maxLength")).and_then(Value::as_i64);
        json!({"type": "string", "maxLength": given.map_or(most, |given| given.min(most))})
    };
    let metadata = json!({"type": "object", "properties": {
        "name": capped(names[0], NAME_LETTERS_MAX),
        "generateName": capped(names[1], NAME_LETTERS_MAX - 1),
    }});
    if !out["properties"].is_object() {
        out["properties"] = json!({});
    }
    out["properties"]["kind"] = json!({"type": "string"});
    out["properties"]["apiVersion"] = json!({"type": "string"});
    out["properties"]["metadata"] = metadata;
    out
}

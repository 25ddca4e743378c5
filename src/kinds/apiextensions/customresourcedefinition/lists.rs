//! How lists and objects of a schema are merged (`x-kubernetes-list-type`, `x-kubernetes-map-type`): what may say so, and by
//! which members items are told apart.

use std::collections::HashSet;

use serde_json::Value;

use crate::base::json::{flag, list, map, text};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

/// What tells items of a list apart: each is looked for in every item.
const KEYS_MAX: usize = 32;

/// Errors of what is said of an object.
pub(super) fn map_type(errors: &mut Errors, path: &Path<'_>, schema: &Value) {
    let Some(map_type) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) else { return };
    must_be(errors, path, text(schema, "type"), "object", "must be object if x-kubernetes-map-type is specified");
    if !matches!(map_type, "atomic" | "granular") {
        errors.push(field::not_supported(&path.field("x-kubernetes-map-type"), map_type, &["atomic", "granular"]));
    }
}

fn must_be(errors: &mut Errors, path: &Path<'_>, actual: &str, wanted: &str, why: &str) {
    if actual != wanted {
        errors.push(match actual {
            "" => field::required(&path.field("type"), why),
            actual => field::invalid(&path.field("type"), actual, why),
        });
    }
}

/// Errors of what is said of a list.
pub(super) fn list_type(errors: &mut Errors, path: &Path<'_>, schema: &Value) {
    let list_type = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let items = schema.get("items").filter(|i| i.is_object());
    let (type_path, keys_path) = (path.field("x-kubernetes-list-type"), path.field("x-kubernetes-list-map-keys"));
    let items_path = path.field("items");
    if list_type.is_some() && text(schema, "type") != "array" {
        let why = "must be array if x-kubernetes-list-type is specified";
        must_be(errors, path, text(schema, "type"), "array", why);
    } else if let (Some("set"), Some(items)) = (list_type, items) {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let of_list = items.get("x-kubernetes-list-type").and_then(Value::as_str).unwrap_or("atomic");
        match text(items, "type") {
            "array" if of_list != "atomic" => {
                errors.push(field::invalid(&items_path.field("x-kubernetes-list-type"), of_list, why));
            }
            "object" if text(items, "x-kubernetes-map-type") != "atomic" => {
                errors.push(field::invalid(&items_path.field("x-kubernetes-map-type"), Value::Null, why));
            }
            _ => {}
        }
    }
    if let Some(other) = list_type.filter(|t| !matches!(*t, "atomic" | "set" | "map")) {
        errors.push(field::not_supported(&type_path, other, &["atomic", "set", "map"]));
    }
    if !keys.is_empty() && list_type != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match list_type {
            None => field::required(&type_path, why),
            Some(other) => field::invalid(&type_path, other, why),
        });
    }
    if matches!(list_type, Some("set" | "map")) && items.is_some_and(|i| flag(i, "nullable")) {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {}", list_type.unwrap_or(""));
        errors.push(field::forbidden(&items_path.field("nullable"), why));
    }
    if list_type != Some("map") {
        return;
    }
    if keys.is_empty() {
        errors.push(field::required(&keys_path, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = items else {
        errors.push(field::required(&items_path, "must have a schema if x-kubernetes-list-type is map"));
        return;
    };
    if text(items, "type") != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(field::invalid(&items_path.field("type"), text(items, "type"), why));
        return;
    }
    map_keys(errors, path, schema, items);
}

/// What tells items of a list apart must be there, and a scalar.
fn map_keys(errors: &mut Errors, path: &Path<'_>, schema: &Value, items: &Value) {
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let keys_path = path.field("x-kubernetes-list-map-keys");
    if keys.len() > KEYS_MAX {
        errors.push(field::too_many(&keys_path, keys.len(), KEYS_MAX));
        return;
    }
    let items_path = path.field("items");
    let members = items_path.field("properties");
    let mut seen = HashSet::new();
    for key in keys {
        let key = key.as_str().unwrap_or("");
        let member = members.key(key);
        match map(items, "properties").and_then(|p| p.get(key)) {
            None => {
                let why = "entries must all be names of item properties";
                errors.push(field::invalid(&keys_path, key, why));
            }
            Some(of) => {
                if matches!(text(of, "type"), "array" | "object") {
                    let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                    errors.push(field::invalid(&member.field("type"), text(of, "type"), why));
                }
                let is_required = list(items, "required").iter().any(|r| r == key);
                if !is_required && of.get("default").is_none_or(Value::is_null) {
                    let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a \
                               required property";
                    errors.push(field::required(&member.field("default"), why));
                }
                if flag(of, "nullable") {
                    let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                    errors.push(field::forbidden(&member.field("nullable"), why));
                }
            }
        }
        if !seen.insert(key) {
            errors.push(field::invalid(&keys_path, key, "must not contain duplicate entries"));
        }
    }
}

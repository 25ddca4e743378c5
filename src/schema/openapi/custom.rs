//! Custom kinds in the documents: their schema as the definition has it, with what every object has, in the form that
//! clients of each version can read (`k8s.io/apiextensions-apiserver/pkg/controller/openapi`).

use serde_json::{Map, Value, json};

use super::definitions::{Dialect, META};
use super::kind::{ApiKind, CustomApi};
use crate::base::json::{flag, map, text};

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should \
    convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this \
    from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA: &str = "Standard list metadata. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The definition of a custom kind; it says nothing of its members where `left` bytes are too few for it.
pub(super) fn object(kind: &ApiKind, custom: &CustomApi, dialect: Dialect, left: &mut usize) -> Value {
    let schema = custom.openapi(*left);
    *left = left.saturating_sub(schema.as_ref().map_or(0, |(_, bytes)| *bytes));
    let schema = schema.map_or(Value::Null, |(schema, _)| schema);
    let plain = schema.is_null()
        || (dialect == Dialect::V2 && schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)));
    // With members kubectl would refuse those that it does not find.
    let mut value = if plain { json!({"type": "object"}) } else { published(&schema, dialect) };
    if !plain {
        describe(&mut value, "ObjectMeta", METADATA, dialect);
    }
    value["x-kubernetes-group-version-kind"] =
        json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
    mark_selectable(&mut value, custom);
    value
}

/// The definition of lists of a custom kind.
pub(super) fn list(kind: &ApiKind, custom: &CustomApi, dialect: Dialect) -> Value {
    let about = "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
    let mut value = json!({
        "description": format!("{} is a list of {}", custom.list_kind, kind.kind),
        "type": "object", "required": ["items"],
        "properties": {"items": {
            "description": format!("List of {}. More info: {about}", kind.plural),
            "type": "array", "items": dialect.reference(&kind.definition),
        }},
    });
    describe(&mut value, "ListMeta", LIST_METADATA, dialect);
    value["x-kubernetes-group-version-kind"] =
        json!([{"group": kind.group, "version": kind.version, "kind": custom.list_kind}]);
    mark_selectable(&mut value, custom);
    value
}

fn mark_selectable(value: &mut Value, custom: &CustomApi) {
    if !custom.selectable.is_empty() {
        value["x-kubernetes-selectable-fields"] =
            custom.selectable.iter().map(|path| json!({"fieldPath": path})).collect();
    }
}

/// Adds the members that every object has.
fn describe(value: &mut Value, metadata: &str, text: &str, dialect: Dialect) {
    let reference = dialect.reference(&format!("{META}.{metadata}"));
    let metadata = match dialect {
        Dialect::V2 => {
            let mut reference = reference;
            reference["description"] = text.into();
            reference
        }
        Dialect::V3 => json!({"allOf": [reference], "description": text}),
    };
    if !value["properties"].is_object() {
        value["properties"] = json!({});
    }
    value["properties"]["metadata"] = metadata;
    value["properties"]["apiVersion"] = json!({"type": "string", "description": API_VERSION});
    value["properties"]["kind"] = json!({"type": "string", "description": KIND});
}

/// A schema in the form that a version's clients read.
fn published(schema: &Value, dialect: Dialect) -> Value {
    let mut out = schema.as_object().cloned().unwrap_or_default();
    let is_set = |key: &str| schema.get(key) == Some(&Value::Bool(true));
    match dialect {
        Dialect::V2 => reduce(schema, &mut out),
        Dialect::V3 => {
            if is_set("x-kubernetes-int-or-string") && !out.contains_key("anyOf") {
                out.insert("anyOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
            }
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(of) = out.get_mut(key).filter(|of| of.is_object()) {
            *of = published(of, dialect);
        }
    }
    if let Some(Value::Object(properties)) = out.get_mut("properties") {
        properties.values_mut().for_each(|of| *of = published(of, dialect));
    }
    let mut out = Value::Object(out);
    let is_open = dialect == Dialect::V2 && is_set("x-kubernetes-preserve-unknown-fields");
    if is_set("x-kubernetes-embedded-resource") && !is_open {
        describe(&mut out, "ObjectMeta", METADATA, dialect);
        let mut required: Vec<Value> = out["required"].as_array().cloned().unwrap_or_default();
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == name) {
                required.push(name.into());
            }
        }
        out["required"] = required.into();
    }
    out
}

/// Version 2 has no alternatives, and kubectl takes what it says of an object for all that there may be.
fn reduce(schema: &Value, out: &mut Map<String, Value>) {
    for key in ["allOf", "anyOf", "oneOf", "not"] {
        out.remove(key);
    }
    if flag(schema, "nullable") {
        for key in ["type", "nullable", "items", "properties"] {
            out.remove(key);
        }
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        out.remove("items");
        out.remove("properties");
        if text(schema, "type") == "object" {
            out.remove("type");
        }
    }
    if !out.contains_key("items") && out.get("type").is_some_and(|t| t == "array") {
        out.remove("type");
    }
    let is_nullable = |name: &Value| {
        name.as_str().and_then(|name| map(schema, "properties")?.get(name)).is_some_and(|of| flag(of, "nullable"))
    };
    let none_needed = schema.get("additionalProperties").is_some_and(|of| flag(of, "nullable"));
    if let Some(Value::Array(required)) = out.get_mut("required") {
        required.retain(|name| !none_needed && !is_nullable(name));
        if required.is_empty() {
            out.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_clients_are_told_less() {
        let schema = json!({"type": "object", "required": ["n", "a"], "properties": {
            "a": {"type": "string", "enum": ["x"], "anyOf": [{"minLength": 1}]},
            "n": {"type": "object", "nullable": true, "properties": {"x": {"type": "string"}}},
            "p": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
            "i": {"x-kubernetes-int-or-string": true},
            "e": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"z": {"type": "string"}}},
        }});
        let second = published(&schema, Dialect::V2);
        assert_eq!(second["required"], json!(["a"]));
        assert_eq!(second["properties"]["a"], json!({"type": "string", "enum": ["x"]}));
        assert_eq!(second["properties"]["n"], json!({}));
        assert_eq!(second["properties"]["p"], json!({"x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(second["properties"]["i"], json!({"x-kubernetes-int-or-string": true}));
        let third = published(&schema, Dialect::V3);
        assert_eq!(third["properties"]["i"]["anyOf"].as_array().unwrap().len(), 2);
        assert_eq!(third["properties"]["n"], schema["properties"]["n"]);
        assert!(third["properties"]["e"]["properties"]["metadata"]["allOf"].is_array());
        assert_eq!(third["properties"]["e"]["required"], json!(["kind", "apiVersion"]));
    }
}

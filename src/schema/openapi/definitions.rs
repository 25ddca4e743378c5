//! Types as OpenAPI schemas, with the marks clients compute patches from.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::schema::bundle::Descriptions;
use crate::schema::types::{Field, ListKind, Node, Scalar, Schema, Struct};

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// Which OpenAPI is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

// === impl Dialect ===

impl Dialect {
    /// A reference to a definition.
    pub fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// The names of definitions that are not structs in our schema.
fn special(node: &Node, field: &str) -> Option<String> {
    Some(match node {
        Node::Scalar(Scalar::Quantity) => QUANTITY.into(),
        Node::Scalar(Scalar::IntOrString) => INT_OR_STRING.into(),
        Node::Scalar(Scalar::Time) => format!("{META}.Time"),
        Node::Scalar(Scalar::MicroTime) => format!("{META}.MicroTime"),
        Node::Raw if field == "fieldsV1" => format!("{META}.FieldsV1"),
        Node::Raw => RAW.into(),
        Node::Any => format!("{EXTENSIONS}.JSON"),
        Node::SchemaOr(_) => {
            let or = match field {
                "items" => "Array",
                "dependencies" => "StringArray",
                _ => "Bool",
            };
            format!("{EXTENSIONS}.JSONSchemaPropsOr{or}")
        }
        _ => return None,
    })
}

/// All definitions that these refer to, and they themselves, sorted.
pub(super) fn reachable(schema: &Schema, roots: &BTreeSet<String>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<String> = roots.iter().filter(|name| !name.is_empty()).cloned().collect();
    while let Some(name) = open.pop() {
        let known = schema.by_name.get(name.as_str());
        if (known.is_none() && !is_special(&name)) || !seen.insert(name) {
            continue;
        }
        for field in known.into_iter().flat_map(|id| schema.fields_of(*id)) {
            open.extend(target(schema, field.node, &field.name));
        }
    }
    seen
}

fn is_special(name: &str) -> bool {
    scalar_schema(name, Dialect::V2).is_some()
}

/// The definition a node refers to, through lists and maps.
fn target(schema: &Schema, node: u32, field: &str) -> Option<String> {
    match &schema.nodes[node as usize] {
        Node::Struct { id, .. } => Some(schema.structs[*id as usize].name.to_string()),
        Node::List { item, .. } => target(schema, *item, field),
        Node::Map { value, .. } => target(schema, *value, field),
        other => special(other, field),
    }
}

/// Definitions without fields.
fn scalar_schema(name: &str, dialect: Dialect) -> Option<Value> {
    let v3 = dialect == Dialect::V3;
    let last = name.rsplit('.').next().unwrap_or("");
    Some(match last {
        "Quantity" if name == QUANTITY && v3 => {
            json!({
                "description": "Quantity is a fixed-point representation of a number.",
                "oneOf": [{"type": "string"}, {"type": "number"}],
            })
        }
        "Quantity" if name == QUANTITY => {
            json!({"description": "Quantity is a fixed-point representation of a number.", "type": "string"})
        }
        "IntOrString" if v3 => json!({
            "description": "IntOrString is a type that can hold an int32 or a string.",
            "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}],
        }),
        "IntOrString" => json!({
            "description": "IntOrString is a type that can hold an int32 or a string.",
            "format": "int-or-string", "type": "string",
        }),
        "Time" | "MicroTime" if name.starts_with(META) => json!({
            "description": "Time in RFC 3339 form.", "format": "date-time", "type": "string",
        }),
        "RawExtension" => json!({"description": "An object of any kind.", "type": "object"}),
        "FieldsV1" => json!({"description": "FieldsV1 stores a set of fields in JSON form.", "type": "object"}),
        "Patch" => json!({"description": "Patch is the body of a PATCH request.", "type": "object"}),
        "JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
            json!({"description": format!("{last} represents any valid value of its kind.")})
        }
        _ => return None,
    })
}

/// One definition.
pub(super) fn schema(
    types: &Schema,
    descriptions: Option<&Descriptions>,
    name: &str,
    dialect: Dialect,
    group_versions: &BTreeSet<(&str, &str)>,
) -> Value {
    let Some(id) = types.by_name.get(name) else { return scalar_schema(name, dialect).unwrap_or_else(|| json!({})) };
    let of = &types.structs[*id as usize];
    let mut lines = descriptions.into_iter().flat_map(|d| d.all_of(*id));
    let mut map = Map::new();
    put_text(&mut map, lines.next());
    map.insert("type".into(), "object".into());
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in types.fields_of(*id) {
        properties.insert(field.name.to_string(), property(types, field, lines.next(), dialect));
        if field.required {
            required.push(Value::from(field.name.as_ref()));
        }
    }
    if !properties.is_empty() {
        map.insert("properties".into(), Value::Object(properties));
    }
    if !required.is_empty() {
        map.insert("required".into(), Value::Array(required));
    }
    if of.atomic {
        map.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if let Some(kinds) = group_version_kinds(of, group_versions) {
        map.insert("x-kubernetes-group-version-kind".into(), kinds);
    }
    Value::Object(map)
}

fn group_version_kinds(of: &Struct, group_versions: &BTreeSet<(&str, &str)>) -> Option<Value> {
    let entry = |group: &str, version: &str, kind: &str| json!({"group": group, "kind": kind, "version": version});
    let last = of.name.rsplit('.').next().unwrap_or("");
    if of.name.starts_with(META) && matches!(last, "DeleteOptions" | "WatchEvent") {
        return Some(group_versions.iter().map(|(g, v)| entry(g, v, last)).collect());
    }
    let (group, version, kind) = of.gvk.as_ref()?;
    Some(json!([entry(group, version, kind)]))
}

fn put_text(map: &mut Map<String, Value>, text: Option<String>) {
    if let Some(text) = text.filter(|t| !t.is_empty()) {
        map.insert("description".into(), text.into());
    }
}

/// One property: its type, its description and its marks.
fn property(types: &Schema, field: &Field, text: Option<String>, dialect: Dialect) -> Value {
    let mut value = type_of(types, field.node, &field.name, dialect);
    let map = value.as_object_mut().expect("types are objects");
    let is_reference = map.contains_key("$ref");
    if is_reference && dialect == Dialect::V3 {
        // A reference may have no siblings in version 3.0.
        let reference = std::mem::take(map);
        map.insert("allOf".into(), json!([reference]));
    }
    put_text(map, text);
    match &types.nodes[field.node as usize] {
        Node::List { kind, marked: true, .. } => {
            let (name, keys) = match kind {
                ListKind::Atomic => ("atomic", None),
                ListKind::Set => ("set", None),
                ListKind::Map(keys) => ("map", Some(keys.iter().map(|k| k.name.as_ref()).collect::<Vec<_>>())),
            };
            map.insert("x-kubernetes-list-type".into(), name.into());
            if let Some(keys) = keys {
                map.insert("x-kubernetes-list-map-keys".into(), keys.into());
            }
        }
        Node::Map { atomic: true, .. } => drop(map.insert("x-kubernetes-map-type".into(), "atomic".into())),
        Node::Struct { id, atomic } if *atomic != types.structs[*id as usize].atomic => {
            let mark = if *atomic { "atomic" } else { "granular" };
            map.insert("x-kubernetes-map-type".into(), mark.into());
        }
        _ => {}
    }
    let strategy = match (field.patch.merge, field.patch.retain_keys) {
        (true, true) => Some("merge,retainKeys"),
        (true, false) => Some("merge"),
        (false, true) => Some("retainKeys"),
        (false, false) if field.patch.replace => Some("replace"),
        (false, false) => None,
    };
    if let Some(strategy) = strategy {
        map.insert("x-kubernetes-patch-strategy".into(), strategy.into());
    }
    if let Some(key) = &field.merge_key {
        map.insert("x-kubernetes-patch-merge-key".into(), key.as_ref().into());
    }
    value
}

fn type_of(types: &Schema, node: u32, field: &str, dialect: Dialect) -> Value {
    let node = &types.nodes[node as usize];
    if let Some(name) = special(node, field) {
        return dialect.reference(&name);
    }
    match node {
        Node::Struct { id, .. } => dialect.reference(&types.structs[*id as usize].name),
        Node::List { item, .. } => json!({"type": "array", "items": type_of(types, *item, field, dialect)}),
        Node::Map { value, .. } => {
            json!({"type": "object", "additionalProperties": type_of(types, *value, field, dialect)})
        }
        Node::Scalar(scalar) => match scalar {
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            _ => json!({"type": "string"}),
        },
        _ => json!({}),
    }
}

//! The schema of a custom kind, built from its structural OpenAPI schema
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema`).

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::bundle::bundle;
use super::structural::Structural;
use super::types::{Emit, Field, ListKey, ListKind, Node, PatchStrategy, Scalar, Schema, Struct};
use crate::base::budget::DEPTH_MAX;
use crate::base::json::{at, flag, list, map, text};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Why a schema cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct StructuralError {
    /// Where in the schema, dotted.
    pub field: String,
    pub message: String,
}

/// Group, version and kind that a schema is of.
#[derive(Debug, Clone, Copy)]
pub struct CustomNames<'a> {
    /// The name that the type gets in OpenAPI documents.
    pub definition: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
}

/// The index of a node that is no struct, until there is an end of structs: they come first.
const LATER: u32 = 1 << 31;

#[derive(Default)]
struct Builder {
    structs: Vec<Struct>,
    fields: Vec<Field>,
    nodes: Vec<Node>,
    /// Types of the bundle that were taken over, by name.
    taken: HashMap<String, u32>,
}

// === impl Schema ===

impl Schema {
    /// The schema of objects of a custom kind, and of lists of them, with Kubernetes' own metadata. `openapi` is what a
    /// CustomResourceDefinition says in `openAPIV3Schema`.
    pub fn custom(names: &CustomNames<'_>, openapi: &Value) -> Result<Self, StructuralError> {
        let mut builder = Builder::default();
        let object = builder.object(names, openapi)?;
        builder.list_of(names, object);
        let custom = Some((object, Arc::new(Structural::parse(openapi))));
        Ok(Self { custom, ..builder.build() })
    }
}

// === impl Builder ===

impl Builder {
    /// The object: what the schema says, below the members that every object has.
    fn object(&mut self, names: &CustomNames<'_>, openapi: &Value) -> Result<u32, StructuralError> {
        if text(openapi, "type") != "object" {
            return Err(error("", "the schema of an object must be of type object"));
        }
        let mut fields = Vec::new();
        for (name, property) in map(openapi, "properties").into_iter().flatten() {
            if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                fields.push(self.field(openapi, name, property, "properties", 1)?);
            }
        }
        let metadata = self.take(&format!("{META}.ObjectMeta"));
        fields.extend(self.type_fields());
        fields.push(field("metadata", metadata, false));
        let gvk = Some((names.group.to_owned().into(), names.version.to_owned().into(), names.kind.to_owned().into()));
        let preserves = flag(openapi, "x-kubernetes-preserve-unknown-fields");
        Ok(self.push_struct(Struct { gvk, preserve_unknown: preserves, ..named(names.definition) }, fields))
    }

    fn list_of(&mut self, names: &CustomNames<'_>, object: u32) {
        let item = self.push(Node::Struct { id: object, atomic: false });
        let items = self.push(Node::List { item, kind: ListKind::Atomic, marked: false });
        let metadata = self.take(&format!("{META}.ListMeta"));
        let mut fields = self.type_fields();
        fields.extend([field("items", items, true), field("metadata", metadata, false)]);
        let kind = format!("{}List", names.kind);
        let gvk = Some((names.group.to_owned().into(), names.version.to_owned().into(), kind.into()));
        self.push_struct(Struct { gvk, ..named(&format!("{}List", names.definition)) }, fields);
    }

    fn type_fields(&mut self) -> Vec<Field> {
        let string = self.push(Node::Scalar(Scalar::String));
        vec![field("apiVersion", string, false), field("kind", string, false)]
    }

    fn field(
        &mut self,
        of: &Value,
        name: &str,
        property: &Value,
        path: &str,
        depth: usize,
    ) -> Result<Field, StructuralError> {
        let node = self.node(property, &format!("{path}[{name}]"), depth)?;
        Ok(field(name, node, list(of, "required").iter().any(|r| r == name)))
    }

    fn node(&mut self, schema: &Value, path: &str, depth: usize) -> Result<u32, StructuralError> {
        if depth > DEPTH_MAX {
            return Err(error(path, &format!("nested more than {DEPTH_MAX} deep")));
        }
        let preserves = flag(schema, "x-kubernetes-preserve-unknown-fields");
        if flag(schema, "x-kubernetes-embedded-resource") {
            return self.object_node(schema, preserves, path, depth);
        }
        if flag(schema, "x-kubernetes-int-or-string") {
            return Ok(self.push(Node::Scalar(Scalar::IntOrString)));
        }
        let node = match (text(schema, "type"), text(schema, "format")) {
            ("string", _) => Node::Scalar(Scalar::String),
            ("boolean", _) => Node::Scalar(Scalar::Bool),
            ("integer", "int32") => Node::Scalar(Scalar::Int32),
            ("integer", _) => Node::Scalar(Scalar::Int64),
            ("number", _) => Node::Scalar(Scalar::Double),
            ("array", _) => {
                let items = schema.get("items").ok_or_else(|| error(&format!("{path}.items"), "must be specified"))?;
                let item = self.node(items, &format!("{path}.items"), depth + 1)?;
                let marked = schema.get("x-kubernetes-list-type").is_some();
                Node::List { item, kind: list_kind(schema, items, path)?, marked }
            }
            ("object", _) => return self.object_node(schema, preserves, path, depth),
            ("", _) if preserves => Node::Any,
            ("", _) => return Err(error(&format!("{path}.type"), "must not be empty for specified object fields")),
            (other, _) => return Err(error(&format!("{path}.type"), &format!("{other:?} is no type"))),
        };
        Ok(self.push(node))
    }

    fn object_node(
        &mut self,
        schema: &Value,
        preserves: bool,
        path: &str,
        depth: usize,
    ) -> Result<u32, StructuralError> {
        let atomic = text(schema, "x-kubernetes-map-type") == "atomic";
        let embedded = flag(schema, "x-kubernetes-embedded-resource");
        let properties = map(schema, "properties").filter(|p| !p.is_empty());
        let values = schema.get("additionalProperties");
        match (properties, values) {
            (None, None | Some(Value::Bool(false))) if preserves && !embedded => Ok(self.push(Node::Any)),
            (None, Some(Value::Bool(true))) => {
                let value = self.push(Node::Any);
                Ok(self.push(Node::Map { value, atomic }))
            }
            (None, Some(values)) if values.is_object() => {
                let value = self.node(values, &format!("{path}.additionalProperties"), depth + 1)?;
                Ok(self.push(Node::Map { value, atomic }))
            }
            (Some(_), Some(values)) if values.is_object() => {
                Err(error(&format!("{path}.additionalProperties"), "mutually exclusive with properties"))
            }
            (properties, values) => {
                let preserves = preserves || values == Some(&Value::Bool(true));
                let mut fields = Vec::new();
                if embedded {
                    fields.extend(self.type_fields());
                    let metadata = self.take(&format!("{META}.ObjectMeta"));
                    fields.push(field("metadata", metadata, false));
                }
                let is_there = |name: &str| embedded && matches!(name, "apiVersion" | "kind" | "metadata");
                for (name, property) in properties.into_iter().flatten().filter(|(name, _)| !is_there(name)) {
                    fields.push(self.field(schema, name, property, &format!("{path}.properties"), depth + 1)?);
                }
                // Nothing refers to it by name but the parts of the same kind.
                let id = self.push_struct(Struct { atomic, preserve_unknown: preserves, ..named(path) }, fields);
                Ok(self.push(Node::Struct { id, atomic }))
            }
        }
    }

    /// A type of the bundle with everything it refers to.
    fn take(&mut self, name: &str) -> u32 {
        let id = *bundle().by_name.get(name).expect("the bundle has the metadata of every object");
        self.take_node(&Node::Struct { id, atomic: false })
    }

    fn take_node(&mut self, node: &Node) -> u32 {
        let from = bundle();
        let taken = match node {
            Node::Struct { id, atomic } => Node::Struct { id: self.take_struct(*id), atomic: *atomic },
            Node::Map { value, atomic } => {
                Node::Map { value: self.take_node(&from.nodes[*value as usize]), atomic: *atomic }
            }
            Node::List { item, kind, marked } => {
                let item = self.take_node(&from.nodes[*item as usize]);
                Node::List { item, kind: kind.clone(), marked: *marked }
            }
            Node::SchemaOr(of) => Node::SchemaOr(self.take_node(&from.nodes[*of as usize])),
            Node::Scalar(_) | Node::Any | Node::Raw => node.clone(),
        };
        self.push(taken)
    }

    fn take_struct(&mut self, id: u32) -> u32 {
        let (from, of) = (bundle(), &bundle().structs[id as usize]);
        if let Some(known) = self.taken.get(of.name.as_ref()) {
            return *known;
        }
        let copy =
            Struct { atomic: of.atomic, preserve_unknown: of.preserve_unknown, gvk: of.gvk.clone(), ..named(&of.name) };
        // Known before its fields are: types refer to themselves.
        let taken = self.push_struct(copy, Vec::new());
        self.taken.insert(of.name.to_string(), taken);
        let copy = |builder: &mut Self, f: &Field| Field {
            name: f.name.clone(),
            node: builder.take_node(&from.nodes[f.node as usize]),
            emit: f.emit,
            required: f.required,
            patch: f.patch,
            merge_key: f.merge_key.clone(),
        };
        let fields = from.fields_of(id).iter().map(|f| copy(self, f)).collect();
        self.set_fields(taken, fields);
        taken
    }

    fn push(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        LATER + self.nodes.len() as u32 - 1
    }

    fn push_struct(&mut self, of: Struct, fields: Vec<Field>) -> u32 {
        self.structs.push(of);
        let id = self.structs.len() as u32 - 1;
        self.set_fields(id, fields);
        id
    }

    fn set_fields(&mut self, id: u32, mut fields: Vec<Field>) {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let of = &mut self.structs[id as usize];
        (of.first, of.count) = (self.fields.len() as u32, fields.len() as u32);
        self.fields.append(&mut fields);
    }

    /// Puts the structs in front of the other nodes.
    fn build(self) -> Schema {
        let count = self.structs.len() as u32;
        let index = |i: u32| if i >= LATER { i - LATER + count } else { i };
        let mut nodes: Vec<Node> =
            self.structs.iter().enumerate().map(|(id, s)| Node::Struct { id: id as u32, atomic: s.atomic }).collect();
        nodes.extend(self.nodes.into_iter().map(|node| match node {
            Node::Map { value, atomic } => Node::Map { value: index(value), atomic },
            Node::List { item, kind, marked } => Node::List { item: index(item), kind, marked },
            Node::SchemaOr(of) => Node::SchemaOr(index(of)),
            other => other,
        }));
        let mut fields = self.fields;
        fields.iter_mut().for_each(|f| f.node = index(f.node));
        let by_name = self.structs.iter().enumerate().map(|(id, s)| (s.name.clone(), id as u32)).collect();
        Schema { structs: self.structs, fields, nodes, by_name, custom: None }
    }
}

fn named(name: &str) -> Struct {
    Struct { name: name.to_owned().into(), first: 0, count: 0, atomic: false, preserve_unknown: false, gvk: None }
}

fn field(name: &str, node: u32, required: bool) -> Field {
    // What a client of a custom kind gives is written, and nothing else.
    let (emit, patch) = (Emit::Set, PatchStrategy::default());
    Field { name: name.to_owned().into(), node, emit, required, patch, merge_key: None }
}

fn list_kind(schema: &Value, items: &Value, path: &str) -> Result<ListKind, StructuralError> {
    match text(schema, "x-kubernetes-list-type") {
        "" | "atomic" => Ok(ListKind::Atomic),
        "set" => Ok(ListKind::Set),
        "map" => {
            let keys = list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
            let default = |key: &str| at(items, "properties")?.get(key)?.get("default").cloned();
            let keys: Vec<ListKey> =
                keys.map(|key| ListKey { name: key.to_owned().into(), default: default(key) }).collect();
            match keys.is_empty() {
                true => Err(error(&format!("{path}.x-kubernetes-list-map-keys"), "must name a property of the items")),
                false => Ok(ListKind::Map(keys)),
            }
        }
        other => {
            let why = format!("{other:?} is none of \"atomic\", \"set\" and \"map\"");
            Err(error(&format!("{path}.x-kubernetes-list-type"), &why))
        }
    }
}

fn error(field: &str, message: &str) -> StructuralError {
    StructuralError { field: field.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::budget::Budget;
    use crate::schema::decode;

    const NAMES: CustomNames<'_> =
        CustomNames { definition: "com.example.v1.Widget", group: "example.com", version: "v1", kind: "Widget" };

    fn decoded(openapi: Value, mut object: Value) -> Result<(Value, Vec<String>), String> {
        let schema = Schema::custom(&NAMES, &openapi).map_err(|e| e.to_string())?;
        let shape = schema.type_of(NAMES.definition).unwrap();
        let unknown = decode(&mut object, &shape, &mut Budget::new()).map_err(|e| e.to_string())?;
        Ok((object, unknown))
    }

    #[test]
    fn objects_are_decoded_as_their_schema_says() {
        let openapi = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "size": {"type": "integer", "format": "int32"},
                "port": {"x-kubernetes-int-or-string": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            }},
        }});
        let given = json!({
            "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "labels": {"a": "b"}, "x": 1},
            "spec": {"size": 0, "port": "http", "labels": {"l": "v"}, "free": {"any": [1]}, "parts": [{"name": "p", "y": 2}]},
            "other": true,
        });
        let (value, unknown) = decoded(openapi.clone(), given).unwrap();
        assert_eq!(value["spec"]["size"], 0, "what was given is kept, zero or not");
        assert_eq!(value["spec"]["free"], json!({"any": [1]}));
        assert_eq!(value["spec"]["parts"], json!([{"name": "p"}]));
        assert_eq!(value["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(unknown.len(), 3, "{unknown:?}");
        let (wrong, _) = decoded(openapi.clone(), json!({"spec": {"size": "big"}})).unwrap();
        assert_eq!(wrong["spec"]["size"], "big", "what has the wrong type is told by validation");
        assert!(decoded(openapi, json!({"metadata": {"labels": {"a": 1}}})).is_err());
    }

    #[test]
    fn a_schema_that_is_not_structural_is_refused() {
        let of = |spec: Value| decoded(json!({"type": "object", "properties": {"spec": spec}}), json!({})).unwrap_err();
        assert_eq!(of(json!({})), "properties[spec].type: must not be empty for specified object fields");
        assert_eq!(of(json!({"type": "array"})), "properties[spec].items: must be specified");
        assert!(of(json!({"type": "text"})).starts_with("properties[spec].type: "));
        let both = json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}});
        assert!(of(both).contains("mutually exclusive"));
        let mut deep = json!({"type": "string"});
        for _ in 0..200 {
            deep = json!({"type": "array", "items": deep});
        }
        assert!(of(deep).contains("nested more than"));
    }
}

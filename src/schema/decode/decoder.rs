//! The walk over a value beside its type.

use serde_json::{Map, Value};

use super::fault::{What, wrong};
use super::scalar;
use crate::base::budget::{Budget, Exceeded, size_of};
use crate::schema::findings::Findings;
use crate::schema::types::{Emit, Field, Node, Scalar, Schema};

/// A value of the wrong type, in the words Go's decoder uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// The whole message.
    pub message: String,
    /// Dotted path of the field, without list indices.
    pub field: String,
    /// The limit, where it is only too large.
    pub limit: Option<Exceeded>,
}

/// A walk.
pub(super) struct Decoder<'a, 'b> {
    pub(super) schema: &'a Schema,
    pub(super) unknown: Findings,
    /// How many objects we are in.
    pub(super) depth: u32,
    pub(super) budget: &'b mut Budget,
}

/// An error on its way up, collecting the path.
pub(super) struct Fault {
    what: What,
    strukt: Option<String>,
    /// Field names from the inside out.
    pub(super) path: Vec<String>,
}

// === impl Fault ===

impl Fault {
    pub(super) fn new(what: What) -> Box<Fault> {
        Box::new(Fault { what, strukt: None, path: Vec::new() })
    }

    pub(super) fn into_error(self) -> DecodeError {
        let mut path = self.path;
        path.reverse();
        let field = path.join(".");
        let limit = match self.what {
            What::Limit(limit) => Some(limit),
            _ => None,
        };
        let message = match (self.what, self.strukt) {
            (What::Limit(limit), _) => limit.to_string(),
            (What::Type(kind, go), Some(s)) => {
                format!("json: cannot unmarshal {kind} into Go struct field {s}.{field} of type {go}")
            }
            (What::Type(kind, go), None) => format!("json: cannot unmarshal {kind} into Go value of type {go}"),
            (What::Text(text), _) => text,
        };
        DecodeError { message, field, limit }
    }
}

// === impl Schema ===

impl Schema {
    /// How an unset value of this node is written.
    pub(in crate::schema) fn zero(&self, node: u32) -> Value {
        match &self.nodes[node as usize] {
            Node::Scalar(scalar) => match scalar {
                Scalar::String | Scalar::Bytes => Value::from(""),
                Scalar::Bool => Value::Bool(false),
                Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString => Value::from(0),
                Scalar::Quantity => Value::from("0"),
                Scalar::Duration => Value::from("0s"),
                Scalar::Time | Scalar::MicroTime => Value::Null,
            },
            Node::Struct { id, .. } => {
                let mut map = Map::new();
                self.complete(*id, &mut map);
                Value::Object(map)
            }
            _ => Value::Null,
        }
    }

    /// Adds the members that are written though unset.
    fn complete(&self, id: u32, map: &mut Map<String, Value>) {
        for field in self.fields_of(id) {
            match field.emit {
                Emit::Always if !map.contains_key(field.name.as_ref()) => {
                    map.insert(field.name.to_string(), self.zero(field.node));
                }
                Emit::Null if !map.contains_key(field.name.as_ref()) => {
                    map.insert(field.name.to_string(), Value::Null);
                }
                _ => {}
            }
        }
    }
}

// === impl Decoder ===

impl Decoder<'_, '_> {
    pub(super) fn value(&mut self, node: u32, value: &mut Value) -> Result<(), Box<Fault>> {
        match &self.schema.nodes[node as usize] {
            Node::Scalar(scalar) => scalar::decode(*scalar, value).map_err(Fault::new),
            Node::Struct { id, .. } => self.object(*id, value),
            Node::Map { value: inner, .. } => self.map(*inner, value),
            Node::List { item, .. } => self.list(*item, value),
            Node::Any | Node::Raw => Ok(()),
            Node::SchemaOr(id) => match value {
                Value::Array(_) => {
                    let Value::Array(items) = value else { return Ok(()) };
                    items.iter_mut().filter(|i| i.is_object()).try_for_each(|item| self.object(*id, item))
                }
                Value::Object(_) => self.object(*id, value),
                _ => Ok(()),
            },
        }
    }

    fn object(&mut self, id: u32, value: &mut Value) -> Result<(), Box<Fault>> {
        self.depth += 1;
        let done = self.members(id, value);
        self.depth -= 1;
        done
    }

    fn members(&mut self, id: u32, value: &mut Value) -> Result<(), Box<Fault>> {
        let schema = self.schema;
        let Value::Object(map) = value else { return Err(mismatch(value, "struct")) };
        let preserve = schema.structs[id as usize].preserve_unknown;
        let mut fault = self.budget.step(map.len() as u64 + 1).err().map(limited);
        let start = self.unknown.len();
        map.retain(|name, value| {
            if fault.is_some() {
                return true;
            }
            let Some(field) = schema.field_of(id, name) else {
                if !preserve {
                    self.unknown.push(start, name);
                }
                return preserve;
            };
            match self.field(field, value) {
                Ok(keep) => keep,
                Err(mut e) => {
                    e.path.push(name.clone());
                    if e.strukt.is_none() {
                        let full = &schema.structs[id as usize].name;
                        e.strukt = Some(full.rsplit('.').next().unwrap_or(full).to_owned());
                    }
                    fault = Some(e);
                    true
                }
            }
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        let before = map.len();
        schema.complete(id, map);
        // As if each were an object: most are.
        (before..map.len()).try_for_each(|_| self.budget.member(0, 0)).map_err(limited)
    }

    /// Decodes one member; false when it is not written.
    fn field(&mut self, field: &Field, value: &mut Value) -> Result<bool, Box<Fault>> {
        if value.is_null() {
            return Ok(false); // unset: `complete` adds what is written all the same
        }
        let before = self.unknown.len();
        self.value(field.node, value)?;
        self.unknown.within(before, &field.name);
        Ok(match field.emit {
            Emit::Set => !value.is_null(),
            Emit::Always => !value.is_null(),
            // Storage knows no difference between an empty list and none, see `settle`.
            Emit::Null if self.depth == 1 => !value.is_null(),
            Emit::Null => !matches!(value, Value::Array(items) if items.is_empty()) && !value.is_null(),
            Emit::NonEmpty => !is_empty(value),
            Emit::NonZero => !matches!(value, Value::Object(map) if map.is_empty()) && !value.is_null(),
        })
    }

    fn map(&mut self, node: u32, value: &mut Value) -> Result<(), Box<Fault>> {
        let Value::Object(map) = value else { return Err(mismatch(value, "map[string]interface {}")) };
        for (key, value) in map.iter_mut() {
            self.budget.step(1).map_err(limited)?;
            if value.is_null() {
                *value = self.schema.zero(node);
                self.budget.copy(size_of(value)).map_err(limited)?;
                continue;
            }
            let before = self.unknown.len();
            self.value(node, value)?;
            self.unknown.within(before, key);
        }
        Ok(())
    }

    fn list(&mut self, node: u32, value: &mut Value) -> Result<(), Box<Fault>> {
        let Value::Array(items) = value else { return Err(mismatch(value, "[]interface {}")) };
        for (i, value) in items.iter_mut().enumerate() {
            self.budget.step(1).map_err(limited)?;
            if value.is_null() {
                *value = self.schema.zero(node);
                self.budget.copy(size_of(value)).map_err(limited)?;
                continue;
            }
            let before = self.unknown.len();
            self.value(node, value)?;
            self.unknown.within_item(before, i);
        }
        Ok(())
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn mismatch(value: &Value, go: &'static str) -> Box<Fault> {
    Fault::new(wrong(value, go))
}

pub(super) fn limited(limit: Exceeded) -> Box<Fault> {
    Fault::new(What::Limit(limit))
}

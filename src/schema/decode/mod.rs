//! What decoding into Go structs and encoding again does to an object: unknown fields go, nulls and empty values go,
//! types and ranges are checked, quantities, times and bytes take their canonical form.
//!
//! The value is changed in place. The stored form of every object has been through here, so patches, server-side apply
//! and controllers never meet two spellings of the same thing.

use serde_json::Value;

use super::findings::Findings;
use super::types::{Emit, Node, TypeRef};
use crate::base::budget::Budget;

mod custom;
mod decoder;
mod fault;
mod scalar;

pub use decoder::DecodeError;

use decoder::Decoder;

/// Decodes `value` as this type, in place; returns the paths of unknown fields that were dropped, such as
/// `spec.containers[0].bar`, no more of them than Kubernetes tells of.
pub fn decode(value: &mut Value, of: &TypeRef<'_>, budget: &mut Budget) -> Result<Vec<String>, DecodeError> {
    if let (Node::Struct { id, .. }, Some((object, tree))) = (of.node(), &of.schema.custom)
        && id == object
        && value.is_object()
    {
        return custom::decode(value, of, tree, budget);
    }
    let mut decoder = Decoder { schema: of.schema, unknown: Findings::default(), depth: 0, budget };
    if value.is_null() {
        *value = of.schema.zero(of.node);
        return Ok(Vec::new());
    }
    decoder.value(of.node, value).map_err(|fault| fault.into_error())?;
    Ok(decoder.unknown.into_paths())
}

/// Turns empty lists right below the object, which [`decode`] keeps so that field ownership sees them, into none.
pub fn settle(value: &mut Value, of: &TypeRef<'_>) {
    for field in of.fields().iter().filter(|f| f.emit == Emit::Null) {
        if let Some(list) = value.get_mut(field.name.as_ref()).filter(|v| v.as_array().is_some_and(Vec::is_empty)) {
            *list = Value::Null;
        }
    }
}

/// What an unset value of this type looks like when it is written: the object Kubernetes compares a new one with.
pub fn zero(of: &TypeRef<'_>) -> Value {
    of.schema.zero(of.node)
}

#[cfg(test)]
mod tests;

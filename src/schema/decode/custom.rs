//! Decoding objects of custom kinds: their metadata is as strict as that of any object, all else only loses what their
//! definition does not describe. Whether it has the right type is a question of validation.

use serde_json::Value;

use super::decoder::{DecodeError, Decoder, Fault, limited};
use super::fault::{What, wrong};
use crate::base::budget::Budget;
use crate::schema::findings::Findings;
use crate::schema::structural::Structural;
use crate::schema::structural::coerce::{drop_unknown, embedded, whole_numbers};
use crate::schema::types::TypeRef;

/// As [`super::decode`], for an object of which `tree` says what it may be.
pub(super) fn decode(
    value: &mut Value,
    of: &TypeRef<'_>,
    tree: &Structural,
    budget: &mut Budget,
) -> Result<Vec<String>, DecodeError> {
    let Some(metadata) = of.child("metadata") else { return Ok(Vec::new()) };
    let mut decoder = Decoder { schema: of.schema, unknown: Findings::default(), depth: 0, budget };
    decoder.depth = 1;
    decoder.described(metadata.node, value).map_err(|fault| fault.into_error())?;
    let Decoder { mut unknown, budget, .. } = decoder;
    let exceeded = |limit| limited(limit).into_error();
    drop_unknown(value, Some(tree), true, &mut unknown, budget).map_err(exceeded)?;
    tree.drop_nulls(value, budget).map_err(exceeded)?;
    let mut decoder = Decoder { schema: of.schema, unknown: Findings::default(), depth: 1, budget };
    let mut each = |object: &mut Value, unknown: &mut Findings| {
        std::mem::swap(&mut decoder.unknown, unknown);
        let done = decoder.described(metadata.node, object);
        std::mem::swap(&mut decoder.unknown, unknown);
        done
    };
    for (name, of) in &tree.properties {
        if let Some(member) = value.get_mut(&**name).filter(|_| name.as_ref() != "metadata") {
            let before = unknown.len();
            embedded(member, of, &mut unknown, &mut each).map_err(|fault: Box<Fault>| fault.into_error())?;
            unknown.within(before, name);
        }
    }
    whole_numbers(value);
    Ok(unknown.into_paths())
}

impl Decoder<'_, '_> {
    /// `apiVersion`, `kind` and `metadata` of an object.
    fn described(&mut self, metadata: u32, value: &mut Value) -> Result<(), Box<Fault>> {
        let Value::Object(members) = value else { return Err(Fault::new(wrong(value, "struct"))) };
        for name in ["apiVersion", "kind"] {
            if let Some(other) = members.get(name).filter(|v| !v.is_string() && !v.is_null()) {
                let kind = match wrong(other, "string") {
                    What::Type(kind, _) => kind,
                    What::Text(_) | What::Limit(_) => String::new(),
                };
                return Err(Fault::new(What::Text(format!("{name}: Invalid value: {kind}: must be a string"))));
            }
        }
        let Some(given) = members.get_mut("metadata") else { return Ok(()) };
        if given.is_null() {
            members.remove("metadata");
            return Ok(());
        }
        let before = self.unknown.len();
        self.value(metadata, given).map_err(|mut fault| {
            fault.path.push("metadata".into());
            fault
        })?;
        self.unknown.within(before, "metadata");
        Ok(())
    }
}

//! What decoding does to a custom object: fields that are not described go, embedded objects get the metadata of objects,
//! whole numbers are written as such (`.../schema/pruning` and `.../schema/objectmeta`).

use serde_json::Value;

use super::{Additional, Structural};
use crate::base::budget::{Budget, Exceeded};
use crate::schema::findings::Findings;

/// Whether every object has a member of this name, described or not.
fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

/// Removes what is not described, in a value of which `of` says what it may be. `root` is an object with metadata of its own.
pub(in crate::schema) fn drop_unknown(
    value: &mut Value,
    of: Option<&Structural>,
    root: bool,
    unknown: &mut Findings,
    budget: &mut Budget,
) -> Result<(), Exceeded> {
    drop_within(value, of, root, false, unknown, budget)
}

/// As [`drop_unknown`]; with `kept` nothing of the value itself goes, as in lists that keep what is not described.
fn drop_within(
    value: &mut Value,
    of: Option<&Structural>,
    root: bool,
    kept: bool,
    unknown: &mut Findings,
    budget: &mut Budget,
) -> Result<(), Exceeded> {
    let keeps = kept || of.is_some_and(|of| of.preserves_unknown);
    match value {
        Value::Object(members) => {
            budget.step(members.len() as u64)?;
            let embedded = root || of.is_some_and(|of| of.is_embedded);
            let start = unknown.len();
            let has = |name: &str| {
                of.is_some_and(|of| of.property(name).is_some() || !matches!(of.additional, Additional::None))
            };
            members.retain(|name, _| {
                let stays = keeps || (embedded && is_meta(name)) || has(name);
                if !stays {
                    unknown.push(start, name);
                }
                stays
            });
            for (name, member) in members.iter_mut().filter(|(name, _)| !(embedded && is_meta(name))) {
                // What is kept though nobody describes it is kept whole.
                if keeps && !has(name) {
                    continue;
                }
                let before = unknown.len();
                drop_within(member, of.and_then(|of| of.member(name)), false, false, unknown, budget)?;
                unknown.within(before, name);
            }
        }
        Value::Array(items) => {
            budget.step(items.len() as u64)?;
            let item_of = of.and_then(|of| of.items.as_deref());
            if keeps && item_of.is_none() {
                return Ok(());
            }
            for (i, item) in items.iter_mut().enumerate() {
                let before = unknown.len();
                drop_within(item, item_of, false, keeps, unknown, budget)?;
                unknown.within_item(before, i);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(())
}

impl Structural {
    /// A value without what is not described.
    pub fn pruned(&self, value: &Value) -> Value {
        let mut pruned = value.clone();
        // What is checked was within bounds when it was read.
        let _ = drop_unknown(&mut pruned, Some(self), self.is_embedded, &mut Findings::default(), &mut Budget::new());
        pruned
    }
}

/// Calls `each` for every embedded object that the tree describes, with findings that begin at its place.
pub(in crate::schema) fn embedded<E>(
    value: &mut Value,
    of: &Structural,
    unknown: &mut Findings,
    each: &mut impl FnMut(&mut Value, &mut Findings) -> Result<(), E>,
) -> Result<(), E> {
    if of.is_embedded && value.is_object() {
        each(value, unknown)?;
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                if let Some(of) = of.member(name) {
                    let before = unknown.len();
                    embedded(member, of, unknown, each)?;
                    unknown.within(before, name);
                }
            }
        }
        Value::Array(items) => {
            let Some(of) = &of.items else { return Ok(()) };
            for (i, item) in items.iter_mut().enumerate() {
                let before = unknown.len();
                embedded(item, of, unknown, each)?;
                unknown.within_item(before, i);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(())
}

/// Writes floats without a fraction as integers, as Go does.
pub(in crate::schema) fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(n) if n.is_f64() => {
            if let Some(f) = n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15) {
                *value = Value::from(f as i64);
            }
        }
        Value::Object(members) => members.values_mut().for_each(whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

//! What changed between two objects, as sets of paths.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::extract::{Shape, TypeAt, field_element, item_element, member, shape};
use super::fieldset::FieldSet;
use crate::schema::types::ListKind;

/// The paths that are new, gone, or hold another value.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    pub added: FieldSet,
    pub removed: FieldSet,
    pub modified: FieldSet,
}

/// One comparison's findings at a path and below it.
#[derive(Default)]
struct Found {
    here: Option<Change>,
    below: Comparison,
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Added,
    Removed,
    Modified,
}

// === impl Comparison ===

impl Comparison {
    /// Leaves out these paths and all below them.
    pub fn exclude(&mut self, ignored: &FieldSet) {
        self.added.subtract_deep(ignored);
        self.removed.subtract_deep(ignored);
        self.modified.subtract_deep(ignored);
    }

    fn put(&mut self, element: String, found: Found) {
        let Found { here, below } = found;
        let Comparison { added, removed, modified } = below;
        if here == Some(Change::Added) || !added.is_empty() {
            self.added.put(element.clone(), here == Some(Change::Added), added);
        }
        if here == Some(Change::Removed) || !removed.is_empty() {
            self.removed.put(element.clone(), here == Some(Change::Removed), removed);
        }
        if here == Some(Change::Modified) || !modified.is_empty() {
            self.modified.put(element, here == Some(Change::Modified), modified);
        }
    }
}

/// Compares two objects of this type.
pub(super) fn compare(place: TypeAt<'_>, old: &Value, new: &Value) -> Comparison {
    walk(place, Some(old), Some(new)).below
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Option<Change> {
    match (old, new) {
        (None, None) => None,
        (None, Some(_)) => Some(Change::Added),
        (Some(_), None) => Some(Change::Removed),
        (Some(old), Some(new)) => (!equal(old, new)).then_some(Change::Modified),
    }
}

fn walk(place: TypeAt<'_>, old: Option<&Value>, new: Option<&Value>) -> Found {
    // What is equal has no changes; telling so early saves the work of most updates.
    if let (Some(old), Some(new)) = (old, new)
        && old == new
    {
        return Found::default();
    }
    // Null takes the other side's shape.
    let guide = new.filter(|v| !v.is_null()).or(old).unwrap_or(&Value::Null);
    let mut found = Found::default();
    match shape(place, guide) {
        Shape::Leaf => {
            found.here = leaf(old, new);
            if place.is_none_or(|of| of.node().is_untyped())
                && let (Some(Value::Object(map)), Some(_)) = (old, new)
            {
                // An untyped object gave way to a scalar or a list: its members are gone.
                members(place, map, &Map::new(), &mut found.below);
            }
        }
        Shape::Members => {
            let none = Map::new();
            let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            if a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                found.here = leaf(old, new);
                return found;
            }
            members(place, a.unwrap_or(&none), b.unwrap_or(&none), &mut found.below);
            found.here = presence(old, new);
        }
        Shape::Items(kind, item_place) => {
            let (a, b) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
            if a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                found.here = leaf(old, new);
                return found;
            }
            let (a, b) = (a.map_or(&[][..], Vec::as_slice), b.map_or(&[][..], Vec::as_slice));
            items(kind, item_place, a, b, &mut found.below);
            found.here = presence(old, new);
        }
    }
    found
}

fn presence(old: Option<&Value>, new: Option<&Value>) -> Option<Change> {
    match (old, new) {
        (None, Some(_)) => Some(Change::Added),
        (Some(_), None) => Some(Change::Removed),
        _ => None,
    }
}

fn members(place: TypeAt<'_>, old: &Map<String, Value>, new: &Map<String, Value>, out: &mut Comparison) {
    for (name, value) in old {
        let other = new.get(name);
        if other != Some(value) {
            out.put(field_element(name), walk(member(place, name).0, Some(value), other));
        }
    }
    for (name, value) in new {
        if !old.contains_key(name) {
            out.put(field_element(name), walk(member(place, name).0, None, Some(value)));
        }
    }
}

/// Items with the same path element, of both lists.
type Pairs<'v> = BTreeMap<String, (Vec<&'v Value>, Vec<&'v Value>)>;

fn items(kind: &ListKind, place: TypeAt<'_>, old: &[Value], new: &[Value], out: &mut Comparison) {
    let mut pairs = Pairs::new();
    for item in old {
        if let Some(element) = item_element(kind, item) {
            pairs.entry(element).or_default().0.push(item);
        }
    }
    for item in new {
        if let Some(element) = item_element(kind, item) {
            pairs.entry(element).or_default().1.push(item);
        }
    }
    for (element, (old, new)) in pairs {
        let mark = |change| Found { here: Some(change), below: Comparison::default() };
        match (old.len(), new.len()) {
            (0 | 1, 0 | 1) => out.put(element, walk(place, old.first().copied(), new.first().copied())),
            // Items that share a key are owned together.
            (2.., 2..) => {
                if old != new {
                    out.put(element, mark(Change::Modified));
                }
            }
            (2.., _) => {
                if let Some(item) = new.first() {
                    out.put(element.clone(), walk(place, None, Some(item)));
                }
                out.put(element, mark(Change::Removed));
            }
            (_, _) => {
                if let Some(item) = old.first() {
                    out.put(element.clone(), walk(place, Some(item), None));
                }
                out.put(element, mark(Change::Added));
            }
        }
    }
}

/// Equality that does not tell 1 from 1.0.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w)))
        }
        (a, b) => a == b,
    }
}

//! Merging an applied configuration into the live object, and taking paths out of an object.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::extract::{Shape, TypeAt, field_element, item_element, member, shape};
use super::fieldset::FieldSet;
use crate::base::budget::shortened;
use crate::schema::types::{ListKey, ListKind, Node, Scalar};

/// What is shown of a value or a key that is refused.
const SHOWN_BYTES_MAX: usize = 1024;
/// Of so many places it is told that they cannot be merged.
const ATOMICS_MAX: usize = 100;

/// The live object with everything the configuration says; the configuration wins.
pub(super) fn merge(place: TypeAt<'_>, live: &Value, config: &Value) -> Value {
    let guide = if config.is_null() { live } else { config };
    match (shape(place, guide), live, config) {
        (Shape::Members, live, Value::Object(new)) if !new.is_empty() => {
            let mut map = live.as_object().cloned().unwrap_or_default();
            merge_members(place, &mut map, new);
            Value::Object(map)
        }
        (Shape::Members, Value::Object(old), Value::Object(_) | Value::Null) if !old.is_empty() => live.clone(),
        (Shape::Items(kind, item_place), Value::Array(old), new @ (Value::Array(_) | Value::Null)) => {
            let new = new.as_array().map_or(&[][..], Vec::as_slice);
            if old.is_empty() && new.is_empty() {
                return config.clone();
            }
            Value::Array(merge_items(kind, item_place, old, new))
        }
        _ => config.clone(),
    }
}

fn merge_members(place: TypeAt<'_>, map: &mut Map<String, Value>, new: &Map<String, Value>) {
    for (name, value) in new {
        match map.get_mut(name) {
            Some(old) => *old = merge(member(place, name).0, old, value),
            None => drop(map.insert(name.clone(), value.clone())),
        }
    }
}

/// Items both sides have follow the configuration's order; items of one side keep their neighbours.
fn merge_items(kind: &ListKind, place: TypeAt<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let elements =
        |items: &[Value]| items.iter().map(|i| item_element(kind, i).unwrap_or_default()).collect::<Vec<_>>();
    let (left, right) = (elements(live), elements(config));
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut doubled = BTreeSet::new();
    for (i, element) in left.iter().enumerate() {
        if seen.insert(element, i).is_some() {
            doubled.insert(element.as_str());
        }
    }
    // The live item to merge with; of several with one key, none is.
    let partner = |element: &str| seen.get(element).filter(|_| !doubled.contains(element)).map(|i| &live[*i]);
    let in_right: BTreeSet<&str> = right.iter().map(String::as_str).collect();
    let mut shared = right.iter().map(String::as_str).filter(|e| seen.contains_key(e)).peekable();
    let mut merged = BTreeSet::new();
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let take = |r: usize| partner(&right[r]).map_or_else(|| config[r].clone(), |old| merge(place, old, &config[r]));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            if left[l] == right[r] {
                merged.insert(right[r].as_str());
                out.push(take(r));
                (l, r) = (l + 1, r + 1);
                shared.next();
                continue;
            }
            if in_right.contains(left[l].as_str()) && shared.peek().is_some_and(|next| *next != left[l]) {
                l += 1; // shared, but not the one whose turn it is
                continue;
            }
        }
        if l < left.len() {
            if !in_right.contains(left[l].as_str()) {
                out.push(live[l].clone());
                l += 1;
                continue;
            } else if merged.contains(left[l].as_str()) {
                l += 1;
            }
        }
        if r < right.len() {
            merged.insert(right[r].as_str());
            out.push(take(r));
            if shared.peek().is_some_and(|next| *next == right[r]) {
                shared.next();
            }
            r += 1;
        }
    }
    out
}

/// The object without these paths. What becomes empty becomes null, which decoding drops.
pub(super) fn remove(place: TypeAt<'_>, value: &Value, paths: &FieldSet) -> Value {
    if paths.is_empty() {
        return value.clone();
    }
    match (shape(place, value), value) {
        (Shape::Members, Value::Object(map)) => {
            let mut kept = Map::new();
            for (name, value) in map {
                match paths.nodes.get(&field_element(name)) {
                    Some(node) if node.member => {}
                    Some(node) => drop(kept.insert(name.clone(), remove(member(place, name).0, value, &node.below))),
                    None => drop(kept.insert(name.clone(), value.clone())),
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        (Shape::Items(kind, item_place), Value::Array(items)) => {
            let mut kept = Vec::with_capacity(items.len());
            for item in items {
                match item_element(kind, item).and_then(|e| paths.nodes.get(&e)) {
                    Some(node) if node.member => {}
                    Some(node) => kept.push(remove(item_place, item, &node.below)),
                    None => kept.push(item.clone()),
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        _ => Value::Null,
    }
}

/// Where a configuration has something that would replace all that is there, though it may show only a part of it.
pub(super) fn atomics(place: TypeAt<'_>, value: &Value, path: &str, found: &mut Vec<String>) {
    let Some(of) = place.filter(|_| found.len() < ATOMICS_MAX) else { return };
    let is_whole = match (of.node(), value) {
        (Node::Struct { atomic, .. } | Node::Map { atomic, .. }, Value::Object(_)) => *atomic,
        (Node::List { kind, .. }, Value::Array(_)) => *kind == ListKind::Atomic,
        (Node::Any, Value::Array(_)) | (Node::Raw, Value::Object(_) | Value::Array(_)) => true,
        _ => false,
    };
    if is_whole {
        found.push(path.to_owned());
    }
    match (of.node(), value) {
        (Node::Struct { .. }, Value::Object(members)) => {
            for (name, value) in members {
                let field = of.field(name).map(|field| of.of(field));
                atomics(field, value, &format!("{path}.{}", shortened(name, SHOWN_BYTES_MAX)), found);
            }
        }
        (Node::List { .. }, Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                atomics(of.item(), item, &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}

/// What the schema does not allow, on its way up: the path is put together from the inside.
#[derive(Debug)]
pub(super) struct Fault {
    /// From the inside out.
    path: Vec<String>,
    why: String,
}

// === impl Fault ===

impl Fault {
    fn new(why: String) -> Box<Self> {
        Box::new(Self { path: Vec::new(), why })
    }

    fn within(mut self: Box<Self>, step: String) -> Box<Self> {
        self.path.push(step);
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.iter().rev().try_for_each(|step| f.write_str(step))?;
        write!(f, ": {}", self.why)
    }
}

/// Complains about what the schema does not allow in a configuration: undeclared fields, wrong types, repeated items.
pub(super) fn check(place: TypeAt<'_>, value: &Value) -> Result<(), Box<Fault>> {
    let Some(of) = place else { return Ok(()) };
    let wrong = |want: &str| {
        let shown = value.to_string();
        Err(Fault::new(format!("expected {want}, got {}", shortened(&shown, SHOWN_BYTES_MAX))))
    };
    let member = |name: &str| format!(".{}", shortened(name, SHOWN_BYTES_MAX));
    match (of.node(), value) {
        (_, Value::Null) => Ok(()),
        (Node::Scalar(scalar), value) => match scalar {
            Scalar::Bool if !value.is_boolean() => wrong("boolean"),
            Scalar::Int32 | Scalar::Int64 | Scalar::Double if !value.is_number() => wrong("numeric (int or float)"),
            Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime | Scalar::Duration
                if !value.is_string() =>
            {
                wrong("string")
            }
            Scalar::Quantity if !value.is_string() && !value.is_number() => wrong("scalar"),
            // Any scalar, as far as ownership goes; which ones may be is said later.
            Scalar::IntOrString if value.is_object() || value.is_array() => wrong("scalar"),
            _ => Ok(()),
        },
        (Node::Struct { .. }, Value::Object(map)) => map.iter().try_for_each(|(name, value)| match of.field(name) {
            Some(field) => check(Some(of.of(field)), value).map_err(|fault| fault.within(member(name))),
            None if of.as_struct().is_some_and(|s| s.preserve_unknown) => Ok(()),
            None => Err(Fault::new("field not declared in schema".into()).within(member(name))),
        }),
        (Node::Map { .. }, Value::Object(map)) => map
            .iter()
            .try_for_each(|(name, value)| check(of.child(name), value).map_err(|fault| fault.within(member(name)))),
        (Node::Struct { .. } | Node::Map { .. }, _) => wrong("map"),
        (Node::List { kind, .. }, Value::Array(items)) => check_items(kind, of.item(), items),
        (Node::List { .. }, _) => wrong("list"),
        (Node::Any | Node::Raw | Node::SchemaOr(_), _) => Ok(()),
    }
}

fn check_items(kind: &ListKind, place: TypeAt<'_>, items: &[Value]) -> Result<(), Box<Fault>> {
    let mut seen = BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        check_item(kind, place, item, &mut seen).map_err(|fault| fault.within(format!("[{i}]")))?;
    }
    Ok(())
}

fn check_item(kind: &ListKind, place: TypeAt<'_>, item: &Value, seen: &mut BTreeSet<String>) -> Result<(), Box<Fault>> {
    if *kind != ListKind::Atomic {
        let Some(element) = item_element(kind, item).filter(|_| !item.is_null()) else {
            let keys = match kind {
                ListKind::Map(keys) => keys.iter().map(|ListKey { name, .. }| name.as_ref()).collect(),
                _ => Vec::new(),
            };
            let why = format!("associative list with keys has an element that omits key fields {keys:?}");
            return Err(Fault::new(why));
        };
        if !seen.insert(element) {
            let shown = item.to_string();
            let why = format!("duplicate entries for key {}", shortened(&shown, SHOWN_BYTES_MAX));
            return Err(Fault::new(why));
        }
    }
    check(place, item)
}

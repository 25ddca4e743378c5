//! How values look to server-side apply: which places are leaves, which are merged member by member or item by item,
//! and the set of paths an object has.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::fieldset::FieldSet;
use crate::schema::types::{ListKey, ListKind, Node, TypeRef};

/// A place in an object; `None` is inside a value without a schema.
pub(super) type TypeAt<'a> = Option<TypeRef<'a>>;

/// How the value at a place is merged.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    Leaf,
    /// Member by member: a struct or a map.
    Members,
    /// Item by item.
    Items(&'a ListKind, TypeAt<'a>),
}

/// The shape of a place, where `value` decides if the schema does not.
pub(super) fn shape<'a>(place: TypeAt<'a>, value: &Value) -> Shape<'a> {
    let Some(of) = place else { return untyped(value) };
    match of.node() {
        Node::Scalar(_) => Shape::Leaf,
        Node::Struct { atomic, .. } | Node::Map { atomic, .. } if *atomic => Shape::Leaf,
        Node::Struct { .. } | Node::Map { .. } => Shape::Members,
        Node::List { kind: ListKind::Atomic, .. } => Shape::Leaf,
        Node::List { kind, .. } => Shape::Items(kind, of.item()),
        Node::Raw => Shape::Leaf,
        Node::Any | Node::SchemaOr(_) => untyped(value),
    }
}

fn untyped<'a>(value: &Value) -> Shape<'a> {
    if value.is_object() { Shape::Members } else { Shape::Leaf }
}

/// The place of a member; `named` tells a struct's field from a map's key.
pub(super) fn member<'a>(place: TypeAt<'a>, name: &str) -> (TypeAt<'a>, bool) {
    let Some(of) = place else { return (None, false) };
    match of.field(name) {
        Some(field) => (Some(of.of(field)), true),
        None => (of.child(name), false),
    }
}

/// `f:name`
pub(super) fn field_element(name: &str) -> String {
    let mut element = String::with_capacity(name.len() + 2);
    element.push_str("f:");
    element.push_str(name);
    element
}

/// The path element of a list's item; `None` when the item lacks what the key needs.
pub(super) fn item_element(kind: &ListKind, item: &Value) -> Option<String> {
    match kind {
        ListKind::Map(keys) => {
            let map = item.as_object()?;
            let mut parts: Vec<(&str, Cow<'_, Value>)> = Vec::with_capacity(keys.len());
            for ListKey { name, default } in keys {
                match (map.get(name.as_ref()), default) {
                    (Some(Value::Null) | None, Some(default)) => parts.push((name, Cow::Borrowed(default))),
                    (Some(value), _) => parts.push((name, Cow::Borrowed(value))),
                    (None, None) => {}
                }
            }
            if parts.is_empty() {
                return None;
            }
            parts.sort_by_key(|(name, _)| *name);
            let mut element = String::from("k:{");
            for (i, (name, value)) in parts.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                element.push_str(&format!("{comma}{}:{value}", Value::from(*name)));
            }
            element.push('}');
            Some(element)
        }
        ListKind::Set | ListKind::Atomic => Some(format!("v:{item}")),
    }
}

/// The paths an object has, as one who applies it owns them.
pub(super) fn field_set(place: TypeAt<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (shape(place, value), value) {
        (Shape::Members, Value::Object(map)) => members(place, map, &mut set),
        (Shape::Items(kind, item_place), Value::Array(items)) => {
            for item in items {
                if let Some(element) = item_element(kind, item) {
                    set.put(element, true, field_set(item_place, item));
                }
            }
        }
        _ => {}
    }
    set
}

fn members(place: TypeAt<'_>, map: &Map<String, Value>, set: &mut FieldSet) {
    for (name, value) in map {
        let (below_place, named) = member(place, name);
        let leaf = matches!(shape(below_place, value), Shape::Leaf);
        let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        let below = if leaf { FieldSet::default() } else { field_set(below_place, value) };
        set.put(field_element(name), leaf || empty || !named, below);
    }
}

/// Adds the parents of everything in the set, where they are fields of structs.
pub(super) fn with_named_parents(place: TypeAt<'_>, set: &FieldSet) -> FieldSet {
    let mut full = FieldSet::default();
    for (element, node) in &set.nodes {
        let (below, named) = match element.split_at_checked(2) {
            Some(("f:", name)) => member(place, name),
            _ => (place.and_then(|of| of.item()), false),
        };
        let member = node.member || (named && !node.below.is_empty());
        full.put(element.clone(), member, with_named_parents(below, &node.below));
    }
    full
}

//! Sets of field paths, as `metadata.managedFields` stores them (FieldsV1).
//!
//! A set is a tree whose edges are FieldsV1 keys: `f:name` for a member, `k:{"name":"a"}` for an item of a keyed list,
//! `v:"x"` for an item of a set, `i:0` for an index. A path is in the set when its last node is marked.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::base::budget::shortened;

/// What is printed of one element of a path.
const ELEMENT_BYTES_MAX: usize = 256;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub(super) nodes: BTreeMap<String, Node>,
}

/// What is known below one path element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Whether the path that ends here is in the set.
    pub member: bool,
    pub below: FieldSet,
}

/// The text is not FieldsV1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

// === impl Node ===

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

// === impl FieldSet ===

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A set of named fields, given as dotted paths: `["status", "metadata.name"]`.
    pub fn of_fields<'p>(paths: impl IntoIterator<Item = &'p str>) -> FieldSet {
        let mut set = FieldSet::default();
        for path in paths {
            let elements: Vec<String> = path.split('.').map(|name| format!("f:{name}")).collect();
            set.insert(&elements);
        }
        set
    }

    /// Adds one path.
    pub fn insert(&mut self, path: &[String]) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut here = self;
        for element in parents {
            here = &mut here.nodes.entry(element.clone()).or_default().below;
        }
        here.nodes.entry(last.clone()).or_default().member = true;
    }

    /// Whether this very path is in the set.
    pub fn has(&self, path: &[String]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let mut here = self;
        for element in parents {
            match here.nodes.get(element) {
                Some(node) => here = &node.below,
                None => return false,
            }
        }
        here.nodes.get(last).is_some_and(|n| n.member)
    }

    /// Puts what was found below `element` into the tree, if there is anything.
    pub(super) fn put(&mut self, element: String, member: bool, below: FieldSet) {
        if member || !below.is_empty() {
            let node = self.nodes.entry(element).or_default();
            node.member |= member;
            node.below.add(below);
        }
    }

    /// Adds every path of `other`.
    pub fn add(&mut self, other: FieldSet) {
        if self.nodes.is_empty() {
            self.nodes = other.nodes;
            return;
        }
        for (element, node) in other.nodes {
            match self.nodes.get_mut(&element) {
                Some(mine) => {
                    mine.member |= node.member;
                    mine.below.add(node.below);
                }
                None => drop(self.nodes.insert(element, node)),
            }
        }
    }

    pub fn union(mut self, other: &FieldSet) -> FieldSet {
        self.add(other.clone());
        self
    }

    /// Removes exactly the paths of `other`; paths below them stay.
    pub fn subtract(&mut self, other: &FieldSet) {
        if other.is_empty() {
            return;
        }
        self.nodes.retain(|element, node| {
            if let Some(theirs) = other.nodes.get(element) {
                node.member &= !theirs.member;
                node.below.subtract(&theirs.below);
            }
            !node.is_empty()
        });
    }

    pub fn difference(mut self, other: &FieldSet) -> FieldSet {
        self.subtract(other);
        self
    }

    /// Removes the paths of `other` and everything below them.
    pub fn subtract_deep(&mut self, other: &FieldSet) {
        if other.is_empty() {
            return;
        }
        self.nodes.retain(|element, node| {
            if let Some(theirs) = other.nodes.get(element) {
                if theirs.member {
                    return false;
                }
                node.below.subtract_deep(&theirs.below);
            }
            !node.is_empty()
        });
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut both = FieldSet::default();
        for (element, node) in &self.nodes {
            if let Some(theirs) = other.nodes.get(element) {
                both.put(element.clone(), node.member && theirs.member, node.below.intersection(&theirs.below));
            }
        }
        both
    }

    /// The paths with nothing below them.
    pub fn leaves(&self) -> FieldSet {
        let mut leaves = FieldSet::default();
        for (element, node) in &self.nodes {
            leaves.put(element.clone(), node.member && node.below.is_empty(), node.below.leaves());
        }
        leaves
    }

    /// The paths, printed as in conflict messages: `.spec.containers[name="a"].image`; as many as fit into `bytes`.
    pub fn paths(&self, bytes: usize) -> Vec<String> {
        let (mut paths, mut room) = (Vec::new(), bytes);
        self.collect(&mut String::new(), &mut paths, &mut room);
        paths
    }

    fn collect(&self, prefix: &mut String, paths: &mut Vec<String>, room: &mut usize) {
        let start = prefix.len();
        for (element, node) in &self.nodes {
            if *room == 0 {
                return;
            }
            print_element(element, prefix);
            if node.member {
                *room = room.saturating_sub(prefix.len());
                paths.push(prefix.clone());
            }
            node.below.collect(prefix, paths, room);
            prefix.truncate(start);
        }
    }

    /// Reads FieldsV1.
    pub fn from_fields_v1(value: &Value) -> Result<FieldSet, ParseError> {
        let mut set = FieldSet::default();
        let Value::Object(map) = value else {
            return Err(ParseError(format!("FieldsV1 must be an object, got {value}")));
        };
        for (element, inner) in map {
            if element == "." {
                continue; // the parent has seen it
            }
            let element = canonical_element(element)?;
            let member = inner.as_object().is_some_and(|m| m.is_empty() || m.contains_key("."));
            let below = FieldSet::from_fields_v1(inner)?;
            set.nodes.insert(element, Node { member, below });
        }
        Ok(set)
    }

    /// Writes FieldsV1.
    pub fn to_fields_v1(&self) -> Value {
        let mut map = Map::new();
        for (element, node) in &self.nodes {
            let mut inner = node.below.to_fields_v1();
            if let (true, false, Value::Object(inner)) = (node.member, node.below.is_empty(), &mut inner) {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), inner);
        }
        Value::Object(map)
    }
}

/// Keys and values are compared as text, so they must be spelled one way.
fn canonical_element(element: &str) -> Result<String, ParseError> {
    let bad = |why: &str| ParseError(format!("{why} path element {element:?}"));
    match element.split_once(':') {
        Some(("f", _)) => Ok(element.to_owned()),
        Some((kind @ ("k" | "v"), json)) => {
            let value: Value = serde_json::from_str(json).map_err(|_| bad("malformed"))?;
            if kind == "k" && !value.is_object() {
                return Err(bad("malformed"));
            }
            Ok(format!("{kind}:{value}"))
        }
        Some(("i", index)) if index.parse::<i64>().is_ok() => Ok(element.to_owned()),
        Some(_) => Err(bad("unknown")),
        None => Err(bad("malformed")),
    }
}

fn print_element(element: &str, out: &mut String) {
    match element.split_at_checked(2) {
        Some(("f:", name)) => {
            let _ = write!(out, ".{}", shortened(name, ELEMENT_BYTES_MAX));
        }
        Some(("k:", json)) => {
            let key: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
            let parts: Vec<String> = key.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let _ = write!(out, "[{}]", shortened(&parts.join(","), ELEMENT_BYTES_MAX));
        }
        Some(("v:", json)) => {
            let _ = write!(out, "[={}]", shortened(json, ELEMENT_BYTES_MAX));
        }
        Some((_, rest)) => {
            let _ = write!(out, "[{rest}]");
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_and_writes_fields_v1() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
        let set = FieldSet::from_fields_v1(&fields).unwrap();
        assert_eq!(set.to_fields_v1(), fields);
        assert_eq!(
            set.paths(1000),
            [
                ".metadata.finalizers[=\"x\"]",
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port"
            ]
        );
        for bad in [
            json!({"x": {}}),
            json!({"q:a": {}}),
            json!({"k:[]": {}}),
            json!({"v:{": {}}),
            json!([]),
            json!({"f:a": 1}),
        ] {
            assert!(FieldSet::from_fields_v1(&bad).is_err(), "{bad}");
        }
    }

    fn any_set() -> impl Strategy<Value = FieldSet> {
        let element =
            prop_oneof![Just("f:a"), Just("f:b"), Just("k:{\"n\":1}"), Just("v:\"x\"")].prop_map(str::to_owned);
        proptest::collection::vec(proptest::collection::vec(element, 1..4), 0..8).prop_map(|paths| {
            let mut set = FieldSet::default();
            paths.iter().for_each(|p| set.insert(p));
            set
        })
    }

    proptest! {
        #[test]
        fn set_algebra_holds(a in any_set(), b in any_set()) {
            prop_assert_eq!(a.clone().union(&b), b.clone().union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert!(a.clone().difference(&b).intersection(&b).is_empty());
            prop_assert_eq!(a.clone().difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert_eq!(FieldSet::from_fields_v1(&a.to_fields_v1()).unwrap(), a.clone());
            let mut deep = a.clone();
            deep.subtract_deep(&a);
            prop_assert!(deep.is_empty());
            prop_assert_eq!(a.leaves().difference(&a), FieldSet::default());
        }
    }
}

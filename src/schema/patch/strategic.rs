//! Kubernetes' strategic merge patch: a merge patch that knows which lists merge by key, with `$`-directives.
//!
//! The order of merged lists is part of the contract: items of the patch come in the patch's order, items only the
//! server has keep theirs, and the two are interleaved by their order in the live list (Kubernetes 1.37).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{PatchError, kind_of};
use crate::base::budget::{Budget, size_of};
use crate::schema::types::TypeRef;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Merges `patch` into `target`, which has this type. A null patch changes nothing.
pub fn apply(target: &mut Value, patch: &Value, of: &TypeRef<'_>, budget: &mut Budget) -> Result<(), PatchError> {
    // All that it adds is copied from the patch, once and no deeper than it stands there.
    budget.copy(size_of(patch))?;
    let patch = match patch {
        Value::Null => return Ok(()),
        Value::Object(patch) => patch.clone(),
        other => {
            let got = kind_of(other);
            return Err(PatchError::BadRequest(format!(
                "error decoding patch: the patch must be an object, not {got}"
            )));
        }
    };
    merge_value(target, patch, Some(*of), budget)
}

fn broken(message: impl Into<String>) -> PatchError {
    PatchError::Internal(message.into())
}

/// How one field merges.
struct Rule<'a> {
    of: Option<TypeRef<'a>>,
    merge: bool,
    key: Option<&'a str>,
    /// Whether the field's own strategy is to be replaced whole (only where the type says so).
    replace: bool,
}

fn rule<'a>(of: Option<TypeRef<'a>>, name: &str) -> Rule<'a> {
    let none = Rule { of: None, merge: false, key: None, replace: false };
    let Some(of) = of else { return none };
    match of.field(name) {
        Some(field) => Rule {
            of: Some(of.of(field)),
            merge: field.patch.merge,
            key: field.merge_key.as_deref(),
            replace: field.patch.replace,
        },
        None => Rule { of: of.child(name), ..none },
    }
}

fn merge_value(
    target: &mut Value,
    patch: Object,
    of: Option<TypeRef<'_>>,
    budget: &mut Budget,
) -> Result<(), PatchError> {
    if !target.is_object() {
        *target = Value::Object(Object::new());
    }
    let Value::Object(original) = target else { return Ok(()) };
    merge_object(original, patch, of, budget)
}

fn merge_object(
    original: &mut Object,
    mut patch: Object,
    of: Option<TypeRef<'_>>,
    budget: &mut Budget,
) -> Result<(), PatchError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                *original = patch;
                Ok(())
            }
            Some("delete") => {
                original.clear();
                Ok(())
            }
            _ => Err(broken(format!("unknown patch type: {directive}"))),
        };
    }
    retain_keys(original, &mut patch)?;
    merge_ordered_lists(original, &mut patch, of, budget)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_FROM) {
            Some(list) => (list.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let rule = rule(of, &key);
        match (original.get_mut(&key), value) {
            (None, _) if deletes => {}
            (None, value) => {
                if let Some(clean) = added(value) {
                    original.insert(key, clean);
                }
            }
            (Some(current @ Value::Object(_)), Value::Object(inner)) if !rule.replace => {
                merge_value(current, inner, rule.of, budget)?;
            }
            (Some(Value::Array(items)), Value::Array(change)) => {
                budget.step((items.len() + change.len()) as u64)?;
                if deletes {
                    let gone: HashSet<Cow<'_, str>> = change.iter().map(printed).collect();
                    items.retain(|item| !gone.contains(&printed(item)));
                } else if rule.merge {
                    *items = merge_list(std::mem::take(items), change, &rule, budget)?;
                } else {
                    // An atomic list is taken as it is; a directive in it is an item with an unknown field.
                    *items = change;
                }
            }
            (Some(_), _) if deletes => {}
            (Some(current), value) => match added(value) {
                Some(clean) => *current = clean,
                None => drop(original.remove(&key)),
            },
        }
    }
    Ok(())
}

/// `$retainKeys`: drops every member that is not named, and insists that the patch sets only named ones.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || PatchError::BadRequest("invalid patch format of retainKeys".into());
    let Value::Array(keys) = directive else { return Err(bad()) };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let named = |key: &str| keys.contains(key);
    let sets = |(key, value): (&String, &Value)| {
        !value.is_null() && !key.starts_with(DELETE_FROM) && !key.starts_with(SET_ORDER) && !named(key)
    };
    if patch.iter().any(sets) {
        return Err(bad());
    }
    original.retain(|key, _| named(key));
    Ok(())
}

/// `$setElementOrder/x`, together with the patch's own list `x`.
fn merge_ordered_lists(
    original: &mut Object,
    patch: &mut Object,
    of: Option<TypeRef<'_>>,
    budget: &mut Budget,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let bad = || PatchError::BadRequest("invalid patch format of setElementOrder list".into());
        let Some(Value::Array(order)) = patch.remove(&directive) else { return Err(bad()) };
        let name = &directive[SET_ORDER.len()..];
        let rule = rule(of, name);
        let change = match patch.remove(name) {
            None => None,
            Some(Value::Array(items)) => Some(items),
            Some(Value::Null) => {
                // An explicit null wins: the list goes.
                original.remove(name);
                continue;
            }
            Some(_) => return Err(bad()),
        };
        let live = match original.get(name) {
            None | Some(Value::Null) => None,
            Some(items @ Value::Array(list)) => {
                budget.copy(size_of(items))?;
                Some(list.clone())
            }
            Some(_) => return Err(bad()),
        };
        budget.step((order.len() + change.as_ref().map_or(0, Vec::len)) as u64)?;
        if let Some(change) = &change {
            check_order(change, &order, rule.key)?;
        }
        let merged = match (live.clone(), change) {
            (None, None) => continue,
            (Some(live), None) => live,
            (None, Some(change)) => change.into_iter().filter_map(added_item).collect(),
            (Some(live), Some(change)) if rule.merge => merge_list(live, change, &rule, budget)?,
            (Some(_), Some(change)) => change,
        };
        let sorted = arrange(merged, &order, &live.unwrap_or_default(), rule.key)?;
        original.insert(name.to_owned(), Value::Array(sorted));
    }
    Ok(())
}

/// The patch's items must appear in the order list, in that order.
fn check_order(change: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    let mut wanted = order.iter();
    for item in change.iter().filter(|item| key.is_none() || item.get(DIRECTIVE).is_none()) {
        let mut found = false;
        for place in wanted.by_ref() {
            if same_item(item, place, key)? {
                found = true;
                break;
            }
        }
        if !found {
            return Err(broken(format!(
                "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                Value::from(change),
                Value::from(order)
            )));
        }
    }
    Ok(())
}

/// Where the items of a list are found by how their keys print.
///
/// An item without a key spoils only what comes behind it: nobody looks further than the item that they look for.
struct Places<'k> {
    key: Option<&'k str>,
    of: HashMap<String, usize>,
    spoiled: Option<PatchError>,
    len: usize,
}

// === impl Places ===

impl<'k> Places<'k> {
    fn new(list: &[Value], key: Option<&'k str>) -> Self {
        let mut places = Self { key, of: HashMap::with_capacity(list.len()), spoiled: None, len: 0 };
        list.iter().for_each(|item| places.push(item));
        places
    }

    /// One more item at the end of the list.
    fn push(&mut self, item: &Value) {
        match (item_key(item, self.key), &self.spoiled) {
            (Ok(key), None) => drop(self.of.entry(printed(key).into_owned()).or_insert(self.len)),
            (Err(error), None) => self.spoiled = Some(error),
            (_, Some(_)) => {}
        }
        self.len += 1;
    }

    /// The first item like this one.
    fn find(&self, item: &Value) -> Result<Option<usize>, PatchError> {
        if self.len == 0 {
            return Ok(None);
        }
        match (self.of.get(&*printed(item_key(item, self.key)?)), &self.spoiled) {
            (Some(place), _) => Ok(Some(*place)),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }
}

fn item_key<'v>(item: &'v Value, key: Option<&str>) -> Result<&'v Value, PatchError> {
    match key {
        None => Ok(item),
        Some(key) => merge_key(item, key),
    }
}

/// Merges a list whose strategy is `merge`.
fn merge_list(
    mut live: Vec<Value>,
    change: Vec<Value>,
    rule: &Rule<'_>,
    budget: &mut Budget,
) -> Result<Vec<Value>, PatchError> {
    if live.is_empty() && change.is_empty() {
        return Ok(live);
    }
    budget.step((live.len() + change.len()) as u64)?;
    let objects = one_kind(live.iter().chain(&change))?;
    if !objects {
        let mut seen = HashSet::new();
        let all = live.iter().chain(&change);
        // Items of one kind are equal when they print alike.
        let merged = all.filter(|item| seen.insert(printed(item))).cloned().collect();
        return arrange(merged, &change, &live, None);
    }
    live.iter().try_for_each(|item| budget.copy(size_of(item)))?;
    let before = live.clone();
    let key = rule.key.ok_or_else(|| broken("cannot merge lists without merge key"))?;
    let mut plain = Vec::with_capacity(change.len());
    let mut gone = HashSet::new();
    let mut replace = false;
    for item in change {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    gone.insert(printed(merge_key(&item, key)?).into_owned());
                }
                Some("replace") => replace = true,
                Some("merge") => return Err(broken("merging lists cannot yet be specified in the patch")),
                _ => return Err(broken(format!("unknown patch type: {directive}"))),
            },
        }
    }
    if !gone.is_empty() {
        live.iter().try_for_each(|item| merge_key(item, key).map(drop))?;
        live.retain(|item| item.get(key).is_none_or(|v| !gone.contains(&*printed(v))));
    }
    if replace {
        return Ok(plain.into_iter().filter_map(added).collect());
    }
    let item_type = rule.of.and_then(|of| of.item());
    let mut places = Places::new(&live, Some(key));
    for item in &plain {
        merge_key(item, key)?;
        match (places.find(item)?, item) {
            (Some(i), Value::Object(inner)) => merge_value(&mut live[i], inner.clone(), item_type, budget)?,
            _ => {
                if let Some(item) = added(item.clone()) {
                    places.push(&item);
                    live.push(item);
                }
            }
        }
    }
    arrange(live, &plain, &before, Some(key))
}

/// Whether all items are objects; mixed kinds and lists of lists cannot merge.
fn one_kind<'v>(items: impl Iterator<Item = &'v Value>) -> Result<bool, PatchError> {
    let mut kind = None;
    for item in items {
        if item.is_array() {
            return Err(broken("lists of lists are not supported"));
        }
        if *kind.get_or_insert(kind_of(item)) != kind_of(item) {
            return Err(broken("list element types are not identical"));
        }
    }
    Ok(kind == Some("object"))
}

/// Puts `merged` in order: items of `order` first in that order, the others as in `live`, interleaved by `live`.
fn arrange(merged: Vec<Value>, order: &[Value], live: &[Value], key: Option<&str>) -> Result<Vec<Value>, PatchError> {
    let (in_order, in_live) = (Places::new(order, key), Places::new(live, key));
    let (mut ordered, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let at = in_live.find(&item)?;
        match in_order.find(&item)? {
            Some(i) => ordered.push((i, at, item)),
            None => others.push((at, item)),
        }
    }
    ordered.sort_by_key(|(i, _, _)| *i);
    others.sort_by_key(|(i, _)| i.unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(ordered.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, at, item) in ordered {
        while let Some((Some(other), _)) = others.peek()
            && at.is_some_and(|at| *other < at)
        {
            result.extend(others.next().map(|(_, item)| item));
        }
        result.push(item);
    }
    result.extend(others.map(|(_, item)| item));
    Ok(result)
}

fn same_item(a: &Value, b: &Value, key: Option<&str>) -> Result<bool, PatchError> {
    match key {
        None => Ok(alike(a, b)),
        Some(key) => Ok(alike(merge_key(a, key)?, merge_key(b, key)?)),
    }
}

fn merge_key<'v>(item: &'v Value, key: &str) -> Result<&'v Value, PatchError> {
    let Value::Object(map) = item else {
        return Err(broken(format!("invalid argument type: expected an object with {key}, got {}", kind_of(item))));
    };
    map.get(key).ok_or_else(|| broken(format!("map: {item} does not contain declared merge key: {key}")))
}

/// Keys are compared by how they print.
fn alike(a: &Value, b: &Value) -> bool {
    printed(a) == printed(b)
}

fn printed(key: &Value) -> Cow<'_, str> {
    match key {
        Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

/// What is left of a value that is new to the object: no directives, no null members. `None` when it says delete.
fn added(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                return None;
            }
            let keep = |key: &str| {
                key != DIRECTIVE && key != RETAIN_KEYS && !key.starts_with(SET_ORDER) && !key.starts_with(DELETE_FROM)
            };
            let kept = map.into_iter().filter(|(k, v)| !v.is_null() && keep(k));
            Some(Value::Object(kept.filter_map(|(k, v)| Some((k, added(v)?))).collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(added_item).collect())),
        other => Some(other),
    }
}

/// List items that only carry a directive vanish.
fn added_item(item: Value) -> Option<Value> {
    let bare = item.as_object().is_some_and(|m| m.len() == 1 && m.contains_key(DIRECTIVE));
    if bare { None } else { added(item) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::schema::bundle::type_of;

    fn patched(target: Value, patch: Value) -> Result<Value, u16> {
        let of = type_of("io.k8s.api.core.v1.PodTemplate").unwrap();
        let mut target = json!({"template": {"spec": target}});
        apply(&mut target, &json!({"template": {"spec": patch}}), &of, &mut Budget::new()).map_err(|e| e.code())?;
        Ok(target["template"]["spec"].take())
    }

    #[test]
    fn keyed_lists_merge_and_keep_kubernetes_order() {
        let live = || json!({"containers": [{"name": "c", "image": "1"}, {"name": "d", "image": "2"}]});
        let names = |v: Result<Value, u16>| {
            let items = v.map(|v| v["containers"].as_array().cloned().unwrap_or_default());
            items.map(|l| l.iter().map(|c| format!("{}{}", c["name"], c["image"]).replace('"', "")).collect::<Vec<_>>())
        };
        let cases = [
            (json!([{"name": "d", "image": "3"}]), vec!["c1", "d3"]),
            (json!([{"name": "n", "image": "3"}]), vec!["n3", "c1", "d2"]),
            (json!([{"name": "c", "$patch": "delete"}]), vec!["d2"]),
            (json!([{"$patch": "replace"}, {"name": "z", "image": "9"}]), vec!["z9"]),
        ];
        for (containers, want) in cases {
            assert_eq!(names(patched(live(), json!({"containers": containers}))).unwrap(), want, "{containers}");
        }
        let order = json!({"$setElementOrder/containers": [{"name": "d"}, {"name": "c"}]});
        assert_eq!(names(patched(live(), order)).unwrap(), ["d2", "c1"]);
        for bad in [json!([{"image": "x"}]), json!(["c"]), json!([{"name": "c", "$patch": "frob"}])] {
            assert_eq!(patched(live(), json!({"containers": bad})), Err(500), "{bad}");
        }
        let keys = json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "secret": {}}]});
        assert_eq!(patched(json!({"volumes": [{"name": "v", "emptyDir": {}}]}), keys), Err(400));
        let keys =
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]});
        assert_eq!(
            patched(json!({"volumes": [{"name": "v", "emptyDir": {}}]}), keys),
            Ok(json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}))
        );
    }

    proptest! {
        #[test]
        fn any_patch_ends_without_panic(
            names in proptest::collection::vec("[a-c]", 0..4),
            changes in proptest::collection::vec(("[a-d]?", prop_oneof![Just("delete"), Just("replace"), Just("merge"), Just("")]), 0..4),
            order in proptest::collection::vec("[a-d]", 0..4),
        ) {
            let live: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
            let items: Vec<Value> = changes.iter().map(|(n, d)| match (n.is_empty(), d.is_empty()) {
                (true, _) => json!({"$patch": d}),
                (_, true) => json!({"name": n, "image": "x"}),
                _ => json!({"name": n, "$patch": d}),
            }).collect();
            let sorted: Vec<Value> = order.iter().map(|n| json!({"name": n})).collect();
            let patch = json!({"containers": items, "$setElementOrder/containers": sorted});
            let _ = patched(json!({"containers": live}), patch);
        }
    }
}

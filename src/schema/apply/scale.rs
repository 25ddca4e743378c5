//! Managed fields of the scale subresource: the one field it has, under its own name there and the parent's name here.

use std::collections::HashSet;

use serde_json::Value;

use super::fieldset::FieldSet;
use super::managed::{Entry, Key, Managed};

/// Version the scale object's entries carry.
const SCALE_VERSION: &str = "autoscaling/v1";

/// The scale object's managed fields, from its parent's. `replicas` is the parent's field in a version, such as
/// `spec.replicas`, if there is one.
pub fn of_parent(parent: Option<&Value>, replicas: impl Fn(&str) -> Option<String>) -> Value {
    let mut scale = Managed::default();
    let managed = parent.and_then(|list| Managed::read(list).ok()).unwrap_or_default();
    for (key, entry) in managed.entries {
        if owned(&entry, &replicas).is_some() {
            let set = FieldSet::of_fields(["spec.replicas"]);
            scale.entries.insert(
                in_version(key, SCALE_VERSION),
                Entry { set, time: entry.time, api_version: SCALE_VERSION.into() },
            );
        }
    }
    scale.write()
}

/// The parent's managed fields after a write to the scale object left these there.
pub fn to_parent(
    parent: Option<&Value>,
    scale: Option<&Value>,
    replicas: impl Fn(&str) -> Option<String>,
    parent_version: &str,
) -> Value {
    let mut managed = parent.and_then(|list| Managed::read(list).ok()).unwrap_or_default();
    let scale = scale.and_then(|list| Managed::read(list).ok()).unwrap_or_default();
    let who = |key: &Key| (key.update, key.manager.clone(), key.subresource.clone());
    let wanted: HashSet<_> = scale.entries.keys().map(who).collect();
    let mut known = HashSet::new();
    for (key, entry) in &mut managed.entries {
        let Some(path) = owned(entry, &replicas) else { continue };
        if wanted.contains(&who(key)) {
            known.insert(who(key));
        } else {
            entry.set.subtract(&only(&path));
        }
    }
    managed.tidy();
    let own = replicas(parent_version).map(|path| only(&elements(&path))).unwrap_or_default();
    for key in scale.entries.into_keys() {
        if !known.contains(&who(&key)) {
            let key = Key { subresource: "scale".into(), ..in_version(key, parent_version) };
            let entry = Entry { set: own.clone(), time: None, api_version: parent_version.to_owned() };
            managed.entries.insert(key, entry);
        }
    }
    managed.write()
}

/// The path of the parent's field, if an entry owns it.
fn owned(entry: &Entry, replicas: impl Fn(&str) -> Option<String>) -> Option<Vec<String>> {
    let path = elements(&replicas(&entry.api_version)?);
    entry.set.has(&path).then_some(path)
}

fn only(path: &[String]) -> FieldSet {
    let mut set = FieldSet::default();
    set.insert(path);
    set
}

fn in_version(key: Key, version: &str) -> Key {
    let api_version = if key.update { version.to_owned() } else { String::new() };
    Key { api_version, ..key }
}

fn elements(path: &str) -> Vec<String> {
    path.split('.').map(|name| format!("f:{name}")).collect()
}

//! Managed fields of the scale subresource: the one field it has, under its own name there and the parent's name here.

use std::collections::HashSet;

use serde_json::Value;

use super::fieldset::FieldSet;
use super::managed::{Entry, Key, Managed};

/// Version the scale object's entries carry.
const SCALE_VERSION: &str = "autoscaling/v1";

/// The scale object's managed fields, from its parent's. `replicas` is the parent's field, such as `spec.replicas`.
pub fn of_parent(parent: Option<&Value>, replicas: &str) -> Value {
    let path = elements(replicas);
    let mut scale = Managed::default();
    let managed = parent.and_then(|list| Managed::read(list).ok()).unwrap_or_default();
    for (key, entry) in managed.entries.into_iter().filter(|(_, e)| e.set.has(&path)) {
        let key = Key { api_version: SCALE_VERSION.into(), ..key };
        scale.entries.insert(key, Entry { set: FieldSet::of_fields(["spec.replicas"]), time: entry.time });
    }
    scale.write()
}

/// The parent's managed fields after a write to the scale object left these there.
pub fn to_parent(parent: Option<&Value>, scale: Option<&Value>, replicas: &str, parent_version: &str) -> Value {
    let path = elements(replicas);
    let only = {
        let mut set = FieldSet::default();
        set.insert(&path);
        set
    };
    let mut managed = parent.and_then(|list| Managed::read(list).ok()).unwrap_or_default();
    let scale = scale.and_then(|list| Managed::read(list).ok()).unwrap_or_default();
    let who = |key: &Key| (key.update, key.manager.clone(), key.subresource.clone());
    let wanted: HashSet<_> = scale.entries.keys().map(who).collect();
    for (key, entry) in managed.entries.iter_mut().filter(|(_, e)| e.set.has(&path)) {
        if !wanted.contains(&who(key)) {
            entry.set.subtract(&only);
        }
    }
    managed.tidy();
    let known: HashSet<_> = managed.entries.iter().filter(|(_, e)| e.set.has(&path)).map(|(k, _)| who(k)).collect();
    for key in scale.entries.into_keys() {
        if !known.contains(&who(&key)) {
            let key = Key { api_version: parent_version.to_owned(), subresource: "scale".into(), ..key };
            managed.entries.insert(key, Entry { set: only.clone(), time: None });
        }
    }
    managed.write()
}

fn elements(path: &str) -> Vec<String> {
    path.split('.').map(|name| format!("f:{name}")).collect()
}

//! `metadata.managedFields`: who set which fields, by which kind of request, and when.
//!
//! The entries of an object, as they are read and written. The rules and their order are those of Kubernetes 1.37's field
//! manager.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use super::fieldset::FieldSet;
use super::versions::Versions;

/// Most update entries an object keeps; older ones are merged into one.
const UPDATE_ENTRIES_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";
pub(super) const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'w> {
    /// The field manager's name.
    pub manager: &'w str,
    /// Group and version of the request, such as `apps/v1`.
    pub api_version: &'w str,
    /// Empty for the object itself.
    pub subresource: &'w str,
    /// Seconds, as RFC 3339, such as `2026-01-02T03:04:05Z`.
    pub now: &'w str,
    /// Fields this request cannot change; nobody is made their owner.
    pub reset: &'w FieldSet,
    /// Objects of the kind as of its other versions, where they differ in more than their name.
    pub versions: Option<&'w dyn Versions>,
}

/// What tells entries apart, in the order entries with one time are listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// False sorts Apply before Update.
    pub update: bool,
    pub manager: String,
    /// Empty for an apply: in whatever version a manager applies, it replaces what it applied before.
    pub api_version: String,
    pub subresource: String,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub set: FieldSet,
    pub time: Option<String>,
    /// In which version the fields have these names.
    pub api_version: String,
}

/// All entries of an object.
#[derive(Debug, Clone, Default)]
pub(super) struct Managed {
    pub entries: BTreeMap<Key, Entry>,
}

// === impl Key ===

impl Key {
    /// Of what a writer does.
    pub fn of(writer: &Writer<'_>, update: bool) -> Self {
        Self {
            update,
            manager: writer.manager.to_owned(),
            api_version: if update { writer.api_version.to_owned() } else { String::new() },
            subresource: writer.subresource.to_owned(),
        }
    }
}

// === impl Managed ===

impl Managed {
    /// Reads the list; an error if anything in it is not what Kubernetes writes.
    pub fn read(list: &Value) -> Result<Managed, String> {
        let mut managed = Managed::default();
        for entry in list.as_array().into_iter().flatten() {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
            let update = match text("operation").as_str() {
                "Apply" => false,
                "Update" => true,
                other => return Err(format!("invalid operation {other:?}")),
            };
            if text("apiVersion").is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            if text("fieldsType") != "FieldsV1" {
                return Err(format!("invalid fieldsType {:?}, expected FieldsV1", text("fieldsType")));
            }
            let set = match entry.get("fieldsV1") {
                Some(fields) => FieldSet::from_fields_v1(fields).map_err(|e| e.to_string())?,
                None => FieldSet::default(),
            };
            let api_version = text("apiVersion");
            let key = Key {
                update,
                manager: text("manager"),
                api_version: if update { api_version.clone() } else { String::new() },
                subresource: text("subresource"),
            };
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            managed.entries.insert(key, Entry { set, time, api_version });
        }
        Ok(managed)
    }

    /// Writes the list in Kubernetes' order: applies first, then by time, then by name.
    pub fn write(&self) -> Value {
        let mut entries: Vec<(&Key, &Entry)> = self.entries.iter().collect();
        entries.sort_by(|(a, x), (b, y)| (a.update, &x.time, a).cmp(&(b.update, &y.time, b)));
        entries.iter().map(|(key, entry)| write_entry(key, entry)).collect()
    }

    /// Drops entries that own nothing.
    pub fn tidy(&mut self) {
        self.entries.retain(|_, entry| !entry.set.is_empty());
    }

    /// Merges the oldest update entries, version by version, until there are few enough.
    pub fn cap(&mut self) {
        let mut updates: Vec<(Option<String>, Key)> =
            self.entries.iter().filter(|(k, _)| k.update).map(|(k, e)| (e.time.clone(), k.clone())).collect();
        if updates.len() <= UPDATE_ENTRIES_MAX {
            return;
        }
        updates.sort();
        let mut count = updates.len();
        let mut first: BTreeMap<String, Key> = BTreeMap::new();
        for (time, key) in updates {
            if count <= UPDATE_ENTRIES_MAX {
                break;
            }
            let version = key.api_version.clone();
            let Some(oldest) = first.get(&version) else {
                first.insert(version, key);
                continue;
            };
            let bucket =
                Key { update: true, manager: ANCIENT.into(), api_version: version, subresource: String::new() };
            if !self.entries.contains_key(&bucket)
                && let Some(entry) = self.entries.remove(oldest)
            {
                self.entries.insert(bucket.clone(), entry);
            }
            let Some(merged) = self.entries.remove(&key) else { continue };
            if let Some(into) = self.entries.get_mut(&bucket) {
                into.set.add(merged.set);
                into.time = time;
            }
            count -= 1;
        }
    }
}

fn write_entry(key: &Key, entry: &Entry) -> Value {
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| drop(map.insert(name.to_owned(), value));
    if !key.manager.is_empty() {
        put("manager", Value::from(key.manager.as_str()));
    }
    put("operation", Value::from(if key.update { "Update" } else { "Apply" }));
    put("apiVersion", Value::from(entry.api_version.as_str()));
    if let Some(time) = &entry.time {
        put("time", Value::from(time.as_str()));
    }
    put("fieldsType", Value::from("FieldsV1"));
    put("fieldsV1", entry.set.to_fields_v1());
    if !key.subresource.is_empty() {
        put("subresource", Value::from(key.subresource.as_str()));
    }
    Value::Object(map)
}

/// Fields the server keeps for itself.
fn stripped() -> &'static FieldSet {
    static SET: std::sync::LazyLock<FieldSet> = std::sync::LazyLock::new(|| {
        FieldSet::of_fields([
            "apiVersion",
            "kind",
            "metadata",
            "metadata.name",
            "metadata.namespace",
            "metadata.creationTimestamp",
            "metadata.selfLink",
            "metadata.uid",
            "metadata.clusterName",
            "metadata.generation",
            "metadata.managedFields",
            "metadata.resourceVersion",
        ])
    });
    &SET
}

/// Takes the server's own fields out of a set.
pub(super) fn strip(set: &mut FieldSet) {
    set.subtract(stripped());
}

/// Removes and returns the object's managed fields.
pub(super) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Puts the list into the object, or nothing if there is none.
pub(super) fn put(object: &mut Value, managed: &Managed) {
    let Some(map) = object.as_object_mut() else { return };
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    match managed.write() {
        Value::Array(list) if !list.is_empty() => drop(metadata.insert("managedFields".into(), Value::Array(list))),
        _ => drop(metadata.remove("managedFields")),
    }
}

/// Whether a list is what Kubernetes writes.
pub fn is_valid(list: &Value) -> bool {
    Managed::read(list).is_ok()
}

/// Whether two objects differ in nothing but the times of their managed fields; such a write changes nothing.
pub fn same_but_times(a: &Value, b: &Value) -> bool {
    same_members(a, b, "metadata", |a, b| same_members(a, b, "managedFields", same_entries))
}

/// Whether two objects have the same members, of which one is compared in its own way.
fn same_members(a: &Value, b: &Value, special: &str, same: impl Fn(&Value, &Value) -> bool) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let others = |map: &'_ Map<String, Value>| map.len() - usize::from(map.contains_key(special));
    others(a) == others(b)
        && a.iter().filter(|(name, _)| *name != special).all(|(name, value)| b.get(name) == Some(value))
        && same(a.get(special).unwrap_or(&Value::Null), b.get(special).unwrap_or(&Value::Null))
}

/// Whether two lists have the same entries, in any order and of any time.
fn same_entries(a: &Value, b: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let timeless = |mut entry: Value| {
        entry.as_object_mut().map(|m| m.remove("time"));
        entry.to_string()
    };
    let (a, b) = (list(a), list(b));
    let known: HashSet<String> = b.iter().cloned().map(timeless).collect();
    a.len() == b.len() && a.into_iter().map(timeless).all(|entry| known.contains(&entry))
}

//! Validation of `metadata`, the same for every kind (`k8s.io/apimachinery/pkg/api/validation`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::NameRule;
use super::field::{self, Errors};
use crate::base::json::{at, int, list, text};
use crate::base::labels::{dns_1035_error, dns_label_error, dns_subdomain_error, label_key_error, label_value_error};

/// Annotations of an object may be this long in all.
const ANNOTATIONS_BYTES: usize = 256 << 10;

/// What of metadata differs from kind to kind.
pub struct Rules {
    pub name: NameRule,
    pub namespaced: bool,
    /// Whether finalizers must say whose they are.
    pub names_finalizers: bool,
}

/// Why `name` is no name for the kind; `prefix` allows a trailing dash, as in `generateName`.
pub fn name_error(rule: NameRule, name: &str, prefix: bool) -> Option<String> {
    let trimmed = if prefix { name.strip_suffix('-').unwrap_or(name) } else { name };
    match rule {
        NameRule::DnsSubdomain => dns_subdomain_error(trimmed),
        NameRule::DnsLabel => dns_label_error(trimmed),
        NameRule::Dns1035 => dns_1035_error(trimmed),
        NameRule::PathSegment => path_segment_error(name),
    }
}

fn path_segment_error(name: &str) -> Option<String> {
    if matches!(name, "." | "..") {
        return Some(format!("may not be '{name}'"));
    }
    ["/", "%"].iter().find(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'"))
}

/// Errors in the metadata of a new object.
pub fn validate(kind: &Rules, value: &Value) -> Errors {
    let mut errors = Errors::new();
    let (name, generate) = (text(value, "metadata.name"), text(value, "metadata.generateName"));
    if !generate.is_empty()
        && let Some(why) = name_error(kind.name, generate, true)
    {
        errors.push(field::invalid("metadata.generateName", generate, why));
    }
    if name.is_empty() {
        errors.push(field::required("metadata.name", "name or generateName is required"));
    } else if let Some(why) = name_error(kind.name, name, false) {
        errors.push(field::invalid("metadata.name", name, why));
    }
    let namespace = text(value, "metadata.namespace");
    if kind.namespaced {
        if namespace.is_empty() {
            errors.push(field::required("metadata.namespace", ""));
        } else if let Some(why) = dns_label_error(namespace) {
            errors.push(field::invalid("metadata.namespace", namespace, why));
        }
    } else if !namespace.is_empty() {
        errors.push(field::forbidden("metadata.namespace", "not allowed on this type"));
    }
    errors.extend(validate_generation(value));
    errors.extend(validate_free(value));
    if kind.names_finalizers {
        errors.extend(validate_finalizers(value));
    }
    errors.extend(validate_managed(value));
    errors
}

fn validate_generation(value: &Value) -> Option<field::Error> {
    let generation = int(value, "metadata.generation")?;
    (generation < 0).then(|| field::invalid("metadata.generation", generation, "must be greater than or equal to 0"))
}

/// Errors in the metadata of an object in another, apart from its name.
pub fn validate_embedded(value: &Value) -> Errors {
    validate_generation(value).into_iter().chain(validate_free(value)).chain(validate_managed(value)).collect()
}

/// What clients may change freely: labels, annotations, owners, finalizers.
fn validate_free(value: &Value) -> Errors {
    let mut errors = labels("metadata.labels", at(value, "metadata.labels"));
    errors.extend(annotations("metadata.annotations", at(value, "metadata.annotations")));
    errors.extend(validate_owners(value));
    let mut seen = BTreeSet::new();
    for f in list(value, "metadata.finalizers") {
        let name = f.as_str().unwrap_or("");
        seen.insert(name);
        if let Some(why) = label_key_error(name) {
            errors.push(field::invalid("metadata.finalizers", name, why));
        }
    }
    if seen.contains("orphan") && seen.contains("foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(field::invalid("metadata.finalizers", list(value, "metadata.finalizers").to_vec(), why));
    }
    errors
}

/// Whose finalizers they are must be known by their names; of custom objects clients are only warned.
fn validate_finalizers(value: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, f) in list(value, "metadata.finalizers").iter().enumerate() {
        let name = f.as_str().unwrap_or("");
        if !name.contains('/') && !matches!(name, "orphan" | "foregroundDeletion" | "kubernetes") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(field::invalid(format!("metadata.finalizers[{i}]"), name, why));
        }
    }
    errors
}

fn validate_owners(value: &Value) -> Errors {
    let (mut errors, mut controllers) = (Errors::new(), 0);
    // Kubernetes names the list and not the item.
    let path = "metadata.ownerReferences";
    for owner in list(value, path) {
        let version = text(owner, "apiVersion");
        if version.is_empty() || version.matches('/').count() > 1 {
            errors.push(field::invalid(format!("{path}.apiVersion"), version, "version must not be empty"));
        }
        for key in ["kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                errors.push(field::invalid(format!("{path}.{key}"), "", "must not be empty"));
            }
        }
        if version == "v1" && text(owner, "kind") == "Event" {
            errors.push(field::invalid(path, version, "is disallowed from being an owner"));
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            controllers += 1;
            if controllers > 1 {
                let why = "Only one reference can have Controller set to true";
                errors.push(field::invalid("metadata.ownerReferences", Value::Null, why));
            }
        }
    }
    errors
}

/// Entries of managed fields with names that are too long.
fn validate_managed(value: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, entry) in list(value, "metadata.managedFields").iter().enumerate() {
        for (key, max) in [("manager", 128), ("subresource", 256)] {
            if text(entry, key).len() > max {
                errors.push(field::too_long(format!("metadata.managedFields[{i}].{key}"), max));
            }
        }
    }
    errors
}

/// Errors in a map of labels at `path`.
pub fn labels(path: &str, labels: Option<&Value>) -> Errors {
    let mut errors = Errors::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        if let Some(why) = label_key_error(key) {
            errors.push(field::invalid(path, key.as_str(), why));
        }
        let value = value.as_str().unwrap_or("");
        if let Some(why) = label_value_error(value) {
            errors.push(field::invalid(path, value, why));
        }
    }
    errors
}

/// Errors in a map of annotations at `path`.
pub fn annotations(path: &str, annotations: Option<&Value>) -> Errors {
    let (mut errors, mut total) = (Errors::new(), 0);
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        total += key.len() + value.as_str().map_or(0, str::len);
        if let Some(why) = label_key_error(&key.to_lowercase()) {
            errors.push(field::invalid(path, key.as_str(), why));
        }
    }
    if total > ANNOTATIONS_BYTES {
        errors.push(field::too_long(path, ANNOTATIONS_BYTES));
    }
    errors
}

/// Errors in the change of metadata.
pub fn validate_update(kind: &Rules, new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let path = format!("metadata.{key}");
        if at(new, &path) != at(old, &path) {
            let value = at(new, &path).cloned().unwrap_or(Value::Null);
            errors.push(field::invalid(path, value, "field is immutable"));
        }
    }
    if let (Some(n), Some(o)) = (int(new, "metadata.generation"), int(old, "metadata.generation"))
        && n < o
    {
        errors.push(field::invalid("metadata.generation", n, "must not be decremented"));
    }
    if at(old, "metadata.deletionTimestamp").is_some() {
        let was: BTreeSet<_> = list(old, "metadata.finalizers").iter().map(Value::as_str).collect();
        let added = list(new, "metadata.finalizers").iter().filter(|f| !was.contains(&f.as_str()));
        let added: Vec<_> = added.collect();
        if !added.is_empty() {
            let why = "no new finalizers can be added if the object is being deleted";
            errors.push(field::forbidden("metadata.finalizers", format!("{why}, found new finalizers {added:?}")));
        }
    }
    errors.extend(validate_generation(new));
    errors.extend(validate_free(new));
    if kind.names_finalizers {
        errors.extend(validate_finalizers(new));
    }
    errors.extend(validate_managed(new));
    errors
}

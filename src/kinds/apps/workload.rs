//! What the kinds share that keep pods of a template running.

use jiff::Timestamp;
use serde_json::Value;

use crate::base::json::{at, int, list, map};
use crate::base::labels::Selector;
use crate::kinds::Column;
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer};

/// The columns of a kind that wants a number of alike pods.
pub(in crate::kinds) const REPLICA_COLUMNS: &[Column<'static>] = &[
    table::NAME,
    integer("Desired", "How many pods it wants."),
    integer("Current", "How many pods it has."),
    integer("Ready", "How many of them are ready."),
    table::AGE,
    table::CONTAINERS,
    table::IMAGES,
    table::SELECTOR,
];

/// The cells of [`REPLICA_COLUMNS`].
pub(in crate::kinds) fn replica_row(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path: &str| Value::from(int(object, path).unwrap_or(0));
    let mut cells = vec![
        table::name(object),
        count("spec.replicas"),
        count("status.replicas"),
        count("status.readyReplicas"),
        table::age(object, now),
    ];
    cells.extend(container_cells(object));
    cells.push(selector_cell(object));
    cells
}

/// `spec.replicas`, the selector, the template and how long a pod must be ready. Deployments keep to the words of ReplicaSets.
pub(super) fn validate(errors: &mut Errors, object: &Value) {
    let path = Path::root("spec");
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        check::non_negative(errors, &path.field(key), at(object, "spec").and_then(|s| s.get(key)));
    }
    let selector = at(object, "spec.selector").filter(|s| s.is_object());
    let selector_path = path.field("selector");
    match selector {
        None => errors.push(field::required(&selector_path, "")),
        Some(selector) => {
            check::label_selector(errors, &selector_path, Some(selector));
            if check::selects_nothing(selector) {
                errors.push(field::invalid(&selector_path, selector.clone(), "empty selector is invalid"));
            } else if Selector::from_object(selector).is_err() {
                errors.push(field::invalid(&selector_path, selector.clone(), "invalid label selector"));
            }
        }
    }
    let null = Value::Null;
    let template = at(object, "spec.template").unwrap_or(&null);
    podspec::validate_template(errors, &path.field("template"), template, selector, "ReplicaSet");
}

/// A selector cannot change: pods would be orphaned or stolen.
pub(super) fn fixed_selector(new: &Value, old: &Value) -> Errors {
    if at(new, "spec.selector") == at(old, "spec.selector") {
        return Errors::new();
    }
    let value = at(new, "spec.selector").cloned().unwrap_or_default();
    [field::invalid("spec.selector", value, check::IMMUTABLE)].into()
}

/// Counts in a status: none below zero, `parts` no larger than all, and no more available than ready.
pub(in crate::kinds) fn validate_status(new: &Value, parts: &[&str]) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("status");
    let status = &new["status"];
    let count = |key: &str| int(status, key).unwrap_or(0);
    let keys = ["replicas", "unavailableReplicas", "terminatingReplicas", "observedGeneration", "collisionCount"];
    for key in keys.iter().chain(parts) {
        if *key == "collisionCount" && parts.contains(&"fullyLabeledReplicas") {
            continue;
        }
        check::non_negative(&mut errors, &path.field(key), status.get(*key));
    }
    for key in parts {
        if count(key) > count("replicas") {
            let why = "cannot be greater than status.replicas";
            errors.push(field::invalid(&path.field(key), count(key), why));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let why = "cannot be greater than readyReplicas";
        errors.push(field::invalid(&path.field("availableReplicas"), count("availableReplicas"), why));
    }
    errors
}

/// A count of collisions only grows, and stays where it was told once.
pub(super) fn collisions_grow(errors: &mut Errors, new: &Value, old: &Value) {
    let collisions = |d: &Value| int(d, "status.collisionCount");
    if collisions(new) < collisions(old) {
        let now = collisions(new).unwrap_or(0);
        errors.push(field::invalid("status.collisionCount", now, "cannot be decremented"));
    }
}

/// The cells Containers and Images.
pub(super) fn container_cells(object: &Value) -> [Value; 2] {
    table::container_cells(list(object, "spec.template.spec.containers"))
}

/// The cell Selector, of a selector of either form.
pub(super) fn selector_cell(object: &Value) -> Value {
    let plain = map(object, "spec.selector").filter(|s| s.values().all(Value::is_string));
    match plain {
        Some(labels) => table::labels(Some(labels)).into(),
        None => table::selector(at(object, "spec.selector")).into(),
    }
}

/// Warnings about the template, where it is new or changed.
pub(in crate::kinds) fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let template = at(new, "spec.template");
    if old.is_some_and(|o| at(o, "spec.template") == template) {
        return Vec::new();
    }
    let path = Path::root("spec");
    template.map(|t| podspec::warnings_for_template(&path.field("template"), t)).unwrap_or_default()
}

/// Drops fields of the template that belong to features which are not enabled.
pub(in crate::kinds) fn drop_disabled(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").and_then(|s| s.get_mut("template")).and_then(|t| t.get_mut("spec")) {
        podspec::drop_disabled(spec);
    }
}

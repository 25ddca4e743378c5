//! What Deployment and ReplicaSet share.

use serde_json::Value;

use crate::base::json::{at, int, list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table;

/// `spec.replicas`, the selector, the template and how long a pod must be ready.
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
            }
        }
    }
    let null = Value::Null;
    let template = at(object, "spec.template").unwrap_or(&null);
    podspec::validate_template(errors, &path.field("template"), template, selector);
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
pub(super) fn validate_status(new: &Value, parts: &[&str]) -> Errors {
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

/// The cells Containers, Images and Selector.
pub(super) fn wide_cells(object: &Value) -> [Value; 3] {
    let containers = list(object, "spec.template.spec.containers");
    let join = |key: &str| containers.iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
    [join("name").into(), join("image").into(), table::selector(at(object, "spec.selector")).into()]
}

/// Warnings about the template, where it is new or changed.
pub(super) fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let template = at(new, "spec.template");
    if old.is_some_and(|o| at(o, "spec.template") == template) {
        return Vec::new();
    }
    let path = Path::root("spec");
    template.map(|t| podspec::warnings_for_template(&path.field("template"), t)).unwrap_or_default()
}

/// Drops fields of the template that belong to features which are not enabled.
pub(super) fn drop_disabled(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").and_then(|s| s.get_mut("template")).and_then(|t| t.get_mut("spec")) {
        podspec::drop_disabled(spec);
    }
}

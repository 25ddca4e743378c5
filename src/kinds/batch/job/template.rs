//! What of a Job's template may change: nothing while it may have pods. As long as it waits suspended, whoever queues it may
//! say where its pods may go and what they get.

use serde_json::{Map, Value};

use super::status;
use crate::base::json::{at, flag, int, list, list_mut, map_mut};
use crate::kinds::check::{self, Path};
use crate::kinds::field::Errors;

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let path = path.field("template");
    let (template, before) = (at(new, "spec.template"), at(old, "spec.template"));
    let waits = flag(old, "spec.suspend")
        && (at(old, "status.startTime").is_none_or(Value::is_null)
            || status::condition(old, "Suspended").is_some() && int(old, "status.active").unwrap_or(0) == 0);
    let (Some(template), Some(before), true) = (template, before, waits) else {
        check::immutable(errors, &path, template, before);
        return;
    };
    let mut expected = before.clone();
    take(&mut expected, template, "metadata", &["labels", "annotations"]);
    take(&mut expected, template, "spec", &["nodeSelector", "tolerations", "schedulingGates"]);
    affinity(&mut expected, template);
    for key in ["containers", "initContainers"] {
        resources(&mut expected, template, key);
    }
    check::immutable(errors, &path.field("metadata"), template.get("metadata"), expected.get("metadata"));
    check::immutable(errors, &path.field("spec"), template.get("spec"), expected.get("spec"));
}

/// Takes the named members of a part over from the new form.
fn take(expected: &mut Value, new: &Value, part: &str, keys: &[&str]) {
    let into = map_mut(expected, part);
    for key in keys {
        match new.get(part).and_then(|p| p.get(*key)) {
            Some(value) => into.insert((*key).to_owned(), value.clone()),
            None => into.remove(*key),
        };
    }
}

/// Node affinity may come, change and go, and with it an affinity that had nothing else.
fn affinity(expected: &mut Value, new: &Value) {
    let wanted = at(new, "spec.affinity").filter(|a| !a.is_null());
    let spec = map_mut(expected, "spec");
    let mut merged = spec.get("affinity").and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    match wanted.and_then(|a| a.get("nodeAffinity")) {
        Some(nodes) => merged.insert("nodeAffinity".into(), nodes.clone()),
        None => merged.remove("nodeAffinity"),
    };
    if merged.is_empty() && wanted.is_none() {
        spec.remove("affinity");
    } else {
        spec.insert("affinity".into(), merged.into());
    }
}

/// Containers are the same in number and name; their resources may differ.
fn resources(expected: &mut Value, new: &Value, key: &str) {
    let new = list(new, &format!("spec.{key}"));
    let Some(into) = list_mut(expected, &format!("spec.{key}")).filter(|l| l.len() == new.len()) else { return };
    for (container, new) in into.iter_mut().zip(new) {
        if container.get("name") == new.get("name") {
            match new.get("resources") {
                Some(resources) => map_mut(container, "").insert("resources".into(), resources.clone()),
                None => map_mut(container, "").remove("resources"),
            };
        }
    }
}

//! Ephemeral containers: only added, only through their subresource, with fewer settings.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::names::Names;
use super::{container, security};
use crate::base::json::{at, list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Settings that an ephemeral container cannot have.
const FORBIDDEN: &[&str] = &[
    "ports",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
];

/// Checks the ephemeral containers of a pod.
pub fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    validate_with(errors, path, spec, &Names::of(spec));
}

/// As [`validate`], where the names are known already.
pub(super) fn validate_with(errors: &mut Errors, path: &Path<'_>, spec: &Value, names: &Names<'_>) {
    let others = list(spec, "containers").iter().chain(list(spec, "initContainers"));
    let possible: HashSet<&str> = others.map(|c| text(c, "name")).collect();
    let mut taken = possible.clone();
    let containers = list(spec, "ephemeralContainers");
    for (i, c) in containers.iter().enumerate() {
        let path = path.index(i);
        let name = text(c, "name");
        let again = !taken.insert(name);
        if check::given(errors, &path.field("name"), name) {
            check::dns_label(errors, &path.field("name"), name);
            if again {
                errors.push(field::duplicate(&path.field("name"), name));
            }
        }
        let host_users = at(spec, "hostUsers") != Some(&Value::Bool(false));
        container::common(errors, &path, c, names);
        security::validate_container(errors, &path.field("securityContext"), c.get("securityContext"), host_users);
        let target = text(c, "targetContainerName");
        if !target.is_empty() && !possible.contains(target) {
            errors.push(field::not_found(&path.field("targetContainerName"), target));
        }
        for key in FORBIDDEN {
            if c.get(*key).is_some_and(|v| v.as_array().is_none_or(|a| !a.is_empty())) {
                errors.push(field::forbidden(&path.field(key), "cannot be set for an Ephemeral Container"));
            }
        }
        if c.get("resources").and_then(Value::as_object).is_some_and(|r| !r.is_empty()) {
            errors.push(field::forbidden(&path.field("resources"), "cannot be set for an Ephemeral Container"));
        }
        for (k, mount) in list(c, "volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !text(mount, key).is_empty() {
                    let mounts = path.field("volumeMounts");
                    let why = "cannot be set for an Ephemeral Container";
                    errors.push(field::forbidden(&mounts.index(k).field(key), why));
                }
            }
        }
    }
}

/// What the subresource may change: nothing that is there.
pub fn validate_update(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let (new, old) = (list(new, "ephemeralContainers"), list(old, "ephemeralContainers"));
    let mut by_name = HashMap::new();
    for container in new {
        by_name.entry(text(container, "name")).or_insert(container);
    }
    for was in old {
        let name = text(was, "name");
        match by_name.get(name) {
            None => errors.push(field::forbidden(path, "existing ephemeral containers may not be removed")),
            Some(now) if *now != was => {
                errors
                    .push(field::forbidden(path, format!("existing ephemeral containers {name:?} may not be changed")));
            }
            Some(_) => {}
        }
    }
}

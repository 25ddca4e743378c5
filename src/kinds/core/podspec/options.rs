//! The remaining scalar settings of a pod spec, and the annotations that belong to it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::scheduling::node_name_error;
use crate::base::json::{at, flag, list, map, text};
use crate::base::labels::dns_subdomain_error;
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    for key in ["serviceAccountName", "nodeName", "priorityClassName"] {
        let name = text(spec, key);
        let why = if key == "nodeName" { node_name_error(name) } else { dns_subdomain_error(name) };
        if let Some(why) = why.filter(|_| !name.is_empty()) {
            errors.push(field::invalid(&path.field(key), name, why));
        }
    }
    if let Some(name) = spec.get("runtimeClassName").and_then(Value::as_str) {
        check::dns_subdomain(errors, &path.field("runtimeClassName"), name);
    }
    if let Some(seconds) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64)
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.push(field::invalid(&path.field("activeDeadlineSeconds"), seconds, why));
    }
    if let Some(policy) = spec.get("preemptionPolicy").and_then(Value::as_str) {
        let supported = ["Never", "PreemptLowerPriority"];
        check::required_one_of(errors, &path.field("preemptionPolicy"), policy, &supported);
    }
    let gates = path.field("readinessGates");
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        check::qualified(errors, &gates.index(i).field("conditionType"), text(gate, "conditionType"));
    }
    overhead(errors, &path.field("overhead"), map(spec, "overhead"));
    host_users(errors, path, spec);
}

/// What running a pod takes beside its containers. Kubernetes calls the amounts `limits`, though no field has that name.
pub fn overhead(errors: &mut Errors, path: &Path<'_>, amounts: Option<&Map<String, Value>>) {
    let path = path.field("limits");
    for (name, amount) in amounts.into_iter().flatten() {
        let Some(amount) = amount.as_str().and_then(|a| a.parse::<Quantity>().ok()) else { continue };
        if let Some(why) = super::requirement_error(name, &amount) {
            errors.push(field::invalid(&path.key(name), amount.to_string(), why));
        }
    }
}

fn host_users(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    if at(spec, "hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if flag(spec, key) {
            errors.push(field::forbidden(&path.field(key), "when `hostUsers` is false"));
        }
    }
}

/// A grace period below zero means the shortest one; what a spec holds stays as it was given.
pub fn finite_grace(seconds: i64) -> i64 {
    if seconds < 0 { 1 } else { seconds }
}

/// Annotations that name the profile of a container.
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Annotations that stand for settings.
pub fn annotations(errors: &mut Errors, path: &Path<'_>, annotations: Option<&Value>, spec: &Value) {
    let Some(annotations) = annotations.and_then(Value::as_object) else { return };
    let groups = ["initContainers", "containers", "ephemeralContainers"];
    let confined = annotations.keys().any(|k| k.starts_with(APPARMOR));
    let groups = groups.iter().filter(|_| confined);
    let containers: HashSet<&str> = groups.flat_map(|g| list(spec, g)).map(|c| text(c, "name")).collect();
    for (key, value) in annotations {
        let value = value.as_str().unwrap_or("");
        let path = path.key(key);
        if key == "kubernetes.io/config.mirror" && text(spec, "nodeName").is_empty() {
            errors.push(field::invalid(&path, value, "must set spec.nodeName if mirror pod annotation is set"));
        }
        if key == "controller.kubernetes.io/pod-deletion-cost" && !is_i32(value) {
            errors.push(field::invalid(&path, value, "must be a 32bit integer"));
        }
        if let Some(container) = key.strip_prefix(APPARMOR) {
            if !containers.contains(container) {
                errors.push(field::invalid(&path, container, "container not found"));
            }
            if !matches!(value, "runtime/default" | "unconfined") && !value.starts_with("localhost/") {
                errors.push(field::invalid(&path, value, "invalid AppArmor profile name"));
            }
        }
        let seccomp = key == "seccomp.security.alpha.kubernetes.io/pod"
            || key.starts_with("container.seccomp.security.alpha.kubernetes.io/");
        if seccomp && !matches!(value, "runtime/default" | "docker/default" | "unconfined") {
            match value.strip_prefix("localhost/") {
                Some(file) => check::relative_path(errors, &path, file),
                None => errors.push(field::invalid(&path, value, "must be a valid seccomp profile")),
            }
        }
    }
}

/// A decimal number of 32 bits without a plus sign or leading zeros.
fn is_i32(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !text.starts_with('+') && (digits == "0" && !text.starts_with('-') || !digits.starts_with('0'));
    plain && text.parse::<i32>().is_ok()
}

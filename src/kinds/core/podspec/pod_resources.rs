//! `spec.resources`: what a pod as a whole may use.

use serde_json::Value;

use super::resources::{self, is_pod_level};
use crate::base::json::list;
use crate::base::quantity::Quantity;
use crate::kinds::check::{NEGATIVE, Path};
use crate::kinds::field::{self, Errors};

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let Some(pod) = spec.get("resources").filter(|r| r.is_object()) else { return };
    let path = path.field("resources");
    if !list(pod, "claims").is_empty() {
        errors.push(field::forbidden(&path.field("claims"), "claims may not be set for Resources at pod-level"));
    }
    let (limits_path, requests_path) = (path.field("limits"), path.field("requests"));
    for (path, which) in [(&limits_path, "limits"), (&requests_path, "requests")] {
        for (name, amount) in pod.get(which).and_then(Value::as_object).into_iter().flatten() {
            let path = path.key(name);
            if !is_pod_level(name) {
                errors.push(field::not_supported(&path, name.as_str(), &["cpu", "hugepages-", "memory"]));
            } else if amount.as_str().and_then(|a| a.parse::<Quantity>().ok()).is_some_and(|a| a.is_negative()) {
                errors.push(field::invalid(&path, amount.clone(), NEGATIVE));
            }
        }
    }
    resources::requests_against_limits(errors, &path, pod.get("limits"), pod.get("requests"));
    let given = |which: &str, name: &str| -> Option<Quantity> { pod.get(which)?.get(name)?.as_str()?.parse().ok() };
    for (name, sum) in resources::total_requests(spec) {
        if let Some(own) = given("requests", name).filter(|own| *own < sum) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.push(field::invalid(&requests_path.key(name), own.to_string(), why));
        }
    }
    for (group, containers) in
        [("initContainers", list(spec, "initContainers")), ("containers", list(spec, "containers"))]
    {
        for container in containers {
            let limits = container.get("resources").and_then(|r| r.get("limits")).and_then(Value::as_object);
            for (name, limit) in limits.into_iter().flatten() {
                let Some(limit) = limit.as_str().and_then(|l| l.parse::<Quantity>().ok()) else { continue };
                if let Some(own) = given("limits", name).filter(|own| limit > *own && is_pod_level(name)) {
                    let why = format!("must be greater than or equal to the limit of each of {group}");
                    errors.push(field::invalid(&limits_path.key(name), own.to_string(), why));
                }
            }
        }
    }
}

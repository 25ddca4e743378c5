//! Scopes of a quota: which pods it is about.

use std::collections::HashSet;

use serde_json::Value;

use super::names::is_standard;
use crate::base::json::{at, int, list, map, text};
use crate::kinds::check::Path;
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// Scopes that a pod can only have or not have.
const PLAIN: &[&str] = &["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "Terminating"];
const OPPOSITES: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
/// What pods with resources are measured in.
const MEASURED: &[&str] = &["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];

/// Whether a quota of this scope can be about the resource.
fn fits(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => MEASURED.contains(&resource) && SCOPES.contains(&scope),
    }
}

/// Errors in `scopes` and `scopeSelector`.
pub(super) fn validate(errors: &mut Errors, spec: &Path<'_>, quota: &Value) {
    let hard: Vec<&str> = map(quota, "spec.hard").into_iter().flatten().map(|(k, _)| k.as_str()).collect();
    let misfits = |scope: &str| hard.iter().filter(|name| is_standard(name) && !fits(scope, name)).count();
    let (path, given) = (spec.field("scopes"), list(quota, "spec.scopes"));
    let mut seen = HashSet::new();
    for scope in given.iter().filter_map(Value::as_str) {
        if !SCOPES.contains(&scope) {
            errors.push(field::invalid(&path, given.to_vec(), "unsupported scope"));
        }
        for _ in 0..misfits(scope) {
            errors.push(field::invalid(&path, given.to_vec(), "unsupported scope applied to resource"));
        }
        seen.insert(scope);
    }
    opposed(errors, &path, given, &seen);
    let (selector, mut seen) = (spec.field("scopeSelector"), HashSet::new());
    let path = selector.field("matchExpressions");
    for term in list(quota, "spec.scopeSelector.matchExpressions") {
        let scope = text(term, "scopeName");
        if !SCOPES.contains(&scope) {
            errors.push(field::invalid(&path.field("scopeName"), scope, "unsupported scope"));
        }
        for _ in 0..misfits(scope) {
            let value = at(quota, "spec.scopeSelector").cloned().unwrap_or_default();
            errors.push(field::invalid(&path, value, "unsupported scope applied to resource"));
        }
        validate_term(errors, &path, term);
        seen.insert(scope);
    }
    opposed(errors, &path, given, &seen);
}

fn opposed(errors: &mut Errors, path: &Path<'_>, given: &[Value], seen: &HashSet<&str>) {
    for _ in OPPOSITES.iter().filter(|pair| pair.iter().all(|scope| seen.contains(scope))) {
        errors.push(field::invalid(path, given.to_vec(), "conflicting scopes"));
    }
}

fn validate_term(errors: &mut Errors, path: &Path<'_>, term: &Value) {
    let (scope, operator, values) = (text(term, "scopeName"), text(term, "operator"), list(term, "values"));
    let values_path = path.field("values");
    if PLAIN.contains(&scope) && operator != "Exists" {
        let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                   ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                   ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.push(field::invalid(&path.field("operator"), operator, why));
    }
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.push(field::required(&values_path, why));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
            errors.push(field::invalid(&values_path, values.to_vec(), why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.push(field::invalid(&path.field("operator"), other, "not a valid selector operator")),
    }
}

/// Whether a quota has any scope.
pub(super) fn is_scoped(quota: &Value) -> bool {
    !list(quota, "spec.scopes").is_empty() || !list(quota, "spec.scopeSelector.matchExpressions").is_empty()
}

/// Whether a pod is of all scopes of a quota.
pub(super) fn has_pod(quota: &Value, pod: &Value) -> bool {
    list(quota, "spec.scopes").iter().all(|scope| is_of(pod, scope.as_str().unwrap_or(""), "Exists", &[]))
        && list(quota, "spec.scopeSelector.matchExpressions")
            .iter()
            .all(|term| is_of(pod, text(term, "scopeName"), text(term, "operator"), list(term, "values")))
}

/// Whether a claim is of all scopes of a quota: those of its attributes are the only ones that claims have.
pub(super) fn has_claim(quota: &Value, claim: &Value) -> bool {
    let wanted = text(claim, "spec.volumeAttributesClassName");
    let others = [wanted, text(claim, "status.currentVolumeAttributesClassName")];
    let target = text(claim, "status.modifyVolumeStatus.targetVolumeAttributesClassName");
    let classes: Vec<&str> = others.into_iter().chain([target]).filter(|class| !class.is_empty()).collect();
    let is_of = |scope: &str, operator: &str, values: &[Value]| {
        let named = || classes.iter().any(|class| values.iter().any(|v| v == class));
        scope == "VolumeAttributesClass"
            && match operator {
                "In" => named(),
                "NotIn" => !classes.is_empty() && !named(),
                "Exists" => !classes.is_empty(),
                "DoesNotExist" => classes.is_empty(),
                _ => false,
            }
    };
    list(quota, "spec.scopes").iter().all(|scope| is_of(scope.as_str().unwrap_or(""), "Exists", &[]))
        && list(quota, "spec.scopeSelector.matchExpressions")
            .iter()
            .all(|term| is_of(text(term, "scopeName"), text(term, "operator"), list(term, "values")))
}

fn is_of(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let ends_by_itself = || int(pod, "spec.activeDeadlineSeconds").is_some_and(|s| s >= 0);
    let best_effort = || podspec::qos_class(&pod["spec"]) == "BestEffort";
    match scope {
        "Terminating" => ends_by_itself(),
        "NotTerminating" => !ends_by_itself(),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "CrossNamespacePodAffinity" => reaches_other_namespaces(pod),
        "PriorityClass" => {
            let class = text(pod, "spec.priorityClassName");
            let named = || values.iter().any(|v| v == class);
            match operator {
                "In" => !class.is_empty() && named(),
                "NotIn" => class.is_empty() || !named(),
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                _ => false,
            }
        }
        _ => false,
    }
}

/// Whether its affinity to pods looks beyond its own namespace.
fn reaches_other_namespaces(pod: &Value) -> bool {
    let beyond = |term: &Value| {
        !list(term, "namespaces").is_empty() || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["spec.affinity.podAffinity", "spec.affinity.podAntiAffinity"].iter().any(|kind| {
        let Some(affinity) = at(pod, kind) else { return false };
        let weighted = list(affinity, "preferredDuringSchedulingIgnoredDuringExecution");
        list(affinity, "requiredDuringSchedulingIgnoredDuringExecution").iter().any(beyond)
            || weighted.iter().any(|w| w.get("podAffinityTerm").is_some_and(beyond))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_of_the_scopes_of_its_attributes() {
        let quota = |operator: &str, values: &[&str]| {
            json!({"spec": {"scopeSelector": {"matchExpressions":
                [{"scopeName": "VolumeAttributesClass", "operator": operator, "values": values}]}}})
        };
        let (fast, plain) = (json!({"spec": {"volumeAttributesClassName": "fast"}}), json!({"spec": {}}));
        for (operator, values, of_fast, of_plain) in [
            ("In", &["fast", "x"][..], true, false),
            ("In", &["slow"], false, false),
            ("NotIn", &["slow"], true, false),
            ("Exists", &[], true, false),
            ("DoesNotExist", &[], false, true),
        ] {
            let quota = quota(operator, values);
            assert_eq!((has_claim(&quota, &fast), has_claim(&quota, &plain)), (of_fast, of_plain), "{operator}");
        }
        assert!(!has_claim(&json!({"spec": {"scopes": ["BestEffort"]}}), &fast));
    }

    #[test]
    fn a_pod_is_of_its_scopes() {
        let quota = |scope: &str, operator: &str, values: &[&str]| {
            json!({"spec": {"scopeSelector": {"matchExpressions":
                [{"scopeName": scope, "operator": operator, "values": values}]}}})
        };
        let far = json!([{"podAffinityTerm": {"topologyKey": "a", "namespaceSelector": {}}, "weight": 1}]);
        let pod = json!({"spec": {
            "priorityClassName": "high", "activeDeadlineSeconds": 0, "containers": [],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": far}},
        }});
        let plain = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}});
        for (scope, operator, values, of_pod, of_plain) in [
            ("Terminating", "Exists", &[][..], true, false),
            ("NotTerminating", "Exists", &[], false, true),
            ("BestEffort", "Exists", &[], true, false),
            ("NotBestEffort", "Exists", &[], false, true),
            ("CrossNamespacePodAffinity", "Exists", &[], true, false),
            ("PriorityClass", "Exists", &[], true, false),
            ("PriorityClass", "DoesNotExist", &[], false, true),
            ("PriorityClass", "In", &["high"], true, false),
            ("PriorityClass", "In", &["low"], false, false),
            ("PriorityClass", "NotIn", &["low"], true, true),
            ("VolumeAttributesClass", "Exists", &[], false, false),
        ] {
            let quota = quota(scope, operator, values);
            assert_eq!((has_pod(&quota, &pod), has_pod(&quota, &plain)), (of_pod, of_plain), "{scope} {operator}");
        }
        assert!(has_pod(&json!({"spec": {"scopes": ["BestEffort", "Terminating"]}}), &pod));
        assert!(!has_pod(&json!({"spec": {"scopes": ["BestEffort", "NotTerminating"]}}), &pod));
    }
}

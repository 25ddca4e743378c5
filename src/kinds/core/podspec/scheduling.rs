//! Where a pod may run: affinity, tolerations, spread.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Rules;
use crate::base::json::{at, list, text};
use crate::base::labels::{dns_label_error, dns_subdomain_error};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value, rules: Rules) {
    if let Some(affinity) = spec.get("affinity").filter(|a| a.is_object()) {
        let path = path.field("affinity");
        node_affinity(errors, &path.field("nodeAffinity"), affinity.get("nodeAffinity"));
        pod_affinity(errors, &path.field("podAffinity"), affinity.get("podAffinity"));
        pod_affinity(errors, &path.field("podAntiAffinity"), affinity.get("podAntiAffinity"));
    }
    toleration_list(errors, &path.field("tolerations"), list(spec, "tolerations"));
    spread(errors, &path.field("topologySpreadConstraints"), list(spec, "topologySpreadConstraints"));
    gates(errors, &path.field("schedulingGates"), list(spec, "schedulingGates"));
    if rules.pod && !list(spec, "schedulingGates").is_empty() && !text(spec, "nodeName").is_empty() {
        errors.push(field::forbidden(
            &path.field("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

fn gates(errors: &mut Errors, path: &Path<'_>, gates: &[Value]) {
    let mut seen = HashSet::new();
    for (i, gate) in gates.iter().enumerate() {
        let path = path.index(i);
        check::qualified(errors, &path, text(gate, "name"));
        if !seen.insert(text(gate, "name")) {
            errors.push(field::duplicate(&path.field("name"), text(gate, "name")));
        }
    }
}

fn node_affinity(errors: &mut Errors, path: &Path<'_>, affinity: Option<&Value>) {
    let Some(affinity) = affinity else { return };
    if let Some(required) = affinity.get(REQUIRED) {
        node_selector(errors, &path.field(REQUIRED), required);
    }
    let preferred = path.field(PREFERRED);
    for (i, term) in list(affinity, PREFERRED).iter().enumerate() {
        let path = preferred.index(i);
        weight(errors, &path, term);
        node_selector_term(errors, &path.field("preference"), term.get("preference").unwrap_or(&Value::Null));
    }
}

fn weight(errors: &mut Errors, path: &Path<'_>, term: &Value) {
    let weight = term.get("weight").and_then(Value::as_i64).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(field::invalid(&path.field("weight"), weight, "must be in the range 1-100"));
    }
}

/// A selector of nodes: one of its terms must match.
pub fn node_selector(errors: &mut Errors, path: &Path<'_>, selector: &Value) {
    let path = path.field("nodeSelectorTerms");
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(field::required(&path, "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(errors, &path.index(i), term);
    }
}

fn node_selector_term(errors: &mut Errors, path: &Path<'_>, term: &Value) {
    let expressions = path.field("matchExpressions");
    for (i, e) in list(term, "matchExpressions").iter().enumerate() {
        let path = expressions.index(i);
        let (values, at) = (list(e, "values"), path.field("values"));
        match text(e, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(field::required(&at, "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors
                    .push(field::forbidden(&at, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                errors.push(field::required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(field::invalid(&path.field("operator"), other, "not a valid selector operator")),
        }
        check::qualified(errors, &path.field("key"), text(e, "key"));
        for (k, value) in values.iter().enumerate() {
            check::label_value(errors, &at.index(k), value.as_str().unwrap_or(""));
        }
    }
    let fields = path.field("matchFields");
    for (i, e) in list(term, "matchFields").iter().enumerate() {
        node_field(errors, &fields.index(i), e);
    }
}

fn node_field(errors: &mut Errors, path: &Path<'_>, e: &Value) {
    let values = list(e, "values");
    match text(e, "operator") {
        "In" | "NotIn" if values.len() != 1 => {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(field::required(&path.field("values"), why));
        }
        "In" | "NotIn" => {}
        other => errors.push(field::invalid(&path.field("operator"), other, "not a valid selector operator")),
    }
    if text(e, "key") != "metadata.name" {
        errors.push(field::invalid(&path.field("key"), text(e, "key"), "not a valid field selector key"));
        return;
    }
    let at = path.field("values");
    for (k, value) in values.iter().enumerate() {
        check::dns_subdomain(errors, &at.index(k), value.as_str().unwrap_or(""));
    }
}

fn pod_affinity(errors: &mut Errors, path: &Path<'_>, affinity: Option<&Value>) {
    let Some(affinity) = affinity else { return };
    let required = path.field(REQUIRED);
    for (i, term) in list(affinity, REQUIRED).iter().enumerate() {
        affinity_term(errors, &required.index(i), term);
    }
    let preferred = path.field(PREFERRED);
    for (i, term) in list(affinity, PREFERRED).iter().enumerate() {
        let path = preferred.index(i);
        weight(errors, &path, term);
        affinity_term(errors, &path.field("podAffinityTerm"), term.get("podAffinityTerm").unwrap_or(&Value::Null));
    }
}

fn affinity_term(errors: &mut Errors, path: &Path<'_>, term: &Value) {
    check::label_selector(errors, &path.field("labelSelector"), term.get("labelSelector"));
    check::label_selector(errors, &path.field("namespaceSelector"), term.get("namespaceSelector"));
    let namespace = path.field("namespace");
    for name in list(term, "namespaces") {
        let name = name.as_str().unwrap_or("");
        if let Some(why) = dns_label_error(name) {
            errors.push(field::invalid(&namespace, name, why));
        }
    }
    match_label_keys(errors, path, term);
    let topology = text(term, "topologyKey");
    let at = path.field("topologyKey");
    if topology.is_empty() {
        errors.push(field::required(&at, "can not be empty"));
    }
    check::qualified(errors, &at, topology);
}

/// Label keys whose values are taken from the pod itself.
fn match_label_keys(errors: &mut Errors, path: &Path<'_>, term: &Value) {
    let selector = term.get("labelSelector").filter(|s| s.is_object());
    for key in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = list(term, key);
        let at = path.field(key);
        if keys.is_empty() {
            continue;
        }
        if selector.is_none() {
            errors.push(field::forbidden(&at, "must not be specified when labelSelector is not set"));
        }
        let matched: HashSet<&str> = list(term, "matchLabelKeys").iter().filter_map(Value::as_str).collect();
        for (i, k) in keys.iter().enumerate() {
            let name = k.as_str().unwrap_or("");
            check::qualified(errors, &at.index(i), name);
            if key == "mismatchLabelKeys" && matched.contains(k.as_str().unwrap_or("")) {
                errors.push(field::invalid(&at.index(i), name, "exists in both matchLabelKeys and mismatchLabelKeys"));
            }
        }
    }
}

/// A list of tolerations.
pub fn toleration_list(errors: &mut Errors, path: &Path<'_>, tolerations: &[Value]) {
    for (i, t) in tolerations.iter().enumerate() {
        let path = path.index(i);
        let (key, operator, value, effect) = (text(t, "key"), text(t, "operator"), text(t, "value"), text(t, "effect"));
        if !key.is_empty() {
            check::qualified(errors, &path.field("key"), key);
        }
        let at = path.field("operator");
        if key.is_empty() && operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(field::invalid(&at, operator, why));
        }
        if t.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(field::invalid(&path.field("effect"), effect, why));
        }
        match operator {
            "" | "Equal" => {
                if let Some(why) = crate::base::labels::label_value_error(value) {
                    errors.push(field::invalid(&at, value, why));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.push(field::invalid(&at, value, "value must be empty when `operator` is 'Exists'"));
            }
            "Exists" => {}
            other => errors.push(field::not_supported(&at, other, &["Equal", "Exists"])),
        }
        check::one_of(errors, &path.field("effect"), effect, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
    }
}

fn spread(errors: &mut Errors, path: &Path<'_>, constraints: &[Value]) {
    let pair = |c: &Value| (text(c, "topologyKey").to_owned(), text(c, "whenUnsatisfiable").to_owned());
    let last: HashMap<_, _> = constraints.iter().enumerate().map(|(i, c)| (pair(c), i)).collect();
    for (i, c) in constraints.iter().enumerate() {
        let path = path.index(i);
        let skew = c.get("maxSkew").and_then(Value::as_i64).unwrap_or(0);
        if skew <= 0 {
            errors.push(field::invalid(&path.field("maxSkew"), skew, "must be greater than zero"));
        }
        check::given(errors, &path.field("topologyKey"), text(c, "topologyKey"));
        let when = text(c, "whenUnsatisfiable");
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        if !supported.contains(&when) {
            errors.push(field::not_supported(&path.field("whenUnsatisfiable"), when, &supported));
        }
        if last.get(&pair(c)).is_some_and(|last| *last > i) {
            errors.push(field::duplicate(&path.field("{topologyKey, whenUnsatisfiable}"), pair(c).0));
        }
        if let Some(least) = c.get("minDomains").and_then(Value::as_i64) {
            let at = path.field("minDomains");
            if least <= 0 {
                errors.push(field::invalid(&at, least, "must be greater than zero"));
            }
            if when != "DoNotSchedule" {
                errors.push(field::invalid(&at, least, "can only use minDomains if whenUnsatisfiable=DoNotSchedule"));
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(policy) = c.get(key).and_then(Value::as_str)
                && !["Honor", "Ignore"].contains(&policy)
            {
                errors.push(field::not_supported(&path.field(key), policy, &["Honor", "Ignore"]));
            }
        }
        check::label_selector(errors, &path.field("labelSelector"), c.get("labelSelector"));
        spread_label_keys(errors, &path.field("matchLabelKeys"), c);
    }
}

fn spread_label_keys(errors: &mut Errors, path: &Path<'_>, constraint: &Value) {
    let keys = list(constraint, "matchLabelKeys");
    if keys.is_empty() {
        return;
    }
    if constraint.get("labelSelector").is_none() {
        errors.push(field::forbidden(path, "must not be specified when labelSelector is not set"));
    }
    for (i, key) in keys.iter().enumerate() {
        check::qualified(errors, &path.index(i), key.as_str().unwrap_or(""));
    }
}

/// What a gated pod's node affinity may become: only narrower.
pub fn node_affinity_update(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let required = |spec: &Value| at(spec, "affinity.nodeAffinity").and_then(|a| a.get(REQUIRED)).cloned();
    let (Some(was), now) = (required(old), required(new)) else { return };
    let path = path.field("affinity.nodeAffinity");
    let path = path.field(REQUIRED);
    let (was, now) = (list(&was, "nodeSelectorTerms").to_vec(), now.unwrap_or_default());
    let now = list(&now, "nodeSelectorTerms");
    let path = path.field("nodeSelectorTerms");
    if !was.is_empty() && was.len() != now.len() {
        errors.push(field::invalid(
            &path,
            now.to_vec(),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        ));
        return;
    }
    for (i, (w, n)) in was.iter().zip(now).enumerate() {
        let kept = |key: &str| list(n, key).starts_with(list(w, key)) || has_all(list(n, key), list(w, key));
        let was_empty = list(w, "matchExpressions").is_empty() && list(w, "matchFields").is_empty();
        if (was_empty && w != n) || !kept("matchExpressions") || !kept("matchFields") {
            errors.push(field::invalid(
                &path.index(i),
                n.clone(),
                "only additions are allowed (no mutations or deletions)",
            ));
        }
    }
}

/// Whether a list has all items of another one.
fn has_all(list: &[Value], items: &[Value]) -> bool {
    let known: HashSet<String> = list.iter().map(Value::to_string).collect();
    items.iter().all(|item| known.contains(&item.to_string()))
}

/// Whether the name could be that of a node.
pub(super) fn node_name_error(name: &str) -> Option<String> {
    dns_subdomain_error(name)
}

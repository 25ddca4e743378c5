//! PodDisruptionBudget: how many of some pods must be left by whoever evicts them. A controller counts, and eviction asks.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::clock::seconds_text;
use crate::base::json::{at, int, list, map_mut, set, text};
use crate::base::labels::{Labels, Selector};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, NameRule, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.policy.v1.PodDisruptionBudget",
    columns: COLUMNS,
    row,
    // Kubernetes looks at no more of the name than that it can be in a path.
    name_rule: NameRule::PathSegment,
    unconditional_update: false,
    strategy: Strategy {
        prepare_create: |budget| {
            let none = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
            set(budget, "status", none);
        },
        validate,
        validate_status,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"minAvailable":1,"selector":{"matchLabels":{"a":"b"}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Min Available", "How many pods must be left."),
    string("Max Unavailable", "How many pods may be missing."),
    integer("Allowed Disruptions", "How many pods may be evicted now."),
    table::AGE,
];

fn row(budget: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path: &str| match at(budget, path) {
        Some(Value::String(percent)) => percent.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => "N/A".to_owned(),
    };
    vec![
        table::name(budget),
        count("spec.minAvailable").into(),
        count("spec.maxUnavailable").into(),
        int(budget, "status.disruptionsAllowed").unwrap_or(0).into(),
        table::age(budget, now),
    ]
}

fn validate(budget: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let spec = budget.get("spec").cloned().unwrap_or_default();
    let given = |key: &str| spec.get(key).filter(|v| !v.is_null());
    let (least, most) = (given("minAvailable"), given("maxUnavailable"));
    if least.is_some() && most.is_some() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.push(field::invalid(&path, spec.clone(), why));
    }
    for (key, value) in [("minAvailable", least), ("maxUnavailable", most)] {
        let path = path.field(key);
        check::count_or_percent(&mut errors, &path, value);
        check::at_most_all(&mut errors, &path, value);
    }
    check::label_selector(&mut errors, &path.field("selector"), spec.get("selector"));
    if let Some(policy) = given("unhealthyPodEvictionPolicy") {
        let policy = policy.as_str().unwrap_or("");
        if !matches!(policy, "AlwaysAllow" | "IfHealthyBudget") {
            let path = path.field("unhealthyPodEvictionPolicy");
            errors.push(field::not_supported(&path, policy, &["AlwaysAllow", "IfHealthyBudget"]));
        }
    }
    errors
}

fn validate_status(new: &Value, _old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("status");
    check::conditions(&mut errors, &path.field("conditions"), list(new, "status.conditions"));
    for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        check::non_negative(&mut errors, &path.field(key), new["status"].get(key));
    }
    errors
}

/// Whether the budget is about pods with these labels: none where it has no selector, all where that is empty.
pub fn selects(budget: &Value, labels: &Labels) -> bool {
    let selector = at(budget, "spec.selector").filter(|s| s.is_object());
    selector.and_then(|s| Selector::from_object(s).ok()).is_some_and(|s| s.matches(labels))
}

/// Why the condition DisruptionAllowed is not true where the budget could not be counted.
pub const SYNC_FAILED: &str = "SyncFailed";

/// Brings the condition DisruptionAllowed to what the status says.
pub fn set_condition(budget: &mut Value, now: Timestamp) {
    let (status, reason) = match int(budget, "status.disruptionsAllowed").unwrap_or(0) {
        0 => ("False", "InsufficientPods"),
        _ => ("True", "SufficientPods"),
    };
    put_condition(budget, status, reason, "", now);
}

/// Notes that the budget could not be counted, so that nothing is allowed.
pub fn set_failed(budget: &mut Value, why: &str, now: Timestamp) {
    set(budget, "status.disruptionsAllowed", 0);
    put_condition(budget, "False", SYNC_FAILED, why, now);
}

fn put_condition(budget: &mut Value, status: &str, reason: &str, message: &str, now: Timestamp) {
    const TYPE: &str = "DisruptionAllowed";
    let generation = int(budget, "status.observedGeneration").unwrap_or(0);
    let all = map_mut(budget, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(all) = all.as_array_mut() else { return };
    let place = all.iter().position(|c| text(c, "type") == TYPE);
    let since = place.map(|i| &all[i]).filter(|c| text(c, "status") == status);
    let since = since.map_or_else(|| seconds_text(now), |c| text(c, "lastTransitionTime").to_owned());
    let mut condition =
        json!({"type": TYPE, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    if generation > 0 {
        condition["observedGeneration"] = generation.into();
    }
    match place {
        Some(i) => all[i] = condition,
        None => all.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_selectors_are_checked() {
        for (spec, want) in [
            (json!({}), &[][..]),
            (json!({"minAvailable": "100%"}), &[]),
            (json!({"minAvailable": "101%"}), &["spec.minAvailable"]),
            (json!({"minAvailable": 1, "maxUnavailable": 1}), &["spec"]),
            (json!({"maxUnavailable": -1}), &["spec.maxUnavailable"]),
            (json!({"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "Never"}), &["spec.unhealthyPodEvictionPolicy"]),
            (json!({"selector": {"matchLabels": {"a b": "c"}}}), &["spec.selector.matchLabels"]),
        ] {
            let errors = KIND.validate(&json!({"spec": spec}));
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), want, "{spec}");
        }
    }

    #[test]
    fn a_budget_without_selector_is_about_no_pod_and_an_empty_one_about_all() {
        let labels = Labels::from([(Box::from("a"), Box::from("b"))]);
        assert!(!selects(&json!({"spec": {}}), &labels));
        assert!(selects(&json!({"spec": {"selector": {}}}), &labels));
        assert!(!selects(&json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}}), &labels));
    }

    #[test]
    fn the_condition_keeps_its_time_until_its_status_changes() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut budget = json!({"status": {"disruptionsAllowed": 0, "observedGeneration": 2}});
        set_condition(&mut budget, at("2026-01-01T00:00:00Z"));
        set_failed(&mut budget, "no reason", at("2026-01-01T00:00:01Z"));
        let condition = budget["status"]["conditions"][0].clone();
        let since = "2026-01-01T00:00:00Z";
        let want = json!({"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no reason",
            "lastTransitionTime": since, "observedGeneration": 2});
        assert_eq!(condition, want);
        budget["status"]["disruptionsAllowed"] = 1.into();
        set_condition(&mut budget, at("2026-01-01T00:00:02Z"));
        assert_eq!(budget["status"]["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:02Z");
        assert_eq!(budget["status"]["conditions"].as_array().unwrap().len(), 1);
    }
}

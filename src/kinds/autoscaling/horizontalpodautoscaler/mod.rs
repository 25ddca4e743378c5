//! HorizontalPodAutoscaler: how many pods a workload has, by what they use or by other numbers. Stored as version 2; version 1
//! has what it does not know in annotations ([`v1`]).

mod metric;
mod reference;
mod row;
pub mod v1;

use linkme::distributed_slice;
use serde_json::{Value, json};

use self::metric::cpu_metric;
use self::reference::reference;
use crate::base::json::{at, int, list, set, set_default, text};
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::{BUILTIN, Kind, KindRef, Strategy, Subresource};

/// The kind, in version 2.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "autoscaling",
    version: "v2",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    has_status: true,
    columns: row::COLUMNS,
    row: row::row,
    strategy: Strategy {
        default,
        prepare_create: |hpa| set(hpa, "status", json!({"currentMetrics": null, "desiredReplicas": 0})),
        validate,
        validate_status,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"maxReplicas":3,
        "scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"d"}}}"#,
    ..Kind::BASE
});

/// What a workload is to use of its requests where nothing is said.
const CPU_PERCENT: i64 = 80;
const WINDOW_SECONDS_MAX: i64 = 3600;
const PERIOD_SECONDS_MAX: i64 = 1800;
const SELECTS: &[&str] = &["Disabled", "Max", "Min"];
const POLICIES: &[&str] = &["Percent", "Pods"];

/// The metric that is meant where none is named.
fn usual_metric() -> Value {
    cpu_metric(CPU_PERCENT)
}

fn default(hpa: &mut Value) {
    set_default(hpa, "spec.minReplicas", 1);
    if list(hpa, "spec.metrics").is_empty() {
        set(hpa, "spec.metrics", json!([usual_metric()]));
    }
    if at(hpa, "spec.behavior").is_some_and(Value::is_object) {
        let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
        let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
        set_default(hpa, "spec.behavior.scaleUp.stabilizationWindowSeconds", 0);
        for (direction, policies) in [("scaleUp", up), ("scaleDown", down)] {
            let path = format!("spec.behavior.{direction}");
            set_default(hpa, &format!("{path}.selectPolicy"), "Max");
            if at(hpa, &format!("{path}.policies")).is_none_or(Value::is_null) {
                set(hpa, &format!("{path}.policies"), policies);
            }
        }
    }
}

fn validate(hpa: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    let (min, max) = (int(hpa, "spec.minReplicas"), int(hpa, "spec.maxReplicas").unwrap_or(0));
    // HPAScaleToZero is off, as it is in Kubernetes.
    if let Some(min) = min.filter(|min| *min < 1) {
        errors.push(field::invalid(spec.field("minReplicas"), min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        errors.push(field::invalid(spec.field("maxReplicas"), max, "must be greater than 0"));
    }
    if min.is_some_and(|min| max < min) {
        errors.push(field::invalid(spec.field("maxReplicas"), max, "must be greater than or equal to `minReplicas`"));
    }
    let target = at(hpa, "spec.scaleTargetRef").unwrap_or(&Value::Null);
    reference(&mut errors, &spec.field("scaleTargetRef"), target);
    let metrics = spec.field("metrics");
    for (i, of) in list(hpa, "spec.metrics").iter().enumerate() {
        metric::validate(&mut errors, &metrics.index(i), of);
    }
    if let Some(behavior) = at(hpa, "spec.behavior").filter(|b| b.is_object()) {
        let path = spec.field("behavior");
        for direction in ["scaleUp", "scaleDown"] {
            if let Some(rules) = behavior.get(direction).filter(|r| r.is_object()) {
                scaling_rules(&mut errors, &path.field(direction), rules);
            }
        }
    }
    errors
}

fn validate_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::root("status");
    for key in ["currentReplicas", "desiredReplicas"] {
        check::non_negative(&mut errors, &status.field(key), at(new, &format!("status.{key}")));
    }
    errors
}

fn scaling_rules(errors: &mut Errors, path: &Path<'_>, rules: &Value) {
    if let Some(seconds) = int(rules, "stabilizationWindowSeconds") {
        let path = path.field("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.push(field::invalid(&path, seconds, "must be greater than or equal to zero"));
        }
        if seconds > WINDOW_SECONDS_MAX {
            let why = format!("must be less than or equal to {WINDOW_SECONDS_MAX}");
            errors.push(field::invalid(&path, seconds, why));
        }
    }
    if let Some(select) = rules.get("selectPolicy").and_then(Value::as_str) {
        check::one_of(errors, &path.field("selectPolicy"), select, SELECTS);
    }
    let policies = path.field("policies");
    if list(rules, "policies").is_empty() {
        errors.push(field::required(&policies, "must specify at least one Policy"));
    }
    for (i, policy) in list(rules, "policies").iter().enumerate() {
        let path = policies.index(i);
        check::one_of(errors, &path.field("type"), text(policy, "type"), POLICIES);
        for (key, max) in [("value", i64::MAX), ("periodSeconds", PERIOD_SECONDS_MAX)] {
            let (path, number) = (path.field(key), int(policy, key).unwrap_or(0));
            if number <= 0 {
                errors.push(field::invalid(&path, number, "must be greater than zero"));
            }
            if number > max {
                errors.push(field::invalid(&path, number, format!("must be less than or equal to {max}")));
            }
        }
    }
    let tolerance = rules.get("tolerance").and_then(Value::as_str);
    if let Some(given) = tolerance
        && given.parse::<Quantity>().is_ok_and(|q| q.is_negative())
    {
        errors.push(field::invalid(path.field("tolerance"), given, "must be greater than or equal to 0"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hpa(spec: Value) -> Value {
        let mut hpa = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
        hpa["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        default(&mut hpa);
        hpa
    }

    fn said(spec: Value) -> Vec<String> {
        validate(&hpa(spec)).iter().map(|e| format!("{}: {}", e.field, e.message())).collect()
    }

    #[test]
    fn what_is_left_out_is_filled_in_as_kubernetes_does() {
        let plain = hpa(json!({}));
        assert_eq!((&plain["spec"]["minReplicas"], plain["spec"].get("behavior")), (&json!(1), None));
        assert_eq!(plain["spec"]["metrics"], json!([cpu_metric(80)]));
        let shaped = hpa(json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}}));
        assert_eq!(
            shaped["spec"]["behavior"],
            json!({
                "scaleDown": {"stabilizationWindowSeconds": 5, "selectPolicy": "Max",
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
                "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                    "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15},
                        {"type": "Percent", "value": 100, "periodSeconds": 15}]},
            })
        );
        assert!(said(json!({"behavior": {}})).is_empty());
    }

    #[test]
    fn numbers_and_references_are_checked() {
        assert_eq!(
            said(json!({"minReplicas": 0})),
            ["spec.minReplicas: Invalid value: 0: must be greater than or equal to 1"]
        );
        assert_eq!(
            said(json!({"minReplicas": 5})),
            ["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"]
        );
        assert_eq!(said(json!({"maxReplicas": 0})).len(), 2);
        assert_eq!(
            said(json!({"scaleTargetRef": {"kind": "a/b"}})),
            [
                "spec.scaleTargetRef.kind: Invalid value: \"a/b\": may not contain '/'",
                "spec.scaleTargetRef.name: Required value"
            ]
        );
        let wrong = json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 3601, "selectPolicy": "Any",
            "policies": [{"type": "Few", "value": 0, "periodSeconds": 1801}], "tolerance": "-1"}}});
        assert_eq!(said(wrong).len(), 6);
        assert_eq!(
            said(json!({"behavior": {"scaleUp": {"policies": []}}})),
            ["spec.behavior.scaleUp.policies: Required value: must specify at least one Policy"]
        );
    }
}

//! HorizontalPodAutoscaler in version 1, which knows the CPU alone: everything else of version 2 is in annotations, as
//! Kubernetes writes it (`pkg/apis/autoscaling/v1/conversion.go`), so that nothing is lost on the way there and back.

use linkme::distributed_slice;
use serde_json::{Map, Value, json};

use crate::base::json::{at, int, list, map_mut, remove, set, set_default, text};
use crate::base::labels::Selector;
use crate::base::quantity::Quantity;
use crate::kinds::{BUILTIN, Conversion, Kind, KindRef, Strategy, Subresource};

/// The kind, in version 1.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "autoscaling",
    version: "v1",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
    has_status: true,
    columns: super::row::COLUMNS,
    row: |hpa, now| super::row::row(&as_stored(hpa), now),
    stored_as: Some(&CONVERSION),
    strategy: Strategy {
        default: |hpa| set_default(hpa, "spec.minReplicas", 1),
        prepare_create: |hpa| {
            keep_annotations(hpa, &Value::Null, &[METRIC_STATUSES, CONDITIONS]);
            set(hpa, "status", json!({"currentReplicas": 0, "desiredReplicas": 0}));
        },
        // What is of the status is in annotations, too, and so is what is not.
        prepare_update: |new, old| keep_annotations(new, old, &[METRIC_STATUSES, CONDITIONS]),
        prepare_status: |new, old| keep_annotations(new, old, &[METRICS, BEHAVIOR]),
        validate: |hpa| super::validate(&as_stored(hpa)),
        validate_status: |new, old| super::validate_status(&as_stored(new), old),
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"maxReplicas":3,"targetCPUUtilizationPercentage":50,
        "scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"d"}}}"#,
    ..Kind::BASE
});

static CONVERSION: Conversion = Conversion { stored: &super::KIND, from_stored, to_stored };

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const METRIC_STATUSES: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// Puts annotations back to what they were.
fn keep_annotations(new: &mut Value, old: &Value, keys: &[&str]) {
    let was = |key: &str| old.pointer("/metadata/annotations").and_then(|all| all.get(key)).cloned();
    for key in keys {
        match was(key) {
            Some(value) => drop(map_mut(new, "metadata.annotations").insert((*key).into(), value)),
            None => {
                if let Some(all) = new.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
                    all.remove(*key);
                }
            }
        }
    }
}

fn as_stored(hpa: &Value) -> Value {
    let mut stored = hpa.clone();
    to_stored(&mut stored);
    stored
}

// === from version 2 ===

fn from_stored(hpa: &mut Value) {
    let (cpu, others): (Vec<Value>, Vec<Value>) = list(hpa, "spec.metrics").iter().cloned().partition(is_cpu_percent);
    let statuses: Vec<Value> = list(hpa, "status.currentMetrics").iter().map(status_to_v1).collect();
    let percent = list(hpa, "status.currentMetrics").iter().rev().find_map(cpu_percent_now);
    let behavior = remove(hpa, "spec.behavior").filter(Value::is_object);
    let conditions = remove(hpa, "status.conditions").filter(|c| c.as_array().is_some_and(|all| !all.is_empty()));
    let metrics: Vec<Value> = others.iter().map(metric_to_v1).collect();
    for (key, kept) in [
        (METRICS, Some(Value::from(metrics)).filter(|all| all != &json!([]))),
        (METRIC_STATUSES, Some(Value::from(statuses)).filter(|all| all != &json!([]))),
        (CONDITIONS, conditions),
        (BEHAVIOR, behavior.map(|behavior| renamed(behavior, capitalized))),
    ] {
        if let Some(kept) = kept {
            map_mut(hpa, "metadata.annotations").insert(key.into(), kept.to_string().into());
        }
    }
    remove(hpa, "spec.metrics");
    remove(hpa, "status.currentMetrics");
    if let Some(percent) = cpu.last().and_then(|metric| at(metric, "resource.target.averageUtilization")) {
        set(hpa, "spec.targetCPUUtilizationPercentage", percent.clone());
    }
    if hpa.get("status").is_some_and(Value::is_object) {
        set_default(hpa, "status.currentReplicas", 0);
        set_default(hpa, "status.desiredReplicas", 0);
        if let Some(percent) = percent {
            set(hpa, "status.currentCPUUtilizationPercentage", percent);
        }
    }
}

fn is_cpu_percent(metric: &Value) -> bool {
    text(metric, "type") == "Resource"
        && text(metric, "resource.name") == "cpu"
        && int(metric, "resource.target.averageUtilization").is_some()
}

fn cpu_percent_now(status: &Value) -> Option<i64> {
    let is_cpu = text(status, "type") == "Resource" && text(status, "resource.name") == "cpu";
    int(status, "resource.current.averageUtilization").filter(|_| is_cpu)
}

/// Version 2's place of a field of a metric, and version 1's; and what it has to be.
type FieldOf = (&'static str, &'static str, Sort);

#[derive(Clone, Copy)]
enum Sort {
    Text,
    Int,
    Amount,
    Labels,
    Reference,
}

use Sort::{Amount, Int, Labels, Reference, Text};

/// The fields of a metric, by the field that its type has.
const SPECS: &[(&str, &[FieldOf])] = &[
    (
        "resource",
        &[
            ("name", "name", Text),
            ("target.averageUtilization", "targetAverageUtilization", Int),
            ("target.averageValue", "targetAverageValue", Amount),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", "name", Text),
            ("container", "container", Text),
            ("target.averageUtilization", "targetAverageUtilization", Int),
            ("target.averageValue", "targetAverageValue", Amount),
        ],
    ),
    (
        "pods",
        &[
            ("metric.name", "metricName", Text),
            ("metric.selector", "selector", Labels),
            ("target.averageValue", "targetAverageValue", Amount),
        ],
    ),
    (
        "object",
        &[
            ("describedObject", "target", Reference),
            ("metric.name", "metricName", Text),
            ("metric.selector", "selector", Labels),
            ("target.value", "targetValue", Amount),
            ("target.averageValue", "averageValue", Amount),
        ],
    ),
    (
        "external",
        &[
            ("metric.name", "metricName", Text),
            ("metric.selector", "metricSelector", Labels),
            ("target.value", "targetValue", Amount),
            ("target.averageValue", "targetAverageValue", Amount),
        ],
    ),
];

/// The fields of what a metric is now.
const STATUSES: &[(&str, &[FieldOf])] = &[
    (
        "resource",
        &[
            ("name", "name", Text),
            ("current.averageUtilization", "currentAverageUtilization", Int),
            ("current.averageValue", "currentAverageValue", Amount),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", "name", Text),
            ("container", "container", Text),
            ("current.averageUtilization", "currentAverageUtilization", Int),
            ("current.averageValue", "currentAverageValue", Amount),
        ],
    ),
    (
        "pods",
        &[
            ("metric.name", "metricName", Text),
            ("metric.selector", "selector", Labels),
            ("current.averageValue", "currentAverageValue", Amount),
        ],
    ),
    (
        "object",
        &[
            ("describedObject", "target", Reference),
            ("metric.name", "metricName", Text),
            ("metric.selector", "selector", Labels),
            ("current.value", "currentValue", Amount),
            ("current.averageValue", "averageValue", Amount),
        ],
    ),
    (
        "external",
        &[
            ("metric.name", "metricName", Text),
            ("metric.selector", "metricSelector", Labels),
            ("current.value", "currentValue", Amount),
            ("current.averageValue", "currentAverageValue", Amount),
        ],
    ),
];

fn metric_to_v1(metric: &Value) -> Value {
    moved(metric, SPECS, |place| (place.0, place.1))
}

fn status_to_v1(status: &Value) -> Value {
    moved(status, STATUSES, |place| (place.0, place.1))
}

/// The same metric with its fields elsewhere. What is not what it has to be is left out.
fn moved(metric: &Value, places: &[(&str, &[FieldOf])], way: fn(&FieldOf) -> (&'static str, &'static str)) -> Value {
    let mut out = json!({"type": text(metric, "type")});
    for (key, fields) in places {
        let Some(source) = metric.get(*key).filter(|source| source.is_object()) else { continue };
        let mut there = Value::Object(Map::new());
        for place in *fields {
            let (from, to) = way(place);
            if let Some(value) = at(source, from).filter(|value| is_of(value, place.2)) {
                set(&mut there, to, value.clone());
            }
        }
        out[*key] = there;
    }
    out
}

fn is_of(value: &Value, sort: Sort) -> bool {
    let is_text = |value: Option<&Value>| value.is_none_or(Value::is_string);
    match sort {
        Text => value.is_string(),
        Int => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        Amount => value.as_str().is_some_and(|text| text.parse::<Quantity>().is_ok()),
        Labels => value.is_object() && Selector::from_object(value).is_ok(),
        Reference => value.is_object() && ["kind", "name", "apiVersion"].iter().all(|key| is_text(value.get(key))),
    }
}

/// Kubernetes writes this one annotation in the form that has Go's own names.
fn renamed(value: Value, rename: fn(&str) -> String) -> Value {
    match value {
        Value::Object(map) => map.into_iter().map(|(k, v)| (rename(&k), renamed(v, rename))).collect(),
        Value::Array(all) => all.into_iter().map(|v| renamed(v, rename)).collect(),
        other => other,
    }
}

fn capitalized(key: &str) -> String {
    let mut letters = key.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn uncapitalized(key: &str) -> String {
    let mut letters = key.chars();
    letters.next().map(|first| first.to_ascii_lowercase().to_string() + letters.as_str()).unwrap_or_default()
}

// === to version 2 ===

fn to_stored(hpa: &mut Value) {
    let percent = remove(hpa, "spec.targetCPUUtilizationPercentage").and_then(|p| p.as_i64());
    let now = remove(hpa, "status.currentCPUUtilizationPercentage").and_then(|p| p.as_i64());
    let mut kept = take_annotations(hpa);
    let own = percent.map(super::metric::cpu_metric);
    let mut metrics: Vec<Value> = read_list(kept.remove(METRICS)).iter().map(metric_from_v1).collect();
    metrics.extend(own);
    if metrics.is_empty() {
        metrics.push(super::usual_metric());
    }
    if hpa.get("spec").is_some_and(Value::is_object) {
        set(hpa, "spec.metrics", metrics);
        if let Some(behavior) = kept.remove(BEHAVIOR).and_then(behavior_from) {
            set(hpa, "spec.behavior", behavior);
        }
    }
    if !hpa.get("status").is_some_and(Value::is_object) {
        return;
    }
    let mut statuses: Vec<Value> = read_list(kept.remove(METRIC_STATUSES)).iter().map(status_from_v1).collect();
    if let Some(percent) = now.filter(|_| statuses.is_empty()) {
        statuses
            .push(json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
    }
    set(hpa, "status.currentMetrics", if statuses.is_empty() { Value::Null } else { statuses.into() });
    let conditions: Vec<Value> = read_list(kept.remove(CONDITIONS)).into_iter().filter_map(condition_from).collect();
    if !conditions.is_empty() {
        set(hpa, "status.conditions", conditions);
    }
}

/// Takes what is only on the way off an object's annotations.
fn take_annotations(hpa: &mut Value) -> Map<String, Value> {
    let mut taken = Map::new();
    let Some(metadata) = hpa.get_mut("metadata").and_then(Value::as_object_mut) else { return taken };
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return taken };
    for key in [METRICS, METRIC_STATUSES, BEHAVIOR, CONDITIONS] {
        taken.extend(annotations.remove(key).map(|value| (key.to_owned(), value)));
    }
    if annotations.is_empty() && !taken.is_empty() {
        metadata.remove("annotations");
    }
    taken
}

fn read(annotation: Option<Value>) -> Option<Value> {
    serde_json::from_str(annotation?.as_str()?).ok()
}

fn read_list(annotation: Option<Value>) -> Vec<Value> {
    match read(annotation) {
        Some(Value::Array(all)) => all.into_iter().filter(Value::is_object).collect(),
        _ => Vec::new(),
    }
}

fn metric_from_v1(metric: &Value) -> Value {
    let mut out = moved(metric, SPECS, |place| (place.1, place.0));
    for (key, _) in SPECS {
        let Some(target) = out.get_mut(*key).map(|source| map_mut(source, "target")) else { continue };
        let of_type = match () {
            () if target.contains_key("averageUtilization") => "Utilization",
            () if target.contains_key("averageValue") => "AverageValue",
            () => "Value",
        };
        target.insert("type".into(), of_type.into());
    }
    out
}

fn status_from_v1(status: &Value) -> Value {
    let mut out = moved(status, STATUSES, |place| (place.1, place.0));
    for (key, _) in STATUSES {
        if let Some(source) = out.get_mut(*key) {
            map_mut(source, "current");
        }
    }
    out
}

fn condition_from(condition: Value) -> Option<Value> {
    let keys = ["type", "status", "lastTransitionTime", "reason", "message"];
    let all = keys.into_iter().filter_map(|key| Some((key.to_owned(), condition.get(key)?.clone())));
    let kept: Map<String, Value> = all.collect();
    let is_one = kept.values().all(|v| v.is_string() || v.is_null()) && kept.contains_key("type");
    is_one.then_some(Value::Object(kept))
}

/// The behaviour, if everything in it is what it has to be.
fn behavior_from(annotation: Value) -> Option<Value> {
    let read = renamed(read(Some(annotation))?, uncapitalized);
    let mut behavior = Map::new();
    for direction in ["scaleUp", "scaleDown"] {
        let Some(rules) = read.get(direction).filter(|rules| rules.is_object()) else { continue };
        let mut kept = Map::new();
        let wanted = [("stabilizationWindowSeconds", Int), ("selectPolicy", Text), ("tolerance", Amount)];
        for (key, sort) in wanted {
            kept.extend(rules.get(key).filter(|v| is_of(v, sort)).map(|v| (key.to_owned(), v.clone())));
        }
        if let Some(policies) = rules.get("policies").and_then(Value::as_array) {
            let one = |policy: &Value| {
                let fields = [("type", Text), ("value", Int), ("periodSeconds", Int)];
                let kept = fields.into_iter().filter_map(|(key, sort)| {
                    Some((key.to_owned(), policy.get(key).filter(|v| is_of(v, sort))?.clone()))
                });
                Value::Object(kept.collect())
            };
            kept.insert("policies".into(), policies.iter().map(one).collect());
        }
        behavior.insert(direction.into(), kept.into());
    }
    Some(behavior.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(spec: Value, status: Value) -> Value {
        let mut hpa = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "minReplicas": 1,
            "scaleTargetRef": {"kind": "Deployment", "name": "d"}}, "status": status});
        hpa["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        hpa
    }

    #[test]
    fn nothing_is_lost_by_way_of_version_1() {
        let selector = json!({"matchLabels": {"a": "b"}});
        let metrics = json!([
            {"type": "Pods", "pods": {"metric": {"name": "rps", "selector": selector},
                "target": {"type": "AverageValue", "averageValue": "5"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "rps"},
                "target": {"type": "Value", "value": "5"}}},
            {"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "1"}}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                "target": {"type": "Utilization", "averageUtilization": 5}}},
            super::super::metric::cpu_metric(70),
        ]);
        let behavior = json!({"scaleDown": {"stabilizationWindowSeconds": 5, "selectPolicy": "Max",
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}});
        let status = json!({"currentReplicas": 2, "desiredReplicas": 2,
            "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                "current": {"averageUtilization": 12, "averageValue": "12m"}}}],
            "conditions": [{"type": "AbleToScale", "status": "True", "reason": "r", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let whole = v2(json!({"metrics": metrics, "behavior": behavior}), status);
        let mut first = whole.clone();
        from_stored(&mut first);
        assert_eq!(first["spec"]["targetCPUUtilizationPercentage"], 70);
        assert_eq!(first["status"]["currentCPUUtilizationPercentage"], 12);
        assert_eq!((first["spec"].get("metrics"), first["spec"].get("behavior")), (None, None));
        let annotations = &first["metadata"]["annotations"];
        assert!(annotations[BEHAVIOR].as_str().unwrap().contains("\"ScaleDown\":{"), "as Kubernetes writes it");
        assert!(annotations[METRICS].as_str().unwrap().contains("\"metricName\":\"rps\""));
        to_stored(&mut first);
        assert_eq!(first, whole);
    }

    #[test]
    fn a_status_is_not_written_by_way_of_an_annotation_nor_a_spec_by_way_of_the_status() {
        let with = |key: &str, text: &str| json!({"metadata": {"annotations": {key: text, "a": "b"}}});
        let mut new = with(CONDITIONS, "[]");
        keep_annotations(&mut new, &with(METRIC_STATUSES, "[1]"), &[METRIC_STATUSES, CONDITIONS]);
        assert_eq!(new["metadata"]["annotations"], json!({"a": "b", METRIC_STATUSES: "[1]"}));
    }

    #[test]
    fn a_plain_one_goes_by_the_cpu_and_wrong_annotations_count_for_nothing() {
        let mut plain = json!({"metadata": {"name": "a", "annotations": {METRICS: "[", "b": "c"}},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        to_stored(&mut plain);
        assert_eq!(plain["spec"]["metrics"], json!([super::super::metric::cpu_metric(50)]));
        assert_eq!(plain["metadata"]["annotations"], json!({"b": "c"}));
        let hostile =
            json!([{"type": "Pods", "pods": {"metricName": {"a": 1}, "targetAverageValue": [1]}}, 7]).to_string();
        let mut odd = json!({"metadata": {"annotations": {METRICS: hostile, BEHAVIOR: "{\"ScaleUp\":{\"Policies\":[7]}}"}},
            "spec": {"maxReplicas": 3}});
        to_stored(&mut odd);
        assert_eq!(odd["spec"]["metrics"], json!([{"type": "Pods", "pods": {"target": {"type": "Value"}}}]));
        assert_eq!(odd["spec"]["behavior"], json!({"scaleUp": {"policies": [{}]}}));
        assert!(!super::super::validate(&odd).iter().map(|e| e.message()).collect::<Vec<_>>().is_empty());
        let mut bare = json!({"metadata": {}, "spec": {"maxReplicas": 3}});
        to_stored(&mut bare);
        assert_eq!(bare["spec"]["metrics"], json!([super::super::metric::cpu_metric(80)]));
    }
}

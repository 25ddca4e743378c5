//! What an autoscaler goes by: rules on one entry of `spec.metrics`.

use serde_json::{Value, json};

use super::reference::{reference, segment};
use crate::base::json::{int, text};
use crate::base::quantity::Quantity;
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

/// The types, in the order in which they are named, and the field that each has.
const SOURCES: &[(&str, &str)] = &[
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
const RAW_OR_PERCENT: &str = "must set either a target raw value or a target utilization";
const VALUE_OR_AVERAGE: &str = "must set either a target value for metric or a per-pod target";

/// That all pods together use so many percent of the CPU that they ask for.
pub(super) fn cpu_metric(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// Rules on one metric.
pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, metric: &Value) {
    let of_type = text(metric, "type");
    let names: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
    if of_type.is_empty() {
        errors.push(field::required(path.field("type"), "must specify a metric source type"));
    }
    if !names.contains(&of_type) {
        errors.push(field::not_supported(path.field("type"), of_type, &names));
    }
    let present = |key: &str| metric.get(key).filter(|v| v.is_object());
    // Kubernetes looks into the first that is there, in this order.
    let order = ["object", "external", "pods", "containerResource", "resource"];
    if let Some((key, source)) = order.into_iter().find_map(|key| Some((key, present(key)?))) {
        one(errors, &path.field(key), key, source);
    }
    let lower = of_type.to_lowercase();
    let expected = SOURCES.iter().find(|(name, _)| *name == of_type).map_or(&*lower, |(_, key)| key);
    if present(expected).is_none() {
        errors.push(field::required(path.field(expected), "must populate information for the given metric source"));
    }
    for key in order.into_iter().filter(|key| *key != expected && present(key).is_some()) {
        errors.push(field::forbidden(path.field(key), "must populate the given metric source only"));
    }
}

fn one(errors: &mut Errors, path: &Path<'_>, key: &str, source: &Value) {
    if key == "object" {
        reference(errors, &path.field("describedObject"), source.get("describedObject").unwrap_or(&Value::Null));
    }
    match key {
        "object" | "external" | "pods" => identifier(errors, &path.field("metric"), source.get("metric")),
        _ => {
            if text(source, "name").is_empty() {
                errors.push(field::required(path.field("name"), "must specify a resource name"));
            }
            if key == "containerResource" && text(source, "container").is_empty() {
                errors.push(field::required(path.field("container"), "must specify a container"));
            }
        }
    }
    let (null, path) = (Value::Null, path.field("target"));
    let of = source.get("target").unwrap_or(&null);
    target(errors, &path, of);
    let has = |key: &str| of.get(key).is_some_and(|v| !v.is_null());
    match key {
        "object" if !has("value") && !has("averageValue") => {
            errors.push(field::required(path.field("averageValue"), VALUE_OR_AVERAGE));
        }
        "external" if !has("value") && !has("averageValue") => {
            errors.push(field::required(path.field("averageValue"), VALUE_OR_AVERAGE));
        }
        "external" if has("value") && has("averageValue") => {
            let why = "may not set both a target value for metric and a per-pod target";
            errors.push(field::forbidden(path.field("value"), why));
        }
        "pods" if !is_positive(of, "averageValue") => {
            errors.push(field::required(path.field("averageValue"), "must specify a positive target value"));
        }
        "resource" | "containerResource" if !has("averageUtilization") && !has("averageValue") => {
            errors.push(field::required(path.field("averageUtilization"), RAW_OR_PERCENT));
        }
        "resource" | "containerResource" if has("averageUtilization") && has("averageValue") => {
            let why = "may not set both a target raw value and a target utilization";
            errors.push(field::forbidden(path.field("averageValue"), why));
        }
        _ => {}
    }
}

fn identifier(errors: &mut Errors, path: &Path<'_>, metric: Option<&Value>) {
    match metric.map_or("", |metric| text(metric, "name")) {
        "" => errors.push(field::required(path.field("name"), "must specify a metric name")),
        name => segment(errors, &path.field("name"), name),
    }
}

fn is_positive(target: &Value, key: &str) -> bool {
    let amount = target.get(key).and_then(Value::as_str).and_then(|text| text.parse::<Quantity>().ok());
    amount.is_some_and(|amount| !amount.is_zero() && !amount.is_negative())
}

fn target(errors: &mut Errors, path: &Path<'_>, target: &Value) {
    let of_type = text(target, "type");
    if of_type.is_empty() {
        errors.push(field::required(path.field("type"), "must specify a metric target type"));
    }
    if !matches!(of_type, "Utilization" | "Value" | "AverageValue") {
        errors.push(field::invalid(path.field("type"), of_type, "must be either Utilization, Value, or AverageValue"));
    }
    for key in ["value", "averageValue"] {
        if let Some(given) = target.get(key).filter(|v| !v.is_null() && !is_positive(target, key)) {
            errors.push(field::invalid(path.field(key), given.clone(), "must be positive"));
        }
    }
    if let Some(percent) = int(target, "averageUtilization").filter(|percent| *percent < 1) {
        errors.push(field::invalid(path.field("averageUtilization"), percent, "must be greater than 0"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(metric: Value) -> Vec<String> {
        let mut errors = Errors::new();
        validate(&mut errors, &Path::root("m"), &metric);
        errors.iter().map(|e| format!("{}: {}", e.field, e.message())).collect()
    }

    #[test]
    fn each_type_has_its_own_field_and_a_target_that_fits() {
        let fine = [
            cpu_metric(50),
            json!({"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
                "target": {"type": "AverageValue", "averageValue": "1Gi"}}}),
            json!({"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "5"}}}),
            json!({"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"},
                "metric": {"name": "rps"}, "target": {"type": "Value", "value": "5"}}}),
            json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "5"}}}),
        ];
        for metric in fine {
            assert!(said(metric.clone()).is_empty(), "{metric}: {:?}", said(metric.clone()));
        }
        assert_eq!(
            said(
                json!({"type": "Pods", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}}})
            ),
            [
                "m.resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
                "m.pods: Required value: must populate information for the given metric source",
                "m.resource: Forbidden: must populate the given metric source only",
            ]
        );
        assert_eq!(said(json!({"type": "Some"})).len(), 2);
        let external = json!({"type": "External", "external": {"metric": {"name": "a/b"},
            "target": {"type": "Value", "value": "-1", "averageValue": "1"}}});
        assert_eq!(said(external).len(), 3);
    }
}

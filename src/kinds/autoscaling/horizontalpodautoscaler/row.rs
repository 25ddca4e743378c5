//! An autoscaler in a table.

use jiff::Timestamp;
use serde_json::Value;

use crate::base::json::{at, int, list, text};
use crate::kinds::Column;
use crate::kinds::table::{self, string};

pub(super) const COLUMNS: &[Column] = &[
    table::NAME,
    string("Reference", "What is scaled."),
    string("Targets", "What its metrics are, and what they are to be."),
    string("MinPods", "The fewest pods."),
    string("MaxPods", "The most pods."),
    string("Replicas", "How many pods there are."),
    table::AGE,
];

/// Metrics that are shown.
const SHOWN: usize = 2;

pub(super) fn row(hpa: &Value, now: Timestamp) -> Vec<Value> {
    let target = format!("{}/{}", text(hpa, "spec.scaleTargetRef.kind"), text(hpa, "spec.scaleTargetRef.name"));
    let min = int(hpa, "spec.minReplicas").map_or_else(|| "<unset>".to_owned(), |min| min.to_string());
    vec![
        table::name(hpa),
        target.into(),
        targets(list(hpa, "spec.metrics"), list(hpa, "status.currentMetrics")).into(),
        min.into(),
        int(hpa, "spec.maxReplicas").unwrap_or(0).into(),
        int(hpa, "status.currentReplicas").unwrap_or(0).into(),
        table::age(hpa, now),
    ]
}

fn targets(metrics: &[Value], statuses: &[Value]) -> String {
    if metrics.is_empty() {
        return "<none>".into();
    }
    let each = metrics.iter().enumerate().map(|(i, metric)| one(metric, statuses.get(i).unwrap_or(&Value::Null)));
    let shown: Vec<String> = each.take(SHOWN).collect();
    match metrics.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} + {more} more...", shown.join(", ")),
    }
}

fn one(metric: &Value, status: &Value) -> String {
    let key = match text(metric, "type") {
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        _ => return "<unknown type>".into(),
    };
    let is_average = at(metric, &format!("{key}.target.averageValue")).is_some_and(|v| !v.is_null());
    let current = |field: &str| {
        let found = at(status, &format!("{key}.current.{field}")).filter(|v| !v.is_null());
        found.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let unknown = || "<unknown>".to_owned();
    let wanted = |field: &str| text(metric, &format!("{key}.target.{field}")).to_owned();
    match key {
        "resource" | "containerResource" => {
            let name = text(metric, &format!("{key}.name"));
            if is_average {
                return format!(
                    "{name}: {}/{}",
                    current("averageValue").unwrap_or_else(unknown),
                    wanted("averageValue")
                );
            }
            let now = current("averageUtilization").map_or_else(unknown, |percent| format!("{percent}%"));
            let wanted = int(metric, &format!("{key}.target.averageUtilization"));
            format!("{name}: {now}/{}", wanted.map_or_else(|| "<auto>".to_owned(), |percent| format!("{percent}%")))
        }
        "pods" => format!("{}/{}", current("averageValue").unwrap_or_else(unknown), wanted("averageValue")),
        _ if is_average => {
            format!("{}/{} (avg)", current("averageValue").unwrap_or_else(unknown), wanted("averageValue"))
        }
        _ => format!("{}/{}", current("value").unwrap_or_else(unknown), wanted("value")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_are_shown_as_kubectl_shows_them() {
        let cpu = super::super::metric::cpu_metric(70);
        let used = json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12, "averageValue": "12m"}}});
        assert_eq!(targets(std::slice::from_ref(&cpu), &[]), "cpu: <unknown>/70%");
        assert_eq!(targets(std::slice::from_ref(&cpu), &[used]), "cpu: 12%/70%");
        let queue = json!({"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "30"}}});
        assert_eq!(targets(std::slice::from_ref(&queue), &[]), "<unknown>/30 (avg)");
        assert_eq!(targets(&[cpu.clone(), queue, cpu], &[]), "cpu: <unknown>/70%, <unknown>/30 (avg) + 1 more...");
        assert_eq!(targets(&[], &[]), "<none>");
    }
}

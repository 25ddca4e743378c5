//! `NodeMetrics` and `PodMetrics`: what is used, as objects, lists and tables.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::rate::{NodeUsage, PodUsage, Usage};
use crate::base::clock::seconds_text;
use crate::base::labels::{FieldTerm, Selector};
use crate::base::object::Object;
use crate::base::quantity::Quantity;

/// The API group.
pub const GROUP: &str = "metrics.k8s.io";
/// The version of the group.
pub const VERSION: &str = "v1beta1";

/// One of the two resources.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    /// What an object without numbers is called where it is missed.
    pub missing: &'static str,
}

pub const NODES: Resource =
    Resource { plural: "nodes", kind: "NodeMetrics", namespaced: false, missing: "nodemetrics" };
pub const PODS: Resource = Resource { plural: "pods", kind: "PodMetrics", namespaced: true, missing: "podmetrics" };
const VERBS: [&str; 2] = ["get", "list"];

/// An object, and what it says, for tables.
#[derive(Clone, Debug)]
pub(in crate::api) struct Shown {
    pub value: Value,
    pub cpu_nanos: i64,
    pub memory_bytes: i64,
    pub window_nanos: i64,
}

/// The role by which whoever may see pods may see what they use, as metrics-server brings it along.
pub(in crate::api) fn reader() -> Value {
    let aggregated = |to: &str| (format!("rbac.authorization.k8s.io/aggregate-to-{to}"), Value::from("true"));
    let labels: serde_json::Map<String, Value> = ["admin", "edit", "view"].into_iter().map(aggregated).collect();
    json!({
        "metadata": {"name": "system:aggregated-metrics-reader", "labels": labels},
        "rules": [{"apiGroups": [GROUP], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    })
}

/// The resources as aggregated discovery has them.
pub fn discovered() -> Value {
    let resource = |of: &Resource| {
        json!({
            "resource": of.plural, "scope": if of.namespaced { "Namespaced" } else { "Cluster" },
            "responseKind": {"group": GROUP, "version": VERSION, "kind": of.kind}, "singularResource": "", "verbs": VERBS,
        })
    };
    json!({"version": VERSION, "freshness": "Current", "resources": [resource(&NODES), resource(&PODS)]})
}

/// The resources as an `APIResourceList`.
pub(in crate::api) fn listed() -> Value {
    let resource = |of: &Resource| json!({"name": of.plural, "singularName": "", "namespaced": of.namespaced, "kind": of.kind, "verbs": VERBS});
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [resource(&NODES), resource(&PODS)],
    })
}

fn metadata(of: &Object, now: Timestamp) -> Value {
    let mut metadata = json!({"name": &*of.meta.name, "creationTimestamp": seconds_text(now)});
    if !of.meta.namespace.is_empty() {
        metadata["namespace"] = (&*of.meta.namespace).into();
    }
    let value = of.value();
    if let Some(labels) = value["metadata"].get("labels") {
        metadata["labels"] = labels.clone();
    }
    metadata
}

fn amounts(usage: &Usage) -> Value {
    json!({
        "cpu": Quantity::from_nano(usage.cpu_nanos).to_string(),
        "memory": Quantity::from_bytes(usage.memory_bytes).to_string(),
    })
}

/// A duration as Go writes it.
fn duration_text(nanos: i64) -> String {
    let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
    let (seconds, finer) = (rest / 1_000_000_000, rest % 1_000_000_000);
    let fraction = format!(".{finer:09}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    if minutes > 0 { format!("{minutes}m{seconds}{fraction}s") } else { format!("{seconds}{fraction}s") }
}

fn time_of(at: i64) -> String {
    Timestamp::from_millisecond(at).map(seconds_text).unwrap_or_default()
}

/// A node.
pub(in crate::api) fn of_node(node: &Object, usage: &NodeUsage, now: Timestamp) -> Shown {
    let value = json!({
        "metadata": metadata(node, now), "timestamp": time_of(usage.at), "window": duration_text(usage.window_nanos),
        "usage": amounts(usage),
    });
    let Usage { cpu_nanos, memory_bytes, window_nanos, .. } = *usage;
    Shown { value, cpu_nanos, memory_bytes, window_nanos }
}

/// A pod.
pub(in crate::api) fn of_pod(pod: &Object, usage: &PodUsage, now: Timestamp) -> Shown {
    let containers = usage.containers.iter().map(|c| json!({"name": c.name, "usage": amounts(&c.usage)}));
    let value = json!({
        "metadata": metadata(pod, now), "timestamp": time_of(usage.at), "window": duration_text(usage.window_nanos),
        "containers": containers.collect::<Vec<_>>(),
    });
    let sum = |of: fn(&Usage) -> i64| usage.containers.iter().map(|c| of(&c.usage)).sum();
    Shown {
        value,
        cpu_nanos: sum(|u| u.cpu_nanos),
        memory_bytes: sum(|u| u.memory_bytes),
        window_nanos: usage.window_nanos,
    }
}

/// One object as it is answered.
pub(in crate::api) fn whole(resource: &Resource, shown: &Shown) -> Value {
    let mut value = json!({"kind": resource.kind, "apiVersion": format!("{GROUP}/{VERSION}")});
    if let (Some(whole), Some(part)) = (value.as_object_mut(), shown.value.as_object()) {
        whole.extend(part.clone());
    }
    value
}

/// Many as they are answered.
pub(in crate::api) fn list(resource: &Resource, shown: Vec<Shown>) -> Value {
    let items: Vec<Value> = shown.into_iter().map(|one| one.value).collect();
    json!({
        "kind": format!("{}List", resource.kind), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {},
        "items": items,
    })
}

/// Any number of them as a table, as metrics-server has it.
pub(in crate::api) fn table(resource: &Resource, all: &[Shown], with_object: bool) -> Value {
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let row = |shown: &Shown| {
        let cells = json!([
            shown.value["metadata"]["name"],
            Quantity::from_nano(shown.cpu_nanos).to_string(),
            Quantity::from_bytes(shown.memory_bytes).to_string(),
            duration_text(shown.window_nanos),
        ]);
        let object = match with_object {
            true => whole(resource, shown),
            false => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": shown.value["metadata"],
            }),
        };
        json!({"cells": cells, "object": object})
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": [
            column("Name", "name", "Name of the resource"), column("cpu", "quantity", ""),
            column("memory", "quantity", ""), column("Window", "duration", ""),
        ],
        "rows": all.iter().map(row).collect::<Vec<_>>(),
    })
}

/// Whether an object is meant by a selection of labels and of its name and namespace.
pub(in crate::api) fn is_meant(object: &Object, labels: &Selector, fields: &[FieldTerm]) -> bool {
    let value = |field: &str| match field {
        "metadata.name" => &*object.meta.name,
        _ => &*object.meta.namespace,
    };
    labels.matches(&object.meta.labels) && fields.iter().all(|term| (value(&term.field) == term.value) == term.equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_times_are_written_as_metrics_server_writes_them() {
        let usage = Usage {
            at: 1_700_000_000_000,
            window_nanos: 15_120_000_000,
            cpu_nanos: 225_990_312,
            memory_bytes: 2 << 20,
        };
        assert_eq!(amounts(&usage), json!({"cpu": "225990312n", "memory": "2Mi"}));
        let idle = Usage { cpu_nanos: 0, memory_bytes: 4096, ..usage };
        assert_eq!(amounts(&idle), json!({"cpu": "0", "memory": "4Ki"}));
        assert_eq!(duration_text(15_120_000_000), "15.12s");
        assert_eq!(duration_text(75_000_000_000), "1m15s");
        assert_eq!(time_of(usage.at), "2023-11-14T22:13:20Z");
    }
}

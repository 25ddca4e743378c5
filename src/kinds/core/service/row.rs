//! A Service's row in a table.

use jiff::Timestamp;
use serde_json::Value;

use crate::base::json::{list, map, text};
use crate::kinds::Column;
use crate::kinds::table::{self, string, wide};

pub(super) const COLUMNS: &[Column] = &[
    table::NAME,
    string("Type", "How it is reached."),
    string("Cluster-IP", "Its first address inside the cluster."),
    string("External-IP", "Its addresses for the outside."),
    string("Port(s)", "Its ports, with the port of each node."),
    table::AGE,
    wide("Selector", "Labels of the pods behind it."),
];

/// The cells.
pub(super) fn row(service: &Value, now: Timestamp) -> Vec<Value> {
    let ip = text(service, "spec.clusterIP");
    let first = list(service, "spec.clusterIPs").first().and_then(Value::as_str).unwrap_or(ip);
    vec![
        table::name(service),
        text(service, "spec.type").into(),
        if first.is_empty() { "<none>".into() } else { first.into() },
        external(service).into(),
        ports(service).into(),
        table::age(service, now),
        table::labels(map(service, "spec.selector")).into(),
    ]
}

fn external(service: &Value) -> String {
    let given: Vec<&str> = list(service, "spec.externalIPs").iter().filter_map(Value::as_str).collect();
    let none = || "<none>".to_owned();
    match text(service, "spec.type") {
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        "LoadBalancer" => {
            let balancers = list(service, "status.loadBalancer.ingress").iter().map(|i| match text(i, "ip") {
                "" => text(i, "hostname"),
                ip => ip,
            });
            let mut all: Vec<&str> = balancers.filter(|a| !a.is_empty()).collect();
            all.sort_unstable();
            all.dedup();
            all.extend(given);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        _ if given.is_empty() => none(),
        _ => given.join(","),
    }
}

fn ports(service: &Value) -> String {
    let ports = list(service, "spec.ports").iter().map(|p| {
        let (number, protocol) = (p["port"].as_i64().unwrap_or(0), text(p, "protocol"));
        match p.get("nodePort").and_then(Value::as_i64).filter(|n| *n > 0) {
            Some(node) => format!("{number}:{node}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    });
    let text = ports.collect::<Vec<_>>().join(",");
    if text.is_empty() { "<none>".into() } else { text }
}

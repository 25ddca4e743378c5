//! Changes of a Service: what follows the type, what stays allocated, what cannot change.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{is_external, normalize};
use crate::base::json::{at, int, list, list_mut, map_mut, remove, set, text};
use crate::kinds::check::{IMMUTABLE, Path};
use crate::kinds::field::{self, Errors};

fn wants_ip(service: &Value) -> bool {
    text(service, "spec.type") != "ExternalName"
}

fn wants_node_ports(service: &Value) -> bool {
    match text(service, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => at(service, "spec.allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

/// Whether a balancer must ask each node for its health.
pub fn wants_health_port(service: &Value) -> bool {
    text(service, "spec.type") == "LoadBalancer" && text(service, "spec.externalTrafficPolicy") == "Local"
}

fn is_balanced(service: &Value) -> bool {
    text(service, "spec.type") == "LoadBalancer"
}

/// Drops what the new type has no use for, as far as the client left it alone.
pub(super) fn prepare(new: &mut Value, old: &Value) {
    normalize(new, Some(old));
    let same = |new: &Value, key: &str| at(new, key) == at(old, key);
    if wants_ip(old) && !wants_ip(new) {
        if same(new, "spec.clusterIP") && same(new, "spec.clusterIPs") {
            remove(new, "spec.clusterIP");
            remove(new, "spec.clusterIPs");
        }
        if same(new, "spec.ipFamilies") && same(new, "spec.ipFamilyPolicy") {
            remove(new, "spec.ipFamilies");
            remove(new, "spec.ipFamilyPolicy");
        }
    }
    let is_port_type = |s: &Value| matches!(text(s, "spec.type"), "NodePort" | "LoadBalancer");
    if is_port_type(old) && !is_port_type(new) && same_node_ports(new, old) {
        for port in list_mut(new, "spec.ports").into_iter().flatten() {
            remove(port, "nodePort");
        }
    }
    let drop = |new: &mut Value, needed: fn(&Value) -> bool, key: &str| {
        if needed(old) && !needed(new) && same(new, key) {
            remove(new, key);
        }
    };
    drop(new, wants_health_port, "spec.healthCheckNodePort");
    drop(new, is_balanced, "spec.allocateLoadBalancerNodePorts");
    drop(new, is_balanced, "spec.loadBalancerClass");
    drop(new, is_external, "spec.externalTrafficPolicy");
    drop(new, wants_ip, "spec.internalTrafficPolicy");
    if is_balanced(old) && !is_balanced(new) {
        set(new, "status.loadBalancer", serde_json::json!({}));
    }
}

fn same_node_ports(new: &Value, old: &Value) -> bool {
    let ports = |s: &Value| -> Vec<i64> {
        let mut all: Vec<i64> =
            list(s, "spec.ports").iter().filter_map(|p| p.get("nodePort")?.as_i64()).filter(|n| *n != 0).collect();
        all.sort_unstable();
        all
    };
    let old = ports(old);
    ports(new).iter().all(|p| old.binary_search(p).is_ok())
}

/// What was allocated stays where the client left it out.
pub fn keep_allocated(new: &mut Value, old: &Value) {
    if wants_ip(new) && wants_ip(old) {
        let was = text(old, "spec.clusterIP").to_owned();
        if text(new, "spec.clusterIP").is_empty() && !was.is_empty() {
            set(new, "spec.clusterIP", was);
        }
        if list(new, "spec.clusterIPs").is_empty()
            && let Some(ips) =
                at(old, "spec.clusterIPs").filter(|_| text(new, "spec.clusterIP") == text(old, "spec.clusterIP"))
        {
            set(new, "spec.clusterIPs", ips.clone());
        }
    }
    if wants_node_ports(new) && wants_node_ports(old) {
        let mut before = HashMap::new();
        for port in list(old, "spec.ports") {
            before.entry((int(port, "port"), text(port, "protocol").to_owned())).or_insert(port);
        }
        let taken: HashSet<i64> = list(new, "spec.ports").iter().filter_map(|p| int(p, "nodePort")).collect();
        for port in list_mut(new, "spec.ports").into_iter().flatten() {
            let was =
                before.get(&(int(port, "port"), text(port, "protocol").to_owned())).and_then(|o| o.get("nodePort"));
            if port.get("nodePort").is_none_or(|p| *p == 0)
                && let Some(was) = was.filter(|w| w.as_i64().is_none_or(|w| !taken.contains(&w)))
            {
                map_mut(port, "").insert("nodePort".into(), was.clone());
            }
        }
    }
    if wants_health_port(new)
        && wants_health_port(old)
        && int(new, "spec.healthCheckNodePort").unwrap_or(0) == 0
        && let Some(was) = at(old, "spec.healthCheckNodePort")
    {
        set(new, "spec.healthCheckNodePort", was.clone());
    }
    for key in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
        if wants_ip(new)
            && wants_ip(old)
            && at(new, key).is_none()
            && let Some(was) = at(old, key)
        {
            // A policy of two families without two families in the cluster comes back as one.
            set(new, key, was.clone());
        }
    }
}

/// Errors in the change.
pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let was = text(old, "spec.clusterIP");
    if wants_ip(new) && wants_ip(old) && !was.is_empty() && text(new, "spec.clusterIP") != was {
        errors.push(field::invalid(&path.field("clusterIPs").index(0), text(new, "spec.clusterIP"), IMMUTABLE));
    }
    if is_balanced(new) && is_balanced(old) && at(new, "spec.loadBalancerClass") != at(old, "spec.loadBalancerClass") {
        let class = at(new, "spec.loadBalancerClass").cloned().unwrap_or_default();
        errors.push(field::invalid(&path.field("loadBalancerClass"), class, IMMUTABLE));
    }
    let health = |s: &Value| int(s, "spec.healthCheckNodePort").unwrap_or(0);
    if wants_health_port(new) && wants_health_port(old) && health(new) != health(old) {
        errors.push(field::forbidden(&path.field("healthCheckNodePort"), IMMUTABLE));
    }
    errors
}

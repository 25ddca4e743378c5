//! What older fields of a Service mean in newer ones.

use serde_json::{Value, json};

use crate::base::json::{list, remove, set, text};

/// Whether the outside reaches it.
pub(super) fn is_external(service: &Value) -> bool {
    match text(service, "spec.type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !list(service, "spec.externalIPs").is_empty(),
        _ => false,
    }
}

/// The single address and the list follow each other: a client may know only one of them.
pub(super) fn normalize(service: &mut Value, old: Option<&Value>) {
    let one = |s: &Value| text(s, "spec.clusterIP").to_owned();
    let many = |s: &Value| list(s, "spec.clusterIPs").to_vec();
    let (ip, ips) = (one(service), many(service));
    let Some(old) = old else {
        if !ip.is_empty() && ips.is_empty() {
            set(service, "spec.clusterIPs", json!([ip]));
        }
        return;
    };
    let (was, were) = (one(old), many(old));
    if !was.is_empty() && ip.is_empty() && were == ips {
        remove(service, "spec.clusterIPs");
    }
    if were.is_empty() && ips.is_empty() && !ip.is_empty() || was != ip && were == ips && !ip.is_empty() {
        set(service, "spec.clusterIPs", json!([ip]));
    }
}

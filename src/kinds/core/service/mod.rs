//! Service.

mod families;
mod normalize;
mod row;
mod update;
mod validate;

use normalize::{is_external, normalize};

use std::net::IpAddr;

use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::json::{at, list, list_mut, map_mut, remove, set, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::{BUILTIN, Field, Kind, KindRef, NameRule, Strategy, Subresource};

pub use families::{check as check_addresses, choose as choose_families};
pub use update::{keep_allocated, wants_health_port};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Proxy, Subresource::Status],
    has_status: true,
    name_rule: NameRule::DnsLabel,
    schema: "io.k8s.api.core.v1.Service",
    delete_answers_object: true,
    create_on_update: true,
    columns: row::COLUMNS,
    row: row::row,
    fields: &[
        Field { name: "spec.clusterIP", get: |s| text(s, "spec.clusterIP").into() },
        Field { name: "spec.type", get: |s| text(s, "spec.type").into() },
    ],
    strategy: Strategy {
        default,
        prepare_create: |s| {
            set(s, "status", json!({"loadBalancer": {}}));
            normalize(s, None);
        },
        prepare_update: update::prepare,
        validate: validate::validate,
        validate_update: update::validate,
        validate_status: validate::status,
        warnings,
        allocates: true,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"ports":[{"port":80}]}}"#,
    ..Kind::BASE
});

/// The addresses inside the cluster that a Service has.
pub fn cluster_addresses(service: &Value) -> Vec<IpAddr> {
    if text(service, "spec.type") == "ExternalName" {
        return Vec::new();
    }
    list(service, "spec.clusterIPs").iter().filter_map(|address| address.as_str()?.parse().ok()).collect()
}

fn default(service: &mut Value) {
    set_default(service, "spec.sessionAffinity", "None");
    match text(service, "spec.sessionAffinity") {
        "None" => {
            remove(service, "spec.sessionAffinityConfig");
        }
        "ClientIP" if at(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds").is_none() => {
            set(service, "spec.sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    set_default(service, "spec.type", "ClusterIP");
    for port in list_mut(service, "spec.ports").into_iter().flatten() {
        set_default(port, "protocol", "TCP");
        let target = port.get("targetPort");
        if target.is_none_or(|t| *t == 0 || *t == "" || t.is_null()) {
            let number = port.get("port").cloned().unwrap_or(0.into());
            map_mut(port, "").insert("targetPort".into(), number);
        }
    }
    if is_external(service) {
        set_default(service, "spec.externalTrafficPolicy", "Cluster");
    }
    let kind = text(service, "spec.type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set_default(service, "spec.internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_default(service, "spec.allocateLoadBalancerNodePorts", true);
        for ingress in list_mut(service, "status.loadBalancer.ingress").into_iter().flatten() {
            if !text(ingress, "ip").is_empty() {
                set_default(ingress, "ipMode", "VIP");
            }
        }
    }
}

fn warnings(service: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    let path = Path::root("spec");
    let changed = |key: &str| old.is_none_or(|o| at(o, key) != at(service, key));
    let kind = text(service, "spec.type");
    if kind != "ExternalName" && !text(service, "spec.externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if kind != "ExternalName" && text(service, "spec.clusterIP") == "None" {
        if !text(service, "spec.loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if !list(service, "spec.externalIPs").is_empty() {
            out.push("spec.externalIPs is ignored for headless services".into());
        }
        if text(service, "spec.sessionAffinity") != "None" {
            out.push("spec.SessionAffinity is ignored for headless services".into());
        }
    } else if !list(service, "spec.externalIPs").is_empty() && changed("spec.externalIPs") {
        out.push("spec.externalIPs is deprecated in v1.36+".into());
    }
    for (key, name) in [("spec.clusterIPs", "clusterIPs"), ("spec.externalIPs", "externalIPs")] {
        let path = path.field(name);
        for (i, ip) in list(service, key).iter().enumerate().filter(|_| changed(key)) {
            let ip = ip.as_str().unwrap_or("");
            if ip != "None" {
                out.extend(check::ip_warning(&path.index(i), ip));
            }
        }
    }
    if changed("spec.loadBalancerIP") && !text(service, "spec.loadBalancerIP").is_empty() {
        out.extend(check::ip_warning(&path.field("loadBalancerIP"), text(service, "spec.loadBalancerIP")));
    }
    let ranges = path.field("loadBalancerSourceRanges");
    for (i, range) in list(service, "spec.loadBalancerSourceRanges").iter().enumerate() {
        if changed("spec.loadBalancerSourceRanges") {
            out.extend(check::cidr_warning(&ranges.index(i), range.as_str().unwrap_or("").trim()));
        }
    }
    out
}

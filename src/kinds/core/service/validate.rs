//! Rules on a Service.

use std::collections::HashSet;

use serde_json::Value;

use super::{families, is_external, update};
use crate::base::json::{at, int, list, map, text};
use crate::base::labels::dns_subdomain_error;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// The annotation that came before the field.
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// The port of the node agent, which no balancer may lead to.
const AGENT_PORT: i64 = 10250;

pub(super) fn validate(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let kind = text(service, "spec.type");
    let supported = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    check::required_one_of(&mut errors, &path.field("type"), kind, &supported);
    by_type(&mut errors, &path, service, kind);
    ports(&mut errors, &path.field("ports"), service, kind);
    check::labels(&mut errors, &path.field("selector"), at(service, "spec.selector"));
    affinity(&mut errors, &path, service);
    let external = path.field("externalIPs");
    for (i, ip) in list(service, "spec.externalIPs").iter().enumerate() {
        check::reachable_ip(&mut errors, &external.index(i), ip.as_str().unwrap_or(""));
    }
    source_ranges(&mut errors, &path, service, kind);
    balancer(&mut errors, &path, service, kind);
    traffic(&mut errors, &path, service, kind);
    errors.extend(families::check(service));
    errors
}

fn is_headless(service: &Value) -> bool {
    list(service, "spec.clusterIPs").first().is_some_and(|i| i == "None")
        || (list(service, "spec.clusterIPs").is_empty() && text(service, "spec.clusterIP") == "None")
}

fn by_type(errors: &mut Errors, path: &Path<'_>, service: &Value, kind: &str) {
    if list(service, "spec.ports").is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.push(field::required(&path.field("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" => {
            if is_headless(service) {
                let why = format!("may not be set to 'None' for {kind} services");
                errors.push(field::invalid(&path.field("clusterIPs").index(0), "None", why));
            }
            if kind == "LoadBalancer" {
                let ports = path.field("ports");
                for (i, port) in list(service, "spec.ports").iter().enumerate() {
                    if port["port"] == AGENT_PORT {
                        let why = "may not expose port 10250 externally since it is used by kubelet";
                        errors.push(field::invalid(&ports.index(i), AGENT_PORT, why));
                    }
                }
            }
        }
        "ExternalName" => {
            let name = text(service, "spec.externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            let path = path.field("externalName");
            if check::given(errors, &path, name) {
                check::dns_subdomain(errors, &path, name);
            }
        }
        _ => {}
    }
}

fn ports(errors: &mut Errors, path: &Path<'_>, service: &Value, kind: &str) {
    let ports = list(service, "spec.ports");
    let (mut names, mut numbers, mut nodes) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let (name, name_path) = (text(port, "name"), path.field("name"));
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(field::required(&name_path, ""));
            }
        } else {
            check::dns_label(errors, &name_path, name);
            if !names.insert(name) {
                errors.push(field::duplicate(&name_path, name));
            }
        }
        check::port(errors, &path.field("port"), port["port"].as_i64().unwrap_or(0));
        check::required_one_of(errors, &path.field("protocol"), text(port, "protocol"), &["SCTP", "TCP", "UDP"]);
        check::port_or_name(errors, &path.field("targetPort"), port.get("targetPort"));
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            check::qualified(errors, &path.field("appProtocol"), protocol);
        }
        let node_port = int(port, "nodePort").unwrap_or(0);
        if matches!(kind, "ClusterIP" | "ExternalName") && node_port != 0 {
            let why = format!("may not be used when `type` is '{kind}'");
            errors.push(field::forbidden(&path.field("nodePort"), why));
        }
        if !numbers.insert((text(port, "protocol"), int(port, "port"))) {
            errors.push(field::duplicate(&path, port.clone()));
        }
        if node_port != 0 && !nodes.insert((text(port, "protocol"), node_port)) {
            errors.push(field::duplicate(&path.field("nodePort"), node_port));
        }
    }
}

fn affinity(errors: &mut Errors, path: &Path<'_>, service: &Value) {
    let affinity = text(service, "spec.sessionAffinity");
    check::required_one_of(errors, &path.field("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let config = at(service, "spec.sessionAffinityConfig");
    let path = path.field("sessionAffinityConfig");
    match affinity {
        "ClientIP" => {
            let path = path.field("clientIP");
            let path = path.field("timeoutSeconds");
            match config.and_then(|c| int(c, "clientIP.timeoutSeconds")) {
                None => errors.push(field::required(&path, "when session affinity type is ClientIP")),
                Some(n) if !(1..=86400).contains(&n) => {
                    errors.push(field::invalid(&path, n, "must be greater than 0 and less than 86400"));
                }
                Some(_) => {}
            }
        }
        "None" if config.is_some() => {
            errors.push(field::forbidden(&path, "must not be set when session affinity type is None"));
        }
        _ => {}
    }
}

fn source_ranges(errors: &mut Errors, path: &Path<'_>, service: &Value, kind: &str) {
    let ranges = list(service, "spec.loadBalancerSourceRanges");
    let annotation = map(service, "metadata.annotations").and_then(|a| a.get(RANGES)).and_then(Value::as_str);
    let path = path.field("LoadBalancerSourceRanges");
    let base = Path::root("metadata.annotations");
    let annotated = base.key(RANGES);
    if kind != "LoadBalancer" {
        const WHY: &str = "may only be used when `type` is 'LoadBalancer'";
        if !ranges.is_empty() {
            errors.push(field::forbidden(&path, WHY));
        } else if annotation.is_some() {
            errors.push(field::forbidden(&annotated, WHY));
        }
        return;
    }
    for (i, range) in ranges.iter().enumerate() {
        check::cidr(errors, &path.index(i), range.as_str().unwrap_or("").trim());
    }
    if let Some(text) = annotation.filter(|t| ranges.is_empty() && !t.trim().is_empty()) {
        for range in text.split(',') {
            check::cidr(errors, &annotated, range.trim());
        }
    }
}

fn balancer(errors: &mut Errors, path: &Path<'_>, service: &Value, kind: &str) {
    let is_balanced = kind == "LoadBalancer";
    const WHY: &str = "may only be used when `type` is 'LoadBalancer'";
    let allocate = path.field("allocateLoadBalancerNodePorts");
    match at(service, "spec.allocateLoadBalancerNodePorts") {
        Some(_) if !is_balanced => errors.push(field::forbidden(&allocate, WHY)),
        None if is_balanced => errors.push(field::required(&allocate, "")),
        _ => {}
    }
    if let Some(class) = at(service, "spec.loadBalancerClass").and_then(Value::as_str) {
        let path = path.field("loadBalancerClass");
        if !is_balanced {
            errors.push(field::forbidden(&path, WHY));
        }
        check::qualified(errors, &path, class);
    }
}

fn traffic(errors: &mut Errors, path: &Path<'_>, service: &Value, kind: &str) {
    let policy = text(service, "spec.externalTrafficPolicy");
    let outside = path.field("externalTrafficPolicy");
    if is_external(service) {
        check::required_one_of(errors, &outside, policy, &["Cluster", "Local"]);
    } else if !policy.is_empty() {
        errors.push(field::invalid(&outside, policy, "may only be set for externally-accessible services"));
    }
    let health = int(service, "spec.healthCheckNodePort").unwrap_or(0);
    let health_path = path.field("healthCheckNodePort");
    if update::wants_health_port(service) {
        if health == 0 {
            errors.push(field::required(&health_path, "must be set"));
        } else {
            check::port(errors, &health_path, health);
        }
    } else if health != 0 {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(field::invalid(&health_path, health, why));
    }
    let inside = path.field("internalTrafficPolicy");
    match at(service, "spec.internalTrafficPolicy").and_then(Value::as_str) {
        None if matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") => errors.push(field::required(&inside, "")),
        None => {}
        Some(policy) => {
            if !["Cluster", "Local"].contains(&policy) {
                errors.push(field::not_supported(&inside, policy, &["Cluster", "Local"]));
            }
        }
    }
    if let Some(policy) = at(service, "spec.trafficDistribution").and_then(Value::as_str) {
        let supported = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        if !supported.contains(&policy) {
            errors.push(field::not_supported(&path.field("trafficDistribution"), policy, &supported));
        }
    }
}

/// Rules on a new status.
pub(super) fn status(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let base = Path::root("status.loadBalancer.ingress");
    let ingress = list(new, "status.loadBalancer.ingress");
    if text(new, "spec.type") != "LoadBalancer" {
        if !ingress.is_empty() && ingress != list(old, "status.loadBalancer.ingress") {
            errors.push(field::forbidden(&base, "may only be used when `spec.type` is \"LoadBalancer\""));
        }
        return errors;
    }
    for (i, one) in ingress.iter().enumerate() {
        let path = base.index(i);
        let (ip, name) = (text(one, "ip"), text(one, "hostname"));
        let mode = one.get("ipMode").and_then(Value::as_str);
        if !ip.is_empty() && check::parse_ip_sloppy(ip).is_none() {
            errors.push(field::invalid(&path.field("ip"), ip, check::NOT_AN_IP));
        }
        match (ip.is_empty(), mode) {
            (false, None) => errors.push(field::required(&path.field("ipMode"), "must be specified when `ip` is set")),
            (true, Some(_)) => {
                errors.push(field::forbidden(&path.field("ipMode"), "may not be specified when `ip` is not set"))
            }
            _ => {}
        }
        if let Some(mode) = mode {
            check::one_of(&mut errors, &path.field("ipMode"), mode, &["Proxy", "VIP"]);
        }
        if !name.is_empty() {
            if let Some(why) = dns_subdomain_error(name) {
                errors.push(field::invalid(&path.field("hostname"), name, why));
            }
            if check::parse_ip(name).is_some() {
                errors.push(field::invalid(&path.field("hostname"), name, "must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

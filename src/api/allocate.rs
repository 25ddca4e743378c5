//! What the API hands out: Service addresses, NodePorts, and pod ranges of nodes.
//!
//! What is taken is read from the cache each time, under a lock that is held until the write is in the cache, so nothing
//! is ever handed out twice and nothing must be repaired after a crash.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::Api;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, list, list_mut, set, text};
use crate::base::object::Object;
use crate::kinds::core::service;
use crate::kinds::{KindRef, field};

/// Gives a new object what it needs.
pub fn on_create(api: &Api, kind: &KindRef, value: &mut Value) -> Result<()> {
    if kind.allocates() { allocate(api, value) } else { Ok(()) }
}

/// Gives a changed object what it needs; what it no longer needs is free once the change is written.
pub fn on_update(api: &Api, kind: &KindRef, new: &mut Value, old: &Value) -> Result<()> {
    if !kind.allocates() {
        return Ok(());
    }
    service::keep_allocated(new, old);
    allocate(api, new)
}

fn wants_node_ports(service: &Value) -> bool {
    match text(service, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => at(service, "spec.allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn allocate(api: &Api, service: &mut Value) -> Result<()> {
    if text(service, "spec.type") == "ExternalName" {
        // Addresses that a client gives it are refused by its rules.
        return Ok(());
    }
    let kind = &service::KIND;
    let name = text(service, "metadata.name").to_owned();
    let errors = service::choose_families(service, &families(api));
    if !errors.is_empty() {
        return Err(Status::invalid(kind, &name, &errors));
    }
    if name.is_empty() {
        let why = "failed to allocate IP: the Service needs a name";
        return Err(Status::invalid(kind, &name, &[field::invalid("spec.clusterIPs", Value::Null, why)]));
    }
    let key = kind.key(text(service, "metadata.namespace"), &name);
    let taken = Taken::except(api, &key);
    let refuse = |e: field::Error| Status::invalid(kind, &name, &[e]);
    allocate_address(api, service, &taken).map_err(refuse)?;
    if wants_node_ports(service) {
        allocate_ports(api, service, &taken).map_err(refuse)?;
    }
    allocate_health_port(api, service, &taken).map_err(refuse)
}

/// The families the cluster has addresses of, the first first.
fn families(api: &Api) -> Vec<&'static str> {
    let all = api.options.service_cidrs.iter();
    all.map(|(network, _)| if network.is_ipv4() { "IPv4" } else { "IPv6" }).collect()
}

/// A balancer that leads only to nodes with an own pod asks for it on a port of its own.
fn allocate_health_port(api: &Api, service: &mut Value, taken: &Taken) -> Result<(), field::Error> {
    let path = "spec.healthCheckNodePort";
    if !service::wants_health_port(service) {
        return Ok(());
    }
    let (first, last) = api.options.node_ports;
    let own: Vec<u64> = list(service, "spec.ports").iter().filter_map(|p| p.get("nodePort")?.as_u64()).collect();
    let free = |p: u16| !taken.ports.contains(&(p, "TCP".into())) && !own.contains(&u64::from(p));
    match at(service, path).and_then(Value::as_i64).unwrap_or(0) {
        0 => {
            let span = u64::from(last - first) + 1;
            let start = api.clock.random_u64() % span;
            let port = (0..span).map(|k| first + ((start + k) % span) as u16).find(|p| free(*p));
            let port = port.ok_or_else(|| field::Error {
                reason: field::Reason::Internal,
                field: path.into(),
                value: Value::Null,
                detail: format!("failed to allocate a health check port: range {first}-{last} is full"),
            })?;
            set(service, path, port);
        }
        given => {
            let in_range = u16::try_from(given).ok().filter(|p| (first..=last).contains(p));
            if !in_range.is_some_and(free) {
                let why = format!("must be free and in the range {first}-{last}");
                return Err(field::invalid(path, given, why));
            }
        }
    }
    Ok(())
}

fn allocate_address(api: &Api, service: &mut Value, taken: &Taken) -> Result<(), field::Error> {
    let Some((network, length)) = api.options.service_cidrs.first().copied() else { return Ok(()) };
    let asked = text(service, "spec.clusterIP").to_owned();
    let address = match asked.as_str() {
        "None" => "None".to_owned(),
        "" => free_address(api, network, length, taken)
            .ok_or_else(|| field::Error {
                reason: field::Reason::Internal,
                field: "spec.clusterIPs".into(),
                value: Value::Null,
                detail: format!("failed to allocate IP: range {network}/{length} is full"),
            })?
            .to_string(),
        given => {
            let parsed: IpAddr = given.parse().map_err(|_| {
                field::invalid(
                    "spec.clusterIPs[0]",
                    given,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                )
            })?;
            if !contains(network, length, parsed) || is_edge(network, length, parsed) {
                let why = format!(
                    "failed to allocate IP {given}: the provided IP is not in the valid range {network}/{length}"
                );
                return Err(field::invalid("spec.clusterIPs", json!([given]), why));
            }
            if taken.addresses.contains(&parsed) {
                let why = format!("failed to allocate IP {given}: provided IP is already allocated");
                return Err(field::invalid("spec.clusterIPs", json!([given]), why));
            }
            given.to_owned()
        }
    };
    set(service, "spec.clusterIP", address.as_str());
    set(service, "spec.clusterIPs", json!([address]));
    Ok(())
}

fn allocate_ports(api: &Api, service: &mut Value, taken: &Taken) -> Result<(), field::Error> {
    let (first, last) = api.options.node_ports;
    // One number serves all protocols of a port of this Service.
    let mut own: Vec<(u64, u16, String)> = Vec::new();
    for (i, port) in list_mut(service, "spec.ports").into_iter().flatten().enumerate() {
        let protocol = text(port, "protocol").to_owned();
        let number = port["port"].as_u64().unwrap_or(0);
        let path = format!("spec.ports[{i}].nodePort");
        let free = |p: u16| {
            !taken.ports.contains(&(p, protocol.clone())) && !own.iter().any(|(_, o, pr)| *o == p && *pr == protocol)
        };
        let node_port = match port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) {
            0 => {
                let shared = own.iter().find(|(n, p, pr)| *n == number && *pr != protocol && free(*p)).map(|o| o.1);
                let span = u64::from(last - first) + 1;
                let start = api.clock.random_u64() % span;
                let mut any = (0..span).map(|k| first + ((start + k) % span) as u16).filter(|p| free(*p));
                shared.or_else(|| any.next()).ok_or_else(|| field::Error {
                    reason: field::Reason::Internal,
                    field: path,
                    value: Value::Null,
                    detail: format!("failed to allocate a nodePort: range {first}-{last} is full"),
                })?
            }
            given => {
                let in_range = u16::try_from(given).ok().filter(|p| (first..=last).contains(p));
                let Some(p) = in_range else {
                    let why =
                        format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
                    return Err(field::invalid(path, given, why));
                };
                if !free(p) {
                    return Err(field::invalid(path, given, "provided port is already allocated"));
                }
                p
            }
        };
        port["nodePort"] = node_port.into();
        own.push((number, node_port, protocol));
    }
    Ok(())
}

/// What the other Services hold.
struct Taken {
    addresses: HashSet<IpAddr>,
    ports: HashSet<(u16, String)>,
}

// === impl Taken ===

impl Taken {
    fn except(api: &Api, key: &str) -> Self {
        let kind = &service::KIND;
        let mut out = Self { addresses: HashSet::new(), ports: HashSet::new() };
        for object in api.cache.kind(kind).list(&kind.prefix(), "") {
            if *object.key != *key {
                out.add(&object);
            }
        }
        out
    }

    fn add(&mut self, object: &Object) {
        use k8s_openapi::api::core::v1::Service;
        let Ok(service) = object.typed::<Service>() else { return };
        let Some(spec) = &service.spec else { return };
        self.addresses.extend(spec.cluster_ips.iter().flatten().filter_map(|a| a.parse::<IpAddr>().ok()));
        for port in spec.ports.iter().flatten() {
            if let Some(p) = port.node_port {
                self.ports.insert((p as u16, port.protocol.clone().unwrap_or_else(|| "TCP".into())));
            }
        }
        if let Some(p) = spec.health_check_node_port {
            self.ports.insert((p as u16, "TCP".into()));
        }
    }
}

/// Whether it is the first or the last address of the range, which are no hosts.
fn is_edge(network: IpAddr, length: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(_), IpAddr::V4(a)) => {
            let low = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            let host = u32::from(a) & low;
            low != 0 && (host == 0 || host == low)
        }
        (IpAddr::V6(_), IpAddr::V6(a)) => {
            let low = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            low != 0 && u128::from(a) & low == 0
        }
        _ => false,
    }
}

fn contains(network: IpAddr, length: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            let shift = 32 - u32::from(length);
            let (n, a) = (u32::from(n), u32::from(a));
            shift == 32 || n >> shift == a >> shift
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            let shift = 128 - u32::from(length);
            let (n, a) = (u128::from(n), u128::from(a));
            shift == 128 || n >> shift == a >> shift
        }
        _ => false,
    }
}

/// A free address, from the upper part of the range first: the lower part is for addresses that people choose
/// (`ServiceIPStaticSubrange`).
fn free_address(api: &Api, network: IpAddr, length: u8, taken: &Taken) -> Option<IpAddr> {
    let IpAddr::V4(network) = network else { return None };
    let size = 1u64 << (32 - u32::from(length));
    let base = u64::from(u32::from(network));
    let last = size.checked_sub(2)?;
    let reserved = (size / 16).clamp(16, 256).min(last);
    let at = |offset: u64| IpAddr::V4(Ipv4Addr::from((base + offset) as u32));
    let span = |low: u64, high: u64, start: u64| {
        let n = high.saturating_sub(low) + 1;
        (0..n).map(move |k| low + (start + k) % n).map(at).find(|a| !taken.addresses.contains(a))
    };
    let random = api.clock.random_u64();
    let upper = (reserved < last).then(|| span(reserved + 1, last, random)).flatten();
    upper.or_else(|| span(1, reserved, random))
}

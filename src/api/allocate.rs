//! What the API hands out: Service addresses, NodePorts, and pod ranges of nodes.
//!
//! What is taken is read from the cache each time, under a lock that is held until the write is in the cache, so nothing
//! is ever handed out twice and nothing must be repaired after a crash. An IPAddress comes and goes with its Service, in one
//! commit.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, list, list_mut, set, text};
use crate::base::object::Object;
use crate::kinds::core::{node, service};
use crate::kinds::networking::{ipaddress, servicecidr};
use crate::kinds::{KindRef, field};

/// The manager of the addresses of Services.
const ALLOCATOR: &str = "kube-apiserver";
/// Ranges whose addresses are no Service's, whoever asks.
const SPECIAL: &[&str] =
    &["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "::/127", "fe80::/10", "ff00::/8"];

/// Gives a new object what it needs.
pub fn on_create(api: &Api, kind: &KindRef, value: &mut Value) -> Result<()> {
    match () {
        () if !kind.allocates() => Ok(()),
        () if *kind == servicecidr::KIND => check_ranges(api, value, None),
        () => allocate(api, value),
    }
}

/// Gives a changed object what it needs; what it no longer needs is free once the change is written.
pub fn on_update(api: &Api, kind: &KindRef, new: &mut Value, old: &Value) -> Result<()> {
    if !kind.allocates() {
        return Ok(());
    }
    if *kind == servicecidr::KIND {
        return check_ranges(api, new, Some(old));
    }
    service::keep_allocated(new, old);
    allocate(api, new)
}

/// Ranges that Service addresses are given out of: the cluster's own, then those of other ServiceCIDRs in the order of their
/// names. One that is to be deleted gives none.
fn ranges(api: &Api) -> Vec<IpNet> {
    let objects = api.cache.kind(&servicecidr::KIND).list("", "");
    let own = objects.iter().find(|object| &*object.meta.name == servicecidr::DEFAULT);
    let has_own = own.is_none_or(|object| object.meta.deleted.is_none());
    let others = objects.iter().filter(|o| &*o.meta.name != servicecidr::DEFAULT && o.meta.deleted.is_none());
    let others = others.flat_map(|object| servicecidr::ranges(&object.value()).collect::<Vec<_>>());
    let own = api.options.service_cidrs.iter().copied().filter(|_| has_own);
    // Of IPv6 nothing is given out yet.
    own.chain(others).filter_map(|(a, length)| IpNet::new(a, length).ok()).filter(|net| net.addr().is_ipv4()).collect()
}

/// Ranges of addresses that Services have or may have, the cluster's own left out.
pub fn further_ranges(api: &Api) -> Vec<IpNet> {
    let objects = api.cache.kind(&servicecidr::KIND).list("", "");
    let others = objects.iter().filter(|o| &*o.meta.name != servicecidr::DEFAULT);
    let others = others.flat_map(|object| servicecidr::ranges(&object.value()).collect::<Vec<_>>());
    others.filter_map(|(address, length)| IpNet::new(address, length).ok()).collect()
}

/// Refuses ranges whose addresses are somebody else's: whoever may make a Service could have what is sent to them.
fn check_ranges(api: &Api, object: &Value, old: Option<&Value>) -> Result<()> {
    let before = old.map(|old| list(old, "spec.cidrs")).unwrap_or_default();
    let mut errors = field::Errors::new();
    for (i, given) in list(object, "spec.cidrs").iter().enumerate().filter(|(_, range)| !before.contains(range)) {
        // What is no range, validation tells.
        let Some(net) = given.as_str().and_then(|range| range.parse::<IpNet>().ok()) else { continue };
        if let Some(why) = whose(api, &net) {
            errors.push(field::forbidden(format!("spec.cidrs[{i}]"), format!("{net} has addresses {why}")));
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(&servicecidr::KIND, text(object, "metadata.name"), &errors)),
    }
}

/// Whose addresses of a range are, if they can be no Service's.
fn whose(api: &Api, net: &IpNet) -> Option<String> {
    let overlaps = |other: &IpNet| net.contains(&other.network()) || other.contains(&net.network());
    let special = SPECIAL.iter().find(|special| special.parse().is_ok_and(|special| overlaps(&special)));
    if let Some(special) = special {
        return Some(format!("of {special}, which are no Service's"));
    }
    let own = |net: &IpNet| api.options.service_cidrs.contains(&(net.network(), net.prefix_len()));
    if let Some(inner) = api.options.inner_cidrs.iter().find(|inner| !own(inner) && overlaps(inner)) {
        return Some(format!("of pods, which are in {inner}"));
    }
    let nodes = api.cache.kind(&node::KIND).list("", "");
    let address_of = |object: &Arc<Object>| {
        let value = object.value();
        let mut addresses = list(&value, "status.addresses").iter().map(|a| text(a, "address").to_owned());
        let found = addresses.find(|a| a.parse::<IpAddr>().is_ok_and(|address| net.contains(&address)));
        found.map(|address| format!("of the node {}, such as {address}", object.meta.name))
    };
    nodes.iter().find_map(address_of)
}

/// An IPAddress that is written together with its Service.
pub enum AddressWrite {
    Put { request: Request, value: Value },
    Delete { request: Request, object: Arc<Object> },
}

/// The IPAddresses that come and go when an object becomes what it is to be; `None` is one that is not, or no more.
pub fn address_writes(
    api: &Api,
    of: &Request,
    old: Option<&Arc<Object>>,
    new: Option<&Value>,
) -> Result<Vec<AddressWrite>> {
    if of.kind != service::KIND {
        return Ok(Vec::new());
    }
    let (namespace, name) = (&*of.namespace, &*of.name);
    let before = old.map(|old| service::cluster_addresses(&old.value())).unwrap_or_default();
    let after = new.map(service::cluster_addresses).unwrap_or_default();
    let found = |address: &IpAddr| {
        let request = Request::internal(ALLOCATOR, &ipaddress::KIND, "", &address.to_string());
        let object = api.cache.kind(&ipaddress::KIND).get(&request.key());
        let is_own = object.as_ref().is_some_and(|o| ipaddress::service_of(&o.value()) == Some((namespace, name)));
        (request, object, is_own)
    };
    let mut writes = Vec::new();
    for address in &after {
        match found(address) {
            (request, None, _) => {
                let value = ipaddress::of_service(*address, namespace, name);
                writes.push(AddressWrite::Put { request, value });
            }
            (_, Some(_), false) if !before.contains(address) => {
                let error = is_taken("spec.clusterIPs", &address.to_string());
                return Err(Status::invalid(&service::KIND, name, &[error]));
            }
            (_, Some(_), _) => {}
        }
    }
    for address in before.iter().filter(|address| !after.contains(address)) {
        // One that somebody holds is deleted in its own time, by its controller.
        if let (request, Some(object), true) = found(address)
            && list(&object.value(), "metadata.finalizers").is_empty()
        {
            writes.push(AddressWrite::Delete { request, object });
        }
    }
    Ok(writes)
}

fn is_taken(path: &str, address: &str) -> field::Error {
    let why = format!("failed to allocate IP {address}: provided IP is already allocated");
    field::invalid(path, json!([address]), why)
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
    if api.options.service_cidrs.is_empty() {
        return Ok(());
    }
    let ranges = ranges(api);
    let shown = || ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
    let key = (text(service, "metadata.namespace"), text(service, "metadata.name"));
    // Somebody may have taken an address without a Service.
    let is_kept = |address: &IpAddr| {
        let key_of = ipaddress::KIND.key("", &address.to_string());
        let object = api.cache.kind(&ipaddress::KIND).get(&key_of);
        object.is_some_and(|o| ipaddress::service_of(&o.value()) != Some(key))
    };
    let is_free = |address: &IpAddr| !taken.addresses.contains(address) && !is_kept(address);
    let asked = text(service, "spec.clusterIP").to_owned();
    let address = match asked.as_str() {
        "None" => "None".to_owned(),
        "" => ranges
            .iter()
            .find_map(|net| free_address(api, net.network(), net.prefix_len(), is_free))
            .ok_or_else(|| field::Error {
                reason: field::Reason::Internal,
                field: "spec.clusterIPs".into(),
                value: Value::Null,
                detail: format!("failed to allocate IP: range {} is full", shown()),
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
            let is_host = |net: &IpNet| !is_edge(net.network(), net.prefix_len(), parsed);
            if !ranges.iter().any(|net| net.contains(&parsed) && is_host(net)) {
                let why =
                    format!("failed to allocate IP {given}: the provided IP is not in the valid range {}", shown());
                return Err(field::invalid("spec.clusterIPs", json!([given]), why));
            }
            if !is_free(&parsed) {
                return Err(is_taken("spec.clusterIPs", given));
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

/// A free address, from the upper part of the range first: the lower part is for addresses that people choose
/// (`ServiceIPStaticSubrange`).
fn free_address(api: &Api, network: IpAddr, length: u8, is_free: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let IpAddr::V4(network) = network else { return None };
    let size = 1u64 << (32 - u32::from(length));
    let base = u64::from(u32::from(network));
    let last = size.checked_sub(2)?;
    let reserved = (size / 16).clamp(16, 256).min(last);
    let at = |offset: u64| IpAddr::V4(Ipv4Addr::from((base + offset) as u32));
    let span = |low: u64, high: u64, start: u64| {
        let n = high.saturating_sub(low) + 1;
        (0..n).map(move |k| low + (start + k) % n).map(at).find(|a| is_free(a))
    };
    let random = api.clock.random_u64();
    let upper = (reserved < last).then(|| span(reserved + 1, last, random)).flatten();
    upper.or_else(|| span(1, reserved, random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::api::write::Written;
    use crate::apimachinery::delete_options::DeleteOptions;
    use crate::kinds::core::namespace;

    async fn make(api: &Api, kind: &KindRef, namespace: &str, value: Value) -> Result<Written> {
        api.create(&Request::internal("test", kind, namespace, ""), value).await
    }

    async fn service(api: &Api, name: &str, address: &str) -> Result<String> {
        let mut value = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        if !address.is_empty() {
            value["spec"]["clusterIP"] = address.into();
        }
        let made = make(api, &service::KIND, "default", value).await?.object;
        Ok(text(&made.value(), "spec.clusterIP").to_owned())
    }

    async fn range(api: &Api, name: &str, ranges: &[&str]) -> Result<Written> {
        make(api, &servicecidr::KIND, "", json!({"metadata": {"name": name}, "spec": {"cidrs": ranges}})).await
    }

    async fn cluster() -> Api {
        let api = in_memory::api();
        make(&api, &namespace::KIND, "", json!({"metadata": {"name": "default"}})).await.unwrap();
        api
    }

    fn parent(api: &Api, address: &str) -> Option<String> {
        let object = api.cache.kind(&ipaddress::KIND).get(&ipaddress::KIND.key("", address))?;
        let value = object.value();
        let (namespace, name) = ipaddress::service_of(&value)?;
        Some(format!("{namespace}/{name}"))
    }

    #[tokio::test]
    async fn an_address_comes_and_goes_with_its_service() {
        let api = cluster().await;
        let address = service(&api, "a", "").await.unwrap();
        assert_eq!(parent(&api, &address).as_deref(), Some("default/a"));
        let object = api.get(&Request::internal("test", &ipaddress::KIND, "", &address)).unwrap();
        assert!(ipaddress::is_allocated(&object.value()) && !object.meta.uid.is_empty());
        let request = Request::internal("test", &service::KIND, "default", "a");
        let dry = Request { dry_run: true, ..request.clone() };
        api.delete(&dry, &DeleteOptions::default()).await.unwrap();
        assert!(parent(&api, &address).is_some());
        api.delete(&request, &DeleteOptions::default()).await.unwrap();
        assert_eq!(parent(&api, &address), None);
        // Also with one that somebody holds, once it is let go of.
        let held =
            json!({"metadata": {"name": "h", "finalizers": ["example.com/f"]}, "spec": {"ports": [{"port": 80}]}});
        let made = make(&api, &service::KIND, "default", held).await.unwrap().object;
        let address = text(&made.value(), "spec.clusterIP").to_owned();
        let request = request.named("h");
        api.delete(&request, &DeleteOptions::default()).await.unwrap();
        assert!(parent(&api, &address).is_some());
        let mut release = |live: &Value| {
            let mut new = live.clone();
            new["metadata"]["finalizers"] = json!([]);
            Ok(new)
        };
        api.update(&request, crate::api::write::Change::Patch(&mut release)).await.unwrap();
        assert_eq!(parent(&api, &address), None);
    }

    #[tokio::test]
    async fn an_address_that_somebody_keeps_is_no_services() {
        let api = cluster().await;
        let kept = json!({"metadata": {"name": "10.43.0.7"}, "spec": {"parentRef": {"group": "example.com", "resource": "gateways", "name": "g"}}});
        make(&api, &ipaddress::KIND, "", kept).await.unwrap();
        let refused = service(&api, "a", "10.43.0.7").await.unwrap_err();
        assert!(refused.message.contains("provided IP is already allocated"), "{refused}");
        service(&api, "a", "10.43.0.8").await.unwrap();
    }

    #[tokio::test]
    async fn further_ranges_are_given_out_when_the_first_is_full_and_no_longer_when_they_end() {
        let api = cluster().await;
        let refused = service(&api, "a", "10.196.0.5").await.unwrap_err();
        assert!(refused.message.contains("not in the valid range 10.43.0.0/16"), "{refused}");
        range(&api, "more", &["10.196.0.0/29"]).await.unwrap();
        assert_eq!(service(&api, "a", "10.196.0.5").await.unwrap(), "10.196.0.5");
        assert!(service(&api, "b", "10.196.0.7").await.is_err(), "the last address of a range is no host's");
        assert!(service(&api, "b", "").await.unwrap().starts_with("10.43."));
        // The cluster's own range gives no more.
        range(&api, servicecidr::DEFAULT, &["10.43.0.0/16"]).await.unwrap();
        let hold = |live: &Value| {
            let mut new = live.clone();
            new["metadata"]["finalizers"] = json!([servicecidr::PROTECTION]);
            Ok(new)
        };
        let own = Request::internal("test", &servicecidr::KIND, "", servicecidr::DEFAULT);
        api.update(&own, crate::api::write::Change::Patch(&mut hold.clone())).await.unwrap();
        api.delete(&own, &DeleteOptions::default()).await.unwrap();
        let mut given = Vec::new();
        for n in 0..5 {
            given.push(service(&api, &format!("c{n}"), "").await.unwrap());
        }
        given.sort();
        let hosts = [1, 2, 3, 4, 6].map(|n| format!("10.196.0.{n}"));
        assert_eq!(given, hosts);
        let full = service(&api, "d", "").await.unwrap_err();
        assert!(full.message.contains("range 10.196.0.0/29 is full"), "{full}");
        let warned = range(&api, "six", &["10.197.0.0/24", "fd00:196::/112"]).await.unwrap().warnings;
        assert_eq!(warned, ["spec.cidrs[1]: Services get no addresses of IPv6 in this version"]);
    }

    #[tokio::test]
    async fn a_range_of_somebody_elses_addresses_is_refused() {
        let api = cluster().await;
        let node = json!({"metadata": {"name": "n"}});
        make(&api, &node::KIND, "", node).await.unwrap();
        let mut address = |live: &Value| {
            let mut new = live.clone();
            new["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.0.2.9"}]);
            Ok(new)
        };
        let status = Request::internal("test", &node::KIND, "", "n").on(crate::kinds::Subresource::Status);
        api.update(&status, crate::api::write::Change::Patch(&mut address)).await.unwrap();
        for (given, why) in [
            ("10.42.7.0/24", "of pods, which are in 10.42.0.0/16"),
            ("10.0.0.0/8", "of pods"),
            ("127.0.0.0/24", "of 127.0.0.0/8"),
            ("0.0.0.0/0", "which are no Service's"),
            ("192.0.2.0/24", "of the node n, such as 192.0.2.9"),
            ("fe80::/64", "of fe80::/10"),
        ] {
            let refused = range(&api, "r", &[given]).await.unwrap_err();
            assert!(refused.code == 422 && refused.message.contains(why), "{given}: {refused}");
        }
        range(&api, "r", &["10.43.7.0/24"]).await.unwrap();
    }
}

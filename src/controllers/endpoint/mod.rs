//! Where Services lead: EndpointSlices ([`slice`]) and the older Endpoints ([`classic`]), and slices of those Endpoints that
//! users write themselves ([`mirror`]).
//!
//! The first two are plans over the same [`Target`]s: the pods that a Service selects, with their addresses and ports.

pub mod classic;
pub mod mirror;
pub mod slice;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::{Context, pods, typed};
use crate::apimachinery::status::Result;
use crate::base::object::Object;
use crate::kinds::core::service;
use crate::reconcile::{Changed, Key};

/// Marks what belongs to a Service without cluster address.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port as slices and Endpoints write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) port: i32,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
}

/// A pod behind a Service.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<Port>,
    pub(super) pod_ready: bool,
    pub(super) terminating: bool,
    pub(super) node: String,
    pub(super) hostname: Option<String>,
    pub(super) reference: Value,
}

/// What a Service selects by. An empty selector is none: Kubernetes does not even store it.
pub(super) fn selector(spec: &ServiceSpec) -> Option<&BTreeMap<String, String>> {
    spec.selector.as_ref().filter(|s| !s.is_empty())
}

/// The Services of a namespace that select the changed pod, or did.
pub(super) fn services_of(cx: &Arc<Context>, change: &Changed) -> Vec<Key> {
    if change.previous.as_ref().is_some_and(|old| !matters(old, &change.object)) {
        return Vec::new();
    }
    let mut keys = Vec::new();
    for object in cx.client.informer(&service::KIND).list(&change.object.meta.namespace) {
        let Ok(service) = object.typed::<Service>() else { continue };
        let selector = service.spec.as_ref().and_then(selector);
        let selects = |pod: &Object| {
            selector.is_some_and(|s| s.iter().all(|(k, v)| pod.meta.labels.get(k.as_str()).is_some_and(|l| **l == **v)))
        };
        if selects(&change.object) || change.previous.as_ref().is_some_and(|p| selects(p)) {
            keys.push(Key::of(&object));
        }
    }
    keys
}

/// Whether a change of a pod can be seen in endpoints at all.
fn matters(old: &Arc<Object>, new: &Arc<Object>) -> bool {
    let (Ok(a), Ok(b)) = (old.typed::<Pod>(), new.typed::<Pod>()) else { return true };
    old.meta.labels != new.meta.labels
        || old.meta.deleted.is_some() != new.meta.deleted.is_some()
        || pods::addresses(&a) != pods::addresses(&b)
        || pods::is_ready(&a) != pods::is_ready(&b)
        || pods::is_over(&a) != pods::is_over(&b)
        || a.spec != b.spec
}

/// The pods that a Service selects and that have an address, in the order of their names.
pub(super) fn targets(cx: &Context, namespace: &str, spec: &ServiceSpec, service: &str) -> Result<Vec<Target>> {
    let Some(selector) = selector(spec) else { return Ok(Vec::new()) };
    let Some((k, v)) = selector.iter().next() else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for object in cx.pods.get(&pods::label_key(namespace, k, v)) {
        let all = selector.iter().all(|(k, v)| object.meta.labels.get(k.as_str()).is_some_and(|l| **l == **v));
        let pod: Arc<Pod> = typed(&object)?;
        let addresses: Vec<IpAddr> = pods::addresses(&pod).iter().filter_map(|a| a.parse().ok()).collect();
        if all && !pods::is_over(&pod) && !addresses.is_empty() {
            out.push(target(&object, &pod, addresses, spec, service));
        }
    }
    Ok(out)
}

fn target(object: &Object, pod: &Pod, addresses: Vec<IpAddr>, spec: &ServiceSpec, service: &str) -> Target {
    let s = pod.spec.as_ref();
    let in_domain = s.and_then(|s| s.subdomain.as_deref()) == Some(service);
    Target {
        addresses,
        ports: spec.ports.iter().flatten().filter_map(|p| port(p, pod)).collect(),
        pod_ready: pods::is_ready(pod),
        terminating: object.meta.deleted.is_some(),
        node: s.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        hostname: s.and_then(|s| s.hostname.clone()).filter(|h| in_domain && !h.is_empty()),
        reference: json!({
            "kind": "Pod", "namespace": &*object.meta.namespace, "name": &*object.meta.name, "uid": &*object.meta.uid,
        }),
    }
}

/// The port of a pod that a Service's port leads to.
fn port(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(name)) => named(pod, name, &protocol)?,
    };
    let name = port.name.clone().unwrap_or_default();
    Some(Port { name, port: number, protocol, app_protocol: port.app_protocol.clone() })
}

fn named(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    // Sidecars serve too: init containers that are restarted always.
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .into_iter()
        .find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|p| p.container_port)
}

/// Labels of a Service that what is made of it carries too.
pub(super) fn labels(service: &Object, spec: &ServiceSpec, ours: &[(&str, &str)]) -> BTreeMap<String, String> {
    let reserved = [HEADLESS, "kubernetes.io/service-name", "endpointslice.kubernetes.io/managed-by"];
    let given = service.meta.labels.iter().filter(|(k, _)| !reserved.contains(&&***k));
    let mut out: BTreeMap<String, String> = given.map(|(k, v)| (k.to_string(), v.to_string())).collect();
    if spec.cluster_ip.as_deref() == Some("None") {
        out.insert(HEADLESS.into(), String::new());
    }
    out.extend(ours.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    out
}

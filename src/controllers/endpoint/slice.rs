//! EndpointSlices of Services that select pods.
//!
//! The plan keeps endpoints in the slices where they are, so that a change of one pod is a write of one slice and
//! watchers get no more than that; what is new fills slices with room before new ones are made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use serde_json::{Value, json};

use super::{Context, Port, Target, labels, selector, services_of, targets};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::json::{list, text};
use crate::base::object::Object;
use crate::controllers::{absent_is_fine, controller_reference, typed};
use crate::kinds::core::{node, pod, service};
use crate::kinds::discovery::endpointslice;
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

/// Endpoints of one slice at most.
const SLICE_MAX: usize = 100;
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const US: &str = "endpointslice-controller.k8s.io";

struct Slices(Arc<Context>);

/// What to do with slices.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Create(Value),
    /// The whole object, with the resourceVersion it was made from.
    Update(String, Value),
    Delete(String),
}

/// The controller; its keys are Services.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let (by_pod, by_node) = (cx.clone(), cx.clone());
    let owned = |c: &Changed| match c.object.meta.labels.get(SERVICE_NAME) {
        Some(name) if c.object.meta.labels.get(MANAGED_BY).is_some_and(|m| **m == *US) => {
            vec![Key::new(&c.object.meta.namespace, name)]
        }
        _ => Vec::new(),
    };
    // Pods are left out while their node is not there, and carry its zone.
    let nodes = move |c: &Changed| match c.deleted || c.previous.as_ref().is_none_or(|p| zone(p) != zone(&c.object)) {
        true => by_node.client.informer(&service::KIND).list("").iter().map(|s| Key::of(s)).collect(),
        false => Vec::new(),
    };
    Controller::new("endpointslice", Arc::new(Slices(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &service::KIND)
        .watches(&*cx.client, &pod::KIND, Box::new(move |c| services_of(&by_pod, c)))
        .watches(&*cx.client, &endpointslice::KIND, Box::new(owned))
        .watches(&*cx.client, &node::KIND, Box::new(nodes))
}

fn zone(node: &Object) -> Option<&str> {
    node.meta.labels.get("topology.kubernetes.io/zone").map(|z| &**z)
}

#[async_trait]
impl Reconciler for Slices {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        let Some(object) = client.informer(&service::KIND).get(&key.namespace, &key.name) else {
            // Its slices go with it: the garbage collector sees to that.
            return Ok(Outcome::Done);
        };
        let service: Arc<Service> = typed(&object)?;
        let Some(spec) = service.spec.as_ref().filter(|s| selector(s).is_some()) else { return Ok(Outcome::Done) };
        if object.meta.deleted.is_some() || spec.type_.as_deref() == Some("ExternalName") {
            return Ok(Outcome::Done);
        }
        let nodes = client.informer(&node::KIND);
        let mut targets = targets(&self.0, &key.namespace, spec, &key.name)?;
        let publish = spec.publish_not_ready_addresses.unwrap_or(false);
        let mut zones = BTreeMap::new();
        targets.retain(|t| match nodes.get("", &t.node).and_then(|n| n.typed::<Node>().ok().map(|_| n)) {
            Some(found) => {
                if let Some(zone) = zone(&found) {
                    zones.insert(t.node.clone(), zone.to_owned());
                }
                true
            }
            None => publish,
        });
        let existing = existing(&self.0, key, US);
        let steps = plan(&object, spec, &targets, &zones, &existing);
        apply(&self.0, &key.namespace, steps).await.map(|()| Outcome::Done)
    }
}

/// The slices of a Service, or of an Endpoints object with its name, that a controller has made.
pub(super) fn existing(cx: &Context, key: &Key, managed_by: &str) -> Vec<Value> {
    let all = cx.client.informer(&endpointslice::KIND).list(&key.namespace);
    let has = |o: &Object, k: &str, v: &str| o.meta.labels.get(k).is_some_and(|l| **l == *v);
    let mine = |o: &&Arc<Object>| has(o, SERVICE_NAME, &key.name) && has(o, MANAGED_BY, managed_by);
    all.iter().filter(mine).map(|o| o.value()).collect()
}

pub(super) async fn apply(cx: &Context, namespace: &str, steps: Vec<Step>) -> Result<()> {
    try_join_all(steps.into_iter().map(|step| take(cx, namespace, step))).await.map(|_| ())
}

async fn take(cx: &Context, namespace: &str, step: Step) -> Result<()> {
    let (client, kind) = (&cx.client, &endpointslice::KIND);
    match step {
        Step::Create(slice) => match client.create(kind, namespace, slice).await {
            Err(status) if status.code == 403 => Ok(()),
            other => other.map(|_| ()),
        },
        Step::Update(name, slice) => client.update(kind, namespace, &name, None, slice).await.map(|_| ()),
        Step::Delete(name) => absent_is_fine(client.delete(kind, namespace, &name, DeleteOptions::default()).await),
    }
}

/// What makes the slices show the targets.
pub(super) fn plan(
    service: &Object,
    spec: &ServiceSpec,
    targets: &[Target],
    zones: &BTreeMap<String, String>,
    existing: &[Value],
) -> Vec<Step> {
    let labels = json!(labels(service, spec, &[(SERVICE_NAME, &service.meta.name), (MANAGED_BY, US)]));
    let mut groups: BTreeMap<(&str, BTreeSet<Port>), Vec<Value>> = BTreeMap::new();
    for family in families(spec) {
        for target in targets {
            if let Some(endpoint) = endpoint(target, family, spec, zones) {
                groups.entry((family, target.ports.iter().cloned().collect())).or_default().push(endpoint);
            }
        }
    }
    let mut steps = Vec::new();
    let mut left: Vec<&Value> = existing.iter().collect();
    for ((family, ports), endpoints) in groups {
        let (mine, others): (Vec<&Value>, Vec<&Value>) =
            left.into_iter().partition(|s| text(s, "addressType") == family && ports_of(s) == ports);
        left = others;
        fill(service, family, &ports, endpoints, &mine, &labels, &mut steps);
    }
    let nothing = steps.is_empty() && left.len() == existing.len();
    // One empty slice stays, so that watchers can tell "no endpoints" from "not looked at yet".
    let mut spare = nothing;
    for slice in left {
        let name = text(slice, "metadata.name").to_owned();
        if spare && ports_of(slice).is_empty() && list(slice, "endpoints").is_empty() {
            spare = false;
            if slice["metadata"]["labels"] != labels {
                steps.push(Step::Update(name, with(slice, Vec::new(), &labels)));
            }
        } else {
            steps.push(Step::Delete(name));
        }
    }
    if spare {
        let family = families(spec).first().copied().unwrap_or("IPv4");
        steps.push(Step::Create(slice(service, family, Value::Null, Value::Null, &labels)));
    }
    steps
}

/// Spreads the endpoints of one kind of slice over the slices there are, and new ones.
fn fill(
    service: &Object,
    family: &str,
    ports: &BTreeSet<Port>,
    endpoints: Vec<Value>,
    existing: &[&Value],
    labels: &Value,
    steps: &mut Vec<Step>,
) {
    let id = |e: &Value| text(e, "targetRef.uid").to_owned();
    let mut wanted: BTreeMap<String, Value> = endpoints.into_iter().map(|e| (id(&e), e)).collect();
    let kept: Vec<Vec<Value>> = existing
        .iter()
        .map(|s| list(s, "endpoints").iter().filter_map(|e| wanted.remove(&id(e))).take(SLICE_MAX).collect())
        .collect();
    let mut new: Vec<Value> = wanted.into_values().collect();
    new.sort_by_key(|e| text(e, "targetRef.name").to_owned());
    let mut new = new.into_iter();
    for (slice, mut kept) in existing.iter().zip(kept) {
        let room = SLICE_MAX.saturating_sub(kept.len());
        kept.extend(new.by_ref().take(room));
        let name = text(slice, "metadata.name").to_owned();
        if kept.is_empty() {
            steps.push(Step::Delete(name));
        } else if list(slice, "endpoints") != kept || slice["metadata"]["labels"] != *labels {
            steps.push(Step::Update(name, with(slice, kept, labels)));
        }
    }
    let ports: Vec<Value> = ports.iter().map(port_value).collect();
    loop {
        let some: Vec<Value> = new.by_ref().take(SLICE_MAX).collect();
        if some.is_empty() {
            break;
        }
        steps.push(Step::Create(slice(service, family, some.into(), ports.clone().into(), labels)));
    }
}

fn families(spec: &ServiceSpec) -> Vec<&'static str> {
    let given = spec.ip_families.as_deref().unwrap_or_default();
    let mut out: Vec<_> = given.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if out.is_empty() {
        out.push("IPv4");
    }
    out
}

fn endpoint(target: &Target, family: &str, spec: &ServiceSpec, zones: &BTreeMap<String, String>) -> Option<Value> {
    let address = target.addresses.iter().find(|a| a.is_ipv6() == (family == "IPv6"))?;
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);
    let ready = publish || (target.pod_ready && !target.terminating);
    let mut out = json!({
        "addresses": [address.to_string()],
        "conditions": {"ready": ready, "serving": target.pod_ready, "terminating": target.terminating},
        "targetRef": target.reference,
    });
    if !target.node.is_empty() {
        out["nodeName"] = target.node.as_str().into();
    }
    if let Some(zone) = zones.get(&target.node) {
        out["zone"] = zone.as_str().into();
    }
    if let Some(hostname) = &target.hostname {
        out["hostname"] = hostname.as_str().into();
    }
    Some(out)
}

fn slice(service: &Object, family: &str, endpoints: Value, ports: Value, labels: &Value) -> Value {
    json!({
        "addressType": family, "endpoints": endpoints, "ports": ports,
        "metadata": {
            "generateName": format!("{}-", service.meta.name), "labels": labels,
            "ownerReferences": [controller_reference(&service::KIND, service)],
        },
    })
}

fn with(slice: &Value, endpoints: Vec<Value>, labels: &Value) -> Value {
    let mut slice = slice.clone();
    slice["endpoints"] = endpoints.into();
    slice["metadata"]["labels"] = labels.clone();
    slice
}

pub(super) fn port_value(port: &Port) -> Value {
    let mut out = json!({"name": port.name, "port": port.port, "protocol": port.protocol});
    if let Some(app) = &port.app_protocol {
        out["appProtocol"] = app.as_str().into();
    }
    out
}

/// The ports of a slice, or of a part of Endpoints.
pub(super) fn ports_of(slice: &Value) -> BTreeSet<Port> {
    list(slice, "ports").iter().map(port_of).collect()
}

/// A port as slices and Endpoints write it.
fn port_of(port: &Value) -> Port {
    Port {
        name: text(port, "name").into(),
        port: port["port"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
        protocol: port["protocol"].as_str().unwrap_or("TCP").into(),
        app_protocol: port["appProtocol"].as_str().map(str::to_owned),
    }
}

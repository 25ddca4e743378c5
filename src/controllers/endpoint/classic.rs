//! Endpoints of Services that select pods: the older form, which some clients still read.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde_json::{Value, json};

use super::{Context, Port, Target, labels, selector, services_of, targets};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::json::text;
use crate::controllers::{absent_is_fine, typed};
use crate::kinds::core::{endpoints, pod, service};
use crate::reconcile::{Controller, Key, Outcome, Reconciler};

/// Addresses of one object at most.
const ADDRESSES_MAX: usize = 1000;
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const US: &str = "endpoint-controller";

struct Classic(Arc<Context>);

/// The controller; its keys are Services.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let by_pod = cx.clone();
    Controller::new("endpoint", Arc::new(Classic(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &service::KIND)
        .for_kind(&*cx.client, &endpoints::KIND)
        .watches(&*cx.client, &pod::KIND, Box::new(move |c| services_of(&by_pod, c)))
}

#[async_trait]
impl Reconciler for Classic {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let (client, kind) = (&self.0.client, &endpoints::KIND);
        let found = client.informer(kind).get(&key.namespace, &key.name);
        let Some(object) = client.informer(&service::KIND).get(&key.namespace, &key.name) else {
            if found.is_some_and(|f| f.meta.labels.get(MANAGED_BY).is_some_and(|m| **m == *US)) {
                let deleted = client.delete(kind, &key.namespace, &key.name, DeleteOptions::default()).await;
                absent_is_fine(deleted)?;
            }
            return Ok(Outcome::Done);
        };
        let service: Arc<Service> = typed(&object)?;
        let Some(spec) = service.spec.as_ref().filter(|s| selector(s).is_some()) else { return Ok(Outcome::Done) };
        if object.meta.deleted.is_some() || spec.type_.as_deref() == Some("ExternalName") {
            return Ok(Outcome::Done);
        }
        let targets = targets(&self.0, &key.namespace, spec, &key.name)?;
        let subsets = subsets(spec, &targets);
        let labels = json!(labels(&object, spec, &[(MANAGED_BY, US)]));
        match found {
            None => {
                let mut new = json!({"metadata": {"name": &*key.name, "labels": labels}});
                if !subsets.is_empty() {
                    new["subsets"] = subsets.into();
                }
                match client.create(kind, &key.namespace, new).await {
                    Err(status) if status.code == 403 => {}
                    other => drop(other?),
                }
            }
            Some(found) => {
                let mut value = found.value();
                let same = value.get("subsets").and_then(Value::as_array).map_or(&[][..], Vec::as_slice) == subsets;
                if !same || value["metadata"]["labels"] != labels {
                    value["subsets"] = subsets.into();
                    value["metadata"]["labels"] = labels;
                    client.update(kind, &key.namespace, &key.name, None, value).await?;
                }
            }
        }
        Ok(Outcome::Done)
    }
}

/// Addresses in groups with the same ports.
pub(super) fn subsets(spec: &ServiceSpec, targets: &[Target]) -> Vec<Value> {
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);
    let want_v6 = spec.ip_families.as_ref().and_then(|f| f.first()).is_some_and(|f| f == "IPv6");
    let mut groups: BTreeMap<Vec<Port>, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for target in targets.iter().filter(|t| publish || !t.terminating).take(ADDRESSES_MAX) {
        let Some(address) = target.addresses.iter().find(|a| a.is_ipv6() == want_v6) else { continue };
        let mut entry = json!({"ip": address.to_string(), "targetRef": target.reference});
        if !target.node.is_empty() {
            entry["nodeName"] = target.node.as_str().into();
        }
        if let Some(hostname) = &target.hostname {
            entry["hostname"] = hostname.as_str().into();
        }
        if target.ports.is_empty() && spec.cluster_ip.as_deref() != Some("None") {
            continue;
        }
        let mut ports = target.ports.clone();
        ports.sort();
        let group = groups.entry(ports).or_default();
        if publish || target.pod_ready { group.0.push(entry) } else { group.1.push(entry) }
    }
    groups.into_iter().map(|(ports, (ready, not_ready))| subset(&ports, ready, not_ready)).collect()
}

fn subset(ports: &[Port], ready: Vec<Value>, not_ready: Vec<Value>) -> Value {
    let mut out = json!({});
    for (key, mut addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
        if !addresses.is_empty() {
            addresses.sort_by_key(|a| text(a, "ip").to_owned());
            out[key] = addresses.into();
        }
    }
    if !ports.is_empty() {
        out["ports"] = ports.iter().map(port).collect();
    }
    out
}

fn port(port: &Port) -> Value {
    let mut out = json!({"port": port.port, "protocol": port.protocol});
    if !port.name.is_empty() {
        out["name"] = port.name.as_str().into();
    }
    if let Some(app) = &port.app_protocol {
        out["appProtocol"] = app.as_str().into();
    }
    out
}

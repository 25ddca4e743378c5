//! EndpointSlices of Endpoints that users write for Services without a selector, so that what reads slices sees them.
//!
//! As Kubernetes' endpointslicemirroring: labels and annotations go along, `endpointslice.kubernetes.io/skip-mirror` and records
//! of leader elections are left out. Endpoints of Services with a selector have slices of their own and wake nobody here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Map, Value, json};

use super::slice::{self, MANAGED_BY, SERVICE_NAME, Step, port_value, ports_of};
use super::{Context, Port, selector};
use crate::apimachinery::status::Result;
use crate::base::json::{list, text};
use crate::base::object::Object;
use crate::controllers::controller_reference;
use crate::kinds::core::{endpoints, service};
use crate::kinds::discovery::endpointslice;
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

const US: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const ELECTION: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations about the Endpoints object itself.
const OWN_ANNOTATIONS: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// Endpoints of one slice at most, as the API allows.
const SLICE_MAX: usize = 1000;

struct Mirror(Arc<Context>);

/// The controller; its keys are Endpoints.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let context = cx.clone();
    let written = move |c: &Changed| match selects(&context, &Key::of(&c.object)) {
        true => Vec::new(),
        false => vec![Key::of(&c.object)],
    };
    let services = |c: &Changed| {
        let selected = |o: &Arc<Object>| has_selector(o);
        let always = !c.deleted && selected(&c.object) && c.previous.as_ref().is_none_or(selected);
        if always { Vec::new() } else { vec![Key::of(&c.object)] }
    };
    let mirrored = |c: &Changed| match c.object.meta.labels.get(SERVICE_NAME) {
        Some(name) if c.object.meta.labels.get(MANAGED_BY).is_some_and(|m| **m == *US) => {
            vec![Key::new(&c.object.meta.namespace, name)]
        }
        _ => Vec::new(),
    };
    Controller::new("endpointslice-mirroring", Arc::new(Mirror(cx.clone())), cx.clock.clone())
        .watches(&*cx.client, &endpoints::KIND, Box::new(written))
        .watches(&*cx.client, &service::KIND, Box::new(services))
        .watches(&*cx.client, &endpointslice::KIND, Box::new(mirrored))
}

fn has_selector(service: &Object) -> bool {
    service.typed::<Service>().is_ok_and(|s| s.spec.as_ref().and_then(selector).is_some())
}

fn selects(cx: &Context, key: &Key) -> bool {
    cx.client.informer(&service::KIND).get(&key.namespace, &key.name).is_some_and(|s| has_selector(&s))
}

#[async_trait]
impl Reconciler for Mirror {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        let lives = |o: &Arc<Object>| o.meta.deleted.is_none();
        let service = client.informer(&service::KIND).get(&key.namespace, &key.name);
        let found = client.informer(&endpoints::KIND).get(&key.namespace, &key.name);
        let found = found.filter(|_| service.is_some_and(|s| !has_selector(&s))).filter(lives);
        let steps = plan(found.as_deref(), &slice::existing(&self.0, key, US));
        slice::apply(&self.0, &key.namespace, steps).await.map(|()| Outcome::Done)
    }
}

/// What makes the slices show the Endpoints; none of them where there is nothing to mirror.
pub(super) fn plan(endpoints: Option<&Object>, existing: &[Value]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut left: Vec<&Value> = existing.iter().collect();
    if let Some(object) = endpoints.filter(|o| is_for_mirrors(o)) {
        let value = object.value();
        let (labels, annotations) = marks(object, &value);
        for ((family, ports), endpoints) in groups(&value) {
            for part in endpoints.chunks(SLICE_MAX) {
                let fits = left.iter().position(|s| text(s, "addressType") == family && ports_of(s) == ports);
                match fits.map(|at| left.remove(at)) {
                    Some(old) => steps.extend(update(old, part, &labels, &annotations)),
                    None => steps.push(Step::Create(json!({
                        "addressType": family, "endpoints": part,
                        "ports": ports.iter().map(port_value).collect::<Vec<_>>(),
                        "metadata": {
                            "generateName": format!("{}-", object.meta.name), "labels": labels, "annotations": annotations,
                            "ownerReferences": [controller_reference(&endpoints::KIND, object)],
                        },
                    }))),
                }
            }
        }
    }
    steps.extend(left.iter().map(|s| Step::Delete(text(s, "metadata.name").to_owned())));
    steps
}

fn is_for_mirrors(object: &Object) -> bool {
    let skipped = object.meta.labels.get(SKIP).is_some_and(|v| **v == *"true");
    !skipped && object.value()["metadata"]["annotations"].get(ELECTION).is_none()
}

/// Labels and annotations of the slices.
fn marks(object: &Object, value: &Value) -> (Value, Map<String, Value>) {
    let mut labels: BTreeMap<&str, &str> = object.meta.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
    labels.extend([(SERVICE_NAME, &*object.meta.name), (MANAGED_BY, US)]);
    let mut annotations = value["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    (json!(labels), annotations)
}

/// The addresses of Endpoints by family and ports, in their order.
fn groups(endpoints: &Value) -> BTreeMap<(&'static str, BTreeSet<Port>), Vec<Value>> {
    let mut groups: BTreeMap<_, Vec<Value>> = BTreeMap::new();
    for subset in list(endpoints, "subsets") {
        let ports = ports_of(subset);
        for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in list(subset, key) {
                let Ok(ip) = text(address, "ip").parse::<IpAddr>() else { continue };
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                groups.entry((family, ports.clone())).or_default().push(endpoint(address, ip, ready));
            }
        }
    }
    groups
}

fn endpoint(address: &Value, ip: IpAddr, ready: bool) -> Value {
    let mut out = json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
    for key in ["targetRef", "nodeName", "hostname"] {
        if let Some(given) = address.get(key).filter(|v| !v.is_null() && **v != "") {
            out[key] = given.clone();
        }
    }
    out
}

/// The change of a slice, if there is one to make.
fn update(old: &Value, endpoints: &[Value], labels: &Value, annotations: &Map<String, Value>) -> Option<Step> {
    let empty = Map::new();
    let kept = old["metadata"]["annotations"].as_object().unwrap_or(&empty);
    if list(old, "endpoints") == endpoints && old["metadata"]["labels"] == *labels && kept == annotations {
        return None;
    }
    let mut new = old.clone();
    new["endpoints"] = endpoints.into();
    new["metadata"]["labels"] = labels.clone();
    new["metadata"]["annotations"] = annotations.clone().into();
    Some(Step::Update(text(old, "metadata.name").to_owned(), new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::base::clock::Clock;
    use crate::kinds::core::namespace;
    use crate::reconcile::{Client, Patch};
    use std::time::Duration;

    fn written(metadata: Value, subsets: Value) -> Object {
        let mut value = json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"}, "subsets": subsets});
        for (key, given) in metadata.as_object().unwrap() {
            value["metadata"][key] = given.clone();
        }
        Object::new("s".into(), 1, &value, Box::default())
    }

    #[test]
    fn slices_divide_by_ports_and_family_and_carry_the_marks() {
        let subsets = json!([{
            "addresses": [{"ip": "10.1.2.3", "hostname": "h", "nodeName": "node"}, {"ip": "fd00::1"}],
            "notReadyAddresses": [{"ip": "10.1.2.4", "targetRef": {"kind": "Pod", "name": "p"}}, {"ip": "nonsense"}],
            "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
        }]);
        let annotations = json!({"a": "1", OWN_ANNOTATIONS[1]: "{}"});
        let object =
            written(json!({"labels": {"l": "1", MANAGED_BY: "somebody"}, "annotations": annotations}), subsets);
        let steps = plan(Some(&object), &[]);
        let [Step::Create(four), Step::Create(six)] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!((text(four, "addressType"), text(six, "addressType")), ("IPv4", "IPv6"));
        assert_eq!(four["metadata"]["labels"], json!({"l": "1", SERVICE_NAME: "s", MANAGED_BY: US}));
        assert_eq!(four["metadata"]["annotations"], json!({"a": "1"}));
        assert_eq!(four["ports"], json!([{"name": "web", "port": 80, "protocol": "TCP"}]));
        let expect = json!([
            {"addresses": ["10.1.2.3"], "conditions": {"ready": true}, "hostname": "h", "nodeName": "node"},
            {"addresses": ["10.1.2.4"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "name": "p"}},
        ]);
        assert_eq!(four["endpoints"], expect);
    }

    #[test]
    fn what_is_mirrored_settles_and_what_is_not_goes() {
        let subsets =
            |ip: &str, port: i32| json!([{"addresses": [{"ip": ip}], "ports": [{"port": port, "protocol": "TCP"}]}]);
        let create = plan(Some(&written(json!({}), subsets("10.1.2.3", 80))), &[]);
        let [Step::Create(slice)] = &create[..] else { panic!("{create:?}") };
        let mut slice = slice.clone();
        slice["metadata"]["name"] = "s-1".into();
        let there = [slice];
        assert!(plan(Some(&written(json!({}), subsets("10.1.2.3", 80))), &there).is_empty());
        let moved = plan(Some(&written(json!({}), subsets("10.2.3.4", 80))), &there);
        assert!(matches!(&moved[..], [Step::Update(name, _)] if name == "s-1"), "{moved:?}");
        let other = plan(Some(&written(json!({}), subsets("10.2.3.4", 81))), &there);
        assert!(matches!(&other[..], [Step::Create(_), Step::Delete(_)]), "ports of a slice are for ever: {other:?}");
        for gone in [
            None,
            Some(written(json!({}), json!([]))),
            Some(written(json!({"labels": {SKIP: "true"}}), subsets("10.1.2.3", 80))),
            Some(written(json!({"annotations": {ELECTION: "{}"}}), subsets("10.1.2.3", 80))),
        ] {
            assert_eq!(plan(gone.as_ref(), &there), [Step::Delete("s-1".into())]);
        }
        let many: Vec<Value> = (0..1500).map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250)})).collect();
        assert_eq!(plan(Some(&written(json!({}), json!([{"addresses": many}]))), &[]).len(), 2);
    }

    #[tokio::test]
    async fn slices_follow_endpoints_and_the_service() {
        let api = in_memory::api();
        let client: Arc<dyn Client> = Arc::new(Local::new(api, "test"));
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        crate::controllers::start(client.clone(), Clock::system(), crate::controllers::Options::default());
        let slices = || {
            let all = client.informer(&endpointslice::KIND).list("n");
            let mirrored = all.iter().filter(|s| s.meta.labels.get(MANAGED_BY).is_some_and(|m| **m == *US));
            mirrored
                .map(|s| s.value()["endpoints"][0]["addresses"][0].as_str().unwrap_or("").to_owned())
                .collect::<Vec<_>>()
        };
        let until = async |what: &str, expect: &[&str]| {
            for _ in 0..500 {
                if slices() == expect {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never: {what}: {:?}", slices());
        };
        let spec = json!({"ports": [{"port": 80, "protocol": "TCP"}]});
        client.create(&service::KIND, "n", json!({"metadata": {"name": "s"}, "spec": spec})).await.unwrap();
        let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"port": 80, "protocol": "TCP"}]}]);
        let object = json!({"metadata": {"name": "s"}, "subsets": subsets("10.1.2.3")});
        client.create(&endpoints::KIND, "n", object.clone()).await.unwrap();
        until("it is mirrored", &["10.1.2.3"]).await;
        let patch = Patch::Merge(json!({"subsets": subsets("10.2.3.4")}));
        client.patch(&endpoints::KIND, "n", "s", None, patch).await.unwrap();
        until("the change is", &["10.2.3.4"]).await;
        let select = |selector: Value| Patch::Merge(json!({"spec": {"selector": selector}}));
        client.patch(&service::KIND, "n", "s", None, select(json!({"a": "b"}))).await.unwrap();
        until("a Service that selects has slices of its own", &[]).await;
        client.patch(&service::KIND, "n", "s", None, select(Value::Null)).await.unwrap();
        let patch = Patch::Merge(json!({"subsets": subsets("10.3.4.5")}));
        client.patch(&endpoints::KIND, "n", "s", None, patch).await.unwrap();
        until("and one that does no more is mirrored again", &["10.3.4.5"]).await;
        client
            .delete(&endpoints::KIND, "n", "s", crate::apimachinery::delete_options::DeleteOptions::default())
            .await
            .unwrap();
        until("what is deleted goes", &[]).await;
        let spec = json!({"ports": [{"port": 80, "protocol": "TCP"}], "selector": {}});
        client.create(&service::KIND, "n", json!({"metadata": {"name": "e"}, "spec": spec})).await.unwrap();
        let object = json!({"metadata": {"name": "e"}, "subsets": subsets("10.4.5.6")});
        client.create(&endpoints::KIND, "n", object).await.unwrap();
        until("an empty selector is none", &["10.4.5.6"]).await;
        let all = client.informer(&endpointslice::KIND).list("n");
        let of_e = all.iter().filter(|s| s.meta.labels.get(SERVICE_NAME).is_some_and(|n| **n == *"e"));
        assert_eq!(of_e.count(), 1, "and nobody else makes slices for it");
    }
}

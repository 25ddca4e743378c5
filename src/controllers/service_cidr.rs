//! Ranges of Service addresses are held while addresses of them alone are in use, and addresses are those of Services
//! (`k8s.io/kubernetes/pkg/controller/servicecidrs` and the repair loop of its allocator).
//!
//! Addresses come and go with Services in one write (`api::allocate`). What is mended here is what others did to the objects,
//! and what Services of an older build lack.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Context, absent_is_fine};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, text};
use crate::base::object::Object;
use crate::kinds::Subresource;
use crate::kinds::core::service;
use crate::kinds::networking::{ipaddress, servicecidr};
use crate::reconcile::{Changed, Controller, Key, Outcome, Patch, Reconciler};

/// How long a range is kept after it was to be deleted: a Service may just get an address of it.
const GRACE: Duration = Duration::from_secs(10);

struct Ranges(Arc<Context>);

struct Addresses(Arc<Context>);

/// The controller of ranges. What is a change for one of them may be for all.
pub fn ranges(cx: &Arc<Context>) -> Controller {
    let client = cx.client.clone();
    let held = move |_: &Changed| {
        let all = client.informer(&servicecidr::KIND).list("");
        all.iter().filter(|range| range.meta.deleted.is_some()).map(|range| Key::of(range)).collect()
    };
    let others = held.clone();
    Controller::new("service-cidr", Arc::new(Ranges(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &servicecidr::KIND)
        .watches(&*cx.client, &servicecidr::KIND, Box::new(others))
        .watches(&*cx.client, &ipaddress::KIND, Box::new(held))
}

/// The controller of addresses; its keys are Services.
pub fn addresses(cx: &Arc<Context>) -> Controller {
    let of = |c: &Changed| match ipaddress::service_of(&c.object.value()) {
        Some((namespace, name)) => vec![Key::new(namespace, name)],
        None => Vec::new(),
    };
    Controller::new("service-addresses", Arc::new(Addresses(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &service::KIND)
        .watches(&*cx.client, &ipaddress::KIND, Box::new(of))
}

/// The index key of an address: the Service that has it.
pub fn service_keys(address: &Object) -> Vec<String> {
    let value = address.value();
    let service = ipaddress::service_of(&value).filter(|_| ipaddress::is_allocated(&value));
    service.map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect()
}

#[async_trait]
impl Reconciler for Ranges {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let (client, kind) = (&self.0.client, &servicecidr::KIND);
        let Some(object) = client.informer(kind).get("", &key.name) else { return Ok(Outcome::Done) };
        let value = object.value();
        let is_held = list(&value, "metadata.finalizers").iter().any(|f| f == servicecidr::PROTECTION);
        let Some(deleted) = object.meta.deleted else {
            if !is_held {
                let patch = json!({"metadata": {"uid": &*object.meta.uid, "finalizers": [servicecidr::PROTECTION]}});
                absent_is_fine(client.patch(kind, "", &key.name, None, Patch::Strategic(patch)).await)?;
            }
            self.tell(&object, &value, ("True", "", "Kubernetes Service CIDR is ready")).await?;
            return Ok(Outcome::Done);
        };
        if !is_held {
            return Ok(Outcome::Done);
        }
        if self.is_needed(&key.name, &value) {
            let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            self.tell(&object, &value, ("False", "Terminating", why)).await?;
            return Ok(Outcome::Done);
        }
        let end = deleted + GRACE;
        if self.0.clock.now() < end {
            return Ok(Outcome::At(end));
        }
        let mut finalizers = list(&value, "metadata.finalizers").to_vec();
        finalizers.retain(|f| f != servicecidr::PROTECTION);
        let patch = json!({"metadata": {"uid": &*object.meta.uid, "resourceVersion": object.revision.to_string(),
            "finalizers": finalizers}});
        absent_is_fine(client.patch(kind, "", &key.name, None, Patch::Merge(patch)).await)?;
        Ok(Outcome::Done)
    }
}

impl Ranges {
    /// Whether a Service has an address that would be in no range without this one.
    fn is_needed(&self, name: &str, range: &Value) -> bool {
        let client = &self.0.client;
        let others: Vec<IpNet> = client
            .informer(&servicecidr::KIND)
            .list("")
            .iter()
            .filter(|other| *other.meta.name != *name)
            .flat_map(|other| nets(&other.value()))
            .collect();
        let own = nets(range);
        let addresses = client.informer(&ipaddress::KIND).list("");
        addresses.iter().any(|object| {
            let address: Option<IpAddr> = object.meta.name.parse().ok();
            let within = |nets: &[IpNet]| address.is_some_and(|a| nets.iter().any(|net| net.contains(&a)));
            within(&own) && !within(&others) && ipaddress::is_allocated(&object.value())
        })
    }

    async fn tell(&self, object: &Object, value: &Value, (status, reason, message): (&str, &str, &str)) -> Result<()> {
        let said = list(value, "status.conditions").iter().find(|c| text(c, "type") == "Ready");
        if said.is_some_and(|c| (text(c, "status"), text(c, "reason"), text(c, "message")) == (status, reason, message))
        {
            return Ok(());
        }
        let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": self.0.clock.now_text()});
        let patch = json!({"metadata": {"uid": &*object.meta.uid}, "status": {"conditions": [condition]}});
        let through = Some(Subresource::Status);
        let written = self.0.client.patch(&servicecidr::KIND, "", &object.meta.name, through, Patch::Strategic(patch));
        absent_is_fine(written.await)
    }
}

fn nets(range: &Value) -> Vec<IpNet> {
    servicecidr::ranges(range).filter_map(|(address, length)| IpNet::new(address, length).ok()).collect()
}

#[async_trait]
impl Reconciler for Addresses {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let (client, kind) = (&self.0.client, &ipaddress::KIND);
        let service = client.informer(&service::KIND).get(&key.namespace, &key.name).map(|o| o.value());
        let wanted: Vec<IpAddr> = service.as_ref().map(service::cluster_addresses).unwrap_or_default();
        for address in &wanted {
            if client.informer(kind).get("", &address.to_string()).is_none() {
                let object = ipaddress::of_service(*address, &key.namespace, &key.name);
                let made = client.create(kind, "", object).await;
                // It came with the Service meanwhile.
                made.map(drop).or_else(|status: Status| if status.code == 409 { Ok(()) } else { Err(status) })?;
            }
        }
        for object in self.0.service_addresses.get(&format!("{}/{}", key.namespace, key.name)) {
            if !wanted.iter().any(|address| address.to_string() == *object.meta.name) && object.meta.deleted.is_none() {
                let options = DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
                absent_is_fine(client.delete(kind, "", &object.meta.name, options).await)?;
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::base::clock::Clock;
    use crate::controllers::cluster::Cluster;
    use crate::controllers::{MANAGER, Options, start};
    use crate::kinds::core::namespace;
    use crate::reconcile::Client;

    async fn rest() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_range_is_held_while_services_have_addresses_of_it_alone() {
        // The clock that goes on while the test sleeps.
        let clock = Clock::simulated(Clock::system().now(), 1);
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let _tasks = start(client.clone(), clock, Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let kind = &servicecidr::KIND;
        let range = |name: &str, cidr: &str| json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
        client.create(kind, "", range("more", "10.196.0.0/24")).await.unwrap();
        rest().await;
        let found = |name: &str| client.informer(kind).get("", name).map(|o| o.value());
        let ready = |name: &str| {
            let condition = found(name).unwrap()["status"]["conditions"][0].clone();
            (text(&condition, "status").to_owned(), text(&condition, "reason").to_owned())
        };
        assert_eq!(list(&found("more").unwrap(), "metadata.finalizers"), [servicecidr::PROTECTION]);
        assert_eq!(ready("more"), ("True".into(), String::new()));
        let first = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.196.0.7", "ports": [{"port": 80}]}});
        client.create(&service::KIND, "n", first).await.unwrap();
        client.delete(kind, "", "more", DeleteOptions::default()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(ready("more"), ("False".into(), "Terminating".into()));
        let other =
            json!({"metadata": {"name": "other"}, "spec": {"clusterIP": "10.196.0.8", "ports": [{"port": 80}]}});
        let refused = client.create(&service::KIND, "n", other.clone()).await.unwrap_err();
        assert!(refused.message.contains("10.196.0.8"), "{refused}: nobody gets an address of it any more");
        client.create(kind, "", range("wider", "10.196.0.0/20")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(found("more").is_none(), "another one has its addresses");
        client.create(&service::KIND, "n", other).await.unwrap();
        client.delete(kind, "", "wider", DeleteOptions::default()).await.unwrap();
        for name in ["s", "other"] {
            client.delete(&service::KIND, "n", name, DeleteOptions::default()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(found("wider").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_services_come_back_and_those_of_none_go() {
        let cluster = Cluster::new(&service::KIND, "s", &[]).await;
        let (client, kind) = (&cluster.client, &ipaddress::KIND);
        cluster
            .create(json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}}))
            .await;
        let there = |name: &str| client.informer(kind).get("", name).is_some();
        assert!(there("10.43.0.7"), "with the Service itself");
        client.delete(kind, "", "10.43.0.7", DeleteOptions::default()).await.unwrap();
        rest().await;
        assert!(there("10.43.0.7"));
        let stray = ipaddress::of_service("10.43.0.9".parse().unwrap(), "n", "s");
        client.create(kind, "", stray).await.unwrap();
        let foreign = json!({"metadata": {"name": "10.43.0.10"}, "spec": {"parentRef": {"group": "example.com", "resource": "gateways", "name": "g"}}});
        client.create(kind, "", foreign).await.unwrap();
        rest().await;
        assert!(!there("10.43.0.9") && there("10.43.0.10"));
        cluster.patch(json!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": "", "clusterIPs": []}})).await;
        assert!(!there("10.43.0.7"), "with the address itself");
    }
}

//! What is used of each ResourceQuota.
//!
//! The API counts what comes when it comes; here everything is counted anew when a quota is new or changed, and when
//! something goes or takes less than before. A count is written only onto the quota it was begun with: the API notes each new
//! object on the quota in the same transaction, so that nothing which came meanwhile is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;

use super::{Context, absent_is_fine};
use crate::apimachinery::status::Result;
use crate::base::json::{at, map};
use crate::base::object::Object;
use crate::base::quantity::Quantity;
use crate::kinds::core::resourcequota::{self, amounts, usage};
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Changed, Client, Controller, Key, Outcome, Reconciler};

struct Quotas(Arc<Context>);

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let (client, clock) = (cx.client.clone(), cx.clock.clone());
    let released = move |c: &Changed| {
        let quotas = client.informer(&resourcequota::KIND).list(&c.object.meta.namespace);
        if quotas.is_empty() || !frees(&*client, c, clock.now()) {
            return Vec::new();
        }
        quotas.iter().map(|quota| Key::of(quota)).collect()
    };
    let uncounted = |c: &Changed| {
        let value = c.object.value();
        let counted = c.previous.is_some() && at(&value, "spec.hard") == at(&value, "status.hard");
        if c.deleted || counted { Vec::new() } else { vec![Key::of(&c.object)] }
    };
    Controller::new("resourcequota", Arc::new(Quotas(cx.clone())), cx.clock.clone())
        .watches(&*cx.client, &resourcequota::KIND, Box::new(uncounted))
        .watches_every(&cx.client, usage::is_counted, released)
}

/// Whether a change may leave less used than before.
fn frees(client: &dyn Client, c: &Changed, now: Timestamp) -> bool {
    let Some(previous) = c.previous.as_ref().filter(|_| !c.deleted) else { return c.deleted };
    let kinds = client.kinds().snapshot();
    let Some(kind) = kinds.by_key(&c.object.key).filter(|kind| usage::is_measured(kind)) else { return false };
    let ends = c.object.meta.deleted.is_some() && previous.meta.deleted.is_none();
    ends || usage::of(kind, &c.object.value(), now) != usage::of(kind, &previous.value(), now)
}

#[async_trait]
impl Reconciler for Quotas {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        // Read before what is counted: see above.
        let Some(quota) = client.informer(&resourcequota::KIND).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let value = quota.value();
        let (used, wake) = self.count(&quota, &value);
        let hard = at(&value, "spec.hard").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        let status = serde_json::json!({"hard": hard, "used": resourcequota::to_json(used)});
        if at(&value, "status") != Some(&status) {
            let mut value = value;
            value["status"] = status;
            let through = Some(Subresource::Status);
            absent_is_fine(client.update(&resourcequota::KIND, &key.namespace, &key.name, through, value).await)?;
        }
        Ok(wake.map_or(Outcome::Done, Outcome::At))
    }
}

// === impl Quotas ===

impl Quotas {
    /// What is used under each name of the quota that anything counts under, and when that changes by time alone.
    fn count<'q>(&self, quota: &Object, value: &'q Value) -> (BTreeMap<&'q str, Quantity>, Option<Timestamp>) {
        let (client, now) = (&self.0.client, self.0.clock.now());
        let names: Vec<&str> = map(value, "spec.hard").into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let none = Quantity::from_units(0);
        // What nothing counts under stays as somebody else wrote it.
        let old = amounts(value, "status.used");
        let mut used: BTreeMap<&str, Quantity> = names
            .iter()
            .filter_map(|name| Some((*name, if usage::is_known(name) { none } else { *old.get(name)? })))
            .collect();
        let mut wake: Option<Timestamp> = None;
        let kinds = client.kinds().snapshot();
        for kind in kinds.stored().filter(|kind| usage::is_counted(kind)) {
            let names: Vec<&str> = names.iter().copied().filter(|name| usage::concerns(kind, name)).collect();
            if names.is_empty() {
                continue;
            }
            used.extend(names.iter().map(|name| (*name, none)));
            for object in client.informer(kind).list(&quota.meta.namespace) {
                add(&mut used, &names, kind, value, &object, now);
                if let Some(end) = object.meta.deleted.and_then(|_| usage::pod_ends_at(&object.value()))
                    && end >= now
                {
                    let after = end + Duration::from_millis(1);
                    wake = Some(wake.map_or(after, |w| w.min(after)));
                }
            }
        }
        (used, wake)
    }
}

fn add<'q>(
    used: &mut BTreeMap<&'q str, Quantity>,
    names: &[&'q str],
    kind: &KindRef,
    quota: &Value,
    object: &Object,
    now: Timestamp,
) {
    let object = if usage::is_measured(kind) { object.value() } else { Value::Null };
    if !usage::matches(quota, kind, &object) {
        return;
    }
    let takes = usage::of(kind, &object, now);
    for name in names {
        if let (Some(sum), Some(amount)) = (used.get_mut(name), takes.get(*name)) {
            *sum = *sum + *amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::base::clock::Clock;
    use crate::controllers::{MANAGER, Options, start};
    use crate::kinds::core::{configmap, namespace, pod, service};
    use crate::reconcile::Patch;

    /// Waits until the quota shows this usage.
    async fn shows(client: &Arc<dyn Client>, used: Value) {
        let mut last = Value::Null;
        for _ in 0..500 {
            let quota = client.get(&resourcequota::KIND, "n", "q").await.unwrap().value();
            if quota["status"]["used"] == used && quota["status"]["hard"] == quota["spec"]["hard"] {
                return;
            }
            last = quota["status"].clone();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{last} is not {used}");
    }

    #[tokio::test]
    async fn what_is_there_is_counted_and_what_goes_is_given_back() {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let controllers = start(client.clone(), Clock::system(), Options::default());
        let make = async |kind: &'static KindRef, namespace: &str, value: Value| {
            client.create(kind, namespace, value).await.unwrap();
        };
        make(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await;
        let named = |name: &str| json!({"metadata": {"name": name}});
        make(&configmap::KIND, "n", named("c")).await;
        let hard = json!({"count/configmaps": "9", "pods": "2", "requests.cpu": "2", "services": "1", "example.com/x": "1",
            "persistentvolumeclaims": "1", "gold.storageclass.storage.k8s.io/requests.storage": "1"});
        make(&resourcequota::KIND, "n", json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
        let used = |maps: &str, pods: &str, cpu: &str, services: &str| {
            json!({"count/configmaps": maps, "pods": pods, "requests.cpu": cpu, "services": services,
                "persistentvolumeclaims": "0", "gold.storageclass.storage.k8s.io/requests.storage": "0"})
        };
        // The certificate authority of the cluster is in every namespace.
        shows(&client, used("2", "0", "0", "0")).await;
        make(&configmap::KIND, "n", named("d")).await;
        let spec = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "750m"}}}]});
        make(&pod::KIND, "n", json!({"metadata": {"name": "a"}, "spec": spec})).await;
        make(&pod::KIND, "n", json!({"metadata": {"name": "b"}, "spec": spec})).await;
        make(&service::KIND, "n", json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}]}})).await;
        shows(&client, used("3", "2", "1500m", "1")).await;
        client.delete(&configmap::KIND, "n", "c", Default::default()).await.unwrap();
        client.delete(&service::KIND, "n", "s", Default::default()).await.unwrap();
        let over = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        client.patch(&pod::KIND, "n", "a", Some(Subresource::Status), over).await.unwrap();
        shows(&client, used("2", "1", "750m", "0")).await;
        let less = Patch::Merge(json!({"spec": {"hard": {"pods": null}}}));
        client.patch(&resourcequota::KIND, "n", "q", None, less).await.unwrap();
        let mut want = used("2", "1", "750m", "0");
        want.as_object_mut().unwrap().remove("pods");
        shows(&client, want).await;
        controllers.iter().for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn a_scoped_quota_counts_only_pods_of_its_scope() {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let controllers = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let spec = json!({"hard": {"pods": "5", "count/configmaps": "5"}, "scopes": ["BestEffort"]});
        client.create(&resourcequota::KIND, "n", json!({"metadata": {"name": "q"}, "spec": spec})).await.unwrap();
        shows(&client, json!({"pods": "0", "count/configmaps": "0"})).await;
        for (name, resources) in [("a", json!({})), ("b", json!({"requests": {"cpu": "1"}}))] {
            let spec = json!({"containers": [{"name": "c", "image": "i", "resources": resources}]});
            client.create(&pod::KIND, "n", json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
        }
        shows(&client, json!({"pods": "1", "count/configmaps": "0"})).await;
        client.delete(&pod::KIND, "n", "b", Default::default()).await.unwrap();
        shows(&client, json!({"pods": "1", "count/configmaps": "0"})).await;
        controllers.iter().for_each(|task| task.abort());
    }
}

//! ResourceQuota: what is made in a namespace must fit into its quotas.
//!
//! It is the last of the chain, and what an object takes is written in one transaction with the object itself: a quota never
//! shows less than what is there, and nothing is taken by what was not made. Who writes under a quota takes turns.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::MutexGuard;

use super::{Operation, Review};
use crate::api::cache::Pending;
use crate::api::{Request, form};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{map, text};
use crate::base::object::{Draft, Object};
use crate::base::quantity::Quantity;
use crate::kinds::Subresource;
use crate::kinds::core::resourcequota::usage::{self, Usage};
use crate::kinds::core::resourcequota::{KIND, amounts, set_used};
use crate::kinds::core::{pod, service};
use crate::store::{self, Op};

/// Under whose name the API server itself notes what is used.
const MANAGER: &str = "kube-apiserver";

/// What is to be written beside an object so that the quotas of its namespace count it.
#[derive(Debug, Default)]
pub struct Charge<'a> {
    /// Held until it is written.
    _turn: Option<MutexGuard<'a, ()>>,
    /// The quotas as they were looked at.
    pub expect: Vec<(Arc<str>, u64)>,
    pub ops: Vec<Op>,
}

/// A quota that is about the object.
struct Concerned {
    object: Arc<Object>,
    value: Value,
    /// What the object takes beyond what it took.
    delta: Usage,
    /// It has names that are not counted yet: whoever counts them must learn of the object.
    uncounted: bool,
}

/// Whether quotas have anything to do with it.
fn handles(review: &Review<'_>) -> bool {
    let (request, kind) = (review.request, &review.request.kind);
    let counts = match (review.operation, request.subresource) {
        (Operation::Create, None) => usage::is_counted(kind),
        (Operation::Update, None) => *kind == service::KIND,
        (Operation::Update, Some(Subresource::Resize)) => *kind == pod::KIND,
        _ => false,
    };
    counts && !request.namespace.is_empty() && !review.api.cache.kind(&KIND).is_empty()
}

/// What the object takes of the quotas of its namespace, or why it does not fit.
pub(super) async fn charge<'a>(review: &Review<'a>, object: &Value) -> Result<Charge<'a>> {
    if !handles(review) {
        return Ok(Charge::default());
    }
    let (api, namespace) = (review.api, &review.request.namespace);
    let mut charge = Charge { _turn: Some(api.quota_turns.take(namespace).await), ..Charge::default() };
    let quotas = api.cache.kind(&KIND).list(&format!("{}{namespace}/", KIND.prefix()), "");
    for quota in concerned(review, object, quotas)? {
        let used = take(review, object, &quota)?;
        if used.is_none() && !quota.uncounted {
            continue;
        }
        let op = noted(review, &quota, used);
        charge.expect.push((op.key().clone(), quota.object.revision));
        charge.ops.push(op);
    }
    Ok(charge)
}

/// The quotas that are about the object, with what it takes of each.
fn concerned(review: &Review<'_>, object: &Value, quotas: Vec<Arc<Object>>) -> Result<Vec<Concerned>> {
    let (kind, now) = (&review.request.kind, review.api.clock.now());
    let takes = usage::of(kind, object, now);
    if let Some((name, _)) = takes.iter().find(|(_, amount)| amount.is_negative()) {
        return Err(refuse(review, object, format!("quota usage is negative for resource(s): {name}")));
    }
    let mut found = Vec::new();
    for quota in quotas {
        let value = quota.value();
        let names = |path: &str| -> Vec<String> {
            let all = map(&value, path).into_iter().flatten().map(|(name, _)| name);
            all.filter(|name| usage::concerns(kind, name)).cloned().collect()
        };
        let (counted, wanted) = (names("status.hard"), names("spec.hard"));
        if wanted.is_empty() && counted.is_empty() || !usage::matches(&value, kind, object) {
            continue;
        }
        let uncounted = wanted.iter().any(|name| !counted.contains(name));
        check(review, object, &value, &counted)?;
        let mut delta: Usage =
            takes.iter().filter(|(name, _)| counted.contains(name)).map(|(n, a)| (n.clone(), *a)).collect();
        if let Some(old) = review.old.filter(|old| usage::matches(&value, kind, old)) {
            let took = usage::of(kind, old, now);
            for (name, amount) in &mut delta {
                *amount = took.get(name).map_or(*amount, |before| *amount - *before);
            }
        }
        delta.retain(|_, amount| !amount.is_zero() && !amount.is_negative());
        found.push(Concerned { object: quota, value, delta, uncounted });
    }
    Ok(found)
}

/// The object must say what a quota counts, and the quota must have counted what is there.
fn check(review: &Review<'_>, object: &Value, quota: &Value, counted: &[String]) -> Result<()> {
    let name = text(quota, "metadata.name");
    if review.request.kind == pod::KIND {
        let open = usage::left_open(quota, object);
        if !open.is_empty() {
            return Err(refuse(review, object, format!("failed quota: {name}: must specify {open}")));
        }
    }
    let used = amounts(quota, "status.used");
    if counted.iter().any(|name| !used.contains_key(name.as_str())) {
        let names = counted.join(",");
        return Err(refuse(review, object, format!("status unknown for quota: {name}, resources: {names}")));
    }
    Ok(())
}

/// What is used of a quota with the object; `None` where it takes nothing of it.
fn take(review: &Review<'_>, object: &Value, quota: &Concerned) -> Result<Option<BTreeMap<String, Quantity>>> {
    if quota.delta.is_empty() {
        return Ok(None);
    }
    let (hard, used) = (amounts(&quota.value, "status.hard"), amounts(&quota.value, "status.used"));
    let mut new: BTreeMap<String, Quantity> = used.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect();
    let mut exceeded = Vec::new();
    for (name, amount) in &quota.delta {
        let sum = new.get(name).map_or(*amount, |used| *used + *amount);
        if hard.get(name.as_str()).is_some_and(|most| sum > *most) {
            exceeded.push(name.as_str());
        }
        new.insert(name.clone(), sum);
    }
    if exceeded.is_empty() {
        return Ok(Some(new));
    }
    let list = |get: &dyn Fn(&str) -> Option<Quantity>| {
        let all = exceeded.iter().filter_map(|name| Some(format!("{name}={}", get(name)?)));
        all.collect::<Vec<_>>().join(",")
    };
    let why = format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota.object.meta.name,
        list(&|name| quota.delta.get(name).copied()),
        list(&|name| used.get(name).copied()),
        list(&|name| hard.get(name).copied()),
    );
    Err(refuse(review, object, why))
}

/// The quota with what is used of it now; as it was where nothing is, so that who counts looks again.
fn noted(review: &Review<'_>, quota: &Concerned, used: Option<BTreeMap<String, Quantity>>) -> Op {
    let meta = &quota.object.meta;
    let request = Request::internal(MANAGER, &KIND, &meta.namespace, &meta.name).on(Subresource::Status);
    let mut value = quota.value.clone();
    if let Some(used) = used {
        set_used(&mut value, used.iter().map(|(name, amount)| (name.as_str(), *amount)));
        // There is one version.
        let _ = review.api.track(&request, Some(&quota.value), &mut value);
    }
    form::stored(&KIND, &mut value);
    let pending = Pending::new(Draft::new(request.key(), &value, KIND.field_values(&value)));
    let value = pending.draft.stored().clone();
    Op::Put { key: request.key(), value, payload: Some(pending as store::CommitPayload), volatile: false }
}

fn refuse(review: &Review<'_>, object: &Value, why: String) -> Status {
    Status::forbidden(&review.request.kind, text(object, "metadata.name"), why)
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use serde_json::json;

    use super::*;
    use crate::api::Api;
    use crate::api::in_memory::{self, pod_creator};
    use crate::api::write::Change;
    use crate::kinds::KindRef;
    use crate::kinds::core::resourcequota::to_json;

    async fn create(api: &Api, kind: &'static KindRef, value: Value) -> Result<Arc<Object>> {
        Ok(api.create(&Request::internal("test", kind, "n", ""), value).await?.object)
    }

    /// Makes a quota that has been counted: nothing is used of it.
    async fn quota(api: &Api, name: &str, hard: Value) {
        create(api, &KIND, json!({"metadata": {"name": name}, "spec": {"hard": hard}})).await.unwrap();
        let none = hard.as_object().unwrap().keys().map(|k| (k.as_str(), Quantity::from_units(0)));
        let status = json!({"hard": hard, "used": to_json(none)});
        let mut change = |live: &Value| {
            let mut new = live.clone();
            new["status"] = status.clone();
            Ok(new)
        };
        let request = Request::internal("test", &KIND, "n", name).on(Subresource::Status);
        api.update(&request, Change::Patch(&mut change)).await.unwrap();
    }

    fn used(api: &Api, name: &str) -> Value {
        api.cache.kind(&KIND).get(&KIND.key("n", name)).unwrap().value()["status"]["used"].clone()
    }

    #[tokio::test]
    async fn what_exceeds_a_quota_is_refused_and_takes_nothing() {
        let api = in_memory::api();
        let pod = pod_creator(&api, "n").await;
        quota(&api, "q", json!({"pods": "2", "requests.cpu": "1"})).await;
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        pod("a", cpu("600m")).await.unwrap();
        let refused = pod("b", cpu("500m")).await.unwrap_err();
        assert_eq!((refused.code, refused.reason), (403, "Forbidden"));
        let why = "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: \
                   requests.cpu=1";
        assert_eq!(refused.message, why);
        let refused = pod("b", json!({})).await.unwrap_err();
        assert_eq!(refused.message, "pods \"b\" is forbidden: failed quota: q: must specify requests.cpu for: c");
        assert_eq!(pod("a", cpu("100m")).await.unwrap_err().code, 409);
        assert_eq!(used(&api, "q"), json!({"pods": "1", "requests.cpu": "600m"}));
        pod("b", cpu("400m")).await.unwrap();
        assert_eq!(used(&api, "q"), json!({"pods": "2", "requests.cpu": "1"}));
    }

    #[tokio::test]
    async fn no_number_of_clients_at_once_gets_more_than_there_is() {
        let api = in_memory::api();
        let _ = pod_creator(&api, "n").await;
        quota(&api, "q", json!({"count/configmaps": "5"})).await;
        quota(&api, "r", json!({"configmaps": "7"})).await;
        let all = (0..30).map(|i| {
            create(&api, &crate::kinds::core::configmap::KIND, json!({"metadata": {"name": format!("c{i}")}}))
        });
        let made = join_all(all).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(made, 5);
        assert_eq!((used(&api, "q"), used(&api, "r")), (json!({"count/configmaps": "5"}), json!({"configmaps": "5"})));
    }

    #[tokio::test]
    async fn a_service_that_changes_its_type_takes_the_ports_it_will_have() {
        let api = in_memory::api();
        let _ = pod_creator(&api, "n").await;
        quota(&api, "q", json!({"services": "1", "services.nodeports": "1"})).await;
        let service = |of_type: &str, ports: &[i64]| {
            let ports: Vec<Value> = ports.iter().map(|p| json!({"name": format!("p{p}"), "port": p})).collect();
            json!({"metadata": {"name": "s"}, "spec": {"type": of_type, "ports": ports}})
        };
        create(&api, &service::KIND, service("ClusterIP", &[1, 2])).await.unwrap();
        assert_eq!(used(&api, "q"), json!({"services": "1", "services.nodeports": "0"}));
        let change = async |ports: &[i64]| {
            let wanted = service("NodePort", ports);
            let mut change = |live: &Value| {
                let mut new = live.clone();
                new["spec"]["type"] = "NodePort".into();
                new["spec"]["ports"] = wanted["spec"]["ports"].clone();
                Ok(new)
            };
            api.update(&Request::internal("test", &service::KIND, "n", "s"), Change::Patch(&mut change)).await
        };
        let refused = change(&[1, 2]).await.unwrap_err();
        assert!(refused.message.contains("requested: services.nodeports=2, used: services.nodeports=0"), "{refused}");
        change(&[1]).await.unwrap();
        assert_eq!(used(&api, "q"), json!({"services": "1", "services.nodeports": "1"}));
    }

    #[tokio::test]
    async fn what_is_made_while_a_quota_is_counted_for_the_first_time_is_told_to_who_counts() {
        let api = in_memory::api();
        let _ = pod_creator(&api, "n").await;
        create(&api, &KIND, json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5"}}})).await.unwrap();
        let revision = || api.cache.kind(&KIND).get(&KIND.key("n", "q")).unwrap().revision;
        let before = revision();
        create(&api, &crate::kinds::core::configmap::KIND, json!({"metadata": {"name": "c"}})).await.unwrap();
        assert!(revision() > before, "a count that began before is refused");
        let before = revision();
        create(&api, &crate::kinds::core::secret::KIND, json!({"metadata": {"name": "s"}})).await.unwrap();
        assert_eq!(revision(), before, "it is not about secrets");
    }

    #[tokio::test]
    async fn a_trial_is_held_against_the_quota_and_takes_nothing() {
        let api = in_memory::api();
        let _ = pod_creator(&api, "n").await;
        quota(&api, "q", json!({"secrets": "1"})).await;
        let secret = |name: &str| json!({"metadata": {"name": name}});
        let kind = &crate::kinds::core::secret::KIND;
        let trial = Request { dry_run: true, ..Request::internal("test", kind, "n", "") };
        api.create(&trial, secret("a")).await.unwrap();
        assert_eq!(used(&api, "q"), json!({"secrets": "0"}));
        create(&api, kind, secret("a")).await.unwrap();
        assert_eq!(api.create(&trial, secret("b")).await.unwrap_err().code, 403);
    }
}

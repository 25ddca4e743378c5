//! RuntimeClass: what a pod gets from the class that it names.

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{Plugin, Review};
use crate::api::Api;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, list, map, set, text};
use crate::base::object::Object;
use crate::base::quantity::Quantity;
use crate::kinds::core::pod;
use crate::kinds::node::runtimeclass;

pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&pod::KIND)
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        let class = class_of(review.api, pod).and_then(|class| match class {
            Some(class) => mutate(pod, &class.value()),
            None => Ok(()),
        });
        class.map_err(|why| Status::forbidden(&review.request.kind, text(pod, "metadata.name"), why))
    }

    async fn validate(&self, review: &Review<'_>, pod: &Value) -> Result<Vec<String>> {
        let valid = class_of(review.api, pod).and_then(|class| {
            let class = class.map(|class| class.value());
            match class.as_ref().and_then(overhead) {
                Some(_) if !has_overhead(pod, class.as_ref()) => Err(OTHER_OVERHEAD.to_owned()),
                None if !amounts(at(pod, "spec.overhead")).is_empty() => Err(OWN_OVERHEAD.to_owned()),
                _ => Ok(Vec::new()),
            }
        });
        valid.map_err(|why| Status::forbidden(&review.request.kind, text(pod, "metadata.name"), why))
    }
}

const OTHER_OVERHEAD: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const OWN_OVERHEAD: &str = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

/// The class that a pod names.
fn class_of(api: &Api, pod: &Value) -> Result<Option<std::sync::Arc<Object>>, String> {
    let Some(name) = at(pod, "spec.runtimeClassName").and_then(Value::as_str) else { return Ok(None) };
    let kind = &runtimeclass::KIND;
    let class = api.cache.kind(kind).get(&kind.key("", name));
    class.map(Some).ok_or_else(|| format!("pod rejected: RuntimeClass {name:?} not found"))
}

/// Gives a pod the overhead of its class, and what says on which nodes it may be.
fn mutate(pod: &mut Value, class: &Value) -> Result<(), String> {
    if let Some(amounts) = overhead(class) {
        if at(pod, "spec.overhead").is_some_and(|o| !o.is_null()) && !has_overhead(pod, Some(class)) {
            return Err(OTHER_OVERHEAD.to_owned());
        }
        set(pod, "spec.overhead", amounts.clone());
    }
    let Some(scheduling) = at(class, "scheduling").filter(|s| s.is_object()) else { return Ok(()) };
    let mut selector = map(pod, "spec.nodeSelector").cloned().unwrap_or_default();
    for (key, value) in map(scheduling, "nodeSelector").into_iter().flatten() {
        if let Some(own) = selector.get(key).filter(|own| *own != value) {
            let (own, value) = (own.as_str().unwrap_or(""), value.as_str().unwrap_or(""));
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
        selector.insert(key.clone(), value.clone());
    }
    if !selector.is_empty() {
        set(pod, "spec.nodeSelector", Value::Object(selector));
    }
    let merged = merged(list(pod, "spec.tolerations"), list(scheduling, "tolerations"));
    if !merged.is_empty() {
        set(pod, "spec.tolerations", Value::Array(merged));
    }
    Ok(())
}

fn overhead(class: &Value) -> Option<&Value> {
    at(class, "overhead.podFixed").filter(|o| o.is_object())
}

fn has_overhead(pod: &Value, class: Option<&Value>) -> bool {
    amounts(at(pod, "spec.overhead")) == amounts(class.and_then(overhead))
}

fn amounts(of: Option<&Value>) -> Vec<(&str, Option<Quantity>)> {
    let all: Option<&Map<String, Value>> = of.and_then(Value::as_object);
    let mut all: Vec<_> = all
        .into_iter()
        .flatten()
        .map(|(name, amount)| (name.as_str(), amount.as_str().and_then(|a| a.parse().ok())))
        .collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// All tolerations, without those that another one covers (`tolerations.MergeTolerations`).
fn merged(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut kept: Vec<&Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let is_covered = kept.iter().any(|other| covers(other, toleration))
            || all[i + 1..].iter().any(|other| other != toleration && covers(other, toleration));
        if !is_covered {
            kept.push(toleration);
        }
    }
    kept.into_iter().cloned().collect()
}

/// Whether everything that one toleration is for, another one is for too.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let of = |t: &Value, key: &str| text(t, key).to_owned();
    if wide == narrow {
        return true;
    }
    let every_key = of(wide, "key").is_empty() && of(wide, "operator") == "Exists";
    if of(wide, "key") != of(narrow, "key") && !every_key {
        return false;
    }
    if of(wide, "effect") != of(narrow, "effect") && !of(wide, "effect").is_empty() {
        return false;
    }
    if of(wide, "effect") == "NoExecute"
        && let Some(seconds) = wide["tolerationSeconds"].as_i64()
        && narrow["tolerationSeconds"].as_i64().is_none_or(|narrow| narrow > seconds)
    {
        return false;
    }
    let equal = |t: &Value| matches!(text(t, "operator"), "" | "Equal");
    match text(wide, "operator") {
        "Exists" => true,
        _ => equal(wide) && equal(narrow) && of(wide, "value") == of(narrow, "value"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::kinds::core::{namespace, serviceaccount};
    use crate::reconcile::Client;

    #[tokio::test]
    async fn a_pod_gets_the_overhead_and_the_nodes_of_its_runtime_class() {
        let client = Local::new(in_memory::api(), "test");
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "default"}})).await.unwrap();
        client.create(&serviceaccount::KIND, "default", json!({"metadata": {"name": "default"}})).await.unwrap();
        let class = json!({"metadata": {"name": "heavy"}, "handler": "amphipod",
            "overhead": {"podFixed": {"cpu": "250m", "memory": "120Mi"}},
            "scheduling": {"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "heavy", "operator": "Exists"}]}});
        client.create(&runtimeclass::KIND, "", class).await.unwrap();
        let create = async |name: &str, more: Value| {
            let mut spec = json!({"containers": [{"name": "c", "image": "i"}], "runtimeClassName": "heavy"});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let made = client.create(&pod::KIND, "default", json!({"metadata": {"name": name}, "spec": spec})).await;
            made.map(|pod| pod.value()).map_err(|status| (status.code, status.message))
        };
        let own = json!([{"key": "heavy", "operator": "Equal", "value": "x"}]);
        let made = create("a", json!({"nodeSelector": {"a": "b"}, "tolerations": own})).await.unwrap();
        assert_eq!(made["spec"]["overhead"], json!({"cpu": "250m", "memory": "120Mi"}));
        assert_eq!(made["spec"]["nodeSelector"], json!({"a": "b", "disk": "fast"}));
        let tolerations = list(&made, "spec.tolerations").iter().filter(|t| t["key"] == "heavy");
        assert_eq!(tolerations.collect::<Vec<_>>(), [&json!({"key": "heavy", "operator": "Exists"})], "the wider one");
        assert!(create("same", json!({"overhead": {"memory": "0.1171875Gi", "cpu": "0.25"}})).await.is_ok());
        let refused = async |more: Value| create("x", more).await.unwrap_err();
        let is = |why: &str| (403, format!("pods \"x\" is forbidden: {why}"));
        assert_eq!(refused(json!({"overhead": {"cpu": "1"}})).await, is(OTHER_OVERHEAD));
        assert_eq!(refused(json!({"runtimeClassName": null, "overhead": {"cpu": "1"}})).await, is(OWN_OVERHEAD));
        let not_found = is("pod rejected: RuntimeClass \"none\" not found");
        assert_eq!(refused(json!({"runtimeClassName": "none"})).await, not_found);
        let conflict =
            "conflict: runtimeClass.scheduling.nodeSelector[disk] = fast; pod.spec.nodeSelector[disk] = slow";
        assert_eq!(refused(json!({"nodeSelector": {"disk": "slow"}})).await, is(conflict));
        client.delete(&runtimeclass::KIND, "", "heavy", Default::default()).await.unwrap();
        assert_eq!(refused(json!({})).await, is("pod rejected: RuntimeClass \"heavy\" not found"));
    }

    #[test]
    fn a_toleration_that_another_one_covers_is_left_out() {
        let toleration = |key: &str, operator: &str, seconds: Option<i64>| json!({"key": key, "operator": operator, "effect": "NoExecute", "tolerationSeconds": seconds});
        let (short, long) = (toleration("a", "Exists", Some(5)), toleration("a", "Exists", Some(9)));
        assert_eq!(merged(&[short.clone()], &[long.clone()]), [long.clone()]);
        assert_eq!(merged(&[long.clone()], &[short.clone()]), [long.clone()]);
        assert_eq!(merged(&[short.clone()], &[short.clone()]), [short.clone()]);
        let other = toleration("b", "Exists", None);
        assert_eq!(merged(&[short.clone()], &[other.clone()]), [short.clone(), other.clone()]);
        let all = json!({"operator": "Exists"});
        assert_eq!(merged(&[short, long, other], &[all.clone()]), [all]);
    }
}

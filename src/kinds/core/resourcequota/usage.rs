//! What an object takes of a quota, as Kubernetes' quota evaluators count it.
//!
//! Every namespaced object counts as one under `count/<plural>[.<group>]`. Some kinds have older names beside that, and
//! pods, Services and claims count with more than their number.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::names::{COMPUTE, is_hugepages, is_standard};
use super::{amounts, scope};
use crate::base::clock::parse_time;
use crate::base::json::{at, flag, int, list, map, text};
use crate::base::quantity::Quantity;
use crate::kinds::KindRef;
use crate::kinds::core::podspec;

/// Amounts by the name that a quota has for them.
pub type Usage = BTreeMap<String, Quantity>;

/// Names of what is counted, besides `count/...`, by one each.
const ALIASES: &[&str] = &["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
const CLAIM_SUFFIXES: [&str; 2] =
    [".storageclass.storage.k8s.io/persistentvolumeclaims", ".storageclass.storage.k8s.io/requests.storage"];

/// Whether objects of a kind count at all: not what is only answered, and no events.
pub fn is_counted(kind: &KindRef) -> bool {
    kind.namespaced()
        && kind.is_stored()
        && !(kind.plural() == "events" && matches!(kind.group(), "" | "events.k8s.io"))
}

/// The name under which the number of a kind's objects counts.
fn count_name(kind: &KindRef) -> String {
    match kind.group() {
        "" => format!("count/{}", kind.plural()),
        group => format!("count/{}.{group}", kind.plural()),
    }
}

/// Whether a name of a quota is about objects of the kind.
pub fn concerns(kind: &KindRef, name: &str) -> bool {
    if name == count_name(kind) {
        return true;
    }
    if !kind.group().is_empty() {
        return false;
    }
    match kind.plural() {
        "pods" => name == "pods" || COMPUTE.contains(&name) || is_hugepages(name) || is_extended(name),
        "services" => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        "persistentvolumeclaims" => {
            matches!(name, "persistentvolumeclaims" | "requests.storage")
                || CLAIM_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        }
        plural => ALIASES.contains(&plural) && name == plural,
    }
}

/// Whether objects of the kind count with more than their number.
pub fn is_measured(kind: &KindRef) -> bool {
    kind.group().is_empty() && matches!(kind.plural(), "pods" | "services" | "persistentvolumeclaims")
}

/// Whether a name counts something also where there is none of it, or not even its kind.
pub fn is_known(name: &str) -> bool {
    is_standard(name) || is_extended(name) || CLAIM_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether the name is of resources that only their owners know, as quotas write it.
fn is_extended(name: &str) -> bool {
    name.strip_prefix("requests.").is_some_and(|rest| rest.contains('/') && podspec::is_extended(rest))
}

/// Whether the quota is about this object.
pub fn matches(quota: &Value, kind: &KindRef, object: &Value) -> bool {
    match (scope::is_scoped(quota), kind.group(), kind.plural()) {
        (false, ..) => true,
        (true, "", "pods") => scope::has_pod(quota, object),
        (true, "", "persistentvolumeclaims") => scope::has_claim(quota, object),
        _ => false,
    }
}

/// What an object takes now.
pub fn of(kind: &KindRef, object: &Value, now: Timestamp) -> Usage {
    let one = || Quantity::from_units(1);
    let mut usage = Usage::from([(count_name(kind), one())]);
    if !kind.group().is_empty() {
        return usage;
    }
    match kind.plural() {
        "pods" if lasts(object) && pod_ends_at(object).is_none_or(|end| now <= end) => add_pod(&mut usage, object),
        "services" => add_service(&mut usage, object),
        "persistentvolumeclaims" => add_claim(&mut usage, object),
        plural if ALIASES.contains(&plural) => {
            usage.insert(plural.to_owned(), one());
        }
        _ => {}
    }
    usage
}

/// When a pod that is being deleted stops to count, whether it is gone then or not.
pub fn pod_ends_at(pod: &Value) -> Option<Timestamp> {
    let grace = int(pod, "metadata.deletionGracePeriodSeconds")?;
    Some(parse_time(text(pod, "metadata.deletionTimestamp"))? + Duration::from_secs(grace.max(0) as u64))
}

/// Whether a pod has not ended for good.
fn lasts(pod: &Value) -> bool {
    !matches!(text(pod, "status.phase"), "Succeeded" | "Failed")
}

fn add_pod(usage: &mut Usage, pod: &Value) {
    usage.insert("pods".to_owned(), Quantity::from_units(1));
    for (name, amount) in podspec::resources_of_pod(pod, "requests") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(format!("requests.{name}"), amount);
            usage.insert(name, amount);
        } else if podspec::is_extended(&name) {
            usage.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in podspec::resources_of_pod(pod, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
}

fn add_service(usage: &mut Usage, service: &Value) {
    let ports = list(service, "spec.ports");
    // Ports are given out later, so what counts is how many will be.
    let chosen = at(service, "spec.allocateLoadBalancerNodePorts").is_some()
        && !flag(service, "spec.allocateLoadBalancerNodePorts");
    let (balancers, node_ports) = match text(service, "spec.type") {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" if chosen => (1, ports.iter().filter(|p| int(p, "nodePort").unwrap_or(0) != 0).count()),
        "LoadBalancer" => (1, ports.len()),
        _ => (0, 0),
    };
    for (name, number) in
        [("services", 1), ("services.loadbalancers", balancers), ("services.nodeports", node_ports as i64)]
    {
        usage.insert(name.to_owned(), Quantity::from_units(number));
    }
}

fn add_claim(usage: &mut Usage, claim: &Value) {
    let size = text(claim, "spec.resources.requests.storage").parse().ok();
    let class = text(claim, "spec.storageClassName");
    usage.insert("persistentvolumeclaims".to_owned(), Quantity::from_units(1));
    usage.extend(size.map(|size: Quantity| ("requests.storage".to_owned(), size)));
    if !class.is_empty() {
        let [count, storage] = CLAIM_SUFFIXES.map(|suffix| format!("{class}{suffix}"));
        usage.insert(count, Quantity::from_units(1));
        usage.extend(size.map(|size| (storage, size)));
    }
}

/// Resources that a quota makes every container of a pod name; others may be left out.
const REQUIRED: &[&str] = &["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// What of the quota's names the containers of a pod leave open, as `requests.cpu for: a,b`; empty where nothing.
pub fn left_open(quota: &Value, pod: &Value) -> String {
    let mut missing = Vec::new();
    for name in amounts(quota, "status.hard").into_keys().filter(|name| REQUIRED.contains(name)) {
        let (which, resource) = match name.split_once('.') {
            Some((which, resource)) => (which, resource),
            None => ("requests", name),
        };
        let says = |v: &Value| map(v, &format!("resources.{which}")).is_some_and(|m| m.contains_key(resource));
        if pod.get("spec").is_some_and(says) {
            continue;
        }
        let containers = list(pod, "spec.containers").iter().chain(list(pod, "spec.initContainers"));
        let mut names: Vec<&str> = containers.filter(|c| !says(c)).map(|c| text(c, "name")).collect();
        names.sort_unstable();
        if !names.is_empty() {
            missing.push(format!("{name} for: {}", names.join(",")));
        }
    }
    missing.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::core::{configmap, pod, service};
    use crate::kinds::{apps, coordination};

    fn shown(kind: &KindRef, object: &Value) -> Value {
        let usage = of(kind, object, "2026-01-01T00:00:30Z".parse().unwrap());
        super::super::to_json(usage.iter().map(|(name, amount)| (name.as_str(), *amount)))
    }

    #[test]
    fn pods_count_with_what_they_ask_for_until_they_have_ended() {
        let mut pod = json!({"spec": {"containers": [{"resources": {
            "requests": {"cpu": "1", "hugepages-2Mi": "2Mi", "a.b/c": "3"}, "limits": {"memory": "1Gi", "a.b/c": "3"},
        }}]}});
        let all = json!({
            "count/pods": "1", "pods": "1", "cpu": "1", "requests.cpu": "1", "limits.memory": "1Gi",
            "hugepages-2Mi": "2Mi", "requests.hugepages-2Mi": "2Mi", "requests.a.b/c": "3",
        });
        assert_eq!(shown(&pod::KIND, &pod), all);
        for name in all.as_object().unwrap().keys() {
            assert!(concerns(&pod::KIND, name), "{name}");
        }
        pod["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:25Z", "deletionGracePeriodSeconds": 5});
        assert_eq!(shown(&pod::KIND, &pod), all);
        pod["metadata"]["deletionGracePeriodSeconds"] = 4.into();
        assert_eq!(shown(&pod::KIND, &pod), json!({"count/pods": "1"}));
        assert_eq!(shown(&pod::KIND, &json!({"status": {"phase": "Failed"}})), json!({"count/pods": "1"}));
    }

    #[test]
    fn services_count_with_the_ports_they_will_get() {
        let mut service =
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]}});
        let counts = |service: &Value| {
            let all = shown(&service::KIND, service);
            ["services", "services.loadbalancers", "services.nodeports"].map(|n| all[n].as_str().unwrap().to_owned())
        };
        assert_eq!(counts(&service), ["1", "1", "2"]);
        service["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        assert_eq!(counts(&service), ["1", "1", "1"]);
        service["spec"]["type"] = "NodePort".into();
        assert_eq!(counts(&service), ["1", "0", "2"]);
        service["spec"]["type"] = "ClusterIP".into();
        assert_eq!(counts(&service), ["1", "0", "0"]);
    }

    #[test]
    fn everything_counts_by_its_number_and_only_under_its_own_names() {
        let deployment = &apps::deployment::KIND;
        assert_eq!(shown(deployment, &json!({})), json!({"count/deployments.apps": "1"}));
        assert_eq!(shown(&configmap::KIND, &json!({})), json!({"count/configmaps": "1", "configmaps": "1"}));
        assert!(concerns(deployment, "count/deployments.apps") && !concerns(deployment, "count/deployments"));
        assert!(!concerns(&configmap::KIND, "secrets") && !concerns(&coordination::lease::KIND, "leases"));
        assert!(is_counted(deployment) && !is_counted(&crate::kinds::core::event::KIND));
        assert!(!is_counted(&crate::kinds::events::event::KIND) && !is_counted(&crate::kinds::core::node::KIND));
    }

    #[test]
    fn claims_count_by_class_too() {
        let mut usage = Usage::new();
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "2Gi"}}}});
        add_claim(&mut usage, &claim);
        let names: Vec<&str> = usage.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims",
                "gold.storageclass.storage.k8s.io/requests.storage",
                "persistentvolumeclaims",
                "requests.storage",
            ]
        );
    }

    #[test]
    fn a_quota_of_processors_wants_every_container_to_name_them() {
        let quota = json!({"status": {"hard": {"cpu": "1", "limits.memory": "1", "requests.ephemeral-storage": "1"}}});
        let full = json!({"requests": {"cpu": "1"}, "limits": {"memory": "1"}});
        let mut pod = json!({"spec": {
            "containers": [{"name": "b", "resources": full}, {"name": "a"}], "initContainers": [{"name": "i"}],
        }});
        assert_eq!(left_open(&quota, &pod), "cpu for: a,i; limits.memory for: a,i");
        pod["spec"]["resources"] = full;
        assert_eq!(left_open(&quota, &pod), "");
    }
}

//! LimitRanger: a namespace's LimitRanges fill in what a pod's containers leave out, and refuse what is too little or too much.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{Operation, Plugin, Review};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, list, list_mut, map, map_mut, text};
use crate::base::quantity::Quantity;
use crate::kinds::Subresource;
use crate::kinds::core::{limitrange, persistentvolumeclaim, pod, podspec};

/// Where a pod says what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    fn handles(&self, review: &Review<'_>) -> bool {
        let request = review.request;
        let resizes = request.subresource == Some(Subresource::Resize) && review.operation == Operation::Update;
        let is_pod = request.kind == pod::KIND && (review.creates(&pod::KIND) || resizes);
        (is_pod || review.writes(&persistentvolumeclaim::KIND)) && !review.api.cache.kind(&limitrange::KIND).is_empty()
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        if !is_ending(review) && review.request.kind == pod::KIND {
            ranges(review).iter().for_each(|range| fill_in(pod, range));
        }
        Ok(())
    }

    async fn validate(&self, review: &Review<'_>, pod: &Value) -> Result<Vec<String>> {
        if is_ending(review) {
            return Ok(Vec::new());
        }
        for range in ranges(review) {
            let violations = match review.request.kind == pod::KIND {
                true => violations(&range, pod),
                false => claim_violations(&range, pod),
            };
            let why = match violations.as_slice() {
                [] => continue,
                [one] => one.clone(),
                all => format!("[{}]", all.join(", ")),
            };
            return Err(Status::forbidden(&review.request.kind, text(pod, "metadata.name"), why));
        }
        Ok(Vec::new())
    }
}

/// Nothing is asked of what is being deleted.
fn is_ending(review: &Review<'_>) -> bool {
    review.old.is_some_and(|old| at(old, "metadata.deletionTimestamp").is_some())
}

fn ranges(review: &Review<'_>) -> Vec<Value> {
    let kind = &limitrange::KIND;
    let prefix = format!("{}{}/", kind.prefix(), review.request.namespace);
    review.api.cache.kind(kind).list(&prefix, "").iter().map(|range| range.value()).collect()
}

/// The items of a range that are about containers, or pods.
fn items<'r>(range: &'r Value, of_type: &'static str) -> impl Iterator<Item = &'r Value> {
    list(range, "spec.limits").iter().filter(move |item| text(item, "type") == of_type)
}

/// Gives the containers what they have not said, and says so in an annotation.
fn fill_in(pod: &mut Value, range: &Value) {
    let mut defaults: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for item in items(range, "Container") {
        for (which, from) in [("limits", "default"), ("requests", "defaultRequest")] {
            let amounts = map(item, from).into_iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
            defaults.entry(which).or_default().extend(amounts);
        }
    }
    let mut told = Vec::new();
    for (group, words) in [("spec.containers", "container"), ("spec.initContainers", "init container")] {
        for container in list_mut(pod, group).into_iter().flatten() {
            for (which, word) in [("requests", "request"), ("limits", "limit")] {
                let new: Map<String, Value> = {
                    let has = map(container, &format!("resources.{which}"));
                    let missing = |name: &String| has.is_none_or(|m| !m.contains_key(name));
                    let all = defaults.get(which).into_iter().flatten();
                    all.filter(|(name, _)| missing(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
                };
                if new.is_empty() {
                    continue;
                }
                let mut names: Vec<&str> = new.keys().map(String::as_str).collect();
                names.sort_unstable();
                told.push(format!("{} {word} for {words} {}", names.join(", "), text(container, "name")));
                map_mut(container, &format!("resources.{which}")).extend(new);
            }
        }
    }
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        map_mut(pod, "metadata.annotations").insert(ANNOTATION.to_owned(), text.into());
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: &Value, path: &str) -> Amounts {
    let given = map(value, path).into_iter().flatten();
    given.filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?))).collect()
}

/// Why a range refuses a pod: all reasons.
fn violations(range: &Value, pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for item in list(range, "spec.limits") {
        match text(item, "type") {
            "Container" => {
                for container in list(pod, "spec.containers").iter().chain(list(pod, "spec.initContainers")) {
                    let [requests, limits] =
                        ["requests", "limits"].map(|w| amounts(container, &format!("resources.{w}")));
                    hold(&mut found, item, &requests, &limits);
                }
            }
            "Pod" => {
                let [requests, limits] = ["requests", "limits"].map(|which| podspec::resources_of_pod(pod, which));
                hold(&mut found, item, &requests, &limits);
            }
            _ => {}
        }
    }
    // A reason that holds for several containers is told once.
    let mut told = std::collections::HashSet::new();
    found.retain(|why| told.insert(why.clone()));
    found
}

/// Why a range refuses a claim: all reasons.
fn claim_violations(range: &Value, claim: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let requests = amounts(claim, "spec.resources.requests");
    for item in items(range, "PersistentVolumeClaim") {
        for (list, words, is_outside) in
            [("min", "minimum", Quantity::lt as fn(&Quantity, &Quantity) -> bool), ("max", "maximum", Quantity::gt)]
        {
            for (name, bound) in amounts(item, list) {
                let told = format!("{words} {name} usage per PersistentVolumeClaim is {bound}");
                match requests.get(&name) {
                    None => found.push(format!("{told}.  No request is specified")),
                    Some(request) if is_outside(request, &bound) => {
                        found.push(format!("{told}, but request is {request}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    found
}

/// Holds one item's bounds against what is asked for.
fn hold(found: &mut Vec<String>, item: &Value, requests: &Amounts, limits: &Amounts) {
    let of = text(item, "type");
    for (name, least) in amounts(item, "min") {
        let bound = format!("minimum {name} usage per {of} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => found.push(format!("{bound}.  No request is specified")),
            (Some(request), _) if *request < least => found.push(format!("{bound}, but request is {request}")),
            (_, Some(limit)) if *limit < least => found.push(format!("{bound}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, most) in amounts(item, "max") {
        let bound = format!("maximum {name} usage per {of} is {most}");
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => found.push(format!("{bound}.  No limit is specified")),
            (Some(limit), _) if *limit > most => found.push(format!("{bound}, but limit is {limit}")),
            (_, Some(request)) if *request > most => found.push(format!("{bound}, but request is {request}")),
            _ => {}
        }
    }
    for (name, most) in amounts(item, "maxLimitRequestRatio") {
        let bound = format!("{name} max limit to request ratio per {of} is {most}");
        let some = |all: &Amounts| all.get(&name).filter(|q| !q.is_zero()).map(Quantity::as_f64);
        let why = match (some(requests), some(limits)) {
            (None, _) => "no request is specified or request is 0".to_owned(),
            (_, None) => "no limit is specified or limit is 0".to_owned(),
            (Some(request), Some(limit)) if limit / request > most.as_f64() => {
                format!("provided ratio is {:.6}", limit / request)
            }
            _ => continue,
        };
        found.push(format!("{bound}, but {why}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Request;
    use crate::api::in_memory::{self, pod_creator};

    fn range(items: Value) -> Value {
        json!({"metadata": {"name": "l"}, "spec": {"limits": items}})
    }

    #[test]
    fn what_is_left_out_is_filled_in_and_told() {
        let items =
            json!([{"type": "Container", "default": {"cpu": "2", "memory": "1Gi"}, "defaultRequest": {"cpu": "1"}}]);
        let mut pod = json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "5m"}}}],
            "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "3", "memory": "1"}}}],
        }});
        fill_in(&mut pod, &range(items));
        let resources = |group: &str, i: usize| pod["spec"][group][i]["resources"].clone();
        assert_eq!(
            resources("containers", 0),
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}})
        );
        assert_eq!(resources("containers", 1)["requests"], json!({"cpu": "5m"}));
        assert_eq!(resources("initContainers", 0)["limits"], json!({"cpu": "3", "memory": "1"}));
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; cpu, memory limit for \
             container b; cpu request for init container i"
        );
        let before = pod.clone();
        fill_in(&mut pod, &range(json!([{"type": "Pod", "max": {"cpu": "1"}}])));
        assert_eq!(pod, before, "what is about pods as a whole fills in nothing");
    }

    #[test]
    fn bounds_hold_for_containers_and_for_whole_pods() {
        let container = |cpu: (&str, &str)| {
            let one = |amount: &str| if amount.is_empty() { json!({}) } else { json!({"cpu": amount}) };
            json!({"name": "c", "resources": {"requests": one(cpu.0), "limits": one(cpu.1)}})
        };
        let check = |item: Value, containers: &[Value]| {
            violations(&range(json!([item])), &json!({"spec": {"containers": containers}}))
        };
        let min = json!({"type": "Container", "min": {"cpu": "100m"}});
        let max = json!({"type": "Container", "max": {"cpu": "1"}});
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        for (item, cpu, want) in [
            (&min, ("", ""), "minimum cpu usage per Container is 100m.  No request is specified"),
            (&min, ("50m", ""), "minimum cpu usage per Container is 100m, but request is 50m"),
            (&min, ("100m", ""), ""),
            (&max, ("", ""), "maximum cpu usage per Container is 1.  No limit is specified"),
            (&max, ("", "1500m"), "maximum cpu usage per Container is 1, but limit is 1500m"),
            (&max, ("1", "1"), ""),
            (
                &ratio,
                ("100m", "300m"),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                &ratio,
                ("", "1"),
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
            (&ratio, ("1", "2"), ""),
        ] {
            let want = if want.is_empty() { vec![] } else { vec![want.to_owned()] };
            assert_eq!(check(item.clone(), &[container(cpu)]), want);
        }
        let pod = json!({"type": "Pod", "max": {"cpu": "1"}});
        let half = || container(("600m", "600m"));
        assert!(check(pod.clone(), &[half()]).is_empty());
        assert_eq!(check(pod, &[half(), half()]), ["maximum cpu usage per Pod is 1, but limit is 1200m"]);
        assert_eq!(check(max, &[container(("", "2")), container(("", "2"))]).len(), 1, "told once");
    }

    #[tokio::test]
    async fn a_pod_gets_the_defaults_of_its_namespace_and_one_that_asks_too_much_is_refused() {
        let api = in_memory::api();
        let create = pod_creator(&api, "n").await;
        let item = json!([{"type": "Container", "max": {"cpu": "1"}, "defaultRequest": {"cpu": "500m"}}]);
        let request = Request::internal("test", &limitrange::KIND, "n", "");
        api.create(&request, range(item)).await.unwrap();
        let made = create("a", json!({})).await.unwrap();
        assert_eq!(
            made["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}})
        );
        assert_eq!(made["status"]["qosClass"], "Burstable");
        let refused = create("b", json!({"limits": {"cpu": "2"}})).await.unwrap_err();
        assert_eq!((refused.code, refused.reason), (403, "Forbidden"));
        assert_eq!(refused.message, "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2");
    }
}

//! What must hold when nothing moves any more: what is asked for is there, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use amphipod::api::cache;
use amphipod::kinds;
use amphipod::store::Store;
use serde_json::Value;

use crate::checkers::{has_condition, is_available, uid_of};
use crate::world::World;

pub fn check(world: &World) {
    let mut wrong = cache_is_store(world);
    wrong.extend(world.followers.iter().flat_map(|f| f.compare(&*world.store)));
    {
        let checkers = world.checkers.lock().unwrap();
        let objects = &checkers.objects;
        wrong.extend(owners_live(objects));
        wrong.extend(namespaces_live(objects));
        wrong.extend(pods_run(objects));
        wrong.extend(services_lead_to_pods(objects));
        for (key, job) in of(objects, "/batch/jobs/") {
            if !has_condition(job, "Complete", "True") && !has_condition(job, "Failed", "True") {
                wrong.push(format!("{key} has not ended: {}", job["status"]));
            }
            wrong.extend(checkers.miscounted(job).map(|why| format!("{key} {why}")));
        }
        for (key, d) in of(objects, "/apps/deployments/") {
            let wanted = d["spec"]["replicas"].as_i64().unwrap_or(1);
            let counted = checkers.count(&uid_of(d));
            if counted != (wanted, wanted) {
                wrong.push(format!("{key} wants {wanted} and has {counted:?} (pods, available)"));
            }
            wrong.extend(deployment_says_so(key, d, wanted));
        }
    }
    let mut checkers = world.checkers.lock().unwrap();
    wrong.into_iter().for_each(|w| checkers.violate(format!("at rest: {w}")));
}

fn of<'a>(objects: &'a BTreeMap<String, Value>, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    objects.iter().filter(move |(k, _)| k.starts_with(prefix))
}

fn cache_is_store(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for kind in kinds::registry::builtin().stored() {
        let prefix = kind.prefix();
        let stored = world.store.range(&prefix, 0, "", 0).unwrap().entries.into_iter();
        let decoded = stored.map(|e| cache::decode(kind, e.key, e.value, e.revision).unwrap());
        let stored: Vec<_> = decoded.map(|o| (o.key.clone(), o.revision, o.body().clone(), o.meta)).collect();
        let cached = world.api.cache.kind(kind).list(&prefix, "");
        let cached: Vec<_> =
            cached.iter().map(|o| (o.key.clone(), o.revision, o.body().clone(), o.meta.clone())).collect();
        if stored != cached {
            wrong.push(format!("the cache of {prefix} is not the store"));
        }
    }
    wrong
}

fn owners_live(objects: &BTreeMap<String, Value>) -> Vec<String> {
    let uids: BTreeSet<String> = objects.values().map(uid_of).collect();
    let mut wrong = Vec::new();
    for (key, object) in objects {
        let owners = object["metadata"]["ownerReferences"].as_array();
        for owner in owners.into_iter().flatten() {
            if !uids.contains(owner["uid"].as_str().unwrap_or("")) {
                wrong.push(format!("{key} names the owner {} that is gone", owner["name"]));
            }
        }
        if !object["metadata"]["deletionTimestamp"].is_null() {
            wrong.push(format!("{key} has not ended"));
        }
    }
    wrong
}

fn namespaces_live(objects: &BTreeMap<String, Value>) -> Vec<String> {
    let lost = objects.iter().filter_map(|(key, o)| {
        let namespace = o["metadata"]["namespace"].as_str()?;
        let there = objects.contains_key(&format!("/core/namespaces/{namespace}"));
        (!there).then(|| format!("{key} is in a namespace that is gone"))
    });
    lost.collect()
}

fn pods_run(objects: &BTreeMap<String, Value>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (key, pod) in of(objects, "/core/pods/") {
        // What was there to run once has run, and is kept to be looked at.
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            continue;
        }
        let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
        if !objects.contains_key(&format!("/core/nodes/{node}")) {
            wrong.push(format!("{key} is on the node {node:?} that is not there"));
        } else if !is_available(pod) {
            wrong.push(format!("{key} does not run: {}", pod["status"]));
        }
    }
    let taints =
        of(objects, "/core/nodes/").filter(|(_, n)| n["spec"]["taints"].as_array().is_some_and(|t| !t.is_empty()));
    wrong.extend(taints.map(|(key, n)| format!("{key} still has taints {}", n["spec"]["taints"])));
    wrong
}

fn deployment_says_so(key: &str, d: &Value, wanted: i64) -> Vec<String> {
    let status = &d["status"];
    let count = |k: &str| status[k].as_i64().unwrap_or(0);
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"].map(count);
    let seen = count("observedGeneration") == d["metadata"]["generation"].as_i64().unwrap_or(0);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let reason = conditions.iter().find(|c| c["type"] == "Progressing").map(|c| c["reason"].clone());
    let complete = reason == Some("NewReplicaSetAvailable".into());
    match counts == [wanted; 4] && count("unavailableReplicas") == 0 && seen && complete {
        true => Vec::new(),
        false => vec![format!("{key} wants {wanted} and says {status}")],
    }
}

fn services_lead_to_pods(objects: &BTreeMap<String, Value>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (key, service) in of(objects, "/core/services/") {
        let Some(selector) = service["spec"]["selector"].as_object() else { continue };
        let namespace = service["metadata"]["namespace"].as_str().unwrap_or("");
        let prefix = format!("/core/pods/{namespace}/");
        let selected =
            of(objects, &prefix).filter(|(_, p)| selector.iter().all(|(k, v)| p["metadata"]["labels"][k] == *v));
        let pods: BTreeSet<String> =
            selected.map(|(_, p)| p["status"]["podIP"].as_str().unwrap_or("").to_owned()).collect();
        let slices = format!("/discovery.k8s.io/endpointslices/{namespace}/");
        let mine = of(objects, &slices)
            .filter(|(_, s)| s["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]);
        let all = mine.flat_map(|(_, s)| s["endpoints"].as_array().cloned().unwrap_or_default());
        let ready = all.filter(|e| e["conditions"]["ready"] == true);
        let shown: BTreeSet<String> = ready.map(|e| e["addresses"][0].as_str().unwrap_or("").to_owned()).collect();
        let classic = objects.get(&key.replace("/core/services/", "/core/endpoints/"));
        let subsets = classic.and_then(|e| e["subsets"].as_array().cloned()).unwrap_or_default();
        let addresses = subsets.iter().flat_map(|s| s["addresses"].as_array().cloned().unwrap_or_default());
        let old: BTreeSet<String> = addresses.map(|a| a["ip"].as_str().unwrap_or("").to_owned()).collect();
        if pods != shown || pods != old {
            wrong.push(format!("{key} should lead to {pods:?}, slices say {shown:?}, Endpoints {old:?}"));
        }
    }
    wrong
}

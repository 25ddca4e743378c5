//! Which pods go first when there are too many: Kubernetes' `ActivePodsWithRanks`.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::base::clock::between;
use crate::controllers::{Member, pods};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods to delete, first the ones that would be missed least.
pub(in crate::controllers) fn choose(
    active: &[&Member],
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Member> {
    let mut all: Vec<Member> = active.iter().map(|m| (*m).clone()).collect();
    if count < all.len() {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in related {
            *on_node.entry(node(pod)).or_default() += 1;
        }
        let crowd = |m: &Member| on_node.get(node(&m.pod)).copied().unwrap_or(0);
        all.sort_by(|a, b| order(a, b, crowd(a), crowd(b), now));
    }
    all.truncate(count);
    all
}

fn order(a: &Member, b: &Member, crowd_a: usize, crowd_b: usize, now: Timestamp) -> Ordering {
    let (p, q) = (&*a.pod, &*b.pod);
    let assigned = |p: &Pod| !node(p).is_empty();
    let progress = |p: &Pod| match pods::phase(p) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let by_first = assigned(p)
        .cmp(&assigned(q))
        .then_with(|| progress(p).cmp(&progress(q)))
        .then_with(|| pods::is_ready(p).cmp(&pods::is_ready(q)))
        .then_with(|| cost(p).cmp(&cost(q)))
        .then_with(|| crowd_b.cmp(&crowd_a));
    by_first
        .then_with(|| match (pods::ready_since(p), pods::ready_since(q)) {
            (Some(x), Some(y)) => age_rank(x, now).cmp(&age_rank(y, now)),
            _ => Ordering::Equal,
        })
        .then_with(|| Reverse(restarts(p)).cmp(&Reverse(restarts(q))))
        .then_with(|| {
            let created = |m: &Member| age_rank(m.object.meta.created.unwrap_or(Timestamp::UNIX_EPOCH), now);
            created(a).cmp(&created(b))
        })
        .then_with(|| a.object.meta.uid.cmp(&b.object.meta.uid))
}

/// Ages count by powers of two, so that among pods of nearly one age chance decides and not the node they are on.
fn age_rank(since: Timestamp, now: Timestamp) -> u32 {
    (between(since, now).as_secs() + 1).ilog2()
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
}

fn cost(pod: &Pod) -> i32 {
    let text = pod.metadata.annotations.as_ref().and_then(|a| a.get(COST));
    text.and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|s| s.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::object::Object;
    use serde_json::{Value, json};

    fn member(name: &str, node: &str, phase: &str, ready: &str, cost: &str) -> Member {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {COST: cost}},
            "spec": {"containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        });
        if !node.is_empty() {
            value["spec"]["nodeName"] = Value::from(node);
        }
        let object = Arc::new(Object::new(name.into(), 1, &value, Box::default()));
        Member { pod: object.typed().unwrap(), object }
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let all = [
            member("costly", "a", "Running", "True", "5"),
            member("ready", "a", "Running", "True", "0"),
            member("unready", "a", "Running", "False", "0"),
            member("pending", "a", "Pending", "False", "0"),
            member("unassigned", "", "Pending", "False", "0"),
            member("crowded", "b", "Running", "True", "0"),
        ];
        let related: Vec<Arc<Pod>> =
            ["b", "b", "b", "a"].iter().map(|n| member("x", n, "Running", "True", "0").pod).collect();
        let refs: Vec<&Member> = all.iter().collect();
        let names = |count| -> Vec<String> {
            let chosen = choose(&refs, &related, count, "2026-01-02T00:00:00Z".parse().unwrap());
            chosen.iter().map(|m| m.object.meta.name.to_string()).collect()
        };
        assert_eq!(names(5), ["unassigned", "pending", "unready", "crowded", "ready"]);
        assert_eq!(names(6).len(), 6);
    }
}

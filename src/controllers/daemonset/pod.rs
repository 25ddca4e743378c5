//! The pod of a DaemonSet on one node: where it may be, and what it looks like.

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use serde_json::{Value, json};

use crate::apimachinery::placement::{is_wanted, tolerates};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list_mut, map_mut, set};
use crate::base::object::Object;
use crate::controllers::history::HASH;
use crate::controllers::{Member, pod_writer};
use crate::kinds::apps::daemonset::KIND;

/// The label by which pods name the generation of the template, from before there were revisions.
pub(super) const GENERATION: &str = "pod-template-generation";

/// Taints of a node's state that no daemon minds, with their effects.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Tolerated by pods of the node's own network, without which it would never come.
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Whether a node is to have a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Yes,
    /// A pod that is there may stay, but none is made.
    IfThere,
    No,
}

/// The pods of a DaemonSet, before it is known where.
#[derive(Debug)]
pub(super) struct Template {
    value: Value,
    pod: Pod,
}

// === impl Template ===

impl Template {
    /// From the DaemonSet's template.
    pub(super) fn new(object: &Object, template: &Value) -> Result<Self> {
        let mut value = template.clone();
        tolerate(&mut value);
        let pod = json!({"metadata": value["metadata"], "spec": value["spec"]});
        let pod = serde_json::from_value(pod).map_err(|e| Status::internal(format!("{}: {e}", object.key)))?;
        Ok(Self { value, pod })
    }

    /// Whether a node is to have a pod.
    pub(super) fn wanted(&self, object: &Object, node: &Node) -> Wanted {
        let own = self.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
        if !(own.is_empty() || own == &*object.meta.name) || !is_wanted(&self.pod, object) {
            return Wanted::No;
        }
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let minded: Vec<&Taint> = taints.into_iter().filter(|t| !tolerates(&self.pod, t)).collect();
        let has = |effect: &str| minded.iter().any(|t| t.effect == effect);
        match (has("NoExecute"), has("NoSchedule")) {
            (true, _) => Wanted::No,
            (false, true) => Wanted::IfThere,
            (false, false) => Wanted::Yes,
        }
    }

    /// The pod for a node, with the labels of its revision.
    pub(super) fn pod_for(&self, owner: &Object, node: &str, hash: &str, generation: Option<i64>) -> Value {
        let mut pod = pod_writer::new_pod(&KIND, owner, &self.value);
        let labels = map_mut(&mut pod, "metadata.labels");
        if let Some(generation) = generation {
            labels.insert(GENERATION.into(), generation.to_string().into());
        }
        labels.insert(HASH.into(), hash.into());
        // The scheduler binds it there; what the template requires of nodes, this node has.
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
        let required = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
        map_mut(&mut pod, required).insert("nodeSelectorTerms".into(), json!([term]));
        pod
    }
}

fn tolerate(template: &mut Value) {
    let host_network = template["spec"]["hostNetwork"] == true;
    let network = host_network.then_some(NETWORK);
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        match list_mut(template, "spec.tolerations") {
            None => set(template, "spec.tolerations", json!([toleration])),
            Some(all) => {
                let same = |t: &&mut Value| {
                    ["key", "operator", "effect"].iter().all(|k| t[*k] == toleration[*k])
                        && t["value"].as_str().unwrap_or("").is_empty()
                };
                match all.iter_mut().find(same) {
                    Some(there) => *there = toleration,
                    None => all.push(toleration),
                }
            }
        }
    }
}

/// The node that a pod is on, or is made for.
pub(super) fn target(member: &Member) -> Option<&str> {
    let spec = member.pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut named = fields.into_iter().filter(|f| f.key == "metadata.name" && f.operator == "In");
    match named.next()?.values.as_deref()? {
        [name] => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn object(value: &Value) -> Arc<Object> {
        let name = value["metadata"]["name"].as_str().unwrap();
        Arc::new(Object::new(name.into(), 1, value, Box::default()))
    }

    fn wanted(spec: &Value, node: &Value) -> Wanted {
        let node = object(node);
        let template = Template::new(&node, &json!({"metadata": {}, "spec": spec})).unwrap();
        template.wanted(&node, &node.typed::<Node>().unwrap())
    }

    #[test]
    fn nodes_are_chosen_by_name_labels_and_taints() {
        let node =
            |taints: Value| json!({"metadata": {"name": "a", "labels": {"disk": "fast"}}, "spec": {"taints": taints}});
        let plain = json!({"containers": []});
        assert_eq!(wanted(&plain, &node(json!([]))), Wanted::Yes);
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        assert_eq!(wanted(&plain, &node(taint("mine", "NoSchedule"))), Wanted::IfThere);
        assert_eq!(wanted(&plain, &node(taint("mine", "NoExecute"))), Wanted::No);
        assert_eq!(wanted(&plain, &node(taint("mine", "PreferNoSchedule"))), Wanted::Yes);
        for (key, effect) in TOLERATED {
            assert_eq!(wanted(&plain, &node(taint(key, effect))), Wanted::Yes, "{key}");
        }
        let network = node(taint(NETWORK.0, NETWORK.1));
        assert_eq!(wanted(&plain, &network), Wanted::IfThere);
        assert_eq!(wanted(&json!({"containers": [], "hostNetwork": true}), &network), Wanted::Yes);
        let with = |key: &str, value: Value| json!({"containers": [], key: value});
        assert_eq!(wanted(&with("nodeSelector", json!({"disk": "slow"})), &node(json!([]))), Wanted::No);
        assert_eq!(wanted(&with("nodeSelector", json!({"disk": "fast"})), &node(json!([]))), Wanted::Yes);
        assert_eq!(wanted(&with("nodeName", json!("b")), &node(json!([]))), Wanted::No);
        let all = with("tolerations", json!([{"operator": "Exists"}]));
        assert_eq!(wanted(&all, &node(taint("mine", "NoExecute"))), Wanted::Yes);
    }

    #[test]
    fn a_pod_is_bound_to_its_node_by_affinity_and_keeps_what_the_template_prefers() {
        let owner = object(&json!({"metadata": {"name": "d", "uid": "u"}}));
        let preferred = json!([{"weight": 1, "preference": {}}]);
        let affinity = json!({"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": preferred,
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "x", "operator": "Exists"}]}]},
        }});
        let spec = json!({"containers": [], "affinity": affinity,
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]});
        let template = Template::new(&owner, &json!({"metadata": {"labels": {"a": "b"}}, "spec": spec})).unwrap();
        let pod = template.pod_for(&owner, "m", "h", Some(3));
        assert_eq!(pod["metadata"]["labels"], json!({"a": "b", HASH: "h", GENERATION: "3"}));
        let node = &pod["spec"]["affinity"]["nodeAffinity"];
        assert_eq!(node["preferredDuringSchedulingIgnoredDuringExecution"], preferred);
        let terms = &node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        assert_eq!(*terms, json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]));
        let tolerations = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), TOLERATED.len());
        assert!(tolerations[0].get("tolerationSeconds").is_none(), "for ever");
        let member = Member { pod: Arc::new(serde_json::from_value(pod).unwrap()), object: owner };
        assert_eq!(target(&member), Some("m"));
    }
}

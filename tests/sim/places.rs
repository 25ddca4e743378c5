//! What must hold of where pods are: no node has more of them than it has room for, and room is made by those of lower
//! priority alone.

use std::collections::{BTreeMap, HashMap};

use amphipod::base::quantity::Quantity;
use serde_json::Value;

/// What is known of all pods there ever were.
#[derive(Default)]
pub struct Places {
    /// By uid.
    priorities: HashMap<String, i64>,
}

fn processors(of: &Value) -> i64 {
    of["cpu"].as_str().and_then(|text| text.parse::<Quantity>().ok()).map_or(0, |quantity| quantity.milli())
}

fn requested(pod: &Value) -> i64 {
    let containers = pod["spec"]["containers"].as_array();
    containers.into_iter().flatten().map(|container| processors(&container["resources"]["requests"])).sum()
}

fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

// === impl Places ===

impl Places {
    /// A pod has changed; answers what is wrong.
    pub fn pod_changed(
        &mut self,
        old: Option<&Value>,
        new: &Value,
        objects: &BTreeMap<String, Value>,
    ) -> Option<String> {
        let uid = new["metadata"]["uid"].as_str().unwrap_or("").to_owned();
        self.priorities.insert(uid, new["spec"]["priority"].as_i64().unwrap_or(0));
        let node = new["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())?;
        if old.is_some_and(|old| old["spec"]["nodeName"] == node) {
            return None;
        }
        let allocatable = &objects.get(&format!("/core/nodes/{node}"))?["status"]["allocatable"];
        let pods = objects.range("/core/pods/".to_owned()..).take_while(|(key, _)| key.starts_with("/core/pods/"));
        let here = pods.map(|(_, pod)| pod).filter(|pod| pod["spec"]["nodeName"] == node && !is_over(pod));
        let used: i64 = here.map(requested).sum();
        let all = processors(allocatable);
        (used > all).then(|| format!("{node} has {all} thousandths of a processor and its pods ask for {used}"))
    }

    /// Something was told; answers what is wrong.
    pub fn told(&self, event: &Value) -> Option<String> {
        if event["reason"] != "Preempted" {
            return None;
        }
        let message = event["message"].as_str().unwrap_or("");
        let preemptor = message.split_whitespace().nth(3).unwrap_or("");
        let victim = event["involvedObject"]["uid"].as_str().unwrap_or("");
        let (high, low) = (self.priorities.get(preemptor), self.priorities.get(victim));
        (high.is_none() || low.is_none() || low >= high)
            .then(|| format!("{victim} of priority {low:?} goes for {preemptor} of {high:?}: {message}"))
    }
}

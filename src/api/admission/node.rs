//! TaintNodesByCondition: nothing runs on a new node before it is said to be ready.

use serde_json::{Value, json};

use crate::api::Request;
use crate::api::identity::{NODES, User};
use crate::base::json::{list, map_mut, text};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// Our own agents register a node only once it can run pods, so nobody would take the taint off again.
fn is_agent(user: &User) -> bool {
    user.is_in(NODES) || *user == *User::system()
}

pub(super) fn admit(request: &Request, node: &mut Value) {
    let there = |t: &Value| text(t, "key") == NOT_READY && text(t, "effect") == "NoSchedule";
    if is_agent(&request.user) || list(node, "spec.taints").iter().any(there) {
        return;
    }
    let taints = map_mut(node, "spec").entry("taints").or_insert_with(|| json!([]));
    if let Some(taints) = taints.as_array_mut() {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

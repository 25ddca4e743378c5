//! TaintNodesByCondition: a new node is marked as not ready, and so runs nothing before it is.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Plugin, Review};
use crate::api::Request;
use crate::apimachinery::status::Result;
use crate::apimachinery::user::{NODES, User};
use crate::base::json::{list, map_mut, text};
use crate::kinds::core::node;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&node::KIND)
    }

    async fn mutate(&self, review: &Review<'_>, node: &mut Value) -> Result<()> {
        mark(review.request, node);
        Ok(())
    }
}

/// Our own agents register a node only once it can run pods, so nobody would take the taint off again.
fn is_agent(user: &User) -> bool {
    user.is_in(NODES) || *user == *User::system()
}

fn mark(request: &Request, node: &mut Value) {
    let there = |t: &Value| text(t, "key") == NOT_READY && text(t, "effect") == "NoSchedule";
    if is_agent(&request.user) || list(node, "spec.taints").iter().any(there) {
        return;
    }
    let taints = map_mut(node, "spec").entry("taints").or_insert_with(|| json!([]));
    if let Some(taints) = taints.as_array_mut() {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

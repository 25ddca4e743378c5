//! ClusterRoles that gather the rules of others (`aggregationRule`).

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Context;
use crate::apimachinery::status::Result;
use crate::base::json::list;
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::rbac::clusterrole;
use crate::reconcile::{Changed, Controller, Key, Outcome, Patch, Reconciler};

struct Aggregation(Arc<Context>);

/// The controller; all gathering roles have one key, because whatever changes may concern each of them.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let wake = |_: &Changed| vec![Key::new("", "all")];
    Controller::new("clusterrole-aggregation", Arc::new(Aggregation(cx.clone())), cx.clock.clone())
        .watches(&*cx.client, &clusterrole::KIND, Box::new(wake))
        .workers(1)
}

#[async_trait]
impl Reconciler for Aggregation {
    async fn reconcile(&self, _key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        let all = client.informer(&clusterrole::KIND).list("");
        for role in &all {
            // Most roles gather nothing: do not decode them to learn that.
            if !mentions(role.body(), b"\"aggregationRule\"") || role.meta.deleted.is_some() {
                continue;
            }
            let value = role.value();
            let selectors = selectors(&value);
            let rules = gather(&all, role, &selectors);
            if !selectors.is_empty() && list(&value, "rules") != rules {
                let patch = Patch::Merge(json!({"metadata": {"uid": &*role.meta.uid}, "rules": rules}));
                client.patch(&clusterrole::KIND, "", &role.meta.name, None, patch).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// The rules of the selected roles in name order, each once.
fn gather(all: &[Arc<Object>], into: &Object, selectors: &[Selector]) -> Vec<Value> {
    let mut rules: Vec<Value> = Vec::new();
    for role in all.iter().filter(|r| r.key != into.key && selectors.iter().any(|s| s.matches(&r.meta.labels))) {
        for rule in list(&role.value(), "rules") {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

fn mentions(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

fn selectors(role: &Value) -> Vec<Selector> {
    let all = list(role, "aggregationRule.clusterRoleSelectors");
    all.iter().filter_map(|s| Selector::from_object(s).ok()).collect()
}

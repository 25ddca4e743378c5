//! DefaultTolerationSeconds: a pod stays for a while on a node that is not ready or not reachable.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Plugin, Review};
use crate::apimachinery::status::Result;
use crate::base::json::{list, map_mut, text};
use crate::kinds::core::pod;

/// How long a pod stays on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.writes(&pod::KIND)
    }

    async fn mutate(&self, _review: &Review<'_>, pod: &mut Value) -> Result<()> {
        default_tolerations(pod);
        Ok(())
    }
}

fn default_tolerations(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |t: &Value| {
            let effect = text(t, "effect");
            (text(t, "key") == key || text(t, "key").is_empty()) && (effect.is_empty() || effect == "NoExecute")
        };
        if list(pod, "spec.tolerations").iter().any(tolerates) {
            continue;
        }
        let tolerations = map_mut(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
        if let Some(tolerations) = tolerations.as_array_mut() {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS});
            tolerations.push(toleration);
        }
    }
}

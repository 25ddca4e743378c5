//! Priority: the number behind a pod's priority class.

use async_trait::async_trait;
use serde_json::Value;

use super::{Plugin, Review};
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, int, set, text};
use crate::kinds::core::pod;
use crate::kinds::scheduling::priorityclass;

pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&pod::KIND)
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        priority(review.api, review.request, pod)
    }
}

fn priority(api: &Api, request: &Request, pod: &mut Value) -> Result<()> {
    let kind = &priorityclass::KIND;
    let kind_cache = api.cache.kind(kind);
    let refuse = |pod: &Value, why: String| Err(Status::forbidden(&request.kind, text(pod, "metadata.name"), why));
    let (class, policy) = match text(pod, "spec.priorityClassName") {
        "" => {
            let classes = kind_cache.list(&kind.prefix(), "");
            let default = classes.iter().map(|o| o.value()).filter(|c| c["globalDefault"] == true);
            let lowest = default.min_by_key(|c| c["value"].as_i64());
            if let Some(class) = &lowest {
                set(pod, "spec.priorityClassName", text(class, "metadata.name"));
            }
            let value = lowest.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
            (value, lowest.and_then(|c| c.get("preemptionPolicy").cloned()))
        }
        name => match kind_cache.get(&kind.key("", name)) {
            Some(class) => {
                let class = class.value();
                (class["value"].as_i64().unwrap_or(0), class.get("preemptionPolicy").cloned())
            }
            None => return refuse(pod, format!("no PriorityClass with name {name} was found")),
        },
    };
    if int(pod, "spec.priority").is_some_and(|given| given != class) {
        let why = "the integer value of priority must not be provided in pod spec; priority admission controller \
                   computed a different value from the given PriorityClass name";
        return refuse(pod, why.into());
    }
    set(pod, "spec.priority", class);
    let policy = policy.unwrap_or_else(|| "PreemptLowerPriority".into());
    if at(pod, "spec.preemptionPolicy").is_some_and(|given| *given != policy) {
        let why = "the string value of PreemptionPolicy must not be provided in pod spec; priority admission \
                   controller computed a different value from the given PriorityClass name";
        return refuse(pod, why.into());
    }
    set(pod, "spec.preemptionPolicy", policy);
    Ok(())
}

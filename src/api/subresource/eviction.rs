//! pods/eviction: a deletion that disruption budgets may refuse.
//!
//! What a budget allows is taken from it before the pod is deleted, in its status, which a controller counts anew later.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::admission::Review;
use crate::api::write::Change;
use crate::api::{Api, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, int, list, map, map_mut, set, text};
use crate::base::object::Object;
use crate::kinds::Subresource;
use crate::kinds::core::pod;
use crate::kinds::policy::poddisruptionbudget::{self as budget, KIND as BUDGET};

/// How often an eviction is tried when the pod changes under it.
const ATTEMPTS: usize = 20;
/// A budget on which more evicted pods are noted than this is not being counted.
const DISRUPTED_MAX: usize = 2000;
/// When to come again where a budget is being counted.
const RETRY_SECONDS: u32 = 10;
const CAUSE: &str = "DisruptionBudget";

/// How a pod may go.
enum Verdict {
    /// As it was asked.
    Delete,
    /// Only as it is now: it might become ready, and then it would count. The budget is named.
    DeleteAsIs(Option<String>),
}

impl Api {
    /// Evicts the named pod.
    pub async fn evict(&self, request: &Request, eviction: &Value) -> Result<Value> {
        let name = text(eviction, "metadata.name");
        if !name.is_empty() && name != request.name {
            return Err(Status::bad_request(format!(
                "name in URL does not match name in Eviction object: {} != {name}",
                request.name
            )));
        }
        let (review, mut admitted) = (Review::create(self, request), eviction.clone());
        review.mutate(&mut admitted).await?;
        review.validate(&admitted).await?;
        let options = DeleteOptions::from_value(&eviction["deleteOptions"])?;
        let dry_run = request.dry_run || options.dry_run;
        let request = Request { kind: pod::KIND.clone(), subresource: None, dry_run, ..request.clone() };
        for _ in 0..ATTEMPTS {
            let Some(found) = self.cache.kind(&pod::KIND).get(&request.key()) else { return Err(request.not_found()) };
            let verdict = self.judge(&request, &found).await?;
            // Another attempt would meet the same pod with a uid or a version that was not asked for.
            let pinned =
                options.resource_version.is_some() || options.uid.as_deref().is_some_and(|u| *u != *found.meta.uid);
            let mut options = options.clone();
            if let (Verdict::DeleteAsIs(_), false) = (&verdict, pinned) {
                options.resource_version = Some(found.revision.to_string());
            }
            match self.mark_and_delete(&request, &found, options).await {
                Err(status) if status.code == 409 && !pinned => match verdict {
                    Verdict::DeleteAsIs(Some(budget)) => return Err(being_counted(&budget)),
                    Verdict::DeleteAsIs(None) => {}
                    Verdict::Delete => return Err(status),
                },
                Err(status) => return Err(status),
                Ok(()) => {
                    let answer =
                        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
                    return Ok(answer);
                }
            }
        }
        Err(Status::modified(&request.kind, &request.name))
    }

    /// Whether the pod may go now; what that takes of its budget is taken.
    async fn judge(&self, request: &Request, pod: &Arc<Object>) -> Result<Verdict> {
        let value = pod.value();
        let is_over = matches!(text(&value, "status.phase"), "Succeeded" | "Failed");
        if is_over || pod.meta.deleted.is_some() {
            return Ok(Verdict::Delete);
        }
        if text(&value, "status.phase") == "Pending" {
            return Ok(Verdict::DeleteAsIs(None));
        }
        let prefix = format!("{}{}/", BUDGET.prefix(), request.namespace);
        let all = self.cache.kind(&BUDGET).list(&prefix, "").into_iter().map(|b| b.value());
        let mut concerned = all.filter(|b| budget::selects(b, &pod.meta.labels));
        let Some(found) = concerned.next() else { return Ok(Verdict::Delete) };
        if concerned.next().is_some() {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::new(500, "", why));
        }
        let name = text(&found, "metadata.name").to_owned();
        let ready = list(&value, "status.conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let count = |key: &str| int(&found["status"], key).unwrap_or(0);
        let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
        let always = text(&found, "spec.unhealthyPodEvictionPolicy") == "AlwaysAllow";
        if !ready && (always || healthy >= desired && desired > 0) {
            return Ok(Verdict::DeleteAsIs(Some(name)));
        }
        let now = self.clock.now();
        let evicted = request.name.clone();
        let mut take = |live: &Value| {
            check(live)?;
            let mut new = live.clone();
            let left = int(live, "status.disruptionsAllowed").unwrap_or(0) - 1;
            set(&mut new, "status.disruptionsAllowed", left);
            if left == 0 {
                budget::set_condition(&mut new, now);
            }
            map_mut(&mut new, "status.disruptedPods")
                .insert(evicted.clone(), crate::base::clock::seconds_text(now).into());
            Ok(new)
        };
        let taking = Request {
            dry_run: request.dry_run,
            ..Request::internal("kube-apiserver", &BUDGET, &request.namespace, &name)
        };
        self.update(&taking.on(Subresource::Status), Change::Patch(&mut take)).await?;
        Ok(Verdict::Delete)
    }

    /// Tells the pod why it ends, and deletes it.
    async fn mark_and_delete(&self, request: &Request, found: &Arc<Object>, mut options: DeleteOptions) -> Result<()> {
        let live = found.value();
        // What cannot be deleted as it was asked is told so, and not marked.
        let differs = |asked: &Option<String>, is: &str| asked.as_deref().is_some_and(|asked| asked != is);
        let fails =
            differs(&options.uid, &found.meta.uid) || differs(&options.resource_version, &found.revision.to_string());
        let ends = found.meta.deleted.is_some() || matches!(text(&live, "status.phase"), "Succeeded" | "Failed");
        if !request.dry_run && !ends && !fails {
            let (now, pinned) = (self.clock.now_text(), options.resource_version.clone());
            let mut mark = |live: &Value| {
                if let Some(version) = pinned.as_deref().filter(|v| *v != text(live, "metadata.resourceVersion")) {
                    let actual = text(live, "metadata.resourceVersion");
                    let why = format!(
                        "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {actual}"
                    );
                    return Err(Status::conflict(&pod::KIND, text(live, "metadata.name"), why));
                }
                Ok(marked(live, &now))
            };
            let marking = Request::internal("kube-apiserver", &pod::KIND, &request.namespace, &request.name);
            let marked = self.update(&marking.on(Subresource::Status), Change::Patch(&mut mark)).await?;
            if options.resource_version.is_some() {
                options.resource_version = Some(marked.object.revision.to_string());
            }
        }
        self.delete(request, &options).await.map(|_| ())
    }
}

/// The pod with the condition that it is being evicted.
fn marked(live: &Value, now: &str) -> Value {
    let mut new = live.clone();
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastProbeTime": null, "lastTransitionTime": now,
    });
    if let Some(generation) = at(live, "metadata.generation") {
        condition["observedGeneration"] = generation.clone();
    }
    let conditions = map_mut(&mut new, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return new };
    match conditions.iter_mut().find(|c| c["type"] == "DisruptionTarget") {
        Some(old) if old["status"] == "True" => {
            condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            *old = condition;
        }
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    new
}

/// Whether the budget allows that one more pod goes.
fn check(live: &Value) -> Result<()> {
    let name = text(live, "metadata.name");
    let count = |key: &str| int(&live["status"], key).unwrap_or(0);
    if count("observedGeneration") < int(live, "metadata.generation").unwrap_or(0) {
        return Err(being_counted(name));
    }
    let forbid = |why: &str| {
        let mut status = Status::forbidden(&BUDGET, name, why);
        status.details.kind = "poddisruptionbudget".into();
        Err(status)
    };
    if count("disruptionsAllowed") < 0 {
        return forbid("pdb disruptions allowed is negative");
    }
    if map(live, "status.disruptedPods").is_some_and(|all| all.len() > DISRUPTED_MAX) {
        return forbid("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if count("disruptionsAllowed") > 0 {
        return Ok(());
    }
    let failed = list(live, "status.conditions").iter().find(|c| c["reason"] == budget::SYNC_FAILED);
    let why = match failed {
        Some(condition) => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            text(condition, "message")
        ),
        None => format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            count("desiredHealthy"),
            count("currentHealthy")
        ),
    };
    Err(violated(None).cause(CAUSE, why, ""))
}

fn violated(retry_seconds: Option<u32>) -> Status {
    let mut status = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
    status.details.retry_after_seconds = retry_seconds;
    status
}

fn being_counted(name: &str) -> Status {
    let why = format!("The disruption budget {name} is still being processed by the server.");
    violated(Some(RETRY_SECONDS)).cause(CAUSE, why, "")
}

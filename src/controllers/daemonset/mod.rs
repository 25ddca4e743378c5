//! DaemonSets: a pod on every node that they are meant for.
//!
//! [`plan`](plan::plan) is pure: from the nodes and the pods by node it computes which nodes get a pod and which pods go. A
//! pod is made for its node by affinity and bound by the scheduler, so that what the node has left is asked. The status is
//! computed after the pods were changed, from what then is.

mod plan;
mod pod;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Map, Value, json};

use super::failures::Failures;
use super::history::{Draft, HASH, History, Revision, selector_of};
use super::pod_writer::{BURST, Failure, PodWriter, told_plainly};
use super::{Context, Member, absent_is_fine, member, min_ready, pods, typed};
use crate::apimachinery::status::Result;
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::apps::controllerrevision;
use crate::kinds::apps::daemonset::{self as kind, KIND};
use crate::kinds::core;
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Patch, Reconciler, Recorder, Wake};
use plan::{Observed, Plan, Strategy};
use pod::Template;

/// The longest that a failed pod waits to be replaced.
const LONGEST_WAIT: Duration = Duration::from_secs(900);

struct DaemonSets {
    cx: Arc<Context>,
    recorder: Recorder,
    failures: Failures,
}

/// One DaemonSet in one run.
struct Run<'a> {
    cx: &'a Context,
    object: &'a Arc<Object>,
    daemons: Arc<DaemonSet>,
    template: Template,
    selector: Selector,
    current: Revision,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let recorder = cx.recorder("daemonset-controller");
    let context = cx.clone();
    let by_node = move |c: &Changed| match c.previous.as_ref().is_some_and(|p| is_same_place(p, &c.object)) {
        true if !c.deleted => Vec::new(),
        _ => context.client.informer(&KIND).list("").iter().map(|d| Key::of(d)).collect(),
    };
    let daemons = DaemonSets { cx: cx.clone(), recorder, failures: Failures::new(LONGEST_WAIT) };
    Controller::new("daemonset", Arc::new(daemons), cx.clock.clone())
        .for_kind(&*cx.client, &KIND)
        .owns(&*cx.client, &core::pod::KIND, &KIND)
        .watches(&*cx.client, &controllerrevision::KIND, Box::new(revised))
        .watches(&*cx.client, &core::pod::KIND, free(cx))
        .watches(&*cx.client, &controllerrevision::KIND, free(cx))
        .watches(&*cx.client, &core::node::KIND, Box::new(by_node))
}

/// What nobody controls may be adopted by whoever selects it.
fn free(cx: &Arc<Context>) -> Wake {
    let cx = cx.clone();
    Box::new(move |c: &Changed| {
        if c.deleted || c.object.controller().is_some() {
            return Vec::new();
        }
        let all = cx.client.informer(&KIND).list(&c.object.meta.namespace);
        all.iter().filter(|d| selector(d).is_ok_and(|s| s.matches(&c.object.meta.labels))).map(|d| Key::of(d)).collect()
    })
}

/// A revision that was changed or taken away. One more wakes nobody, as in Kubernetes: a client may keep one beside the current
/// one for a while, which the next run would take for a second of the same template and join with it.
fn revised(c: &Changed) -> Vec<Key> {
    if c.previous.is_none() && !c.deleted {
        return Vec::new();
    }
    let owner = c.object.controller().filter(|o| *o.kind == *KIND.kind());
    owner.map(|o| Key::new(&c.object.meta.namespace, &o.name)).into_iter().collect()
}

/// Whether nothing of a node has changed that decides who is meant for it: heartbeats change its status alone.
fn is_same_place(before: &Object, after: &Object) -> bool {
    let taints = |o: &Object| o.typed::<Node>().ok().and_then(|n| n.spec.as_ref().map(|s| s.taints.clone()));
    before.meta.labels == after.meta.labels && taints(before) == taints(after)
}

fn selector(object: &Object) -> Result<Selector> {
    selector_of(object, &typed::<DaemonSet>(object)?.spec.selector)
}

#[async_trait]
impl Reconciler for DaemonSets {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&KIND).get(&key.namespace, &key.name) else {
            self.failures.forget(key);
            return Ok(Outcome::Done);
        };
        // The revisions of one that is being deleted may be gone already, so nothing true can be said of it.
        if object.meta.deleted.is_some() {
            return Ok(Outcome::Done);
        }
        let (value, selector) = (object.value(), selector(&object)?);
        let template = &value["spec"]["template"];
        let history = History { cx: &self.cx, kind: &KIND, owner: &object };
        let mut revisions = history.claim(&selector).await?;
        for revision in revisions.iter_mut().filter(|r| r.label(HASH).is_empty()) {
            *revision = history.label(revision, HASH).await?;
        }
        let (current, collisions) = self.current(&history, &revisions, &value).await?;
        member::claim(&self.cx, &KIND, &object, &selector, |pod, _| pod.meta.deleted.is_none()).await?;
        let run = Run {
            cx: &self.cx,
            object: &object,
            daemons: typed(&object)?,
            template: Template::new(&object, template)?,
            selector,
            current,
        };
        let mut observed = run.observe()?;
        let (uid, generation) = (&object.meta.uid, object.meta.generation);
        observed.waits = self.failures.waits(key, uid, generation, observed.now);
        let plan = plan::plan(&observed);
        let due = plan.wake;
        let changed = !plan.create.is_empty() || !plan.delete.is_empty();
        for (node, _) in &plan.failed {
            self.failures.replaced(key, uid, generation, node, observed.now);
        }
        let failure = self.apply(&run, &observed, plan).await.err();
        if changed {
            observed = run.observe()?;
        }
        let (status, wake) = status::compute(&value["status"], &observed, generation, collisions);
        absent_is_fine(self.cx.write_status(&KIND, &object, status, Map::new()).await)?;
        if let Some(failure) = failure
            && !failure.namespace_ends
        {
            return Err(failure.status);
        }
        let old: Vec<&Revision> = revisions.iter().filter(|r| r.name() != run.current.name()).collect();
        let used = Member::of_owner(&self.cx.pods, uid)?;
        let is_live = |r: &Revision| used.iter().any(|m| m.label(HASH) == r.label(HASH));
        let limit = run.daemons.spec.revision_history_limit.unwrap_or(10);
        history.truncate(&old, usize::try_from(limit).unwrap_or(0), is_live).await?;
        Ok([due, wake].into_iter().flatten().min().map_or(Outcome::Done, Outcome::At))
    }
}

// === impl DaemonSets ===

impl DaemonSets {
    /// The revision of the template, and how often names were taken.
    async fn current(&self, history: &History<'_>, revisions: &[Revision], value: &Value) -> Result<(Revision, i64)> {
        let template = &value["spec"]["template"];
        let collisions = value["status"]["collisionCount"].as_i64().unwrap_or(0);
        let (same, old): (Vec<_>, Vec<_>) = revisions.iter().partition(|r| r.has_template(template));
        let number = old.iter().map(|r| r.number).max().unwrap_or(0) + 1;
        let Some((newest, doubles)) = same.split_last() else {
            return history.create(&Draft { number, template, hash_label: HASH, collisions }).await;
        };
        for double in doubles {
            self.rename_revision(history.owner, double, newest).await?;
            history.delete(double).await?;
        }
        match newest.number < number {
            true => Ok((history.renumber(newest, number).await?, collisions)),
            false => Ok(((*newest).clone(), collisions)),
        }
    }

    /// Pods of a revision that is there twice become pods of the one that stays.
    async fn rename_revision(&self, owner: &Object, from: &Revision, to: &Revision) -> Result<()> {
        for member in Member::of_owner(&self.cx.pods, &owner.meta.uid)? {
            if member.label(HASH) == from.label(HASH) && from.label(HASH) != to.label(HASH) {
                let meta = &member.object.meta;
                let patch = json!({"metadata": {"uid": &*meta.uid, "labels": {HASH: to.label(HASH)}}});
                let patch = Patch::Merge(patch);
                let changed = self.cx.client.patch(&core::pod::KIND, &meta.namespace, &meta.name, None, patch).await;
                absent_is_fine(changed)?;
            }
        }
        Ok(())
    }

    async fn apply(&self, run: &Run<'_>, observed: &Observed, mut plan: Plan) -> Result<(), Failure> {
        let (client, owner) = (&self.cx.client, &**run.object);
        for (ended, kind, reason, word, what) in [
            (&plan.failed, EventType::Warning, "FailedDaemonPod", "failed", "kill"),
            (&plan.succeeded, EventType::Normal, "SucceededDaemonPod", "succeeded", "delete"),
        ] {
            for (node, member) in ended {
                let pod = format!("{}/{}", owner.meta.namespace, member.object.meta.name);
                let message = format!("Found {word} daemon pod {pod} on node {node}, will try to {what} it");
                self.recorder.event(&KIND, owner, kind, reason, &message);
            }
        }
        let writer = PodWriter { client, recorder: &self.recorder, kind: &KIND, owner, told: told_plainly };
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        let pod = |node: &String| run.template.pod_for(owner, node, &observed.hash, observed.generation);
        let created = writer.create_all(plan.create.iter().map(pod).collect()).await;
        let deleted = writer.delete_all(&plan.delete).await;
        created.and(deleted)
    }
}

// === impl Run ===

impl Run<'_> {
    fn observe(&self) -> Result<Observed> {
        let spec = &self.daemons.spec;
        let nodes = self.cx.client.informer(&core::node::KIND).list("");
        let nodes = nodes.iter().map(|node| {
            let wanted = self.template.wanted(node, &*typed::<Node>(node)?);
            Ok((node.meta.name.to_string(), wanted))
        });
        let rolling = spec.update_strategy.as_ref().filter(|s| s.type_.as_deref() != Some("OnDelete"));
        let strategy = rolling.map_or(Strategy::OnDelete, |s| Strategy::Rolling {
            unavailable: s.rolling_update.as_ref().and_then(|r| r.max_unavailable.clone()),
            surge: s.rolling_update.as_ref().and_then(|r| r.max_surge.clone()),
        });
        Ok(Observed {
            nodes: nodes.collect::<Result<_>>()?,
            pods: self.pods()?,
            strategy,
            min_ready: min_ready(spec.min_ready_seconds),
            hash: self.current.label(HASH).to_owned(),
            generation: kind::template_generation(&self.object.value()).parse().ok(),
            waits: Default::default(),
            now: self.cx.clock.now(),
        })
    }

    fn pods(&self) -> Result<BTreeMap<String, Vec<Member>>> {
        let mut by_node = BTreeMap::<String, Vec<Member>>::new();
        for member in Member::of_owner(&self.cx.pods, &self.object.meta.uid)? {
            // Whoever has ended and only waits to be removed is no longer on its node.
            let over = pods::is_over(&member.pod) && member.is_ending();
            if over || !self.selector.matches(&member.object.meta.labels) {
                continue;
            }
            if let Some(node) = pod::target(&member).map(str::to_owned) {
                by_node.entry(node).or_default().push(member);
            }
        }
        for members in by_node.values_mut() {
            let is_bound = |m: &Member| m.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some();
            members.sort_by_key(|m| (!is_bound(m), m.object.meta.created, m.object.meta.name.clone()));
        }
        Ok(by_node)
    }
}

//! StatefulSets: numbered pods that keep their names, in order.
//!
//! [`plan`](plan::plan) is pure: from the pods there are it computes which are made and removed next. What was done wakes the
//! next run, so that an order is kept by looking and not by remembering. The status is computed after the pods were
//! changed, from what then is.

mod claims;
mod plan;
mod pod;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::{Map, Value, json};

use super::amount::resolve;
use super::failures::Failures;
use super::history::{Draft, HASH, History, Revision, selector_of};
use super::pod_writer::{BURST, Failure, PodWriter};
use super::{Context, Member, absent_is_fine, member, min_ready, pods, typed};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, set};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::apps::controllerrevision;
use crate::kinds::apps::statefulset::KIND;
use crate::kinds::core;
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Patch, Reconciler, Recorder};
use claims::Claims;
use plan::{Observed, Step, Strategy};

/// The longest that a pod that has ended waits to be made again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// The label by which revisions name their hash; pods name the revision itself.
const REVISION_HASH: &str = "controller.kubernetes.io/hash";

struct StatefulSets {
    cx: Arc<Context>,
    recorder: Recorder,
    failures: Failures,
}

/// One StatefulSet in one run.
struct Run<'a> {
    cx: &'a Context,
    object: &'a Arc<Object>,
    value: &'a Value,
    set: Arc<StatefulSet>,
    selector: Selector,
    current: Revision,
    update: Revision,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let recorder = cx.recorder("statefulset-controller");
    let context = cx.clone();
    // A pod that nobody controls may be adopted by the set that it is called after, and when it goes its name is free.
    let free = move |c: &Changed| {
        if c.object.controller().is_some() {
            return Vec::new();
        }
        let all = context.client.informer(&KIND).list(&c.object.meta.namespace);
        let may = |s: &&Arc<Object>| {
            pod::ordinal(&s.meta.name, &c.object.meta.name).is_some()
                && selector(s).is_ok_and(|s| s.matches(&c.object.meta.labels))
        };
        all.iter().filter(may).map(|s| Key::of(s)).collect()
    };
    // A claim that goes may be one that a pod still waits for.
    let of_claim = cx.clone();
    let gone = move |c: &Changed| {
        let all = of_claim.client.informer(&KIND);
        let may = |s: &&Arc<Object>| c.deleted && claims::is_of(s, &c.object.meta.name);
        if c.deleted {
            all.list(&c.object.meta.namespace).iter().filter(may).map(|s| Key::of(s)).collect()
        } else {
            Vec::new()
        }
    };
    let sets = StatefulSets { cx: cx.clone(), recorder, failures: Failures::new(LONGEST_WAIT) };
    Controller::new("statefulset", Arc::new(sets), cx.clock.clone())
        .for_kind(&*cx.client, &KIND)
        .owns(&*cx.client, &core::pod::KIND, &KIND)
        .owns(&*cx.client, &controllerrevision::KIND, &KIND)
        .watches(&*cx.client, &core::pod::KIND, Box::new(free))
        .watches(&*cx.client, &core::persistentvolumeclaim::KIND, Box::new(gone))
        .workers(16)
}

fn selector(object: &Object) -> Result<Selector> {
    selector_of(object, &typed::<StatefulSet>(object)?.spec.selector)
}

/// What is said of a pod, in Kubernetes' words for this kind.
fn told(verb: &str, pod: &str, owner: &str, error: Option<&Status>) -> String {
    match error {
        None => format!("{verb} Pod {pod} in StatefulSet {owner} successful"),
        Some(error) => format!("{verb} Pod {pod} in StatefulSet {owner} failed error: {error}"),
    }
}

#[async_trait]
impl Reconciler for StatefulSets {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&KIND).get(&key.namespace, &key.name) else {
            self.failures.forget(key);
            return Ok(Outcome::Done);
        };
        // The revisions of one that is being deleted may be gone already, and its pods are taken or left by whoever deletes it.
        if object.meta.deleted.is_some() {
            return Ok(Outcome::Done);
        }
        let (value, selector) = (object.value(), selector(&object)?);
        let history = History { cx: &self.cx, kind: &KIND, owner: &object };
        let revisions = history.claim(&selector).await?;
        let name = object.meta.name.clone();
        let is_meant = |pod: &Object| pod.meta.deleted.is_none() && pod::ordinal(&name, &pod.meta.name).is_some();
        member::claim(&self.cx, &KIND, &object, &selector, |pod, _| is_meant(pod)).await?;
        let (current, update, collisions) = current(&history, &revisions, &value).await?;
        let run = Run { cx: &self.cx, object: &object, value: &value, set: typed(&object)?, selector, current, update };
        let mut observed = run.observe(&value["status"])?;
        let (uid, generation) = (&object.meta.uid, object.meta.generation);
        observed.waits = self.failures.waits(key, uid, generation, observed.now);
        let due = observed.members.values().filter(|m| pods::is_over(&m.pod)).filter_map(|m| observed.due(m)).min();
        let steps = plan::plan(&observed);
        let changed = !steps.is_empty();
        for step in &steps {
            if let Step::Delete(member) = step
                && pods::is_over(&member.pod)
            {
                self.failures.replaced(key, uid, generation, &member.object.meta.name, observed.now);
            }
        }
        let failure = self.keep_claims(&run, &observed).await.err();
        let failure = match failure {
            Some(failure) => Some(failure),
            None => self.apply(&run, steps).await?.err(),
        };
        if changed {
            observed = run.observe(&value["status"])?;
        }
        let (status, wake) = status::compute(&value["status"], &observed, generation, collisions);
        absent_is_fine(self.cx.write_status(&KIND, &object, status, Map::new()).await)?;
        if let Some(failure) = failure
            && !failure.namespace_ends
        {
            return Err(failure.status);
        }
        run.truncate(&history, &revisions).await?;
        Ok([due, wake].into_iter().flatten().min().map_or(Outcome::Done, Outcome::At))
    }
}

/// The revision that the pods had before an update, that of the template, and how often names were taken.
async fn current(history: &History<'_>, revisions: &[Revision], value: &Value) -> Result<(Revision, Revision, i64)> {
    let (template, status) = (&value["spec"]["template"], &value["status"]);
    let mut collisions = status["collisionCount"].as_i64().unwrap_or(0);
    let newest = revisions.last();
    let number = newest.map_or(0, |r| r.number) + 1;
    let same = revisions.iter().rfind(|r| r.has_template(template));
    let update = match same {
        Some(same) if newest.is_some_and(|n| n.name() == same.name()) => same.clone(),
        // A template that came back.
        Some(same) => history.renumber(same, number).await?,
        None => {
            let draft = Draft { number, template, hash_label: REVISION_HASH, collisions };
            let (made, taken) = history.create(&draft).await?;
            collisions = taken;
            made
        }
    };
    let name = status["currentRevision"].as_str().unwrap_or("");
    let current = revisions.iter().find(|r| r.name() == name).unwrap_or(&update).clone();
    Ok((current, update, collisions))
}

// === impl StatefulSets ===

impl StatefulSets {
    async fn apply(&self, run: &Run<'_>, steps: Vec<Step>) -> Result<Result<(), Failure>> {
        let (client, recorder, owner) = (&self.cx.client, &self.recorder, &**run.object);
        let writer = PodWriter { client, recorder, kind: &KIND, owner, told };
        let claims = run.claims(self);
        let (mut create, mut delete) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Create { .. } if create.len() >= BURST => {}
                Step::Create { ordinal, revision } => {
                    // What the pod has is there before it; without it, there is no pod.
                    if let Err(status) = claims.make(ordinal).await {
                        let name = pod::name(&run.object.meta.name, ordinal);
                        let message = told("create", &name, &run.object.meta.name, Some(&status));
                        self.recorder.event(&KIND, run.object, EventType::Warning, "FailedCreate", &message);
                        let done = writer.create_all(create).await;
                        return Ok(done.and(Err(Failure::of(status))));
                    }
                    create.push(run.pod(ordinal, &revision));
                }
                Step::Delete(member) => delete.push(member),
                Step::Label { member, ordinal } => self.label(&member, ordinal).await?,
            }
        }
        create.truncate(BURST);
        delete.truncate(BURST);
        let created = writer.create_all(create).await;
        Ok(created.and(writer.delete_all(&delete).await))
    }

    /// Makes claims that pods wait for and that went, and writes on all of them who owns them.
    async fn keep_claims(&self, run: &Run<'_>, observed: &Observed) -> Result<(), Failure> {
        if run.value["spec"]["volumeClaimTemplates"].as_array().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        let claims = run.claims(self);
        for (ordinal, member) in &observed.members {
            let is_condemned = !observed.is_wanted(*ordinal);
            if pods::phase(&member.pod) == "Pending" && !member.is_ending() && !is_condemned {
                claims.make(*ordinal).await.map_err(Failure::of)?;
            }
            claims.own(*ordinal, &member.object, is_condemned).await.map_err(Failure::of)?;
        }
        Ok(())
    }

    async fn label(&self, member: &Member, ordinal: i64) -> Result<()> {
        let meta = &member.object.meta;
        let labels: Map<String, Value> = pod::labels_of(&meta.name, ordinal)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        let patch = Patch::Merge(json!({"metadata": {"uid": &*meta.uid, "labels": labels}}));
        let (namespace, name) = (&meta.namespace, &meta.name);
        absent_is_fine(self.cx.client.patch(&core::pod::KIND, namespace, name, None, patch).await)
    }
}

// === impl Run ===

impl Run<'_> {
    fn observe(&self, status: &Value) -> Result<Observed> {
        let spec = &self.set.spec;
        let replicas = spec.replicas.unwrap_or(1);
        let rolling = spec.update_strategy.as_ref().filter(|s| s.type_.as_deref() != Some("OnDelete"));
        let strategy = rolling.map_or(Strategy::OnDelete, |s| {
            let rolling = s.rolling_update.as_ref();
            let most = rolling.and_then(|r| r.max_unavailable.as_ref());
            let most = most.map(|m| usize::try_from(resolve(m, replicas, true).max(1)).unwrap_or(1));
            Strategy::Rolling { partition: rolling.map(|r| i64::from(r.partition.unwrap_or(0))), most }
        });
        let all = Member::of_owner(&self.cx.pods, &self.object.meta.uid)?.into_iter();
        let mine = all.filter(|m| self.selector.matches(&m.object.meta.labels));
        let numbered = mine.filter_map(|m| Some((pod::ordinal(&self.object.meta.name, &m.object.meta.name)?, m)));
        Ok(Observed {
            start: spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0).into(),
            replicas: replicas.into(),
            in_order: spec.pod_management_policy.as_deref() != Some("Parallel"),
            strategy,
            min_ready: min_ready(spec.min_ready_seconds),
            current: self.current.name().to_owned(),
            update: self.update.name().to_owned(),
            current_replicas: status["currentReplicas"].as_i64().unwrap_or(0),
            members: numbered.collect(),
            waits: Default::default(),
            now: self.cx.clock.now(),
        })
    }

    fn pod(&self, ordinal: i64, revision: &str) -> Value {
        let of = if revision == self.update.name() { &self.update } else { &self.current };
        let service = self.set.spec.service_name.as_deref().unwrap_or("");
        let mut pod = pod::new_pod(self.object, of.template(), revision, service, ordinal);
        if !list(self.value, "spec.volumeClaimTemplates").is_empty() {
            let volumes = claims::volumes(self.value, &self.object.meta.name, ordinal, list(&pod, "spec.volumes"));
            set(&mut pod, "spec.volumes", volumes);
        }
        pod
    }

    fn claims<'a>(&'a self, sets: &'a StatefulSets) -> Claims<'a> {
        Claims { client: &sets.cx.client, recorder: &sets.recorder, owner: self.object, set: self.value }
    }

    /// Deletes the oldest revisions that no pod has and that are not told of.
    async fn truncate(&self, history: &History<'_>, revisions: &[Revision]) -> Result<()> {
        let limit = self.set.spec.revision_history_limit.unwrap_or(10);
        // Less than none is as many as there are.
        let Ok(limit) = usize::try_from(limit) else { return Ok(()) };
        let used = Member::of_owner(&self.cx.pods, &self.object.meta.uid)?;
        let is_live = |r: &&Revision| {
            [&self.current, &self.update].iter().any(|live| live.name() == r.name())
                || used.iter().any(|m| m.label(HASH) == r.name())
        };
        let old: Vec<&Revision> = revisions.iter().filter(|r| !is_live(r)).collect();
        history.truncate(&old, limit, |_| false).await
    }
}

//! Jobs: pods until enough have succeeded, or too many failed.
//!
//! Plan and apply: [`plan`] decides from what is observed what is done to pods and whether the Job ends, `track` how pods that
//! have ended come into its counts, once each whatever is killed in between. The status is written onto the revision that the plan was
//! made from. What remains in memory is only how long to wait after failures, which a new process reads from the pods.

mod backoff;
mod make;
mod plan;
mod policy;
mod track;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{Context, Member, absent_is_fine, controller_reference, pods, typed};
use crate::apimachinery::delete_options::{DeleteOptions, Propagation};
use crate::apimachinery::status::{Result, Status};
use crate::base::clock::parse_time;
use crate::base::json::{at, int, text};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::Subresource;
use crate::kinds::batch::job::{self, CONTROLLER, KIND, TRACKING_FINALIZER};
use crate::kinds::core::pod;
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Patch, Reconciler, Recorder};
use backoff::Record;
use plan::{Counts, Plan, make_condition};
use view::View;

/// The key of pods that a Job tracked which nobody controls any more; no Job has such a name.
const ORPHANS: &str = "/orphans";

struct Jobs {
    cx: Arc<Context>,
    recorder: Recorder,
    /// Failures since the last success, by the Job's uid.
    records: Mutex<HashMap<String, Record>>,
}

/// What was done to pods.
#[derive(Debug, Default)]
struct Applied {
    changed: bool,
    failure: Option<Status>,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let jobs = Jobs { cx: cx.clone(), recorder: cx.recorder("job-controller"), records: Mutex::default() };
    let client = cx.client.clone();
    // A pod that nobody controls may be adopted, or waits for nobody.
    let free = move |c: &Changed| {
        if c.deleted || c.object.controller().is_some() {
            return Vec::new();
        }
        let namespace = &c.object.meta.namespace;
        let all = client.informer(&KIND).list(namespace);
        let selects = |j: &&Arc<Object>| selector(&j.value()).is_ok_and(|s| s.matches(&c.object.meta.labels));
        let mut keys: Vec<Key> = all.iter().filter(selects).map(|j| Key::of(j)).collect();
        if pods::is_tracked(&c.object) {
            keys.push(Key::new(namespace, ORPHANS));
        }
        keys
    };
    Controller::new("job", Arc::new(jobs), cx.clock.clone())
        .for_kind(&*cx.client, &KIND)
        .owns(&*cx.client, &pod::KIND, &KIND)
        .watches(&*cx.client, &pod::KIND, Box::new(free))
        .workers(16)
}

fn selector(job: &Value) -> Result<Selector> {
    let selector = at(job, "spec.selector").cloned().unwrap_or_default();
    Selector::from_object(&selector).map_err(|e| Status::internal(format!("spec.selector: {e}")))
}

#[async_trait]
impl Reconciler for Jobs {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        if &*key.name == ORPHANS {
            return self.let_go(&self.cx.pods.get(&pods::free_key(&key.namespace))).await;
        }
        let found = self.cx.client.informer(&KIND).get(&key.namespace, &key.name);
        let tracked = self.cx.pods.get(&pods::tracked_key(&key.namespace, &key.name));
        let Some(object) = found else { return self.let_go(&tracked).await };
        let value = object.value();
        if job::is_finished(&value) {
            self.records.lock().expect("no panic while held").remove(&*object.meta.uid);
            self.let_go(&tracked).await?;
            return self.expire(&object, &value).await;
        }
        let of_others = |p: &&Arc<Object>| p.controller().is_none_or(|o| o.uid != object.meta.uid);
        self.let_go(&tracked.iter().filter(of_others).cloned().collect::<Vec<_>>()).await?;
        let manager = text(&value, "spec.managedBy");
        if !manager.is_empty() && manager != CONTROLLER {
            return Ok(Outcome::Done);
        }
        self.sync(&object, value).await
    }
}

// === impl Jobs ===

impl Jobs {
    async fn sync(&self, object: &Arc<Object>, value: Value) -> Result<Outcome> {
        let (job, now): (Arc<Job>, _) = (typed(object)?, self.cx.clock.now());
        let Some(spec) = &job.spec else { return Ok(Outcome::Done) };
        let view = View::of(&job, spec);
        let selector = selector(&value)?;
        let members = self.claim(object, &selector).await?;
        let mut status = view.status();
        if status.start_time.is_none() && !view.is_suspended {
            status.start_time = Some(Time(now));
        }
        let counts = Counts::of(&view, &status, &members);
        let record = self.record(object, &view, &members).with(&counts.succeeded_pods, &counts.failed_pods);
        let plan = plan::plan(&view, &status, &members, &counts, record, now);
        let applied = self.apply(object, &view, &plan, &counts, &value).await;
        let members = if applied.changed { self.owned(object, &selector)? } else { members };
        // What could not be deleted still runs: that is no end yet.
        let end = plan.end.as_ref().filter(|_| applied.failure.is_none());
        let told = if plan.manages && end.is_none() { set_suspended(&mut status, &view, now) } else { None };
        let released = track::begin(&mut status, &view, &members, end);
        let written = self.write(object, value, &status).await?;
        self.records.lock().expect("no panic while held").insert(object.meta.uid.to_string(), record);
        if let Some((reason, message)) = told {
            self.recorder.event(&KIND, object, EventType::Normal, reason, message);
        }
        let let_go = self.untrack(&released.members).await;
        let members = self.owned(object, &selector)?;
        let ended = track::settle(&mut status, &members, end, released.more, now);
        let current = written.as_ref().unwrap_or(object);
        self.write(current, current.value(), &status).await?;
        if let Some(ended) = ended {
            self.tell(object, &view, &status, &ended);
        }
        let_go?;
        match applied.failure {
            Some(failure) if !is_ending_namespace(&failure) => Err(failure),
            _ if released.more => Ok(Outcome::At(now)),
            _ => Ok(plan.wake.map_or(Outcome::Done, Outcome::At)),
        }
    }

    fn record(&self, object: &Object, view: &View<'_>, members: &[Member]) -> Record {
        let known = self.records.lock().expect("no panic while held").get(&*object.meta.uid).copied();
        known.unwrap_or_else(|| Record::of_counted(view, members))
    }

    /// Brings the status to this form, if the Job is still as it was; answers the Job that was written.
    async fn write(&self, object: &Arc<Object>, mut value: Value, status: &JobStatus) -> Result<Option<Arc<Object>>> {
        let status = serde_json::to_value(status).map_err(|e| Status::internal(e.to_string()))?;
        if at(&value, "status") == Some(&status) {
            return Ok(None);
        }
        value["status"] = status;
        let meta = &object.meta;
        let through = Some(Subresource::Status);
        self.cx.client.update(&KIND, &meta.namespace, &meta.name, through, value).await.map(Some)
    }

    /// The Job's pods, those that have ended too, after adopting and releasing.
    async fn claim(&self, job: &Arc<Object>, selector: &Selector) -> Result<Vec<Member>> {
        let client = &self.cx.client;
        if job.meta.deleted.is_none() {
            for pod in self.cx.pods.get(&pods::owner_key(&job.meta.uid)) {
                if !selector.matches(&pod.meta.labels) && pod.meta.deleted.is_none() {
                    let gone = json!({"$patch": "delete", "uid": &*job.meta.uid});
                    let patch = json!({"metadata": {"uid": &*pod.meta.uid, "ownerReferences": [gone],
                        "$deleteFromPrimitiveList/finalizers": [TRACKING_FINALIZER]}});
                    self.patch_pod(&pod, patch).await?;
                }
            }
            for pod in self.cx.pods.get(&pods::free_key(&job.meta.namespace)) {
                if !selector.is_empty() && selector.matches(&pod.meta.labels) && pod.meta.deleted.is_none() {
                    // A view may be older than the Job's deletion; adopting then would keep what was let go.
                    let fresh = client.get(&KIND, &job.meta.namespace, &job.meta.name).await?;
                    if fresh.meta.uid != job.meta.uid || fresh.meta.deleted.is_some() {
                        break;
                    }
                    let reference = controller_reference(&KIND, job);
                    let patch = json!({"metadata": {"uid": &*pod.meta.uid, "ownerReferences": [reference],
                        "finalizers": [TRACKING_FINALIZER]}});
                    self.patch_pod(&pod, patch).await?;
                }
            }
        }
        self.owned(job, selector)
    }

    fn owned(&self, job: &Object, selector: &Selector) -> Result<Vec<Member>> {
        let owned = self.cx.pods.get(&pods::owner_key(&job.meta.uid)).into_iter();
        let mine = owned.filter(|o| selector.matches(&o.meta.labels));
        mine.map(|object| Ok(Member { pod: typed::<Pod>(&object)?, object })).collect()
    }

    async fn patch_pod(&self, pod: &Object, patch: Value) -> Result<()> {
        let (namespace, name) = (&pod.meta.namespace, &pod.meta.name);
        let patched = self.cx.client.patch(&pod::KIND, namespace, name, None, Patch::Strategic(patch)).await;
        absent_is_fine(patched)
    }

    async fn drop_finalizer(&self, pod: &Object) -> Result<()> {
        let patch = json!({"metadata": {"uid": &*pod.meta.uid,
            "$deleteFromPrimitiveList/finalizers": [TRACKING_FINALIZER]}});
        self.patch_pod(pod, patch).await
    }

    async fn untrack(&self, members: &[Member]) -> Result<()> {
        join_all(members.iter().map(|m| self.drop_finalizer(&m.object))).await.into_iter().collect()
    }

    /// Pods that no Job will count any more go when they are deleted.
    async fn let_go(&self, pods: &[Arc<Object>]) -> Result<Outcome> {
        let tracked = pods.iter().filter(|p| pods::is_tracked(p));
        join_all(tracked.map(|p| self.drop_finalizer(p))).await.into_iter().collect::<Result<()>>()?;
        Ok(Outcome::Done)
    }

    async fn apply(
        &self,
        job: &Arc<Object>,
        view: &View<'_>,
        plan: &Plan,
        counts: &Counts<'_>,
        value: &Value,
    ) -> Applied {
        let deletions = plan.delete.iter().map(|m| self.delete(job, m, plan.forgets));
        let mut failure = join_all(deletions).await.into_iter().find_map(Result::err);
        let (mut left, mut batch) = (&plan.create[..], 1);
        // In growing batches: a template that cannot be created costs one refused request.
        while failure.is_none() && !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let all = now.iter().map(|index| {
                let replaced = index.and_then(|i| counts.replaced.get(&i));
                self.create(job, make::pod(job, value, view, *index, replaced.map(|m| &*m.pod)))
            });
            failure = join_all(all).await.into_iter().find_map(Result::err);
            (left, batch) = (later, batch * 2);
        }
        Applied { changed: !plan.delete.is_empty() || !plan.create.is_empty(), failure }
    }

    async fn create(&self, job: &Object, pod: Value) -> Result<()> {
        match self.cx.client.create(&pod::KIND, &job.meta.namespace, pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.meta.name);
                self.recorder.event(&KIND, job, EventType::Normal, "SuccessfulCreate", &message);
                Ok(())
            }
            Err(status) => {
                if !is_ending_namespace(&status) {
                    let message = format!("Error creating: {status}");
                    self.recorder.event(&KIND, job, EventType::Warning, "FailedCreate", &message);
                }
                Err(status)
            }
        }
    }

    async fn delete(&self, job: &Object, member: &Member, forgets: bool) -> Result<()> {
        let meta = &member.object.meta;
        if forgets {
            self.drop_finalizer(&member.object).await?;
        }
        let options = DeleteOptions { uid: Some(meta.uid.to_string()), ..DeleteOptions::default() };
        match absent_is_fine(self.cx.client.delete(&pod::KIND, &meta.namespace, &meta.name, options).await) {
            Ok(()) => {
                let message = format!("Deleted pod: {}", meta.name);
                self.recorder.event(&KIND, job, EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(status) => {
                let message = format!("Error deleting: {status}");
                self.recorder.event(&KIND, job, EventType::Warning, "FailedDelete", &message);
                Err(status)
            }
        }
    }

    fn tell(&self, job: &Object, view: &View<'_>, status: &JobStatus, ended: &JobCondition) {
        if ended.type_ == "Complete" {
            if view.completions.is_some_and(|c| i64::from(status.succeeded.unwrap_or(0)) > c) {
                let message = "Too many succeeded pods running after completion count reached";
                self.recorder.event(&KIND, job, EventType::Warning, "TooManySucceededPods", message);
            }
            self.recorder.event(&KIND, job, EventType::Normal, "Completed", "Job completed");
            return;
        }
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        self.recorder.event(&KIND, job, EventType::Warning, &text(&ended.reason), &text(&ended.message));
    }

    /// Removes a Job that has ended when its time is over.
    async fn expire(&self, object: &Arc<Object>, value: &Value) -> Result<Outcome> {
        let Some(end) = expires_at(value).filter(|_| object.meta.deleted.is_none()) else { return Ok(Outcome::Done) };
        if end > self.cx.clock.now() {
            return Ok(Outcome::At(end));
        }
        let options = DeleteOptions {
            uid: Some(object.meta.uid.to_string()),
            // Whoever gives it more time meanwhile is heard.
            resource_version: Some(object.revision.to_string()),
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        absent_is_fine(self.cx.client.delete(&KIND, namespace, name, options).await)?;
        Ok(Outcome::Done)
    }
}

/// When a Job that has ended is to go; `None` where it says nothing, or a time that never comes.
fn expires_at(job: &Value) -> Option<Timestamp> {
    let seconds = int(job, "spec.ttlSecondsAfterFinished")?.max(0);
    let ended = job::condition(job, "Complete").or_else(|| job::condition(job, "Failed"))?;
    parse_time(text(ended, "lastTransitionTime"))?.checked_add(Duration::from_secs(seconds as u64)).ok()
}

/// Brings the condition Suspended to what the Job says; answers what is told of a change.
fn set_suspended(status: &mut JobStatus, view: &View<'_>, now: Timestamp) -> Option<(&'static str, &'static str)> {
    let was = status.conditions.iter().flatten().find(|c| c.type_ == "Suspended").map(|c| c.status == "True");
    match (view.is_suspended, was) {
        (true, Some(true)) | (false, None | Some(false)) => None,
        (true, _) => {
            track::put_condition(status, make_condition("Suspended", "True", "JobSuspended", "Job suspended", now));
            // As one that has never begun: it may be told to run elsewhere.
            status.start_time = None;
            Some(("Suspended", "Job suspended"))
        }
        (false, Some(true)) => {
            track::put_condition(status, make_condition("Suspended", "False", "JobResumed", "Job resumed", now));
            // The time for which it may be active begins anew.
            status.start_time = Some(Time(now));
            Some(("Resumed", "Job resumed"))
        }
    }
}

fn is_ending_namespace(status: &Status) -> bool {
    status.details.causes.iter().any(|c| c.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests;

//! CronJobs: a Job for each time at which they are due, and the removal of old ones.
//!
//! The name of a Job has the minute in it, so that a process that is killed after it made one makes no second. Nothing polls: a
//! run says when the next Job is due.

mod due;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{Context, absent_is_fine, controller_reference, pods};
use crate::apimachinery::delete_options::{DeleteOptions, Propagation};
use crate::apimachinery::status::Result;
use crate::base::clock::{parse_time, seconds_text};
use crate::base::json::{at, flag, int, list, map_mut, set, text};
use crate::base::object::Object;
use crate::kinds::Subresource;
use crate::kinds::batch::cronjob::{self, KIND, SCHEDULED};
use crate::kinds::batch::job::{self, KIND as JOB};
use crate::kinds::batch::schedule::{self, Schedule};
use crate::reconcile::{Controller, EventType, Key, Outcome, Reconciler, Recorder};
use due::Times;

struct CronJobs {
    cx: Arc<Context>,
    recorder: Recorder,
}

/// A Job of a CronJob.
struct Run {
    object: Arc<Object>,
    value: Value,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let cron_jobs = CronJobs { cx: cx.clone(), recorder: cx.recorder("cronjob-controller") };
    Controller::new("cronjob", Arc::new(cron_jobs), cx.clock.clone())
        .for_kind(&*cx.client, &KIND)
        .owns(&*cx.client, &JOB, &KIND)
        .workers(5)
}

#[async_trait]
impl Reconciler for CronJobs {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&KIND).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let mut cron = object.value();
        let before = cron["status"].clone();
        let runs = self.runs(&object);
        self.note_ended(&object, &mut cron, &runs);
        let made = self.make_due(&object, &mut cron).await;
        let removed = self.remove_old(&object, &mut cron, &runs).await;
        if cron["status"] != before {
            let through = Some(Subresource::Status);
            let written = self.cx.client.update(&KIND, &key.namespace, &key.name, through, cron).await;
            absent_is_fine(written)?;
        }
        removed?;
        Ok(made?.map_or(Outcome::Done, Outcome::At))
    }
}

// === impl CronJobs ===

impl CronJobs {
    fn runs(&self, cron: &Object) -> Vec<Run> {
        let owned = self.cx.jobs.get(&pods::owner_key(&cron.meta.uid)).into_iter();
        owned.map(|object| Run { value: object.value(), object }).collect()
    }

    fn warn(&self, cron: &Object, reason: &str, message: &str) {
        self.recorder.event(&KIND, cron, EventType::Warning, reason, message);
    }

    fn tell(&self, cron: &Object, reason: &str, message: &str) {
        self.recorder.event(&KIND, cron, EventType::Normal, reason, message);
    }

    /// Takes Jobs that have ended or are gone off the list of active ones.
    fn note_ended(&self, object: &Object, cron: &mut Value, runs: &[Run]) {
        for run in runs {
            let (uid, name) = (&*run.object.meta.uid, &run.object.meta.name);
            let (known, ended) = (is_active(cron, uid), job::is_finished(&run.value));
            if !known && !ended {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                self.warn(object, "UnexpectedJob", &message);
                continue;
            }
            let well = job::condition(&run.value, "Complete").is_some();
            if known && ended {
                forget(cron, uid);
                let outcome = if well { "Complete" } else { "Failed" };
                let message = format!("Saw completed job: {name}, condition: {outcome}");
                self.tell(object, "SawCompletedJob", &message);
            }
            let (end, last) = (text(&run.value, "status.completionTime"), text(cron, "status.lastSuccessfulTime"));
            if well && parse_time(end).is_some() && parse_time(end) > parse_time(last) {
                set(cron, "status.lastSuccessfulTime", end.to_owned());
            }
        }
        let gone = |entry: &&Value| runs.iter().all(|r| *r.object.meta.uid != *text(entry, "uid"));
        let lost: Vec<Value> = list(cron, "status.active").iter().filter(gone).cloned().collect();
        for entry in lost {
            let message = format!("Active job went missing: {}", text(&entry, "name"));
            self.tell(object, "MissingJob", &message);
            forget(cron, text(&entry, "uid"));
        }
    }

    /// Makes the Job that is due; answers when the next one is.
    async fn make_due(&self, object: &Arc<Object>, cron: &mut Value) -> Result<Option<Timestamp>> {
        if object.meta.deleted.is_some() || flag(cron, "spec.suspend") {
            return Ok(None);
        }
        let Some(times) = self.times(object, cron) else { return Ok(None) };
        let now = self.cx.clock.now();
        let created = object.meta.created.unwrap_or(now);
        let last = parse_time(text(cron, "status.lastScheduleTime")).unwrap_or(created);
        // Before that it is too late anyway.
        let deadline = int(cron, "spec.startingDeadlineSeconds").map(|s| Duration::from_secs(s.max(0) as u64));
        let since = deadline.and_then(|d| now.checked_sub(d).ok()).map_or(last, |t| t.max(last));
        let due = match times.last(since, now) {
            Ok(due) => due,
            Err(why) => {
                let message = format!("invalid schedule: {} : {why}", text(cron, "spec.schedule"));
                self.warn(object, "InvalidSchedule", &message);
                return Ok(None);
            }
        };
        let wake = times.wake(last, now);
        let Some(due) = due else { return Ok(wake) };
        if due.many_missed {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn(object, "TooManyMissedTimes", message);
        }
        if deadline.and_then(|d| due.at.checked_add(d).ok()).is_some_and(|end| end < now) {
            let time = due.at.strftime("%a, %d %b %Y %H:%M:%S +0000");
            self.warn(object, "MissSchedule", &format!("Missed scheduled time to start a job: {time}"));
            return Ok(wake);
        }
        let name = format!("{}-{}", object.meta.name, due.at.as_second().div_euclid(60));
        let done = parse_time(text(cron, "status.lastScheduleTime")) == Some(due.at);
        if done || list(cron, "status.active").iter().any(|entry| text(entry, "name") == name) {
            return Ok(wake);
        }
        if !self.make_room(object, cron).await? {
            return Ok(wake);
        }
        self.make(object, cron, &times, due.at, &name).await?;
        Ok(times.wake(due.at, now))
    }

    /// The schedule in its zone, if both can be read.
    fn times(&self, object: &Object, cron: &Value) -> Option<Times> {
        let zone = match at(cron, "spec.timeZone").and_then(Value::as_str) {
            // As with kube-controller-manager: that of the machine.
            None => TimeZone::system(),
            Some(name) => match schedule::zone(name) {
                Ok(zone) => zone,
                Err(why) => {
                    self.warn(object, "UnknownTimeZone", &format!("invalid timeZone: {name:?}: {why}"));
                    return None;
                }
            },
        };
        let text = text(cron, "spec.schedule");
        match Schedule::parse(text) {
            Ok(schedule) => Some(Times { schedule, zone }),
            Err(why) => {
                self.warn(object, "UnparseableSchedule", &format!("unparseable schedule: {text:?} : {why}"));
                None
            }
        }
    }

    /// Whether another Job may be made beside those that run, which may end them.
    async fn make_room(&self, object: &Arc<Object>, cron: &mut Value) -> Result<bool> {
        let active = list(cron, "status.active").to_vec();
        match text(cron, "spec.concurrencyPolicy") {
            "Forbid" if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(object, "JobAlreadyActive", message);
                Ok(false)
            }
            "Replace" => {
                for entry in active {
                    self.remove(object, cron, text(&entry, "name"), text(&entry, "uid")).await?;
                }
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    async fn make(
        &self,
        object: &Arc<Object>,
        cron: &mut Value,
        times: &Times,
        due: Timestamp,
        name: &str,
    ) -> Result<()> {
        let client = &self.cx.client;
        let namespace = &object.meta.namespace;
        let made = match client.create(&JOB, namespace, new_job(object, cron, times, due, name)).await {
            Ok(made) => {
                self.tell(object, "SuccessfulCreate", &format!("Created job {name}"));
                made
            }
            // We made it and were killed before we could say so, or it is somebody else's.
            Err(status) if status.reason == "AlreadyExists" => {
                let there = client.get(&JOB, namespace, name).await?;
                if there.controller().is_none_or(|o| o.uid != object.meta.uid) {
                    return Ok(());
                }
                there
            }
            Err(status) => {
                if status.details.causes.iter().all(|c| c.reason != "NamespaceTerminating") {
                    self.warn(object, "FailedCreate", &format!("Error creating job: {status}"));
                }
                return Err(status);
            }
        };
        let reference = json!({"apiVersion": JOB.api_version(), "kind": JOB.kind(), "name": &*made.meta.name,
            "namespace": &*made.meta.namespace, "uid": &*made.meta.uid, "resourceVersion": made.revision.to_string()});
        let active = map_mut(cron, "status").entry("active").or_insert_with(|| json!([]));
        if let Some(active) = active.as_array_mut() {
            active.push(reference);
        }
        set(cron, "status.lastScheduleTime", seconds_text(due));
        Ok(())
    }

    /// Removes the oldest Jobs that have ended, beyond those that are to be kept.
    async fn remove_old(&self, object: &Arc<Object>, cron: &mut Value, runs: &[Run]) -> Result<()> {
        for (of_type, well) in [("Complete", true), ("Failed", false)] {
            let Some(kept) = cronjob::history_limit(cron, well) else { continue };
            let of_outcome = |r: &&Run| job::condition(&r.value, of_type).is_some() && r.object.meta.deleted.is_none();
            let mut ended: Vec<&Run> = runs.iter().filter(of_outcome).collect();
            let started = |r: &Run| parse_time(text(&r.value, "status.startTime")).unwrap_or(Timestamp::MAX);
            ended.sort_by(|a, b| started(a).cmp(&started(b)).then_with(|| a.object.meta.name.cmp(&b.object.meta.name)));
            for run in &ended[..ended.len().saturating_sub(kept)] {
                self.remove(object, cron, &run.object.meta.name, &run.object.meta.uid).await?;
            }
        }
        Ok(())
    }

    async fn remove(&self, object: &Arc<Object>, cron: &mut Value, name: &str, uid: &str) -> Result<()> {
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        let deleted = self.cx.client.delete(&JOB, &object.meta.namespace, name, options).await;
        if let Err(status) = absent_is_fine(deleted) {
            self.warn(object, "FailedDelete", &format!("Deleted job: {status}"));
            return Err(status);
        }
        forget(cron, uid);
        self.tell(object, "SuccessfulDelete", &format!("Deleted job {name}"));
        Ok(())
    }
}

fn is_active(cron: &Value, uid: &str) -> bool {
    list(cron, "status.active").iter().any(|entry| text(entry, "uid") == uid)
}

/// Takes a Job off the list of active ones.
fn forget(cron: &mut Value, uid: &str) {
    let active = list(cron, "status.active").iter().filter(|entry| text(entry, "uid") != uid);
    let active: Vec<Value> = active.cloned().collect();
    let status = map_mut(cron, "status");
    if active.is_empty() {
        status.remove("active");
    } else {
        status.insert("active".into(), active.into());
    }
}

/// The Job that is due at a time.
fn new_job(object: &Object, cron: &Value, times: &Times, due: Timestamp, name: &str) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let mut metadata = json!({"name": name, "ownerReferences": [controller_reference(&KIND, object)]});
    for key in ["labels", "annotations"] {
        if let Some(given) = template["metadata"].get(key) {
            metadata[key] = given.clone();
        }
    }
    let zone = if at(cron, "spec.timeZone").is_some() { times.zone.clone() } else { TimeZone::UTC };
    let time = due.to_zoned(zone.clone());
    // UTC itself is written in one letter.
    let form = if time.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    map_mut(&mut metadata, "annotations").insert(SCHEDULED.into(), time.strftime(form).to_string().into());
    json!({"metadata": metadata, "spec": template["spec"]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::base::clock::Clock;
    use crate::controllers::{MANAGER, Options, start};
    use crate::kinds::core::{event, namespace};
    use crate::reconcile::{Client, Patch};

    /// A quarter past an hour that has not come: creation times are of the machine's clock.
    const START: &str = "2090-01-01T10:15:00Z";

    struct Cluster {
        client: Arc<dyn Client>,
        clock: Clock,
        controllers: Vec<tokio::task::JoinHandle<Option<()>>>,
    }

    impl Cluster {
        async fn new() -> Self {
            let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
            client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
            let clock = Clock::simulated(START.parse().unwrap(), 1);
            let controllers = start(client.clone(), clock.clone(), Options::default());
            Self { client, clock, controllers }
        }

        /// A CronJob that was last due a moment ago.
        async fn make(&self, spec: Value) {
            let template = json!({"spec": {"template": {"spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "i"}]}}}});
            let mut cron = json!({"metadata": {"name": "c"}, "spec": {"suspend": true, "timeZone": "UTC", "jobTemplate": template}});
            for (key, value) in spec.as_object().unwrap() {
                cron["spec"][key] = value.clone();
            }
            self.client.create(&KIND, "n", cron).await.unwrap();
            let status = Patch::Merge(json!({"status": {"lastScheduleTime": START}}));
            self.client.patch(&KIND, "n", "c", Some(Subresource::Status), status).await.unwrap();
            self.patch(json!({"suspend": false})).await;
        }

        async fn patch(&self, spec: Value) {
            self.client.patch(&KIND, "n", "c", None, Patch::Merge(json!({"spec": spec}))).await.unwrap();
        }

        async fn status(&self) -> Value {
            self.client.get(&KIND, "n", "c").await.unwrap().value()["status"].clone()
        }

        fn jobs(&self) -> Vec<String> {
            self.client.informer(&JOB).list("n").iter().map(|j| j.meta.name.to_string()).collect()
        }

        async fn end_job(&self, name: &str, well: bool) {
            let now = self.clock.now_text();
            let is = |t: &str| json!({"type": t, "status": "True", "lastTransitionTime": now});
            let status = match well {
                true => json!({"completionTime": now, "conditions": [is("SuccessCriteriaMet"), is("Complete")]}),
                false => json!({"conditions": [is("FailureTarget"), is("Failed")]}),
            };
            let mut status = status;
            (status["active"], status["ready"]) = (0.into(), 0.into());
            status["terminating"] = 0.into();
            status["uncountedTerminatedPods"] = json!({});
            let patch = Patch::Merge(json!({"status": status}));
            self.client.patch(&JOB, "n", name, Some(Subresource::Status), patch).await.unwrap();
        }

        async fn reasons(&self) -> Vec<String> {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let all = self.client.informer(&event::KIND).list("n");
            let mine = all.iter().map(|e| e.value()).filter(|e| e["involvedObject"]["kind"] == "CronJob");
            mine.map(|e| e["reason"].as_str().unwrap().to_owned()).collect()
        }

        fn end(self) {
            self.controllers.iter().for_each(|task| task.abort());
        }
    }

    async fn minutes(count: u64) {
        tokio::time::sleep(Duration::from_secs(count * 60)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_are_made_when_they_are_due_and_named_after_the_minute() {
        let cluster = Cluster::new().await;
        cluster.make(json!({"schedule": "*/10 * * * *", "timeZone": "Asia/Kathmandu"})).await;
        minutes(4).await;
        assert!(cluster.jobs().is_empty());
        minutes(2).await;
        // 10:20 in UTC is 16:05 in Kathmandu, and 10:25 is 16:10.
        assert!(cluster.jobs().is_empty());
        minutes(5).await;
        let due: Timestamp = "2090-01-01T10:25:00Z".parse().unwrap();
        let name = format!("c-{}", due.as_second() / 60);
        assert_eq!(cluster.jobs(), [name.clone()]);
        let job = cluster.client.get(&JOB, "n", &name).await.unwrap();
        assert_eq!(job.value()["metadata"]["annotations"][SCHEDULED], "2090-01-01T16:10:00+05:45");
        let status = cluster.status().await;
        assert_eq!(
            (&status["lastScheduleTime"], &status["active"][0]["name"]),
            (&json!("2090-01-01T10:25:00Z"), &json!(name))
        );
        minutes(10).await;
        assert_eq!(cluster.jobs().len(), 2, "both may run");
        cluster.patch(json!({"suspend": true})).await;
        minutes(30).await;
        assert_eq!(cluster.jobs().len(), 2);
        cluster.end();
    }

    #[tokio::test(start_paused = true)]
    async fn one_job_at_a_time_waits_or_replaces_the_other() {
        let cluster = Cluster::new().await;
        cluster.make(json!({"schedule": "*/10 * * * *", "concurrencyPolicy": "Forbid"})).await;
        minutes(16).await;
        let first = cluster.jobs();
        assert_eq!(first.len(), 1);
        assert!(cluster.reasons().await.contains(&"JobAlreadyActive".to_owned()));
        // The time that was missed is made up for.
        cluster.end_job(&first[0], true).await;
        minutes(1).await;
        let both = cluster.jobs();
        assert_eq!(both.len(), 2);
        assert!(cluster.status().await["lastSuccessfulTime"].is_string());
        cluster.patch(json!({"concurrencyPolicy": "Replace"})).await;
        minutes(10).await;
        let after = cluster.jobs();
        assert!(after.len() == 2 && after.contains(&first[0]) && !after.contains(&both[1]), "{after:?}");
        assert_eq!(cluster.status().await["active"].as_array().unwrap().len(), 1);
        cluster.end();
    }

    #[tokio::test(start_paused = true)]
    async fn old_jobs_go_and_a_missing_one_is_forgotten() {
        let cluster = Cluster::new().await;
        cluster
            .make(json!({"schedule": "*/10 * * * *", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}))
            .await;
        for well in [true, true, false] {
            minutes(10).await;
            let active = cluster.status().await["active"].clone();
            cluster.end_job(active[0]["name"].as_str().unwrap(), well).await;
        }
        minutes(1).await;
        assert_eq!(cluster.jobs().len(), 1, "one that ended well");
        assert_eq!(cluster.status().await["active"], Value::Null);
        minutes(10).await;
        let active = cluster.status().await["active"][0]["name"].as_str().unwrap().to_owned();
        let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        cluster.client.delete(&JOB, "n", &active, options).await.unwrap();
        minutes(1).await;
        assert_eq!(cluster.status().await["active"], Value::Null);
        let reasons = cluster.reasons().await;
        for reason in ["SuccessfulCreate", "SawCompletedJob", "SuccessfulDelete", "MissingJob"] {
            assert!(reasons.iter().any(|r| r == reason), "{reason}: {reasons:?}");
        }
        assert!(!cluster.jobs().contains(&active), "it is not made again");
        cluster.end();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_due_or_too_late_is_told() {
        let cluster = Cluster::new().await;
        cluster.make(json!({"schedule": "0 0 31 2 *"})).await;
        assert!(cluster.reasons().await.contains(&"InvalidSchedule".to_owned()));
        cluster.client.delete(&KIND, "n", "c", DeleteOptions::default()).await.unwrap();
        cluster.make(json!({"schedule": "* * * * *", "suspend": true, "startingDeadlineSeconds": 5})).await;
        let long_ago = Patch::Merge(json!({"status": {"lastScheduleTime": "2080-01-01T00:00:00Z"}}));
        cluster.client.patch(&KIND, "n", "c", Some(Subresource::Status), long_ago).await.unwrap();
        minutes(2).await;
        let made = cluster.jobs().len();
        assert!((1..=3).contains(&made), "{made}: only what is due now");
        cluster.patch(json!({"suspend": true, "startingDeadlineSeconds": null})).await;
        let long_ago = Patch::Merge(json!({"status": {"lastScheduleTime": "2080-01-01T00:00:00Z"}}));
        cluster.client.patch(&KIND, "n", "c", Some(Subresource::Status), long_ago).await.unwrap();
        cluster.patch(json!({"suspend": false})).await;
        assert!(cluster.reasons().await.contains(&"TooManyMissedTimes".to_owned()));
        minutes(2).await;
        assert_eq!(cluster.status().await["lastScheduleTime"].as_str().unwrap()[..4], *"2090");
        cluster.end();
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_was_made_before_a_crash_is_not_made_twice() {
        let cluster = Cluster::new().await;
        cluster.make(json!({"schedule": "*/10 * * * *"})).await;
        minutes(6).await;
        let first = cluster.jobs();
        assert_eq!(first.len(), 1);
        // As if the status had not been written.
        let lost = Patch::Merge(json!({"status": {"active": null, "lastScheduleTime": START}}));
        cluster.client.patch(&KIND, "n", "c", Some(Subresource::Status), lost).await.unwrap();
        minutes(1).await;
        assert_eq!(cluster.jobs(), first);
        let status = cluster.status().await;
        assert_eq!(status["active"][0]["name"], first[0]);
        assert_eq!(status["lastScheduleTime"], "2090-01-01T10:20:00Z");
        cluster.end();
    }
}

//! What must hold after every commit: revisions grow; rollouts keep their bounds; no set makes more pods than it should.
//!
//! Pods are counted as Kubernetes does: those that have ended or are ending do not count. What a user or a fault has just
//! changed gives everybody a moment ([`MOMENT`]): a controller that decided before could not know.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use amphipod::base::clock::Clock;
use amphipod::store::Change;
use jiff::Timestamp;
use serde_json::Value;

use crate::places::Places;

const MOMENT: Duration = Duration::from_secs(2);
/// Lines that a failure prints at most.
const TRACE_MAX: usize = 20_000;

/// What a Job has to count a pod as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    Succeeded,
    Failed,
    /// It was asked to end before it succeeded: what it counts as depends on who looked when.
    Either,
}

pub struct Checkers {
    clock: Clock,
    revision: u64,
    pub objects: BTreeMap<String, Value>,
    /// Last time that somebody else than the controllers disturbed a Deployment, by uid.
    disturbed: HashMap<String, Timestamp>,
    /// The pods of each Job that have ended or were asked to while it tracked them, by the uids of both.
    ended: BTreeMap<String, BTreeMap<String, Ended>>,
    places: Places,
    pub trace: Vec<String>,
    /// The keys of each commit that touches a disk.
    pub commits: Vec<String>,
    pub violations: Vec<String>,
    /// The last change of anything but heartbeats and events.
    pub moved: Timestamp,
}

impl Checkers {
    pub fn new(clock: Clock) -> Self {
        Self {
            revision: 0,
            objects: BTreeMap::new(),
            disturbed: HashMap::new(),
            ended: BTreeMap::new(),
            places: Places::default(),
            trace: Vec::new(),
            commits: Vec::new(),
            violations: Vec::new(),
            moved: clock.now(),
            clock,
        }
    }

    pub fn note(&mut self, line: &str) {
        if self.trace.len() < TRACE_MAX {
            self.trace.push(format!("{} {line}", self.clock.now()));
        }
    }

    pub fn violate(&mut self, what: String) {
        self.note(&format!("VIOLATION {what}"));
        self.violations.push(what);
    }

    pub fn committed(&mut self, changes: &[Change]) {
        let durable: Vec<&str> = changes.iter().map(|c| &*c.key).filter(|k| !is_volatile(k)).collect();
        if !durable.is_empty() {
            self.commits.push(durable.join(" "));
        }
        for change in changes {
            if change.revision <= self.revision {
                self.violate(format!("revision {} after {}", change.revision, self.revision));
            }
            self.revision = change.revision;
            if !is_volatile(&change.key) {
                self.moved = self.clock.now();
                self.note(&format!("{} {}{}", change.revision, change.key, if change.deleted { " gone" } else { "" }));
            }
            let key = change.key.to_string();
            let new: Option<Value> = (!change.deleted).then(|| serde_json::from_slice(&change.value).unwrap());
            let old = match new.clone() {
                Some(new) => self.objects.insert(key.clone(), new),
                None => self.objects.remove(&key),
            };
            if let (Some(old), None) = (&old, &new) {
                self.orphaned(&key, old);
            }
            if key.starts_with("/apps/replicasets/") {
                self.set_changed(&key, old.as_ref(), new.as_ref());
            } else if key.starts_with("/core/pods/") {
                self.pod_changed(&key, old.as_ref(), new.as_ref());
                self.job_pod_changed(new.as_ref());
                let wrong = new.as_ref().and_then(|new| self.places.pod_changed(old.as_ref(), new, &self.objects));
                wrong.into_iter().for_each(|wrong| self.violate(format!("{key}: {wrong}")));
            } else if key.starts_with("/core/events/") {
                let wrong = new.as_ref().and_then(|event| self.places.told(event));
                wrong.into_iter().for_each(|wrong| self.violate(wrong));
            } else if key.starts_with("/batch/jobs/") {
                self.job_changed(&key, old.as_ref(), new.as_ref());
            } else if key.starts_with("/apps/deployments/") {
                let spec = |v: Option<&Value>| v.map(|v| v["spec"].clone());
                if spec(old.as_ref()) != spec(new.as_ref()) {
                    let uid = new.as_ref().or(old.as_ref()).map(uid_of).unwrap_or_default();
                    self.disturbed.insert(uid, self.clock.now());
                }
            }
        }
    }

    fn pod_changed(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) {
        let Some(set) = new.or(old).and_then(|p| self.owner(p, "replicasets")).cloned() else { return };
        let Some(deployment) = self.owner(&set, "deployments").cloned() else { return };
        let uid = uid_of(&deployment);
        let was = old.is_some_and(is_available);
        let is = new.is_some_and(is_available);
        let ended_now = new.is_none_or(is_ending) && old.is_some_and(|o| !is_ending(o));
        let evicted = new.is_some_and(|p| has_condition(p, "DisruptionTarget", "True"));
        if was && !is && (!ended_now || evicted || self.by_user(old)) {
            self.disturbed.insert(uid.clone(), self.clock.now());
        }
        if self.disturbed.get(&uid).is_some_and(|t| *t + MOMENT > self.clock.now()) || self.is_ending(&deployment, &set)
        {
            return;
        }
        let (total, available) = self.count(&uid);
        let (most, fewest) = bounds(&deployment);
        if old.is_none() && total > most {
            self.violate(format!("{key} was created: {total} pods of at most {most}"));
        }
        if was && !is && ended_now && available < fewest {
            self.violate(format!("{key} was taken: {available} available pods of at least {fewest}"));
        }
    }

    fn job_pod_changed(&mut self, pod: Option<&Value>) {
        let Some(pod) = pod.filter(|p| is_tracked(p)) else { return };
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let Some(owner) = owners.into_iter().flatten().find(|o| o["kind"] == "Job") else { return };
        let is_deleted = !pod["metadata"]["deletionTimestamp"].is_null();
        let now = match pod["status"]["phase"].as_str() {
            Some("Succeeded") if is_deleted => Ended::Either,
            Some("Succeeded") => Ended::Succeeded,
            Some("Failed") => Ended::Failed,
            _ if is_deleted => Ended::Failed,
            _ => return,
        };
        let all = self.ended.entry(owner["uid"].as_str().unwrap_or("").to_owned()).or_default();
        let was = all.entry(uid_of(pod)).or_insert(now);
        if *was == Ended::Failed && now == Ended::Either {
            *was = now;
        }
    }

    /// A Job's counts never shrink, and never pass what has ended.
    fn job_changed(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) {
        let Some(new) = new else { return };
        let same = old.filter(|o| uid_of(o) == uid_of(new));
        let (have, before) = (counted(new), same.map_or((0, 0), counted));
        if have.0 < before.0 || have.1 < before.1 {
            self.violate(format!("{key} had counted {before:?} (succeeded, failed) and now {have:?}"));
        }
        let (least, most) = self.countable(&uid_of(new));
        if have.0 > most.0 || have.1 > most.1 || have.0 + have.1 > least.2 {
            self.violate(format!("{key} counts {have:?} (succeeded, failed) of {least:?} to {most:?} pods"));
        }
    }

    /// Where a Job has counted another number than there were; `None` where it has not ended.
    pub fn miscounted(&self, job: &Value) -> Option<String> {
        let (have, (least, most)) = (counted(job), self.countable(&uid_of(job)));
        let fine =
            (least.0..=most.0).contains(&have.0) && (least.1..=most.1).contains(&have.1) && have.0 + have.1 == least.2;
        (!fine).then(|| format!("counts {have:?} (succeeded, failed) of {least:?} to {most:?} pods"))
    }

    /// The fewest and the most pods that a Job can have counted as succeeded and failed, and how many in all.
    fn countable(&self, uid: &str) -> ((i64, i64, i64), (i64, i64)) {
        let all: Vec<Ended> = self.ended.get(uid).into_iter().flat_map(|e| e.values().copied()).collect();
        let of = |wanted: Ended| all.iter().filter(|e| **e == wanted).count() as i64;
        let (good, bad, either) = (of(Ended::Succeeded), of(Ended::Failed), of(Ended::Either));
        ((good, bad, all.len() as i64), (good + either, bad + either))
    }

    /// Nobody deletes a set by hand here: whoever ends one without an owner has taken what was orphaned on purpose.
    fn set_changed(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) {
        let ends = |v: Option<&Value>| v.is_none_or(|v| !v["metadata"]["deletionTimestamp"].is_null());
        let free = old.is_some_and(|o| o["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
        if free && ends(new) && !ends(old) && old.is_some_and(|o| !self.namespace_ends(o)) {
            self.violate(format!("{key} was taken though nobody owns it"));
        }
    }

    /// Who is removed on the condition that its dependents stay has let go of all of them before.
    fn orphaned(&mut self, key: &str, owner: &Value) {
        if owner["metadata"]["finalizers"].as_array().is_none_or(|f| !f.iter().any(|f| f == "orphan")) {
            return;
        }
        let owned = |o: &Value| {
            let owners = o["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().any(|r| r["uid"] == owner["metadata"]["uid"])
        };
        let held = self.objects.iter().find(|(_, o)| owned(o)).map(|(k, _)| k.clone());
        if let Some(held) = held {
            self.violate(format!("{key} is gone and was to leave {held}, which still names it"));
        }
    }

    fn namespace_ends(&self, object: &Value) -> bool {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("");
        let namespace = self.objects.get(&format!("/core/namespaces/{namespace}"));
        namespace.is_none_or(|n| !n["metadata"]["deletionTimestamp"].is_null())
    }

    /// Pods that the scenario deletes carry this label before.
    fn by_user(&self, pod: Option<&Value>) -> bool {
        pod.is_some_and(|p| p["metadata"]["labels"]["doomed"] == "yes")
    }

    fn is_ending(&self, deployment: &Value, set: &Value) -> bool {
        !deployment["metadata"]["deletionTimestamp"].is_null()
            || !set["metadata"]["deletionTimestamp"].is_null()
            || self.namespace_ends(deployment)
    }

    fn owner(&self, object: &Value, plural: &str) -> Option<&Value> {
        let owners = object["metadata"]["ownerReferences"].as_array()?;
        let owner = owners.iter().find(|o| o["controller"] == true)?;
        let namespace = object["metadata"]["namespace"].as_str()?;
        let found = self.objects.get(&format!("/apps/{plural}/{namespace}/{}", owner["name"].as_str()?))?;
        (uid_of(found) == owner["uid"].as_str()?).then_some(found)
    }

    /// Pods of a Deployment that count, and those of them that are available.
    pub fn count(&self, uid: &str) -> (i64, i64) {
        let (mut total, mut available) = (0, 0);
        for (_, pod) in self.objects.range("/core/pods/".to_owned()..).take_while(|(k, _)| k.starts_with("/core/pods/"))
        {
            let of = self.owner(pod, "replicasets").and_then(|s| self.owner(s, "deployments"));
            if of.is_some_and(|d| uid_of(d) == uid) && !is_ending(pod) {
                total += 1;
                available += i64::from(is_available(pod));
            }
        }
        (total, available)
    }
}

/// Heartbeats and events, which the store keeps in memory.
fn is_volatile(key: &str) -> bool {
    key.starts_with("/core/events/") || key.starts_with("/coordination.k8s.io/leases/kube-node-lease/")
}

pub fn uid_of(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap_or("").to_owned()
}

/// What a Job says it has counted.
fn counted(job: &Value) -> (i64, i64) {
    let count = |key: &str| job["status"][key].as_i64().unwrap_or(0);
    (count("succeeded"), count("failed"))
}

fn is_tracked(pod: &Value) -> bool {
    let all = pod["metadata"]["finalizers"].as_array();
    all.into_iter().flatten().any(|f| f == "batch.kubernetes.io/job-tracking")
}

pub fn has_condition(object: &Value, of_type: &str, status: &str) -> bool {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().any(|c| c["type"] == of_type && c["status"] == status)
}

fn is_ending(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
        || pod["status"]["phase"] == "Failed"
        || pod["status"]["phase"] == "Succeeded"
}

pub fn is_available(pod: &Value) -> bool {
    !is_ending(pod) && has_condition(pod, "Ready", "True")
}

/// The most pods and the fewest available ones, computed apart from the controller's own arithmetic.
fn bounds(deployment: &Value) -> (i64, i64) {
    let spec = &deployment["spec"];
    let replicas = spec["replicas"].as_i64().unwrap_or(1);
    if spec["strategy"]["type"] == "Recreate" {
        return (replicas, 0);
    }
    let amount = |v: &Value, up: bool| match v {
        Value::String(text) => {
            let share = text.trim_end_matches('%').parse::<f64>().unwrap_or(25.0) * replicas as f64 / 100.0;
            if up { share.ceil() as i64 } else { share.floor() as i64 }
        }
        v => v.as_i64().unwrap_or(0),
    };
    let surge = amount(&spec["strategy"]["rollingUpdate"]["maxSurge"], true);
    let unavailable = amount(&spec["strategy"]["rollingUpdate"]["maxUnavailable"], false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (replicas + surge, (replicas - unavailable).max(0))
}

//! Autoscalers: as many pods as metrics ask for (`pkg/controller/podautoscaler`).
//!
//! An autoscaler is looked at every 15 seconds, and at once when what it says has changed. How many pods a metric asks for
//! ([`replicas`]) and how fast that is followed ([`behavior`]) are pure; here are the numbers fetched, the target scaled and
//! the status written. What was wished for and done lately is in memory alone, as in Kubernetes.

mod behavior;
mod measure;
mod replicas;
mod status;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{Context, absent_is_fine};
use crate::api::form;
use crate::api::subresource::scale;
use crate::apimachinery::status::Result;
use crate::base::json::{at, int, list, text};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::autoscaling::horizontalpodautoscaler::KIND;
use crate::kinds::core::pod;
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Patch, Reconciler, Recorder};
use behavior::{Decision, History, Rules};
use measure::{Measured, Measuring, Unmeasured};
use replicas::Workload;
use status::Draft;

/// How often an autoscaler is looked at.
const PERIOD: Duration = Duration::from_secs(15);
const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";

struct Autoscalers {
    cx: Arc<Context>,
    recorder: Recorder,
    histories: Mutex<HashMap<Key, History>>,
}

/// What is scaled, as it is now.
struct Target {
    kind: KindRef,
    name: String,
    scale: Value,
}

/// One autoscaler on its way through a look.
struct Look<'a> {
    object: &'a Arc<Object>,
    hpa: &'a Value,
    rules: Rules,
    now: Timestamp,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    // Its own word about itself is no news.
    let said = |c: &Changed| {
        let spec = |object: &Arc<Object>| object.value()["spec"].take();
        let is_same = c.previous.as_ref().is_some_and(|p| !c.deleted && spec(p) == spec(&c.object));
        if is_same { Vec::new() } else { vec![Key::of(&c.object)] }
    };
    let autoscalers =
        Autoscalers { cx: cx.clone(), recorder: cx.recorder("horizontal-pod-autoscaler"), histories: Mutex::default() };
    let controller = Controller::new("horizontalpodautoscaler", Arc::new(autoscalers), cx.clock.clone());
    controller.watches(&*cx.client, &KIND, Box::new(said))
}

#[async_trait]
impl Reconciler for Autoscalers {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&KIND).get(&key.namespace, &key.name) else {
            self.histories().remove(key);
            return Ok(Outcome::Done);
        };
        let (hpa, now) = (object.value(), self.cx.clock.now());
        let look = Look { object: &object, hpa: &hpa, rules: Rules::of(&hpa), now };
        let mut draft = Draft::of(&hpa, now);
        self.look(&look, &mut draft).await;
        let written = self.cx.write_status(&KIND, &object, draft.into_status(), Map::new()).await;
        absent_is_fine(written)?;
        Ok(Outcome::At(now + PERIOD))
    }
}

// === impl Autoscalers ===

impl Autoscalers {
    fn histories(&self) -> MutexGuard<'_, HashMap<Key, History>> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, look: &Look<'_>, reason: &str, message: &str) {
        self.recorder.event(&KIND, look.object, EventType::Warning, reason, message);
    }

    /// What there is to do for one autoscaler.
    async fn look(&self, look: &Look<'_>, draft: &mut Draft) {
        let target = match self.target(look).await {
            Ok(target) => target,
            Err(why) => {
                self.warn(look, "FailedGetScale", &why);
                let message = format!("the HPA controller was unable to get the target's current scale: {why}");
                return draft.set(ABLE, false, "FailedGetScale", &message);
            }
        };
        draft.set(ABLE, true, "SucceededGetScale", "the HPA controller was able to get the target's current scale");
        let current = count(&target.scale, "spec.replicas");
        draft.current = current;
        self.histories().entry(Key::of(look.object)).or_default().begin(current, look.now);
        let Rules { min, max, .. } = look.rules;
        let (wanted, reason) = match current {
            0 if min != 0 => {
                let why = "scaling is disabled since the replica count of the target is zero";
                draft.set(ACTIVE, false, "ScalingDisabled", why);
                draft.desired = 0;
                draft.metrics = Vec::new();
                return;
            }
            many if many > max => (max, "Current number of replicas above Spec.MaxReplicas".to_owned()),
            few if few < min => (min, "Current number of replicas below Spec.MinReplicas".to_owned()),
            _ => match self.wanted(look, &target, draft).await {
                Some(wanted) => wanted,
                None => return,
            },
        };
        if wanted == current {
            draft.desired = current;
            return;
        }
        self.rescale(look, &target, (current, wanted), &reason, draft).await;
    }

    /// What is scaled.
    async fn target(&self, look: &Look<'_>) -> Result<Target, String> {
        let reference = at(look.hpa, "spec.scaleTargetRef").unwrap_or(&Value::Null);
        let (api_version, of_kind, name) =
            (text(reference, "apiVersion"), text(reference, "kind"), text(reference, "name"));
        let kind = self.scalable(api_version, of_kind)?;
        let namespace = &look.object.meta.namespace;
        let object = self.cx.client.get(&kind, namespace, name).await.map_err(|status| status.message)?;
        // In the form in which it was written: nobody has to convert it.
        let kind = if kind.as_custom().is_some() { form::written_as(&kind, &object) } else { kind };
        let scale = scale::of(&kind, &object).map_err(|status| status.message)?;
        Ok(Target { kind, name: name.to_owned(), scale })
    }

    /// The kind of that name with a scale, in the named version or another one of its group.
    fn scalable(&self, api_version: &str, of_kind: &str) -> Result<KindRef, String> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kinds = self.cx.client.kinds().snapshot();
        let mut named: Vec<&KindRef> = kinds.iter().filter(|k| k.kind() == of_kind && k.group() == group).collect();
        if named.is_empty() {
            return Err(format!("no matches for kind {of_kind:?} in group {group:?}"));
        }
        named.retain(|k| k.subresources().contains(&Subresource::Scale) && k.namespaced());
        let exact = named.iter().find(|k| k.api_version() == api_version).or(named.first());
        exact.map(|k| (*k).clone()).ok_or_else(|| "the server could not find the requested resource".to_owned())
    }

    /// How many pods there are to be, and why; none where that cannot be said, or nothing is to be done.
    async fn wanted(&self, look: &Look<'_>, target: &Target, draft: &mut Draft) -> Option<(i32, String)> {
        let current = draft.current;
        let (wish, metric) = self.wish(look, target, draft).await?;
        let reason = match wish.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{metric} above target"),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let decision = {
            let mut histories = self.histories();
            histories.entry(Key::of(look.object)).or_default().decide(&look.rules, current, wish, look.now)
        };
        let Decision { replicas, able, limited } = decision;
        draft.set(ABLE, true, able.0, able.1);
        draft.set(LIMITED, limited.0, limited.1, limited.2);
        Some((replicas, reason))
    }

    /// How many pods the metrics ask for, and which of them asks for most.
    async fn wish(&self, look: &Look<'_>, target: &Target, draft: &mut Draft) -> Option<(i32, String)> {
        let pods = match self.pods(look, target, draft) {
            Ok(pods) => pods,
            Err(why) => {
                self.warn(look, "FailedComputeMetricsReplicas", &why);
                return None;
            }
        };
        let (mut statuses, mut failures): (Vec<Value>, Vec<Unmeasured>) = (Vec::new(), Vec::new());
        let mut most: Option<(i32, String)> = None;
        let metrics = list(look.hpa, "spec.metrics");
        let measuring = self.measuring(look, target, &pods)?;
        for metric in metrics {
            match measuring.measure(metric).await {
                Ok(Measured { replicas, name, status }) => {
                    statuses.push(status);
                    if most.as_ref().is_none_or(|(most, _)| replicas > *most) {
                        most = Some((replicas, name));
                    }
                }
                Err(failure) => {
                    self.warn(look, failure.reason, &failure.cause);
                    // Its place is kept, so that what is shown is beside what is wanted.
                    statuses.push(json!({"type": ""}));
                    failures.push(failure);
                }
            }
        }
        draft.metrics = statuses;
        let Some(first) = failures.first() else {
            let (replicas, name) = most?;
            self.found(draft, &name);
            return Some((replicas, name));
        };
        let why = format!(
            "invalid metrics ({} invalid out of {}), first error is: {}",
            failures.len(),
            metrics.len(),
            first.whole
        );
        match most {
            // Some are known, and none of them asks for fewer: the others could only ask for more.
            Some((replicas, name)) if replicas >= draft.current => {
                self.found(draft, &name);
                Some((replicas, name))
            }
            _ => {
                let message = format!("the HPA was unable to compute the replica count: {}", first.cause);
                draft.set(ACTIVE, false, first.reason, &message);
                self.warn(look, "FailedComputeMetricsReplicas", &why);
                None
            }
        }
    }

    fn measuring<'a>(&'a self, look: &'a Look<'_>, target: &'a Target, pods: &'a [Arc<Pod>]) -> Option<Measuring<'a>> {
        let (tolerance, current) = (look.rules.tolerance(), count(&target.scale, "spec.replicas"));
        Some(Measuring {
            metrics: &**self.cx.options.metrics.as_ref()?,
            namespace: &look.object.meta.namespace,
            selector: text(&target.scale, "status.selector"),
            workload: Workload { pods, current, tolerance, now: look.now },
            there: count(&target.scale, "status.replicas"),
        })
    }

    fn found(&self, draft: &mut Draft, metric: &str) {
        let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
        draft.set(ACTIVE, true, "ValidMetricFound", &message);
    }

    /// The pods of the target, which are nobody else's to scale.
    fn pods(&self, look: &Look<'_>, target: &Target, draft: &mut Draft) -> Result<Vec<Arc<Pod>>, String> {
        let selector = text(&target.scale, "status.selector");
        if selector.is_empty() {
            let why = "selector is required";
            self.warn(look, "SelectorRequired", why);
            draft.set(ACTIVE, false, "InvalidSelector", "the HPA target's scale is missing a selector");
            return Err(why.into());
        }
        let parsed = Selector::parse(selector).map_err(|error| {
            let why = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            self.warn(look, "InvalidSelector", &why);
            draft.set(ACTIVE, false, "InvalidSelector", &why);
            why
        })?;
        let mut pods = self.cx.client.informer(&pod::KIND).list(&look.object.meta.namespace);
        pods.retain(|pod| parsed.matches(&pod.meta.labels));
        let others = self.others(look, &pods);
        if !others.is_empty() {
            let namespace = &look.object.meta.namespace;
            let mut all: Vec<&str> = others.iter().map(String::as_str).chain([&*look.object.meta.name]).collect();
            all.sort_unstable();
            let named: Vec<String> = all.iter().map(|name| format!("{{{name} {namespace}}}")).collect();
            let why = format!("pods by selector {selector} are controlled by multiple HPAs: [{}]", named.join(" "));
            self.warn(look, "AmbiguousSelector", &why);
            draft.set(ACTIVE, false, "AmbiguousSelector", &why);
            return Err(why);
        }
        Ok(pods.iter().filter_map(|pod| pod.typed().ok()).collect())
    }

    /// Other autoscalers whose targets have one of these pods.
    fn others(&self, look: &Look<'_>, pods: &[Arc<Object>]) -> Vec<String> {
        let namespace = &look.object.meta.namespace;
        let all = self.cx.client.informer(&KIND).list(namespace);
        let selects = |other: &Object| {
            let hpa = other.value();
            let reference = at(&hpa, "spec.scaleTargetRef")?;
            let kind = self.scalable(text(reference, "apiVersion"), text(reference, "kind")).ok()?;
            let target = self.cx.client.informer(kind.stored()).get(namespace, text(reference, "name"))?;
            let scale = scale::of(&kind, &target).ok()?;
            let selector = Selector::parse(text(&scale, "status.selector")).ok().filter(|s| !s.is_empty())?;
            Some(pods.iter().any(|pod| selector.matches(&pod.meta.labels)))
        };
        let others = all.iter().filter(|other| other.meta.uid != look.object.meta.uid);
        others.filter(|other| selects(other) == Some(true)).map(|other| other.meta.name.to_string()).collect()
    }

    /// Has the target have as many pods.
    async fn rescale(&self, look: &Look<'_>, target: &Target, (from, to): (i32, i32), reason: &str, draft: &mut Draft) {
        let version = text(&target.scale, "metadata.resourceVersion");
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": to}}));
        let namespace = &look.object.meta.namespace;
        let through = Some(Subresource::Scale);
        match self.cx.client.patch(&target.kind, namespace, &target.name, through, patch).await {
            Ok(_) => {
                let message = format!("the HPA controller was able to update the target scale to {to}");
                draft.set(ABLE, true, "SucceededRescale", &message);
                let message = format!("New size: {to}; reason: {reason}");
                self.recorder.event(&KIND, look.object, EventType::Normal, "SuccessfulRescale", &message);
                self.histories().entry(Key::of(look.object)).or_default().scaled(&look.rules, from, to, look.now);
                draft.desired = to;
                draft.is_scaled = true;
            }
            Err(status) => {
                let why = &status.message;
                let message = format!("New size: {to}; reason: {reason}; error: {why}");
                self.warn(look, "FailedRescale", &message);
                let message = format!("the HPA controller was unable to update the target scale: {why}");
                draft.set(ABLE, false, "FailedUpdateScale", &message);
            }
        }
    }
}

fn count(of: &Value, path: &str) -> i32 {
    int(of, path).and_then(|n| i32::try_from(n).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;

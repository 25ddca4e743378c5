//! One metric of an autoscaler: fetched, and made a number of pods.

use std::time::Duration;

use serde_json::{Value, json};

use super::replicas::{Proposal, Sample, Samples, Workload, by_average, by_share, by_total, by_utilization, requests};
use crate::apimachinery::metrics::{Described, Metrics, PodMetrics};
use crate::base::json::{at, int, text};
use crate::base::labels::Selector;
use crate::base::quantity::Quantity;

/// What came of a metric.
pub(super) struct Measured {
    pub replicas: i32,
    /// As events name it.
    pub name: String,
    /// As `status.currentMetrics` has it.
    pub status: Value,
}

/// Why nothing came of it.
pub(super) struct Unmeasured {
    pub reason: &'static str,
    /// As the condition says it.
    pub cause: String,
    /// As the event about all metrics says it.
    pub whole: String,
}

/// Everything that a metric is measured by.
pub(super) struct Measuring<'a> {
    pub metrics: &'a dyn Metrics,
    pub namespace: &'a str,
    pub selector: &'a str,
    pub workload: Workload<'a>,
    /// How many there are, as the target says.
    pub there: i32,
}

/// The window of a number of pods that says none.
const WINDOW: Duration = Duration::from_secs(60);

// === impl Measuring ===

impl Measuring<'_> {
    /// How many pods a metric asks for.
    pub(super) async fn measure(&self, metric: &Value) -> Result<Measured, Unmeasured> {
        let of_type = text(metric, "type");
        let (key, reason) = match of_type {
            "Resource" => ("resource", "FailedGetResourceMetric"),
            "ContainerResource" => ("containerResource", "FailedGetContainerResourceMetric"),
            "Pods" => ("pods", "FailedGetPodsMetric"),
            "Object" => ("object", "FailedGetObjectMetric"),
            "External" => ("external", "FailedGetExternalMetric"),
            _ => ("", "InvalidMetricSourceType"),
        };
        let Some(source) = metric.get(key).filter(|source| source.is_object()) else {
            let why = format!("unknown metric source type {of_type:?}");
            return Err(Unmeasured { reason, whole: why.clone(), cause: why });
        };
        let (measured, what) = match key {
            "resource" => (self.resource(source, None).await, format!("{} resource metric", text(source, "name"))),
            "containerResource" => {
                let container = Some(text(source, "container"));
                (self.resource(source, container).await, format!("{} container metric", text(source, "name")))
            }
            "pods" => (self.pods(source).await, "pods metric".to_owned()),
            "object" => (self.object(source).await, "object metric".to_owned()),
            _ => (self.external(source).await, format!("{} external metric", text(source, "metric.name"))),
        };
        measured.map_err(|cause| Unmeasured { reason, whole: format!("failed to get {what} value: {cause}"), cause })
    }

    async fn resource(&self, source: &Value, container: Option<&str>) -> Result<Measured, String> {
        let (resource, is_cpu) = (text(source, "name"), text(source, "name") == "cpu");
        let percent = int(source, "target.averageUtilization").and_then(|p| i32::try_from(p).ok());
        let which = if percent.is_some() { "utilization" } else { "usage" };
        let failed = |why: String| format!("failed to get {resource} {which}: {why}");
        let samples = self.samples_of(resource, container).await;
        let samples = samples.map_err(|why| failed(format!("unable to get metrics for resource {resource}: {why}")))?;
        let of = if container.is_some() { "container resource" } else { "resource" };
        let (proposal, name) = match (amount(source, "target.averageValue"), percent) {
            (Some(target), _) => {
                (by_average(&self.workload, samples, target, is_cpu).map_err(failed)?, format!("{resource} {of}"))
            }
            (None, Some(percent)) => {
                let requests = requests(self.workload.pods, resource, container).map_err(failed)?;
                let proposal = by_utilization(&self.workload, samples, &requests, percent, is_cpu).map_err(failed)?;
                (proposal, format!("{resource} {of} utilization (percentage of request)"))
            }
            (None, None) => {
                return Err(
                    "invalid resource metric source: neither an average utilization target nor an average value \
                            (usage) target was set"
                        .into(),
                );
            }
        };
        let mut current = json!({"averageValue": shown(proposal.milli)});
        if let Some(percent) = proposal.utilization {
            current["averageUtilization"] = percent.into();
        }
        let (of_type, key) = match container {
            None => ("Resource", "resource"),
            Some(_) => ("ContainerResource", "containerResource"),
        };
        let mut status = json!({"type": of_type, key: {"name": resource, "current": current}});
        if let Some(container) = container {
            status[key]["container"] = container.into();
        }
        Ok(Measured { replicas: proposal.replicas, name, status })
    }

    /// What each pod uses of a resource, or one container of it.
    async fn samples_of(&self, resource: &str, container: Option<&str>) -> Result<Samples, String> {
        let all = self.metrics.pods(self.namespace, self.selector).await.map_err(|status| status.message)?;
        if all.is_empty() {
            return Err("no metrics returned from resource metrics API".into());
        }
        let sample = |of: &PodMetrics| {
            let mut sum = 0i64;
            for c in of.containers.iter().filter(|c| container.is_none_or(|name| c.name == name)) {
                // A pod of one of whose containers nothing is known is one of which nothing is known.
                sum = sum.saturating_add(c.milli.iter().find(|(name, _)| name == resource)?.1);
            }
            let is_there = container.is_none_or(|name| of.containers.iter().any(|c| c.name == name));
            is_there.then(|| (of.pod.clone(), Sample { milli: sum, at: of.at, window: of.window }))
        };
        let samples: Samples = all.iter().filter_map(sample).collect();
        match (samples.is_empty(), container) {
            (true, Some(container)) => Err(format!("container {container} not present in metrics for any pod")),
            _ => Ok(samples),
        }
    }

    async fn pods(&self, source: &Value) -> Result<Measured, String> {
        let (metric, selector) = identified(source)?;
        let described = Described::Pods { selector: self.selector };
        let failed = |why: String| format!("unable to get metric {metric}: {why}");
        let found = self.metrics.custom(self.namespace, described, metric, &selector).await;
        let samples = found.map_err(|status| failed(status.message))?.into_iter().map(|value| {
            let window = value.window.unwrap_or(WINDOW);
            (value.of, Sample { milli: value.milli, at: value.at, window })
        });
        let target = amount(source, "target.averageValue").ok_or("no target")?;
        let proposal = by_average(&self.workload, samples.collect(), target, false)?;
        let current = json!({"averageValue": shown(proposal.milli)});
        let status = json!({"type": "Pods", "pods": {"metric": source["metric"], "current": current}});
        Ok(Measured { replicas: proposal.replicas, name: format!("pods metric {metric}"), status })
    }

    async fn object(&self, source: &Value) -> Result<Measured, String> {
        let (metric, selector) = identified(source)?;
        let of = at(source, "describedObject").unwrap_or(&Value::Null);
        let (api_version, kind, name) = (text(of, "apiVersion"), text(of, "kind"), text(of, "name"));
        let described = Described::Object { api_version, kind, name };
        let found = self.metrics.custom(self.namespace, described, metric, &selector).await;
        let namespace = self.namespace;
        let failed = |why: &str| format!("unable to get metric {metric}: {kind} on {namespace} {name}/{why}");
        let total = found.map_err(|status| failed(&status.message))?.first().map_or(0, |value| value.milli);
        let (proposal, current) = self.of_all(source, total, "object")?;
        let status = json!({"type": "Object", "object": {"metric": source["metric"], "describedObject": of, "current": current}});
        Ok(Measured { replicas: proposal.replicas, name: format!("{kind} metric {metric}"), status })
    }

    async fn external(&self, source: &Value) -> Result<Measured, String> {
        let (metric, selector) = identified(source)?;
        let found = self.metrics.external(self.namespace, metric, &selector).await;
        let failed = |why: &str| format!("unable to get external metric {}/{metric}/{selector}: {why}", self.namespace);
        let values = found.map_err(|status| failed(&status.message))?;
        let total = values.into_iter().fold(0i64, i64::saturating_add);
        let (proposal, current) = self.of_all(source, total, "external")?;
        let status = json!({"type": "External", "external": {"metric": source["metric"], "current": current}});
        let name = format!("external metric {metric}({})", shown_selector(source));
        Ok(Measured { replicas: proposal.replicas, name, status })
    }

    /// What comes of a number that is of all pods together.
    fn of_all(&self, source: &Value, total: i64, which: &str) -> Result<(Proposal, Value), String> {
        if let Some(target) = amount(source, "target.averageValue") {
            let proposal = by_share(self.there, self.workload.tolerance, total, target);
            return Ok((proposal, json!({"averageValue": shown(proposal.milli)})));
        }
        let none =
            || format!("invalid {which} metric source: neither a value target nor an average value target was set");
        let target = amount(source, "target.value").ok_or_else(none)?;
        let proposal = by_total(&self.workload, total, target)?;
        Ok((proposal, json!({"value": shown(proposal.milli)})))
    }
}

/// A metric's name and the text of its selector.
fn identified(source: &Value) -> Result<(&str, String), String> {
    let selector = at(source, "metric.selector").filter(|s| s.is_object());
    let parsed = selector.map(Selector::from_object).transpose().map_err(|error| error.to_string())?;
    Ok((text(source, "metric.name"), parsed.map(|s| s.to_string()).unwrap_or_default()))
}

fn shown_selector(source: &Value) -> String {
    at(source, "metric.selector").map_or_else(|| "nil".to_owned(), Value::to_string)
}

fn amount(source: &Value, path: &str) -> Option<i64> {
    text(source, path).parse::<Quantity>().ok().map(|quantity| quantity.milli()).filter(|milli| *milli > 0)
}

fn shown(milli: i64) -> String {
    Quantity::from_milli(milli).to_string()
}

//! The numbers that autoscalers go by: from here, or from the servers that have registered for them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::content::{account, ask};
use super::remote::Remote;
use crate::api::{Api, resource_metrics};
use crate::apimachinery::metrics::{ContainerMetrics, Described, MetricValue, Metrics, PodMetrics};
use crate::apimachinery::status::{Result, Status};
use crate::base::clock::parse_time;
use crate::base::json::{int, list, text};
use crate::base::labels::Selector;
use crate::base::quantity::Quantity;
use crate::kinds::core::pod;

const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";
/// Numbers of one question that are taken in.
const VALUES_MAX: usize = 10_000;

#[async_trait]
impl Metrics for Api {
    async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<PodMetrics>> {
        let (group, version) = (resource_metrics::GROUP, resource_metrics::VERSION);
        if let Some(remote) = self.remote(group, version) {
            let path =
                format!("/apis/{group}/{version}/namespaces/{namespace}/pods?labelSelector={}", escaped(selector));
            let found = asked(self, &remote, &path, "resource").await?;
            return Ok(list(&found, "items").iter().take(VALUES_MAX).filter_map(pod_metrics).collect());
        }
        if !self.options.resource_metrics {
            return Err(unable(
                "resource",
                &format!("the server could not find the requested resource (get pods.{group})"),
            ));
        }
        let labels = Selector::parse(selector).map_err(|error| Status::bad_request(error.to_string()))?;
        let mut pods = self.cache.kind(&pod::KIND).list(&format!("{}{namespace}/", pod::KIND.prefix()), "");
        pods.retain(|pod| labels.matches(&pod.meta.labels));
        Ok(self.pod_usages(&pods).await.into_iter().map(|(pod, usage)| own(&pod.meta.name, &usage)).collect())
    }

    async fn custom(
        &self,
        namespace: &str,
        of: Described<'_>,
        metric: &str,
        metric_selector: &str,
    ) -> Result<Vec<MetricValue>> {
        let remote = ["v1beta2", "v1beta1"].into_iter().find_map(|version| self.remote(CUSTOM, version));
        let remote = remote.ok_or_else(|| unable("custom", &format!("no custom metrics API ({CUSTOM}) registered")))?;
        let root = remote.root();
        let named = |query: &str| format!("{}{query}metricLabelSelector={}", escaped(metric), escaped(metric_selector));
        let path = match of {
            Described::Pods { selector } => {
                let query = format!("?labelSelector={}&", escaped(selector));
                format!("{root}/namespaces/{namespace}/pods/*/{}", named(&query))
            }
            Described::Object { kind: "Namespace", name, .. } => {
                format!("{root}/namespaces/{name}/metrics/{}", named("?"))
            }
            Described::Object { api_version, kind, name } => {
                let resource = self.resource_of(api_version, kind)?;
                format!("{root}/namespaces/{namespace}/{resource}/{name}/{}", named("?"))
            }
        };
        let found = asked(self, &remote, &path, "custom").await?;
        let values: Vec<MetricValue> = list(&found, "items").iter().take(VALUES_MAX).filter_map(value_of).collect();
        if values.is_empty() {
            Err(Status::unavailable("no metrics returned from custom metrics API"))
        } else {
            Ok(values)
        }
    }

    async fn external(&self, namespace: &str, metric: &str, selector: &str) -> Result<Vec<i64>> {
        let missing = format!("the server could not find the requested resource (get {metric}.{EXTERNAL})");
        let remote = self.remote(EXTERNAL, "v1beta1").ok_or_else(|| unable("external", &missing))?;
        let (root, metric, selector) = (remote.root(), escaped(metric), escaped(selector));
        let path = format!("{root}/namespaces/{namespace}/{metric}?labelSelector={selector}");
        let found = asked(self, &remote, &path, "external").await?;
        let values: Vec<i64> =
            list(&found, "items").iter().take(VALUES_MAX).filter_map(|item| milli(item, "value")).collect();
        if values.is_empty() {
            Err(Status::unavailable("no metrics returned from external metrics API"))
        } else {
            Ok(values)
        }
    }
}

// === impl Api ===

impl Api {
    /// `deployments.apps` of a kind.
    fn resource_of(&self, api_version: &str, kind: &str) -> Result<String> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.snapshot();
        let found = kinds.iter().find(|k| k.kind() == kind && k.group() == group);
        let missing = || Status::unavailable(format!("no matches for kind {kind:?} in group {group:?}"));
        let found = found.ok_or_else(missing)?;
        Ok(if group.is_empty() { found.plural().to_owned() } else { format!("{}.{group}", found.plural()) })
    }
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn unable(which: &str, why: &str) -> Status {
    Status::unavailable(format!("unable to fetch metrics from {which} metrics API: {why}"))
}

async fn asked(api: &Api, remote: &Arc<Remote>, path: &str, which: &str) -> Result<Value> {
    if !remote.is_available {
        return Err(unable(which, "the server is currently unable to handle the request"));
    }
    let answer = ask(api, remote, &account("horizontal-pod-autoscaler"), &Method::GET, path).await;
    answer.map_err(|failed| unable(which, &failed.why))
}

fn milli(of: &Value, path: &str) -> Option<i64> {
    text(of, path).parse::<Quantity>().ok().map(|quantity| quantity.milli())
}

/// What this server has measured.
fn own(pod: &str, usage: &resource_metrics::PodUsage) -> PodMetrics {
    let container = |c: &resource_metrics::ContainerUsage| ContainerMetrics {
        name: c.name.to_string(),
        milli: vec![
            ("cpu".into(), Quantity::from_nano(c.usage.cpu_nanos).milli()),
            ("memory".into(), c.usage.memory_bytes.saturating_mul(1000)),
        ],
    };
    PodMetrics {
        pod: pod.into(),
        at: Timestamp::from_millisecond(usage.at).unwrap_or_default(),
        window: Duration::from_nanos(usage.window_nanos.unsigned_abs()),
        containers: usage.containers.iter().map(container).collect(),
    }
}

/// What another server says of a pod.
fn pod_metrics(item: &Value) -> Option<PodMetrics> {
    let container = |c: &Value| {
        let usage = c.get("usage").and_then(Value::as_object).into_iter().flatten();
        let milli =
            usage.filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse::<Quantity>().ok()?.milli())));
        ContainerMetrics { name: text(c, "name").into(), milli: milli.collect() }
    };
    Some(PodMetrics {
        pod: text(item, "metadata.name").to_owned(),
        at: parse_time(text(item, "timestamp"))?,
        window: go_duration(text(item, "window")).unwrap_or_default(),
        containers: list(item, "containers").iter().map(container).collect(),
    })
}

/// `1m15.5s` and the like.
fn go_duration(text: &str) -> Option<Duration> {
    let (minutes, rest) = text.split_once('m').filter(|(m, _)| m.parse::<u32>().is_ok()).unwrap_or(("0", text));
    let seconds: f64 = rest.strip_suffix('s').unwrap_or("0").parse().ok()?;
    Duration::try_from_secs_f64(minutes.parse::<f64>().ok()? * 60.0 + seconds).ok()
}

fn value_of(item: &Value) -> Option<MetricValue> {
    Some(MetricValue {
        of: text(item, "describedObject.name").to_owned(),
        milli: milli(item, "value")?,
        at: parse_time(text(item, "timestamp"))?,
        window: int(item, "windowSeconds")
            .or_else(|| int(item, "window"))
            .and_then(|s| u64::try_from(s).ok())
            .map(Duration::from_secs),
    })
}

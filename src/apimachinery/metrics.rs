//! The numbers that autoscalers go by, as controllers reach them: `metrics.k8s.io`, `custom.metrics.k8s.io` and
//! `external.metrics.k8s.io`, whoever serves each.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::status::Result;

/// What a pod's containers use.
#[derive(Clone, Debug, PartialEq)]
pub struct PodMetrics {
    pub pod: String,
    pub at: Timestamp,
    pub window: Duration,
    pub containers: Vec<ContainerMetrics>,
}

/// What a container uses.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerMetrics {
    pub name: String,
    /// By resource, in thousandths.
    pub milli: Vec<(String, i64)>,
}

/// A number of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricValue {
    /// The object's name.
    pub of: String,
    pub milli: i64,
    pub at: Timestamp,
    pub window: Option<Duration>,
}

/// Whose number a custom metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Described<'a> {
    /// Of each pod that a selector selects.
    Pods { selector: &'a str },
    /// Of one object.
    Object { api_version: &'a str, kind: &'a str, name: &'a str },
}

/// Where the numbers come from.
#[async_trait]
pub trait Metrics: std::fmt::Debug + Send + Sync {
    /// What pods use; those of which nothing is known are not among them.
    async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<PodMetrics>>;
    /// A number that others have of objects of this cluster.
    async fn custom(
        &self,
        namespace: &str,
        of: Described<'_>,
        metric: &str,
        metric_selector: &str,
    ) -> Result<Vec<MetricValue>>;
    /// A number that others have of something else, in thousandths, from as many places as there are.
    async fn external(&self, namespace: &str, metric: &str, selector: &str) -> Result<Vec<i64>>;
}

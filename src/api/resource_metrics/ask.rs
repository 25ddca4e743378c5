//! Nodes that are asked, and what comes of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt, Empty, Limited};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::measured::{Measured, OLD, Pair};
use super::rate::{NodeUsage, PodUsage, node_usage, pod_usage};
use super::sample::Sample;
use crate::api::Api;
use crate::apimachinery::node_access::Destination;
use crate::base::object::Object;
use crate::kinds::core::pod;
use crate::wire::relay;

/// How long an answer is said again: metrics-server has a new one every 15 seconds.
const SAID_AGAIN: Duration = Duration::from_secs(10);
/// How long to wait for a second sample.
const BETWEEN: Duration = Duration::from_secs(1);
/// How long a node may take; one that does not answer is asked no sooner than one that does.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that a node may say.
const BYTES_MAX: usize = 8 << 20;
/// Nodes that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;

// === impl Measured ===

impl Measured {
    async fn take(&mut self, api: &Api, node: &str) -> Option<()> {
        self.failed = Some(Instant::now());
        let sample = tokio::time::timeout(TIMEOUT, ask(api, node)).await.ok()??;
        self.failed = None;
        self.before = self.last.replace(Arc::new(sample));
        self.at = Some(Instant::now());
        Some(())
    }

    /// What is known now; measured where that is too old.
    async fn now(&mut self, api: &Api, node: &str) -> Option<Pair> {
        if self.is_younger_than(SAID_AGAIN)
            && let Some(pair) = self.pair()
        {
            return Some(pair);
        }
        if self.failed.is_some_and(|at| at.elapsed() < SAID_AGAIN) {
            return None;
        }
        if !self.is_younger_than(OLD) {
            *self = Self::default();
            self.take(api, node).await?;
            tokio::time::sleep(BETWEEN).await;
        } else if self.is_younger_than(BETWEEN) {
            tokio::time::sleep(BETWEEN).await;
        }
        self.take(api, node).await?;
        self.pair()
    }
}

async fn ask(api: &Api, node: &str) -> Option<Sample> {
    let access = api.nodes.get(node).ok()?;
    let stream = access.dial(&Destination::Endpoints).await.ok()?;
    let request = Request::get("/metrics/resource").header(HOST, "node").body(Empty::<Bytes>::new()).ok()?;
    let response = relay::send(stream, request).await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let body = Limited::new(response.into_body(), BYTES_MAX).collect().await.ok()?.to_bytes();
    Some(Sample::read(&String::from_utf8_lossy(&body), api.clock.now()))
}

/// What there is to say of some nodes or pods.
impl Api {
    /// The pairs of samples of some nodes; nothing of those that do not answer.
    async fn measured(&self, names: Vec<String>) -> HashMap<String, Pair> {
        let all: Vec<BoxFuture<'static, Option<(String, Pair)>>> =
            names.into_iter().map(|name| measured(self.clone(), name)).collect();
        let mut answers = futures::stream::iter(all).buffer_unordered(ASKED_AT_ONCE);
        let mut found = HashMap::new();
        while let Some(answer) = answers.next().await {
            found.extend(answer);
        }
        found
    }

    /// What nodes use; those of which nothing is known are left out.
    pub(in crate::api) async fn node_usages(&self, nodes: &[Arc<Object>]) -> Vec<(Arc<Object>, NodeUsage)> {
        let measured = self.measured(nodes.iter().map(|node| node.meta.name.to_string()).collect()).await;
        let of = |node: &Arc<Object>| {
            let Pair(before, last) = measured.get(&*node.meta.name)?;
            Some((node.clone(), node_usage(before, last)?))
        };
        nodes.iter().filter_map(of).collect()
    }

    /// What pods use; those of which nothing is known are left out.
    pub(in crate::api) async fn pod_usages(&self, pods: &[Arc<Object>]) -> Vec<(Arc<Object>, PodUsage)> {
        let placed: Vec<(String, &Arc<Object>)> = pods.iter().filter_map(|pod| Some((node_of(pod)?, pod))).collect();
        let mut nodes: Vec<String> = placed.iter().map(|(node, _)| node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        let measured = self.measured(nodes).await;
        let of = |(node, pod): &(String, &Arc<Object>)| {
            let Pair(before, last) = measured.get(node)?;
            let usage = pod_usage(before, last, &pod.meta.namespace, &pod.meta.name)?;
            Some(((*pod).clone(), usage))
        };
        placed.iter().filter_map(of).collect()
    }
}

fn measured(api: Api, name: String) -> BoxFuture<'static, Option<(String, Pair)>> {
    Box::pin(async move {
        let node = api.resource_metrics.node(&name);
        let pair = node.lock().await.now(&api, &name).await?;
        Some((name, pair))
    })
}

/// The node that a pod is on.
fn node_of(object: &Object) -> Option<String> {
    debug_assert!(object.key.starts_with(&pod::KIND.prefix()), "{}", object.key);
    let pod = object.typed::<Pod>().ok()?;
    pod.spec.as_ref()?.node_name.clone().filter(|node| !node.is_empty())
}

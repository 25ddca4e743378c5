//! Whether a server can be asked: what its Service says, then whether it answers
//! (`kube-aggregator/pkg/controllers/status/remote`).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::connection::Question;
use super::discovered::{self, Freshness};
use super::remote::Remote;
use crate::api::Api;
use crate::base::budget::shortened;
use crate::base::object::Object;
use crate::kinds::core::service;
use crate::kinds::discovery::endpointslice;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is asked before it counts as gone: any of its endpoints may be the one that does not answer.
const ATTEMPTS: usize = 5;
/// Bytes of a list of resources.
const BYTES_MAX: usize = 1 << 20;
/// What is told of a failure.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub is_available: bool,
    pub reason: &'static str,
    pub message: String,
}

/// The objects that say where a server is.
#[derive(Clone, Debug, Default)]
pub(super) struct Behind {
    service: Option<Arc<Object>>,
    slices: Vec<Arc<Object>>,
}

// === impl Verdict ===

impl Verdict {
    fn passed() -> Self {
        Self { is_available: true, reason: "Passed", message: "all checks passed".into() }
    }

    fn failed(reason: &'static str, message: String) -> Self {
        Self { is_available: false, reason, message: shortened(&message, MESSAGE_BYTES_MAX).into_owned() }
    }
}

// === impl Behind ===

impl Behind {
    pub(super) fn of(api: &Api, remote: &Remote) -> Self {
        let (namespace, name) = (&*remote.backend.namespace, &*remote.backend.service);
        let prefix = format!("{}{namespace}/", endpointslice::KIND.prefix());
        let mut slices = api.cache.kind(&endpointslice::KIND).list(&prefix, "");
        slices.retain(|slice| slice.meta.labels.get(SERVICE_NAME).is_some_and(|of| **of == *name));
        Self { service: api.cache.kind(&service::KIND).get(&service::KIND.key(namespace, name)), slices }
    }

    /// What tells it from what it was.
    pub(super) fn revisions(&self) -> Vec<u64> {
        self.service.iter().chain(&self.slices).map(|object| object.revision).collect()
    }

    /// Why nobody needs to be asked.
    fn refuses(&self, remote: &Remote) -> Option<Verdict> {
        let (namespace, name) = (&*remote.backend.namespace, &*remote.backend.service);
        let typed = self.service.as_ref().and_then(|object| object.typed::<Service>().ok());
        let Some(service) = typed else {
            let why = format!("service/{name} in {namespace:?} is not present");
            return Some(Verdict::failed("ServiceNotFound", why));
        };
        let slices: Vec<Arc<EndpointSlice>> = self.slices.iter().filter_map(|object| object.typed().ok()).collect();
        missing(&service, &slices, remote.backend.port, name, namespace)
    }
}

/// What a Service with an address of the cluster lacks.
fn missing(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    port: u16,
    name: &str,
    namespace: &str,
) -> Option<Verdict> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() != Some("ClusterIP") {
        return None;
    }
    let Some(found) = spec.ports.iter().flatten().find(|p| p.port == i32::from(port)) else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(Verdict::failed("ServicePortError", why));
    };
    if slices.is_empty() {
        let why = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(Verdict::failed("EndpointsNotFound", why));
    }
    let port_name = found.name.as_deref().unwrap_or_default();
    let is_ready = |slice: &Arc<EndpointSlice>| {
        let ready = |conditions: Option<bool>| conditions != Some(false);
        let mut endpoints = slice.endpoints.iter().flatten();
        let mut ports = slice.ports.iter().flatten();
        endpoints.any(|e| ready(e.conditions.as_ref().and_then(|c| c.ready)))
            && ports.any(|p| p.name.as_deref().unwrap_or_default() == port_name && p.port.is_some())
    };
    if slices.iter().any(is_ready) {
        return None;
    }
    let why =
        format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}");
    Some(Verdict::failed("MissingEndpoints", why))
}

/// Finds out whether a server answers, and what it has.
///
/// The first attempt also learns which resources there are, from whoever shows a certificate that is believed. Whether the
/// server is there at all is asked of anyone, as in Kubernetes: a certificate that is not believed is told to whoever asks.
pub(super) async fn check(api: &Api, remote: &Remote, behind: &Behind) -> Verdict {
    if let Some(verdict) = behind.refuses(remote) {
        remote.discovered().freshness = Freshness::Stale;
        return verdict;
    }
    let why = match learn(api, remote).await {
        Ok(resources) => {
            let mut discovered = remote.discovered();
            (discovered.freshness, discovered.resources) = (Freshness::Current, resources);
            return Verdict::passed();
        }
        Err(why) => why,
    };
    {
        let mut discovered = remote.discovered();
        (discovered.freshness, discovered.resources) = (Freshness::Stale, Vec::new());
    }
    let again = join_all((1..ATTEMPTS).map(|_| answers(api, remote, false))).await;
    match again.into_iter().any(|answered| answered.is_ok()) {
        true => Verdict::passed(),
        false => Verdict::failed("FailedDiscoveryCheck", why),
    }
}

async fn learn(api: &Api, remote: &Remote) -> Result<Vec<serde_json::Value>, String> {
    let body = answers(api, remote, true).await?;
    discovered::read(&body, &remote.group, &remote.version)
}

/// Asks for the list of resources, which every server has.
async fn answers(api: &Api, remote: &Remote, verified: bool) -> Result<bytes::Bytes, String> {
    let path = remote.root();
    let address = format!("https://{}{path}", remote.authority());
    let question = Question { verified, ..Question::get(&path, BYTES_MAX) };
    let asked = tokio::time::timeout(TIMEOUT, remote.ask(api, &question)).await;
    let failed = |why: String| format!("failing or missing response from {address}: {why}");
    let reply = asked
        .map_err(|_| failed(format!("Get {address:?}: context deadline exceeded")))?
        .map_err(|why| failed(format!("Get {address:?}: {why}")))?;
    match reply.status {
        200..300 => Ok(reply.body),
        status => Err(failed(format!("bad status from {address}: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_without_port_slices_or_ready_endpoints_needs_no_question() {
        let service = |of_type: &str| -> Service {
            serde_json::from_value(json!({"spec": {"type": of_type, "ports": [{"name": "https", "port": 443}]}}))
                .unwrap()
        };
        let slice = |ready: bool, port: &str| -> Arc<EndpointSlice> {
            let slice = json!({"addressType": "IPv4", "ports": [{"name": port, "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]});
            Arc::new(serde_json::from_value(slice).unwrap())
        };
        let reason = |service: &Service, slices: &[Arc<EndpointSlice>], port: u16| {
            missing(service, slices, port, "api", "web").map(|verdict| (verdict.reason, verdict.message))
        };
        let said = |reason, message: &str| Some((reason, message.to_owned()));
        let (inner, ready) = (service("ClusterIP"), slice(true, "https"));
        assert_eq!(reason(&inner, std::slice::from_ref(&ready), 443), None);
        assert_eq!(reason(&service("ExternalName"), &[], 443), None, "nothing of it is known");
        assert_eq!(
            reason(&inner, &[ready], 444),
            said("ServicePortError", "service/api in \"web\" is not listening on port 444")
        );
        assert_eq!(
            reason(&inner, &[], 443),
            said("EndpointsNotFound", "cannot find endpointslices for service/api in \"web\"")
        );
        for slices in [[slice(false, "https")], [slice(true, "http")]] {
            let why = "endpointslices for service/api in \"web\" have no addresses with port name \"https\"";
            assert_eq!(reason(&inner, &slices, 443), said("MissingEndpoints", why));
        }
    }
}

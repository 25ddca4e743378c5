//! DenyServiceExternalIPs: a Service may name addresses from outside of the cluster only inside of ranges that the administrator
//! has allowed. Whoever may write a Service could otherwise have the connections of everybody to any address.

use std::net::IpAddr;

use async_trait::async_trait;
use serde_json::Value;

use super::{Plugin, Review};
use crate::api::{Api, Request, allocate};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, text};
use crate::kinds::core::service;

const DENIED: &str = "Use of external IPs is denied by admission control";

pub(super) struct DenyServiceExternalIps;

#[async_trait]
impl Plugin for DenyServiceExternalIps {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.writes(&service::KIND)
    }

    async fn validate(&self, review: &Review<'_>, service: &Value) -> Result<Vec<String>> {
        restrict(review.api, review.request, service, review.old).map(|()| Vec::new())
    }
}

/// Refuses addresses that are new in a Service and not allowed.
fn restrict(api: &Api, request: &Request, value: &Value, old: Option<&Value>) -> Result<()> {
    let addresses = |service: &Value| -> Vec<String> {
        list(service, "spec.externalIPs").iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let known = old.map(addresses).unwrap_or_default();
    let refuse = |why: String| {
        let name = if request.name.is_empty() { text(value, "metadata.name") } else { &request.name };
        Err(Status::forbidden(&service::KIND, name, why))
    };
    for new in addresses(value).iter().filter(|a| !known.contains(a)) {
        if api.options.external_ips.is_empty() {
            return refuse(DENIED.into());
        }
        // What is no address, validation tells.
        let Ok(address) = new.parse::<IpAddr>() else { continue };
        if !api.options.external_ips.iter().any(|range| range.contains(&address)) {
            let ranges: Vec<String> = api.options.external_ips.iter().map(ToString::to_string).collect();
            return refuse(format!("{DENIED}: {new} is in none of the allowed ranges {}", ranges.join(", ")));
        }
        let further = allocate::further_ranges(api);
        let mut inner = api.options.inner_cidrs.iter().chain(&further);
        if let Some(range) = inner.find(|range| range.contains(&address)) {
            return refuse(format!("{DENIED}: {new} is an address of the cluster itself, in {range}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::kinds::core::namespace;
    use crate::reconcile::{Client, Patch};

    async fn client(ranges: &[&str]) -> (Api, Local) {
        let api = in_memory::api_allowing(ranges);
        let client = Local::new(api.clone(), "test");
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "default"}})).await.unwrap();
        (api, client)
    }

    fn claiming(name: &str, addresses: &[&str]) -> Value {
        json!({"metadata": {"name": name}, "spec": {"externalIPs": addresses, "ports": [{"port": 6443}]}})
    }

    async fn create(client: &Local, name: &str, addresses: &[&str]) -> Result<()> {
        client.create(&service::KIND, "default", claiming(name, addresses)).await.map(|_| ())
    }

    #[tokio::test]
    async fn without_allowed_ranges_external_addresses_are_denied_as_kubernetes_denies_them() {
        let (_api, client) = client(&[]).await;
        let status = create(&client, "s", &["192.0.2.1"]).await.unwrap_err();
        assert_eq!((status.code, status.reason), (403, "Forbidden"));
        let expect = "services \"s\" is forbidden: Use of external IPs is denied by admission control";
        assert_eq!(status.message, expect);
        create(&client, "s", &[]).await.unwrap();
        let patch = || Patch::Merge(json!({"spec": {"externalIPs": ["192.0.2.1"]}}));
        let status = client.patch(&service::KIND, "default", "s", None, patch()).await.unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (403, expect));
    }

    #[tokio::test]
    async fn inside_of_allowed_ranges_they_are_taken_and_those_of_the_cluster_never() {
        let (_api, client) = client(&["192.0.2.0/28", "10.0.0.0/8"]).await;
        create(&client, "s", &["192.0.2.1", "10.7.0.1"]).await.unwrap();
        let why = create(&client, "t", &["192.0.2.1", "198.51.100.1"]).await.unwrap_err().message;
        assert!(why.ends_with("198.51.100.1 is in none of the allowed ranges 192.0.2.0/28, 10.0.0.0/8"), "{why}");
        for inner in ["10.43.0.1", "10.42.3.4"] {
            let why = create(&client, "t", &[inner]).await.unwrap_err().message;
            assert!(why.contains(inner) && why.contains("of the cluster itself"), "{why}");
        }
    }

    #[tokio::test]
    async fn what_a_service_had_before_it_may_keep_or_give_back() {
        let request = Request::internal("test", &service::KIND, "default", "s");
        let api = in_memory::api();
        let (had, fewer, more) = (claiming("s", &["a", "b"]), claiming("s", &["b"]), claiming("s", &["a", "b", "c"]));
        for kept in [&had, &fewer, &claiming("s", &[])] {
            restrict(&api, &request, kept, Some(&had)).unwrap();
        }
        assert_eq!(restrict(&api, &request, &more, Some(&had)).unwrap_err().code, 403);
    }
}

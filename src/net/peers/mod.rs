//! Layer 5: keeps the overlay equal to the Node objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::task::JoinHandle;

use crate::base::error::full;
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::node;
use crate::net::overlay::{Overlay, Peer};
use crate::reconcile::{Client, Informer};

/// Waits after failures: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How often the kernel is looked at although nothing changed, so that entries that others removed come back.
const REPAIR: Duration = Duration::from_secs(60);

/// Follows the nodes. Aborting the handle stops it; the entries stay.
pub fn start(client: &dyn Client, overlay: Arc<Overlay>, own: &str) -> JoinHandle<Option<()>> {
    task::spawn("overlay", run(client.informer(&node::KIND), overlay, own.to_owned()))
}

async fn run(nodes: Informer, overlay: Arc<Overlay>, own: String) {
    nodes.synced().await;
    let mut changes = nodes.subscribe();
    let mut peers = None;
    let mut retry = RETRY.0;
    let mut due = tokio::time::Instant::now();
    loop {
        let now = peers_of(&nodes.list(""), &own);
        if peers.as_ref() != Some(&now) || due <= tokio::time::Instant::now() {
            let (overlay, list) = (overlay.clone(), now.clone());
            let applied = tokio::task::spawn_blocking(move || overlay.apply(&list)).await;
            let pause = match applied {
                Ok(Ok(())) => {
                    retry = RETRY.0;
                    peers = Some(now);
                    REPAIR
                }
                Ok(Err(error)) => {
                    tracing::error!(error = full(&error), "the overlay cannot be changed; it is tried again");
                    retry = (retry * 2).min(RETRY.1);
                    peers = None;
                    retry
                }
                Err(_) => return,
            };
            due = tokio::time::Instant::now() + pause;
        }
        // Heartbeats change Node objects all the time; what they do not change here costs one look at the list.
        let _ = tokio::time::timeout_at(due, changes.next()).await;
    }
}

/// The other nodes that have a range and an address.
fn peers_of(nodes: &[Arc<Object>], own: &str) -> Vec<Peer> {
    let mut by_range: BTreeMap<String, Peer> = BTreeMap::new();
    for object in nodes.iter().filter(|o| *o.meta.name != *own) {
        let Ok(node) = object.typed::<Node>() else { continue };
        let Some(spec) = &node.spec else { continue };
        let ranges = spec.pod_cidrs.clone().or_else(|| spec.pod_cidr.clone().map(|c| vec![c])).unwrap_or_default();
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let mut internal =
            addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse::<IpAddr>().ok());
        let Some(address) = internal.next() else { continue };
        let pod_cidrs: Vec<_> = ranges.iter().filter_map(|c| c.parse().ok()).collect();
        if !pod_cidrs.is_empty() {
            by_range.insert(ranges.join(","), Peer { address, pod_cidrs });
        }
    }
    by_range.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_without_a_range_or_an_address_are_left_out() {
        let node = |name: &str, cidr: serde_json::Value, address: serde_json::Value| {
            let value = json!({"metadata": {"name": name}, "spec": cidr, "status": {"addresses": address}});
            Arc::new(Object::new(node::KIND.key("", name), 1, &value, Box::default()))
        };
        let at = json!([{"type": "Hostname", "address": "b"}, {"type": "InternalIP", "address": "192.0.2.2"}]);
        let range = json!({"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"]});
        let all = [
            node("own", json!({"podCIDR": "10.42.0.0/24"}), at.clone()),
            node("b", range.clone(), at.clone()),
            node("new", json!({}), at),
            node("silent", json!({"podCIDR": "10.42.3.0/24"}), json!([])),
        ];
        let peers = peers_of(&all, "own");
        let expect = Peer { address: "192.0.2.2".parse().unwrap(), pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()] };
        assert_eq!(peers, [expect]);
    }
}

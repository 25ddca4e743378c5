//! Layer 5: keeps the overlay equal to the Node objects, and the Node's key for it published and renewed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::base::clock::Clock;
use crate::base::error::chain;
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::node;
use crate::net::overlay::{Overlay, PeerNode, PendingKey, PublicKey, Tunnel};
use crate::reconcile::{Client, Informer, Patch};

/// Waits after failures: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How often the kernel is looked at although nothing changed, so that entries that others removed come back.
const RESYNC: Duration = Duration::from_secs(60);

/// How long to wait before another key is tried for again.
const KEY_RETRY: Duration = Duration::from_secs(600);

/// Follows the nodes. Aborting the handle stops it; the entries stay.
pub fn start(client: Arc<dyn Client>, overlay: Arc<Overlay>, own: &str, clock: Clock) -> JoinHandle<Option<()>> {
    let nodes = client.informer(&node::KIND);
    let reconciler = Reconciler {
        client,
        nodes,
        overlay,
        own: own.to_owned(),
        clock,
        pending: None,
        key_retry_at: None,
        logged: None,
    };
    task::spawn("overlay", reconciler.run())
}

struct Reconciler {
    client: Arc<dyn Client>,
    nodes: Informer,
    overlay: Arc<Overlay>,
    own: String,
    clock: Clock,
    /// A key that is published before it is used.
    pending: Option<PendingKey>,
    /// Until when the key is not looked at, after a failure.
    key_retry_at: Option<Instant>,
    /// What was logged last.
    logged: Option<Tunnel>,
}

// === impl Reconciler ===

impl Reconciler {
    async fn run(mut self) {
        self.nodes.synced().await;
        let mut changes = self.nodes.subscribe();
        let mut peers = None;
        let mut retry = RETRY.0;
        let mut due = Instant::now();
        loop {
            self.rotate_key().await;
            let list = self.nodes.list("");
            let now = peers_of(&list, &self.own);
            if peers.as_ref() != Some(&now) || due <= Instant::now() {
                let (overlay, list) = (self.overlay.clone(), now.clone());
                let applied = task::blocking(move || overlay.apply(&list)).await;
                let pause = match applied {
                    Ok(Ok(tunnel)) => {
                        retry = RETRY.0;
                        peers = Some(now);
                        self.log(tunnel);
                        RESYNC
                    }
                    Ok(Err(error)) => {
                        tracing::error!(error = chain(&error), "the overlay cannot be changed; it is tried again");
                        retry = (retry * 2).min(RETRY.1);
                        peers = None;
                        retry
                    }
                    Err(_) => return,
                };
                due = Instant::now() + pause;
            }
            // Heartbeats change Node objects all the time; what they do not change here costs one look at the list.
            let _ = tokio::time::timeout_at(due, changes.next()).await;
        }
    }

    fn log(&mut self, tunnel: Tunnel) {
        if self.logged.as_ref() == Some(&tunnel) {
            return;
        }
        match &tunnel {
            Tunnel::WireGuard => tracing::info!("pods of other nodes are reached through WireGuard, encrypted"),
            Tunnel::Vxlan { because: Some(why) } => {
                tracing::warn!(why, "pods of other nodes are reached through VXLAN, which is not encrypted");
            }
            Tunnel::Vxlan { because: None } | Tunnel::None => {}
        }
        self.logged = Some(tunnel);
    }

    /// Sees to it that the Node says the key that is used, and that another one is used in time.
    async fn rotate_key(&mut self) {
        if self.key_retry_at.is_some_and(|end| end > Instant::now()) {
            return;
        }
        let Some(node) = self.nodes.get("", &self.own).and_then(|o| o.typed::<Node>().ok()) else { return };
        let mut published = published_key(&node).map(str::to_owned);
        loop {
            let is_old = self.overlay.key_lifetime_left(self.clock.now()).is_none();
            let pending = self.pending.as_ref().map(|f| f.public);
            match key_step(self.overlay.public_key(), pending, published.as_deref(), is_old) {
                KeyStep::Nothing => return,
                KeyStep::Generate => match self.overlay.make_pending_key(self.clock.now()) {
                    Ok(pending) => self.pending = Some(pending),
                    Err(error) => return self.retry_key_later(&chain(&error)),
                },
                KeyStep::Publish(key) => {
                    let patch = Patch::Merge(json!({"metadata": {"annotations": {node::OVERLAY_KEY: key}}}));
                    if let Err(error) = self.client.patch(&node::KIND, "", &self.own, None, patch).await {
                        self.key_retry_at = Some(Instant::now() + RETRY.1);
                        tracing::warn!(%error, "the node's key for the overlay cannot be published; it is tried again");
                        return;
                    }
                    published = key;
                }
                KeyStep::Activate => {
                    let Some(pending) = self.pending.take() else { return };
                    match self.overlay.activate_key(pending) {
                        Ok(()) => tracing::info!("this node has another key for the overlay"),
                        Err(error) => return self.retry_key_later(&chain(&error)),
                    }
                }
            }
        }
    }

    fn retry_key_later(&mut self, error: &str) {
        self.key_retry_at = Some(Instant::now() + KEY_RETRY);
        tracing::error!(error, "the node's key for the overlay is not changed; it is tried again");
    }
}

/// What is to be done about a node's key.
#[derive(Debug, PartialEq, Eq)]
enum KeyStep {
    Nothing,
    Generate,
    /// The Node must have this key, or none.
    Publish(Option<String>),
    /// The other nodes know the key.
    Activate,
}

/// The other nodes are told of a new key before it is used: they change to it at once, this node when the server has answered,
/// and then both ends begin a handshake, of which the later one finds the other end ready. What is lost is what was under way between
/// the two moments. A node that cannot tell the server keeps its key.
fn key_step(used: Option<PublicKey>, pending: Option<PublicKey>, published: Option<&str>, is_old: bool) -> KeyStep {
    let wanted = pending.or(used).map(|key| key.to_string());
    match (used, pending) {
        (Some(_), None) if is_old => KeyStep::Generate,
        _ if published != wanted.as_deref() => KeyStep::Publish(wanted),
        (_, Some(_)) => KeyStep::Activate,
        _ => KeyStep::Nothing,
    }
}

fn published_key(node: &Node) -> Option<&str> {
    node.metadata.annotations.as_ref()?.get(node::OVERLAY_KEY).map(String::as_str)
}

/// The other nodes that have a range and an address.
fn peers_of(nodes: &[Arc<Object>], own: &str) -> Vec<PeerNode> {
    let mut by_range: BTreeMap<String, PeerNode> = BTreeMap::new();
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
            let key = published_key(&node).and_then(|key| key.parse().ok());
            by_range.insert(ranges.join(","), PeerNode { name: object.meta.name.to_string(), address, pod_cidrs, key });
        }
    }
    by_range.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_is_told_before_it_is_used_and_the_old_one_serves_until_then() {
        let key = |letter: &str| format!("{}=", letter.repeat(43)).parse::<PublicKey>().unwrap();
        let (a, b) = (key("k"), key("w"));
        let published = |key: PublicKey| key.to_string();
        let (a_text, b_text) = (published(a), published(b));
        assert_eq!(key_step(Some(a), None, Some(&a_text), false), KeyStep::Nothing);
        assert_eq!(key_step(Some(a), None, None, false), KeyStep::Publish(Some(a_text.clone())), "after an upgrade");
        assert_eq!(
            key_step(Some(a), None, Some(&b_text), false),
            KeyStep::Publish(Some(a_text.clone())),
            "somebody wrote it"
        );
        assert_eq!(key_step(Some(a), None, Some(&a_text), true), KeyStep::Generate);
        assert_eq!(key_step(Some(a), Some(b), Some(&a_text), true), KeyStep::Publish(Some(b_text.clone())));
        assert_eq!(key_step(Some(a), Some(b), Some(&b_text), true), KeyStep::Activate);
        assert_eq!(key_step(Some(b), None, Some(&b_text), false), KeyStep::Nothing);
        assert_eq!(key_step(None, None, Some(&a_text), true), KeyStep::Publish(None), "it has lost WireGuard");
        assert_eq!(key_step(None, None, None, true), KeyStep::Nothing);
    }

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
        let pod_cidrs = vec!["10.42.1.0/24".parse().unwrap()];
        let expect = PeerNode { name: "b".into(), address: "192.0.2.2".parse().unwrap(), pod_cidrs, key: None };
        assert_eq!(peers, [expect]);
    }
}

//! Layer 5: keeps the overlay equal to the Node objects, and the Node's key for it told and young.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::base::clock::Clock;
use crate::base::error::full;
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::node;
use crate::net::overlay::{Fresh, Overlay, Peer, PublicKey, Tunnel};
use crate::reconcile::{Client, Informer, Patch};

/// Waits after failures: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How often the kernel is looked at although nothing changed, so that entries that others removed come back.
const REPAIR: Duration = Duration::from_secs(60);

/// How long to wait before another key is tried for again.
const KEY_RETRY: Duration = Duration::from_secs(600);
/// What a Node says its key for the encrypted overlay is; a node without it has none.
pub const KEY_ANNOTATION: &str = "amphipod.io/wireguard-public-key";

/// Follows the nodes. Aborting the handle stops it; the entries stay.
pub fn start(client: Arc<dyn Client>, overlay: Arc<Overlay>, own: &str, clock: Clock) -> JoinHandle<Option<()>> {
    let nodes = client.informer(&node::KIND);
    let follower =
        Follower { client, nodes, overlay, own: own.to_owned(), clock, fresh: None, key_pause: None, said: None };
    task::spawn("overlay", follower.run())
}

struct Follower {
    client: Arc<dyn Client>,
    nodes: Informer,
    overlay: Arc<Overlay>,
    own: String,
    clock: Clock,
    /// A key that the other nodes are told of before it is used.
    fresh: Option<Fresh>,
    /// Until when the key is not looked at, after a failure.
    key_pause: Option<Instant>,
    /// What was logged last.
    said: Option<Tunnel>,
}

// === impl Follower ===

impl Follower {
    async fn run(mut self) {
        self.nodes.synced().await;
        let mut changes = self.nodes.subscribe();
        let mut peers = None;
        let mut retry = RETRY.0;
        let mut due = Instant::now();
        loop {
            self.keep_key().await;
            let list = self.nodes.list("");
            let now = peers_of(&list, &self.own);
            if peers.as_ref() != Some(&now) || due <= Instant::now() {
                let (overlay, list) = (self.overlay.clone(), now.clone());
                let applied = tokio::task::spawn_blocking(move || overlay.apply(&list)).await;
                let pause = match applied {
                    Ok(Ok(tunnel)) => {
                        retry = RETRY.0;
                        peers = Some(now);
                        self.say(tunnel);
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
                due = Instant::now() + pause;
            }
            // Heartbeats change Node objects all the time; what they do not change here costs one look at the list.
            let _ = tokio::time::timeout_at(due, changes.next()).await;
        }
    }

    fn say(&mut self, tunnel: Tunnel) {
        if self.said.as_ref() == Some(&tunnel) {
            return;
        }
        match &tunnel {
            Tunnel::WireGuard => tracing::info!("pods of other nodes are reached through WireGuard, encrypted"),
            Tunnel::Vxlan { because: Some(why) } => {
                tracing::warn!(why, "pods of other nodes are reached through VXLAN, which is not encrypted");
            }
            Tunnel::Vxlan { because: None } | Tunnel::None => {}
        }
        self.said = Some(tunnel);
    }

    /// Sees to it that the Node says the key that is used, and that another one is used in time.
    async fn keep_key(&mut self) {
        if self.key_pause.is_some_and(|end| end > Instant::now()) {
            return;
        }
        let Some(node) = self.nodes.get("", &self.own).and_then(|o| o.typed::<Node>().ok()) else { return };
        let mut told = announced(&node).map(str::to_owned);
        loop {
            let is_old = self.overlay.key_rest(self.clock.now()).is_none();
            let fresh = self.fresh.as_ref().map(|f| f.public);
            match key_step(self.overlay.public_key(), fresh, told.as_deref(), is_old) {
                KeyStep::Nothing => return,
                KeyStep::MakeAnother => match self.overlay.fresh_key(self.clock.now()) {
                    Ok(fresh) => self.fresh = Some(fresh),
                    Err(error) => return self.put_off(&full(&error)),
                },
                KeyStep::Tell(key) => {
                    let patch = Patch::Merge(json!({"metadata": {"annotations": {KEY_ANNOTATION: key}}}));
                    if let Err(error) = self.client.patch(&node::KIND, "", &self.own, None, patch).await {
                        self.key_pause = Some(Instant::now() + RETRY.1);
                        tracing::warn!(%error, "the node's key for the overlay cannot be told; it is tried again");
                        return;
                    }
                    told = key;
                }
                KeyStep::Use => {
                    let Some(fresh) = self.fresh.take() else { return };
                    match self.overlay.use_key(fresh) {
                        Ok(()) => tracing::info!("this node has another key for the overlay"),
                        Err(error) => return self.put_off(&full(&error)),
                    }
                }
            }
        }
    }

    fn put_off(&mut self, error: &str) {
        self.key_pause = Some(Instant::now() + KEY_RETRY);
        tracing::error!(error, "the node's key for the overlay is not changed; it is tried again");
    }
}

/// What is to be done about a node's key.
#[derive(Debug, PartialEq, Eq)]
enum KeyStep {
    Nothing,
    MakeAnother,
    /// The Node must say this key, or none.
    Tell(Option<String>),
    /// The other nodes have been told.
    Use,
}

/// The other nodes are told of a new key before it is used: they change to it at once, this node when the server has answered,
/// and then both ends greet each other, of whom the later one finds the other ready. What is lost is what was under way between
/// the two moments. A node that the server cannot be told of keeps its key.
fn key_step(used: Option<PublicKey>, fresh: Option<PublicKey>, told: Option<&str>, is_old: bool) -> KeyStep {
    let wanted = fresh.or(used).map(|key| key.to_string());
    match (used, fresh) {
        (Some(_), None) if is_old => KeyStep::MakeAnother,
        _ if told != wanted.as_deref() => KeyStep::Tell(wanted),
        (_, Some(_)) => KeyStep::Use,
        _ => KeyStep::Nothing,
    }
}

fn announced(node: &Node) -> Option<&str> {
    node.metadata.annotations.as_ref()?.get(KEY_ANNOTATION).map(String::as_str)
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
            let key = announced(&node).and_then(|key| key.parse().ok());
            by_range.insert(ranges.join(","), Peer { name: object.meta.name.to_string(), address, pod_cidrs, key });
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
        let told = |key: PublicKey| key.to_string();
        let (a_told, b_told) = (told(a), told(b));
        assert_eq!(key_step(Some(a), None, Some(&a_told), false), KeyStep::Nothing);
        assert_eq!(key_step(Some(a), None, None, false), KeyStep::Tell(Some(a_told.clone())), "after an upgrade");
        assert_eq!(
            key_step(Some(a), None, Some(&b_told), false),
            KeyStep::Tell(Some(a_told.clone())),
            "somebody wrote it"
        );
        assert_eq!(key_step(Some(a), None, Some(&a_told), true), KeyStep::MakeAnother);
        assert_eq!(key_step(Some(a), Some(b), Some(&a_told), true), KeyStep::Tell(Some(b_told.clone())));
        assert_eq!(key_step(Some(a), Some(b), Some(&b_told), true), KeyStep::Use);
        assert_eq!(key_step(Some(b), None, Some(&b_told), false), KeyStep::Nothing);
        assert_eq!(key_step(None, None, Some(&a_told), true), KeyStep::Tell(None), "it has lost WireGuard");
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
        let expect = Peer { name: "b".into(), address: "192.0.2.2".parse().unwrap(), pod_cidrs, key: None };
        assert_eq!(peers, [expect]);
    }
}

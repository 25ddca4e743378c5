//! What every [`PodNetwork`] must do, run over the fake in unit tests and over the kernel in `tests/netns`.

use std::collections::BTreeSet;

use crate::net::{PodAttachment, PodNetwork};

fn pod(id: &str) -> PodAttachment {
    PodAttachment { id: id.into(), namespace: "default".into(), name: format!("pod-{id}"), netns: None }
}

/// Panics on the first broken promise. The network must be empty and have room for ten pods; it is empty afterwards.
pub async fn run(network: &dyn PodNetwork) {
    let ids = ["a", "b", "c"];
    let mut addresses = BTreeSet::new();
    for id in ids {
        let first = network.attach(pod(id)).await.expect("attach");
        assert_eq!(network.attach(pod(id)).await.expect("attach again"), first, "attach is idempotent");
        assert!(!first.addresses.is_empty(), "a pod has an address");
        for address in first.addresses {
            assert!(addresses.insert(address), "{address} was handed out twice");
        }
    }
    assert!(network.connect("a", 9).await.is_err(), "nobody listens");
    assert!(network.connect("never-seen", 9).await.is_err());
    let local = |text: &str| network.is_local(text.parse().expect("an address"));
    assert!(local("127.0.0.1") && !local("203.0.113.9") && !local("224.0.0.1") && !local("255.255.255.255"));
    let listed = network.list().await.expect("list");
    assert_eq!(listed.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ids);
    assert_eq!(listed.iter().flat_map(|(_, a)| a.clone()).collect::<BTreeSet<_>>(), addresses);

    network.detach("b").await.expect("detach");
    network.detach("b").await.expect("detach is idempotent");
    network.detach("never-seen").await.expect("unknown ids are fine");
    let next = network.attach(pod("d")).await.expect("attach");
    assert!(next.addresses.iter().all(|a| !addresses.contains(a)), "a freed address rests");

    let gone = network.adopt(&["a".into(), "unknown".into()]).await.expect("adopt");
    assert_eq!(gone, ["c", "d"], "adopt frees what no pod uses");
    assert_eq!(network.list().await.expect("list").len(), 1);
    network.adopt(&[]).await.expect("adopt nothing");
    assert!(network.list().await.expect("list").is_empty());
}

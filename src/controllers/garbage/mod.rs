//! The garbage collector: what lost its last owner goes; who is deleted with `Foreground` waits for its dependents, who
//! is deleted with `Orphan` lets go of them. Owners that wait for each other in a circle are let off waiting.
//!
//! A key is an object's store key. An object is looked at when it appears, when its owners change, when it begins to end,
//! and when one of its owners goes. Owners of kinds that this server does not know count as living: nothing is deleted
//! on a guess.

mod graph;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::{Context, absent_is_fine};
use crate::apimachinery::aggregated::Aggregated;
use crate::apimachinery::delete_options::{DeleteOptions, Propagation};
use crate::apimachinery::status::Result;
use crate::base::object::{Object, Owner};
use crate::kinds::KindRef;
use crate::reconcile::{Changed, Client, Controller, Key, Outcome, Patch, Reconciler};
use graph::{Graph, is_collected};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

struct Garbage {
    client: Arc<dyn Client>,
    graph: Arc<Graph>,
    aggregated: Option<Arc<dyn Aggregated>>,
}

/// What becomes of an owner reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnerState {
    /// The owner lives, or may live.
    Solid,
    /// There is no such owner.
    Dangling,
    /// The owner waits for this object to go.
    Waiting,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let graph = Arc::new(Graph::new(cx.client.clone()));
    let aggregated = cx.options.aggregated.clone();
    let garbage = Arc::new(Garbage { client: cx.client.clone(), graph: graph.clone(), aggregated });
    let client = cx.client.clone();
    Controller::new("garbage-collector", garbage, cx.clock.clone()).workers(16).watches_every(
        &cx.client,
        is_collected,
        move |c| touched(&graph, &*client, c),
    )
}

/// Who must be looked at after a change.
fn touched(graph: &Graph, client: &dyn Client, c: &Changed) -> Vec<Key> {
    let key = |o: &str| Key::new("", o);
    let meta = &c.object.meta;
    let mut keys = Vec::new();
    if c.deleted {
        keys.extend(graph.dependents(&meta.uid).iter().map(|o| key(&o.key)));
    } else {
        let new_owners = c.previous.as_ref().is_none_or(|p| p.meta.owners != meta.owners);
        let ends = meta.deleted.is_some()
            && c.previous.as_ref().is_none_or(|p| p.meta.deleted.is_none() || p.meta.finalizers != meta.finalizers);
        if (new_owners && !meta.owners.is_empty()) || ends {
            keys.push(key(&c.object.key));
        }
    }
    // An owner that waits for its dependents learns that there is one less.
    let before = c.previous.iter().flat_map(|p| p.meta.owners.iter());
    let lost = before.chain(meta.owners.iter().filter(|_| c.deleted));
    for owner in lost.filter(|o| c.deleted || !meta.owners.contains(o)) {
        if let Some(found) = find(client, &c.object, owner)
            && found.meta.deleted.is_some()
        {
            keys.push(key(&found.key));
        }
    }
    keys
}

/// The owner that a reference means, if it is there.
fn find(client: &dyn Client, of: &Object, owner: &Owner) -> Option<Arc<Object>> {
    let kinds = client.kinds().snapshot();
    let kind = kinds.by_kind(&owner.api_version, &owner.kind)?.stored();
    let namespace = if kind.namespaced() { &*of.meta.namespace } else { "" };
    client.informer(kind).get(namespace, &owner.name).filter(|o| o.meta.uid == owner.uid)
}

#[async_trait]
impl Reconciler for Garbage {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some((kind, object)) = self.load(&key.name) else { return Ok(Outcome::Done) };
        let has = |f: &str| object.meta.finalizers.iter().any(|x| **x == *f);
        if object.meta.deleted.is_some() {
            if has(ORPHAN) {
                return self.orphan(&kind, &object).await;
            }
            if has(FOREGROUND) {
                return self.foreground(&kind, &object).await;
            }
            return Ok(Outcome::Done);
        }
        self.collect(&kind, &object).await?;
        Ok(Outcome::Done)
    }
}

// === impl Garbage ===

impl Garbage {
    fn kind_of(&self, key: &str) -> Option<KindRef> {
        self.client.kinds().snapshot().by_key(key).cloned()
    }

    fn load(&self, key: &str) -> Option<(KindRef, Arc<Object>)> {
        let kind = self.kind_of(key)?;
        let rest = key.strip_prefix(kind.prefix().as_str())?;
        let (namespace, name) = if kind.namespaced() { rest.split_once('/')? } else { ("", rest) };
        let object = self.client.informer(&kind).get(namespace, name)?;
        Some((kind, object))
    }

    /// Deletes the object if nobody owns it any more, or lets go of owners that are gone.
    async fn collect(&self, kind: &KindRef, object: &Arc<Object>) -> Result<()> {
        let mut states = Vec::with_capacity(object.meta.owners.len());
        for owner in &object.meta.owners {
            states.push((owner, self.owner_state(kind, object, owner).await?));
        }
        if states.is_empty() || (states.iter().all(|(_, t)| *t == OwnerState::Solid)) {
            return Ok(());
        }
        if states.iter().any(|(_, t)| *t == OwnerState::Solid) {
            let gone = states.iter().filter(|(_, t)| *t != OwnerState::Solid).map(|(o, _)| &*o.uid).collect::<Vec<_>>();
            return self.let_go(kind, object, &gone).await;
        }
        let waiting = states.iter().any(|(_, t)| *t == OwnerState::Waiting);
        let has = |f: &str| object.meta.finalizers.iter().any(|x| **x == *f);
        let propagation = if waiting && !self.graph.dependents(&object.meta.uid).is_empty() {
            Propagation::Foreground
        } else if has(ORPHAN) {
            Propagation::Orphan
        } else if has(FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        let options = DeleteOptions {
            uid: Some(object.meta.uid.to_string()),
            resource_version: Some(object.revision.to_string()),
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        absent_is_fine(self.client.delete(kind, namespace, name, options).await)
    }

    async fn owner_state(&self, kind: &KindRef, object: &Object, owner: &Owner) -> Result<OwnerState> {
        let kinds = self.client.kinds().snapshot();
        let Some(owner_kind) = kinds.by_kind(&owner.api_version, &owner.kind) else {
            return self.state_elsewhere(object, owner).await;
        };
        if !owner_kind.is_stored() || (owner_kind.namespaced() && !kind.namespaced()) {
            return Ok(OwnerState::Solid);
        }
        let namespace = if owner_kind.namespaced() { &*object.meta.namespace } else { "" };
        let found = match find(&*self.client, object, owner) {
            Some(found) => found,
            // The view may be behind; the API is not.
            None => match self.client.get(owner_kind, namespace, &owner.name).await {
                Ok(found) if found.meta.uid == owner.uid => found,
                Ok(_) => return Ok(OwnerState::Dangling),
                Err(status) if status.code == 404 => return Ok(OwnerState::Dangling),
                Err(status) => return Err(status),
            },
        };
        let waits = found.meta.deleted.is_some() && found.meta.finalizers.iter().any(|f| **f == *FOREGROUND);
        Ok(if waits && owner.block_owner_deletion { OwnerState::Waiting } else { OwnerState::Solid })
    }

    /// The state of an owner that another server may have.
    async fn state_elsewhere(&self, object: &Object, owner: &Owner) -> Result<OwnerState> {
        let Some(aggregated) = &self.aggregated else { return Ok(OwnerState::Solid) };
        let asked = aggregated.owner(&owner.api_version, &owner.kind, &object.meta.namespace, &owner.name).await?;
        Ok(match asked {
            Some(found) if found.as_deref() != Some(&*owner.uid) => OwnerState::Dangling,
            _ => OwnerState::Solid,
        })
    }

    async fn let_go(&self, kind: &KindRef, object: &Object, uids: &[&str]) -> Result<()> {
        let gone: Vec<Value> = uids.iter().map(|uid| json!({"$patch": "delete", "uid": uid})).collect();
        let patch = json!({"metadata": {"uid": &*object.meta.uid, "ownerReferences": gone}});
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        absent_is_fine(self.client.patch(kind, namespace, name, None, Patch::Strategic(patch)).await)
    }

    async fn orphan(&self, kind: &KindRef, object: &Arc<Object>) -> Result<Outcome> {
        let uid = [&*object.meta.uid];
        let dependents = self.graph.dependents(&object.meta.uid);
        let releases = dependents.iter().filter_map(|d| Some((self.kind_of(&d.key)?, d)));
        let uids = &uid;
        try_join_all(releases.map(|(kind, d)| async move { self.let_go(&kind, d, uids).await })).await?;
        self.unfinalize(kind, object, ORPHAN).await
    }

    async fn foreground(&self, kind: &KindRef, object: &Arc<Object>) -> Result<Outcome> {
        let uid = &object.meta.uid;
        let dependents = self.graph.dependents(uid);
        let blocks = |d: &Arc<Object>| d.meta.owners.iter().any(|o| o.uid == *uid && o.block_owner_deletion);
        let blocking: Vec<&Arc<Object>> = dependents.iter().filter(|d| blocks(d)).collect();
        if blocking.is_empty() {
            return self.unfinalize(kind, object, FOREGROUND).await;
        }
        // Who waits for this object cannot be waited for. Letting off is a change of the dependent, which leads here again.
        for dependent in blocking {
            if let Some(kind) = self.kind_of(&dependent.key).filter(|_| self.waits_for(dependent, uid)) {
                self.let_off(&kind, dependent, uid).await?;
            }
        }
        let living = dependents.iter().filter(|d| d.meta.deleted.is_none() && blocks(d));
        let living = living.filter_map(|d| Some((self.kind_of(&d.key)?, d)));
        try_join_all(living.map(|(kind, d)| async move { self.collect(&kind, d).await })).await?;
        Ok(Outcome::Done)
    }

    /// Whether an object waits for the one with this uid to go, itself or through those it waits for.
    fn waits_for(&self, object: &Arc<Object>, uid: &str) -> bool {
        let waits = |o: &Object| o.meta.deleted.is_some() && o.meta.finalizers.iter().any(|f| **f == *FOREGROUND);
        let (mut open, mut seen) = (vec![object.clone()], HashSet::new());
        while let Some(next) = open.pop() {
            if *next.meta.uid == *uid {
                return true;
            }
            if waits(&next) && seen.insert(next.meta.uid.clone()) {
                let blocks =
                    |d: &Arc<Object>| d.meta.owners.iter().any(|o| o.uid == next.meta.uid && o.block_owner_deletion);
                open.extend(self.graph.dependents(&next.meta.uid).into_iter().filter(blocks));
            }
        }
        false
    }

    /// The owner need not wait for the object any more.
    async fn let_off(&self, kind: &KindRef, object: &Object, owner: &str) -> Result<()> {
        let owners = json!([{"uid": owner, "blockOwnerDeletion": false}]);
        let patch = json!({"metadata": {"uid": &*object.meta.uid, "ownerReferences": owners}});
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        absent_is_fine(self.client.patch(kind, namespace, name, None, Patch::Strategic(patch)).await)
    }

    async fn unfinalize(&self, kind: &KindRef, object: &Arc<Object>, finalizer: &str) -> Result<Outcome> {
        let left: Vec<&str> = object.meta.finalizers.iter().map(|f| &**f).filter(|f| *f != finalizer).collect();
        let left = if left.is_empty() { Value::Null } else { json!(left) };
        let metadata = json!({"resourceVersion": object.revision.to_string(), "finalizers": left});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        absent_is_fine(self.client.patch(kind, namespace, name, None, patch).await).map(|()| Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::base::clock::Clock;
    use crate::controllers::{self, Options};
    use crate::kinds::core::{configmap, namespace};

    /// Objects, each of which owns the next one, and the last one the first.
    async fn circle(client: &dyn Client, names: &[&str]) {
        let mut uids = Vec::new();
        for name in names {
            let made = client.create(&configmap::KIND, "n", json!({"metadata": {"name": name}})).await.unwrap();
            uids.push(made.meta.uid.to_string());
        }
        for (i, name) in names.iter().enumerate() {
            let owner = (i + names.len() - 1) % names.len();
            let owners = json!([{
                "apiVersion": "v1", "kind": "ConfigMap", "name": names[owner], "uid": uids[owner], "blockOwnerDeletion": true,
            }]);
            let patch = Patch::Merge(json!({"metadata": {"ownerReferences": owners}}));
            client.patch(&configmap::KIND, "n", name, None, patch).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn owners_in_a_circle_go_with_each_other() {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), "test"));
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        controllers::start(client.clone(), Clock::system(), Options::default());
        for names in [&["a"][..], &["b", "c"], &["d", "e", "f"]] {
            circle(&*client, names).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(
                names.iter().all(|n| client.informer(&configmap::KIND).get("n", n).is_some()),
                "all own and are owned"
            );
            // As upstream's test does it with one; all at once is what a user may do.
            for deleted in [&names[..1], names] {
                for name in deleted {
                    let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..Default::default() };
                    let _ = client.delete(&configmap::KIND, "n", name, foreground).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
            let left: Vec<_> = client.informer(&configmap::KIND).list("n").iter().map(|o| o.value()).collect();
            let left: Vec<_> = left.iter().filter(|o| names.iter().any(|n| o["metadata"]["name"] == *n)).collect();
            assert!(left.is_empty(), "{names:?}: {left:#?}");
        }
    }
}

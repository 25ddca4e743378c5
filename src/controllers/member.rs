//! A pod of a workload.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::index::Index;
use super::{Context, absent_is_fine, controller_reference, pods, typed};
use crate::apimachinery::status::Result;
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::core::pod;

/// A pod as plans look at it.
#[derive(Clone, Debug)]
pub struct Member {
    pub object: Arc<Object>,
    pub pod: Arc<Pod>,
}

// === impl Member ===

impl Member {
    /// The pods that `uid` controls.
    pub fn of_owner(pods: &Index, uid: &str) -> Result<Vec<Self>> {
        pods.get(&pods::owner_key(uid)).into_iter().map(|object| Ok(Self { pod: typed(&object)?, object })).collect()
    }

    /// One of its labels, empty where it has none of this name.
    pub fn label(&self, name: &str) -> &str {
        self.object.meta.labels.get(name).map_or("", |v| v)
    }

    /// Whether it is asked to end.
    pub fn is_ending(&self) -> bool {
        self.object.meta.deleted.is_some()
    }
}

/// Lets go of pods that an owner's selector does not select any more, and takes those that nobody controls, that it selects
/// and that `is_meant` says yes to.
pub(super) async fn claim(
    cx: &Context,
    kind: &KindRef,
    owner: &Object,
    selector: &Selector,
    is_meant: impl Fn(&Object, &Pod) -> bool,
) -> Result<()> {
    if owner.meta.deleted.is_some() {
        return Ok(());
    }
    for pod in cx.pods.get(&pods::owner_key(&owner.meta.uid)) {
        if !selector.matches(&pod.meta.labels) && pod.meta.deleted.is_none() {
            pods::release(&cx.client, &pod::KIND, &pod, &owner.meta.uid).await?;
        }
    }
    if selector.is_empty() {
        return Ok(());
    }
    for pod in cx.pods.get(&pods::free_key(&owner.meta.namespace)) {
        if selector.matches(&pod.meta.labels) && is_meant(&pod, &*typed::<Pod>(&pod)?) {
            let reference = controller_reference(kind, owner);
            absent_is_fine(pods::adopt(&cx.client, &pod::KIND, &pod, reference).await)?;
        }
    }
    Ok(())
}

/// How long a pod must be ready to count.
pub fn min_ready(seconds: Option<i32>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(0).max(0) as u64)
}

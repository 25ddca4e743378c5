//! Clients, informers, work queues and the controller runner.
//!
//! Whoever acts on the cluster does it as a [`Reconciler`]: it is woken with a key and no other input, reads the cache,
//! plans purely, applies, and says when to be woken again. It does not retry inside and does not remember: the next wake-up
//! is the retry. The runner owns the queue, keeps two runs of one key apart, backs off on errors, and counts.

pub mod client;
pub mod informer;
pub mod label_index;
pub mod queue;
pub mod recorder;
pub mod remote;
pub mod runner;

pub use client::{Client, Patch};
pub use informer::{Changed, Changes, Informer, View};
pub use label_index::LabelIndex;
pub use recorder::{EventType, Recorder};
pub use remote::{Checkpoint, Remote};
pub use runner::{Controller, Outcome, Reconciler, Wake};

use std::sync::Arc;

/// Namespace and name; the namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

// === impl Key ===

impl Key {
    /// A key.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of(object: &crate::base::object::Object) -> Self {
        Self::new(&object.meta.namespace, &object.meta.name)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

//! Shared views of the objects of a kind, and the changes of them.

use std::sync::Arc;

use async_trait::async_trait;

use crate::base::object::Object;
use crate::kinds::KindRef;

/// A shared view; cheap to clone.
pub type Informer = Arc<dyn View>;

/// All objects of a kind, as far as this process knows.
#[async_trait]
pub trait View: Send + Sync {
    /// The kind.
    fn kind(&self) -> &KindRef;

    /// The named object.
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>>;

    /// The objects of a namespace (empty: of all), in key order.
    fn list(&self, namespace: &str) -> Vec<Arc<Object>>;

    /// Changes from now on: whoever subscribes and then lists misses nothing.
    fn subscribe(&self) -> Box<dyn Changes>;

    /// Returns when the view has been filled for the first time.
    async fn synced(&self);
}

/// One reader's position in the changes of a kind.
#[async_trait]
pub trait Changes: Send {
    /// The next changes, at least one; `None` when the reader was too slow and must list again. Safe to drop and call
    /// again. Never returns once the server stops.
    async fn next(&mut self) -> Option<Vec<Changed>>;

    /// Whether there are surely no changes now, which is cheaper to ask than for the next ones.
    fn is_current(&self) -> bool {
        false
    }
}

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The object, in its last state where it is gone.
    pub object: Arc<Object>,
    /// What it was before, if that is known.
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
}

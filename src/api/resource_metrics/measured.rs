//! The last samples of nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::sample::Sample;

/// A sample that is older than this says nothing about now.
pub(super) const OLD: Duration = Duration::from_secs(90);

/// What was measured last; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ResourceMetrics(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<Measured>>>>>);

/// The last two samples of a node.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub before: Option<Arc<Sample>>,
    pub last: Option<Arc<Sample>>,
    /// When `last` was taken.
    pub at: Option<Instant>,
    /// When it did not answer.
    pub failed: Option<Instant>,
}

/// Two samples of a node, the older one first.
#[derive(Clone, Debug)]
pub(super) struct Pair(pub Arc<Sample>, pub Arc<Sample>);

// === impl ResourceMetrics ===

impl ResourceMetrics {
    /// Lets go of what is too old to be of use.
    pub fn keep_fresh(&self) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever measures holds it.
        nodes.retain(|_, node| node.try_lock().map_or(true, |measured| measured.is_younger_than(OLD)));
    }

    pub(super) fn node(&self, name: &str) -> Arc<tokio::sync::Mutex<Measured>> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.entry(name.to_owned()).or_default().clone()
    }
}

// === impl Measured ===

impl Measured {
    pub(super) fn pair(&self) -> Option<Pair> {
        Some(Pair(self.before.clone()?, self.last.clone()?))
    }

    pub(super) fn is_younger_than(&self, age: Duration) -> bool {
        self.at.is_some_and(|at| at.elapsed() < age)
    }
}

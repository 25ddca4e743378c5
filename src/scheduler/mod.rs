//! Gives every pod a node.
//!
//! One task keeps a picture of nodes and pods ([`snapshot`]) and a [`queue`] of pods without a node, both moved by
//! changes and never by a timer of their own. [`decide`] is pure: it asks the [`plugins`] which nodes would do and which
//! is best. A decided pod counts as placed at once (it is *assumed*), so that the next decision need not wait for the
//! binding to be written; a binding that fails takes the assumption back. For a pod that finds no node, [`preempt`] looks for
//! pods of lower priority that go: they end gracefully, and the pod is [nominated](nominations) for their node until it is
//! there.

pub mod affinity;
pub mod decide;
mod kin;
pub mod nominations;
pub mod plugins;
pub mod preempt;
mod promises;
pub mod queue;
mod run;
pub mod snapshot;
pub mod terms;
#[cfg(test)]
mod tests;
mod victims;
pub mod view;
pub mod volumes;

pub use run::NAME;

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::base::clock::Clock;
use crate::base::task;
use crate::reconcile::Client;

/// The field manager of what the scheduler writes.
pub const MANAGER: &str = "kube-scheduler";

/// Starts the scheduler over a client that writes as [`MANAGER`]; aborting the handles stops it.
pub fn start(client: Arc<dyn Client>, clock: Clock) -> Vec<JoinHandle<Option<()>>> {
    vec![task::spawn("scheduler", run::run(client, clock))]
}

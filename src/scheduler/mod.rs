//! Gives every pod a node.
//!
//! One task keeps a picture of nodes and pods ([`snapshot`]) and a [`queue`] of pods without a node, both moved by
//! changes and never by a timer of their own. [`decide`] is pure: it asks the [`plugins`] which nodes would do and which
//! is best. A decided pod counts as placed at once (it is *assumed*), so that the next decision need not wait for the
//! binding to be written; a binding that fails takes the assumption back.

pub mod decide;
mod kin;
pub mod plugins;
mod promises;
pub mod queue;
mod run;
pub mod snapshot;
#[cfg(test)]
mod tests;
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

//! What nodes and pods use, from the nodes' own numbers: `metrics.k8s.io`, as metrics-server serves it.
//!
//! Nothing is measured while nobody asks. A rate needs two samples of a node: the one before is kept, and who asks first
//! waits a moment for a second one. Invariant: what a node says is bounded, and counts only for pods that are its own.

mod ask;
mod measured;
mod objects;
mod rate;
mod sample;

pub use measured::ResourceMetrics;
pub use objects::{GROUP, NODES, PODS, Resource, VERSION};
pub(in crate::api) use objects::{Shown, discovered, is_meant, list, listed, of_node, of_pod, reader, table, whole};
pub(in crate::api) use rate::{ContainerUsage, PodUsage};

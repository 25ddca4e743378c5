//! What the API, its clients and nodes share: the answers of a server, the options of requests, users, how nodes are
//! reached, whether a pod may be on a Node, which volume fits a claim, and HTTP as both serve it (named after `k8s.io/apimachinery`, which
//! Kubernetes' servers, clients and kubelet share).
//!
//! Invariant: nothing here knows a store, and nobody needs a server to use it.

pub mod aggregated;
pub mod delete_options;
pub mod http;
pub mod label_selector;
pub mod metrics;
pub mod node_access;
pub mod placement;
pub mod query;
pub mod resources;
pub mod status;
pub mod user;
pub mod version;
pub mod volume;

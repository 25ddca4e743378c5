//! Amphipod: a whole container cluster in one executable.
//!
//! The rooms, in layer order: a room imports only from rooms of lower layers (`tests/tidy.rs` holds the rule).
//! `docs/architecture.md` draws how they work together.

/// Layer 3: the Kubernetes API over the store.
pub mod api;
/// Layer 1: what the API, its clients and nodes share: answers, options, users, reaching nodes.
pub mod apimachinery;
/// Layer 0: clock, tasks, keys, objects, labels, quantities, configuration.
pub mod base;
/// Layer 1: the expressions of rules and policies.
pub mod cel;
/// Layer 6: the command line.
pub mod cli;
/// Layer 2: running containers from images.
pub mod containers;
/// Layer 5: the controllers, one file each.
pub mod controllers;
/// Layer 5: cluster DNS.
pub mod dns;
/// Layer 6: what fuzzing calls, a function for each kind of input.
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub mod fuzzing;
/// Layer 1: the registration of every Kubernetes kind, one file each.
pub mod kinds;
/// Layer 2: pod network, and in `net::proxy` (layer 5) the Services.
pub mod net;
/// Layer 5: the node agent.
pub mod node;
/// Layer 6: the names one node has on its machine.
pub mod node_paths;
/// Layer 2: clients, informers, work queues and the controller runner.
pub mod reconcile;
/// Layer 5: binds pods to nodes.
pub mod scheduler;
/// Layer 1: what Kubernetes objects look like: decoding, patches, server-side apply, OpenAPI.
pub mod schema;
/// Layer 6: the composition root.
pub mod server;
/// Layer 2: durable keys, values and revisions.
pub mod store;
/// Layer 1: HTTP over TLS without meaning: set-up of connections, websocket streams.
pub mod wire;

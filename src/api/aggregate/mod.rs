//! Versions of API groups that other servers answer for, behind Services (`k8s.io/kube-aggregator`).
//!
//! Which ones those are follows from the APIServices, read anew when one of them has changed: a request sees every
//! APIService that was written before it. Invariant: what another server says is bounded, counts for its own group version
//! alone, and nobody but who asks it waits for it.

mod authentication;
mod automanaged;
mod available;
mod connection;
mod content;
mod discovered;
mod groups;
mod keep;
mod metrics;
mod openapi;
mod priority;
mod remote;
mod table;
mod trust;

pub use automanaged::register;
pub(in crate::api) use connection::name_user;
pub use groups::{GroupVersion, Groups};
pub use keep::keep;
pub use remote::Remote;
pub use table::Aggregator;
pub use trust::{FrontProxy, Trust};

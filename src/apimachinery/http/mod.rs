//! HTTP as the API server and a node's own port serve it: connections and who is at their other end, and plain answers.

pub mod answer;
pub mod connections;
pub mod listen;
pub mod peer;

pub use axum::body::Body;

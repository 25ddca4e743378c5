//! What every room stands on: no IO beyond files, no Kubernetes kinds.

pub mod task;

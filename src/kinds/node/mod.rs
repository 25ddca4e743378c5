//! What nodes run pods with.

pub mod runtimeclass;

//! What every room stands on: no network, no kernel, no Kubernetes kinds.

pub mod arguments;
pub mod beneath;
pub mod budget;
pub mod clock;
pub mod cloud;
pub mod directory;
pub mod error;
pub mod file;
pub mod fs_stats;
pub mod json;
pub mod labels;
pub mod metrics;
pub mod object;
pub mod pattern;
pub mod progress;
pub mod quantity;
pub mod signal;
pub mod task;
pub mod tree;

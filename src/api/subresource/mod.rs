//! Sub-paths with a meaning of their own, a file each.

pub mod binding;
pub mod eviction;
pub mod review;
pub mod scale;
pub mod token;

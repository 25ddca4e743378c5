//! Work that ends.

pub mod indexes;
pub mod job;

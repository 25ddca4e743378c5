//! Work that ends.

pub mod cronjob;
pub mod indexes;
pub mod job;
pub mod schedule;

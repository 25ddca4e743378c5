//! Leases.

pub mod lease;

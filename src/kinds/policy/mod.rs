//! What must be kept while pods are moved about.

pub mod poddisruptionbudget;

//! What is asked before an object is admitted.

pub mod conditions;
pub mod mutatingwebhookconfiguration;
pub mod validatingwebhookconfiguration;
mod webhook;

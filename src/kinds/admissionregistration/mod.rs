//! What is asked before an object is admitted.

pub mod mutatingwebhookconfiguration;
pub mod validatingwebhookconfiguration;
mod webhook;

//! What is asked before an object is admitted.

mod binding;
pub mod conditions;
pub mod expressions;
mod matching;
pub mod mutatingadmissionpolicy;
pub mod mutatingadmissionpolicybinding;
pub mod mutatingwebhookconfiguration;
mod policy;
pub mod type_check;
pub mod validatingadmissionpolicy;
pub mod validatingadmissionpolicybinding;
pub mod validatingwebhookconfiguration;
mod webhook;

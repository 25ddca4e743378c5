//! Who is asking (client certificates, service-account tokens) and what they may do (RBAC).

pub mod attributes;
pub mod authorize;
pub mod join;
pub mod join_token;
pub mod node;
pub mod pki;
pub mod rbac;
pub mod token;

//! Which Kubernetes this is.

/// The Kubernetes version that is served.
pub const GIT_VERSION: &str = concat!("v1.37.0+amphipod", env!("CARGO_PKG_VERSION"));

//! The names in a shim's directory.

/// Names inside a sandbox's directory.
pub(crate) const CONFIG_FILE: &str = "shim.json";

pub(crate) const SOCKET_FILE: &str = "sock";

pub(crate) const PID_FILE: &str = "pid";

/// There when the sandbox is being removed: a shim that is late, because its agent was killed, does not begin.
pub(crate) const GONE_FILE: &str = "gone";

/// Holds the process id of process 1 of a shared process namespace.
pub(crate) const REAPER_FILE: &str = "reaper";

/// One directory per container with `config.json` (OCI) and `spec.json` (ours).
pub(crate) const BUNDLES_DIR: &str = "bundles";

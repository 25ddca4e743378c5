//! Why things on a node fail.

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub reason: &'static str,
    pub message: String,
}

pub(super) fn config_error(message: impl ToString) -> Failed {
    Failed { reason: "CreateContainerConfigError", message: message.to_string() }
}

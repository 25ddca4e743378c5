//! A row of the table.

use serde_json::Value;

/// What is done about a field.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "the tests hold the table to its words, and write the documentation"))]
pub(super) enum How {
    /// As Kubernetes has it; the test of this name shows it.
    Honoured(&'static str),
    /// Accepted and not done, which the client is told; so are all fields inside.
    Warned(&'static str),
    /// Honoured but for some values, of which the client is told.
    Partly {
        shown_by: &'static str,
        /// Whether the object that has the field, which is at the path, is one to warn of.
        unless: fn(&Value, &str) -> bool,
        warning: &'static str,
        /// Such an object, for the test.
        example: &'static str,
    },
    /// Whoever sets it is refused with a message that says this.
    Refused(&'static str),
    /// Removed from what a client sends, as by a Kubernetes whose feature gates are as they are by default.
    Dropped,
}

/// One field of one type.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) field: &'static str,
    pub(super) how: How,
}

//! The three ways to change an object by a patch: JSON patch, JSON merge patch and Kubernetes' strategic merge patch.
//!
//! All work on a value in place. After an error the value may be half changed: callers patch a copy.

use serde_json::Value;

use crate::base::budget::Exceeded;

pub mod json;
pub mod merge;
pub mod strategic;

/// A patch that cannot be applied, with the status Kubernetes answers.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// 400: the patch itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// 413: more operations than anyone needs.
    #[error("{0}")]
    TooLarge(String),
    /// It makes too much: 413, or 422 where the result would be nested too deep.
    #[error(transparent)]
    Limit(#[from] Exceeded),
    /// 422 Invalid, without causes: the patch does not fit the object.
    #[error("{0}")]
    Unprocessable(String),
    /// 422 Invalid: a value is not what the patch says it is.
    #[error("{0}")]
    FailedTest(String),
    /// 500 without a reason: what the original server answers for broken directives.
    #[error("{0}")]
    Internal(String),
}

// === impl PatchError ===

impl PatchError {
    /// The HTTP status.
    pub fn code(&self) -> u16 {
        match self {
            PatchError::BadRequest(_) => 400,
            PatchError::Limit(Exceeded::Depth) => 422,
            PatchError::TooLarge(_) | PatchError::Limit(_) => 413,
            PatchError::Unprocessable(_) | PatchError::FailedTest(_) => 422,
            PatchError::Internal(_) => 500,
        }
    }

    /// The reason in the Status object; empty where Kubernetes gives none.
    pub fn reason(&self) -> &'static str {
        match self {
            PatchError::BadRequest(_) => "BadRequest",
            PatchError::Limit(Exceeded::Depth) => "Invalid",
            PatchError::TooLarge(_) | PatchError::Limit(_) => "RequestEntityTooLarge",
            PatchError::Unprocessable(_) | PatchError::FailedTest(_) => "Invalid",
            PatchError::Internal(_) => "",
        }
    }
}

/// The JSON name of what a value is, for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

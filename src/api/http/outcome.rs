//! How a command ended, as clients read it from the error channel.

use serde_json::{Value, json};

use crate::apimachinery::status::Result;

/// How the command ended, as kubectl reads it from the error channel.
pub(super) fn outcome(code: Result<i32, String>) -> Value {
    match code {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => {
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": why, "code": 500})
        }
    }
}

//! Priority and fairness: which requests are of which flow and level. `api::flowcontrol` does what they say, within the
//! bounds that this server has whatever they say.

pub mod flowschema;
pub mod prioritylevelconfiguration;

use serde_json::Value;

use super::field::{self, Errors};
use crate::base::json::text;

/// The annotation that says whether the server keeps an object's spec as it is suggested.
pub const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The level that is never limited, and the schema of administrators that leads to it.
pub const EXEMPT: &str = "exempt";
/// The level and the schema of what no other schema fits.
pub const CATCH_ALL: &str = "catch-all";
/// Objects that are always there, with a spec that is fixed.
pub const MANDATORY: [&str; 2] = [EXEMPT, CATCH_ALL];

/// Objects of a manifest in this executable.
fn suggested(manifest: &str) -> Vec<Value> {
    serde_json::from_str(manifest).expect("the bootstrap manifests are JSON")
}

/// The spec of a mandatory object may not be another one.
fn fixed_spec(errors: &mut Errors, object: &Value, suggested: fn() -> Vec<Value>) {
    let name = text(object, "metadata.name");
    if !MANDATORY.contains(&name) {
        return;
    }
    let Some(mut fixed) = suggested().into_iter().find(|o| text(o, "metadata.name") == name) else { return };
    let mut but = "";
    if fixed["spec"].get("exempt").is_some() {
        but = " except the 'spec.exempt' field";
        fixed["spec"]["exempt"] = object["spec"]["exempt"].clone();
    }
    if fixed["spec"] != object["spec"] {
        let why = format!("spec of '{name}'{but} must equal the fixed value");
        errors.push(field::invalid("spec", object["spec"].clone(), why));
    }
}

/// Conditions of a status: each has a type of its own.
fn conditions(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = super::check::Path::root("status.conditions");
    let mut seen = std::collections::HashSet::new();
    for (i, condition) in crate::base::json::list(object, "status.conditions").iter().enumerate() {
        let (at, of_type) = (path.index(i), text(condition, "type"));
        if of_type.is_empty() {
            errors.push(field::required(at.field("type"), "must not be empty"));
        }
        if !seen.insert(of_type) {
            errors.push(field::duplicate(at.field("type"), of_type));
        }
    }
    errors
}

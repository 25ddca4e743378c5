//! The pod template of a workload that keeps its pods running.

use serde_json::Value;

use super::{Rules, default, validate};
use crate::base::json::{list, object, text};
use crate::base::labels::Selector;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Defaults of a template.
pub fn default_template(template: &mut Value) {
    let map = object(template);
    map.entry("metadata").or_insert_with(|| serde_json::json!({}));
    default(map.entry("spec").or_insert_with(|| serde_json::json!({})));
}

/// Errors in a template of a `kind` that keeps its pods running; `selector` must select the template's labels.
pub fn validate_template(errors: &mut Errors, path: &Path<'_>, template: &Value, selector: Option<&Value>, kind: &str) {
    let null = Value::Null;
    let metadata = template.get("metadata").unwrap_or(&null);
    let spec = template.get("spec").unwrap_or(&null);
    let meta_path = path.field("metadata");
    // One that cannot be read is complained about where it stands.
    let selects = selector.is_some_and(|s| {
        let Ok(s) = Selector::from_object(s) else { return true };
        let labels = metadata.get("labels").and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter_map(|(k, v)| Some((Box::from(k.as_str()), Box::from(v.as_str()?)))).collect();
        !s.is_empty() && s.matches(&labels)
    });
    // A selector that is given but empty is complained about once, at the selector.
    let empty = selector.is_some_and(check::selects_nothing);
    if !selects && !empty {
        let labels = metadata.get("labels").cloned().unwrap_or_default();
        let why = "`selector` does not match template `labels`";
        errors.push(field::invalid(&meta_path.field("labels"), labels, why));
    }
    validate_free_template(errors, path, template);
    let spec_path = path.field("spec");
    let restart = text(spec, "restartPolicy");
    if restart != "Always" {
        errors.push(field::not_supported(&spec_path.field("restartPolicy"), restart, &["Always"]));
    }
    if spec.get("activeDeadlineSeconds").is_some() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(field::forbidden(&spec_path.field("activeDeadlineSeconds"), why));
    }
}

/// Errors in a template that nothing selects and whose pods may end.
pub fn validate_free_template(errors: &mut Errors, path: &Path<'_>, template: &Value) {
    let null = Value::Null;
    let metadata = template.get("metadata").unwrap_or(&null);
    let spec = template.get("spec").unwrap_or(&null);
    let meta_path = path.field("metadata");
    check::labels(errors, &meta_path.field("labels"), metadata.get("labels"));
    check::annotations(errors, &meta_path.field("annotations"), metadata.get("annotations"));
    let spec_path = path.field("spec");
    super::validate_annotations(errors, &meta_path.field("annotations"), metadata.get("annotations"), spec);
    validate(errors, &spec_path, spec, Rules { pod: false });
    if !list(spec, "ephemeralContainers").is_empty() {
        errors.push(field::forbidden(
            &spec_path.field("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

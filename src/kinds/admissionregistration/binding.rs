//! What both kinds of bindings have in common: which policy is in force for what, and with which parameters.

use jiff::Timestamp;
use serde_json::Value;

use super::matching;
use crate::base::json::{at, list, map, text};
use crate::kinds::Column;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};

pub(super) const COLUMNS: &[Column] = &[
    table::NAME,
    string("PolicyName", "The policy that is in force."),
    string("ParamRef", "The parameters that it has."),
    table::AGE,
];
const ACTIONS: [&str; 2] = ["Deny", "Allow"];

pub(super) fn row(binding: &Value, now: Timestamp) -> Vec<Value> {
    let reference = match at(binding, "spec.paramRef").filter(|r| r.is_object()) {
        None => "<unset>".to_owned(),
        Some(reference) => match (text(reference, "namespace"), text(reference, "name")) {
            (_, "") => reference.get("selector").map_or_else(|| "<unset>".to_owned(), selector),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        },
    };
    let policy = text(binding, "spec.policyName");
    vec![table::name(binding), policy.into(), reference.into(), table::age(binding, now)]
}

/// A selector as Go prints one.
fn selector(selector: &Value) -> String {
    let mut shown = "&LabelSelector{MatchLabels:map[string]string{".to_owned();
    let mut labels: Vec<(&String, &Value)> = map(selector, "matchLabels").into_iter().flatten().collect();
    labels.sort_by_key(|(key, _)| *key);
    for (key, value) in labels {
        shown += &format!("{key}: {},", value.as_str().unwrap_or_default());
    }
    shown += "},MatchExpressions:[]LabelSelectorRequirement{";
    for of in list(selector, "matchExpressions") {
        let values: Vec<&str> = list(of, "values").iter().filter_map(Value::as_str).collect();
        let (key, operator, values) = (text(of, "key"), text(of, "operator"), values.join(" "));
        shown += &format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},");
    }
    shown + "},}"
}

pub(super) fn default(binding: &mut Value) {
    if let Some(resources) = binding.pointer_mut("/spec/matchResources") {
        matching::default(resources);
    }
}

pub(super) fn validate(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    let policy = text(binding, "spec.policyName");
    if check::given(&mut errors, &spec.field("policyName"), policy) {
        check::dns_subdomain(&mut errors, &spec.field("policyName"), policy);
    }
    if let Some(reference) = at(binding, "spec.paramRef").filter(|r| r.is_object()) {
        param_ref(&mut errors, &spec.field("paramRef"), reference);
    }
    if let Some(resources) = at(binding, "spec.matchResources").filter(|r| r.is_object()) {
        // Kubernetes writes the name of the field like this here.
        matching::validate(&mut errors, &spec.field("matchResouces"), resources);
    }
    errors
}

fn param_ref(errors: &mut Errors, path: &Path<'_>, reference: &Value) {
    let name = text(reference, "name");
    let selector = reference.get("selector").filter(|s| s.is_object());
    matching::path_segment(errors, &path.field("name"), name);
    check::label_selector(errors, &path.field("selector"), selector);
    match (name, selector) {
        ("", None) => errors.push(field::required(path, "one of name or selector must be specified")),
        ("", Some(_)) | (_, None) => {}
        (_, Some(_)) => {
            for of in ["name", "selector"] {
                errors.push(field::forbidden(&path.field(of), "name and selector are mutually exclusive"));
            }
        }
    }
    let action = path.field("parameterNotFoundAction");
    check::required_one_of(errors, &action, text(reference, "parameterNotFoundAction"), &ACTIONS);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(spec: Value) -> Vec<String> {
        let mut binding = json!({"metadata": {"name": "b"}, "spec": spec});
        default(&mut binding);
        validate(&binding).iter().map(|e| format!("{}: {}", e.field, e.message())).collect()
    }

    #[test]
    fn bindings_are_checked_in_kubernetes_words() {
        let with = |reference: Value| causes(json!({"policyName": "p", "paramRef": reference}));
        assert_eq!(with(json!({"name": "n", "parameterNotFoundAction": "Deny"})), Vec::<String>::new());
        assert_eq!(causes(json!({"policyName": ""})), ["spec.policyName: Required value"]);
        assert_eq!(
            with(json!({"parameterNotFoundAction": "Never"})),
            [
                "spec.paramRef: Required value: one of name or selector must be specified",
                "spec.paramRef.parameterNotFoundAction: Unsupported value: \"Never\": supported values: \"Deny\", \"Allow\"",
            ]
        );
        assert_eq!(
            with(json!({"name": "a/b", "selector": {}})),
            [
                "spec.paramRef.name: Invalid value: \"a/b\": may not contain '/'",
                "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
                "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive",
                "spec.paramRef.parameterNotFoundAction: Required value",
            ]
        );
        let rules = json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
            "resourceNames": ["a", "a", ".."]}]);
        assert_eq!(
            causes(json!({"policyName": "p", "matchResources": {"excludeResourceRules": rules}})),
            [
                "spec.matchResouces.excludeResourceRules[0].resourceNames[1]: Duplicate value: \"a\"",
                "spec.matchResouces.excludeResourceRules[0].resourceNames[2]: Invalid value: \"..\": may not be '..'",
            ]
        );
    }

    #[test]
    fn parameters_are_shown_as_go_prints_them() {
        let shown = |reference: Value| {
            row(&json!({"spec": {"policyName": "p", "paramRef": reference}}), Timestamp::UNIX_EPOCH)[2].clone()
        };
        assert_eq!(shown(json!(null)), "<unset>");
        assert_eq!(shown(json!({"name": "n", "namespace": "m"})), "m/n");
        assert_eq!(shown(json!({"name": "n"})), "n");
        assert_eq!(
            shown(json!({"selector": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["a", "b"]}]}})),
            "&LabelSelector{MatchLabels:map[string]string{},MatchExpressions:[]LabelSelectorRequirement{\
             LabelSelectorRequirement{Key:k,Operator:In,Values:[a b],},},}"
        );
    }
}

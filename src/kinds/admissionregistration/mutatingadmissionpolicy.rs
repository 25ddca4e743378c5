//! MutatingAdmissionPolicy: expressions that change what is written, where a binding puts them in force.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use super::expressions::{Compiler, Purpose};
use super::policy;
use crate::base::json::{list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "admissionregistration.k8s.io",
    kind: "MutatingAdmissionPolicy",
    plural: "mutatingadmissionpolicies",
    singular: "mutatingadmissionpolicy",
    categories: &["api-extensions"],
    namespaced: false,
    schema: "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy",
    unconditional_update: false,
    generation: Generation::Spec,
    columns: COLUMNS,
    row: |object, now: Timestamp| policy::row(object, "spec.mutations", now),
    strategy: Strategy {
        default: policy::default,
        validate_create: |object| validate(object, false),
        validate_update: |new, old| validate(new, policy::keeps_conditions(new, old)),
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"matchConstraints":{"resourceRules":[{"apiGroups":[""],
        "apiVersions":["v1"],"operations":["CREATE"],"resources":["pods"]}]},"reinvocationPolicy":"Never",
        "mutations":[{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":"Object{}"}}]}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    integer("Mutations", "How many expressions change an object."),
    string("ParamKind", "The kind of its parameters."),
    table::AGE,
];
/// What has an object that could be changed.
const OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
/// Subresources whose objects are requests of their own.
const UNCHANGED: [&str; 7] = ["attach", "binding", "eviction", "exec", "portforward", "proxy", "token"];
/// Types of patches, and where their expressions are.
const PATCHES: [(&str, &str, Purpose); 2] = [
    ("ApplyConfiguration", "applyConfiguration", Purpose::ApplyConfiguration),
    ("JSONPatch", "jsonPatch", Purpose::JsonPatch),
];

fn validate(object: &Value, known_conditions: bool) -> Errors {
    let mut errors = Errors::new();
    let has_variables = !list(object, "spec.variables").is_empty();
    let mut compiler = Compiler::mutating(policy::has_params(object), has_variables);
    policy::validate(&mut errors, object, &mut compiler, known_conditions);
    let spec = Path::root("spec");
    for rule in list(object, "spec.matchConstraints.resourceRules") {
        for operation in list(rule, "operations").iter().filter(|operation| **operation == "DELETE") {
            let path = spec.field("matchConstraints.resourceRules.operations");
            errors.push(field::not_supported(path, operation.clone(), &OPERATIONS));
        }
    }
    let (path, mutations) = (spec.field("mutations"), list(object, "spec.mutations"));
    if mutations.is_empty() {
        errors.push(field::required(&path, "mutations must contain at least one item"));
    }
    for (i, of) in mutations.iter().enumerate() {
        mutation(&mut errors, &path.index(i), of, &mut compiler);
    }
    let policy = text(object, "spec.reinvocationPolicy");
    check::required_one_of(&mut errors, &spec.field("reinvocationPolicy"), policy, &["IfNeeded", "Never"]);
    errors
}

fn mutation(errors: &mut Errors, path: &Path<'_>, of: &Value, compiler: &mut Compiler) {
    let given = text(of, "patchType");
    let supported = PATCHES.map(|(name, ..)| name);
    check::required_one_of(errors, &path.field("patchType"), given, &supported);
    if !supported.contains(&given) {
        return;
    }
    for (patch_type, key, purpose) in PATCHES {
        let (path, patch) = (path.field(key), of.get(key).filter(|patch| patch.is_object()));
        match patch {
            Some(patch) if patch_type == given => {
                let (at, expression) = (path.field("expression"), text(patch, "expression"));
                if expression.trim().is_empty() {
                    errors.push(field::required(&at, "expression is not specified"));
                } else if let Err(why) = compiler.compile(expression, purpose) {
                    errors.push(field::invalid(&at, expression, why));
                }
            }
            None if patch_type == given => {
                errors.push(field::required(&path, format!("must be specified when patchType is {given}")));
            }
            Some(patch) => {
                let why = format!("must not be specified when patchType is {given}");
                errors.push(field::invalid(&path, patch.clone(), why));
            }
            None => {}
        }
    }
}

/// What is asked through some subresources is no object that is changed here.
fn warnings(policy: &Value, old: Option<&Value>) -> Vec<String> {
    let rules = |policy: &Value| list(policy, "spec.matchConstraints.resourceRules").to_vec();
    let mut warnings = Vec::new();
    if old.map(rules) == Some(rules(policy)) {
        return warnings;
    }
    for (i, rule) in rules(policy).iter().enumerate() {
        for (j, resource) in list(rule, "resources").iter().enumerate() {
            let through = resource.as_str().and_then(|resource| resource.split_once('/')).map(|(_, sub)| sub);
            if let Some(through) = through.filter(|through| UNCHANGED.contains(through)) {
                let place = format!("spec.matchConstraints.resourceRules[{i}].resources[{j}]");
                warnings.push(format!("{place}: what is asked through {through:?} is not changed by this version"));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(more: Value) -> Vec<String> {
        let rules =
            json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
        let apply = json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}});
        let mut object = json!({"metadata": {"name": "p"}, "spec": {"reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": rules}, "mutations": [apply]}});
        object["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        policy::default(&mut object);
        validate(&object, false).iter().map(|e| format!("{}: {}", e.field, e.message())).collect()
    }

    #[test]
    fn who_wants_to_change_what_is_no_object_is_told() {
        let of =
            |resources: Value| json!({"spec": {"matchConstraints": {"resourceRules": [{"resources": resources}]}}});
        let told = warnings(&of(json!(["pods", "pods/exec", "deployments/scale", "*/*"])), None);
        let expected = "spec.matchConstraints.resourceRules[0].resources[1]: what is asked through \"exec\" is not changed by this version";
        assert_eq!(told, [expected]);
        let same = of(json!(["pods/exec"]));
        assert!(warnings(&same, Some(&same)).is_empty());
    }

    #[test]
    fn policies_are_checked_in_kubernetes_words() {
        assert_eq!(causes(json!({})), Vec::<String>::new());
        assert_eq!(causes(json!({"reinvocationPolicy": ""})), ["spec.reinvocationPolicy: Required value"]);
        let of = |mutation: Value| causes(json!({"mutations": [mutation]}));
        assert_eq!(
            of(json!({"patchType": "JSONPatch", "applyConfiguration": {"expression": "Object{}"}})),
            [
                "spec.mutations[0].applyConfiguration: Invalid value: {\"expression\":\"Object{}\"}: must not be specified when patchType is JSONPatch",
                "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch",
            ]
        );
        assert_eq!(
            of(json!({"patchType": "JSONPatch", "jsonPatch": {"expression": "1"}})),
            [
                "spec.mutations[0].jsonPatch.expression: Invalid value: \"1\": must evaluate to list(JSONPatch) but got int"
            ]
        );
        assert_eq!(
            of(json!({"patchType": "Foo"})),
            [
                "spec.mutations[0].patchType: Unsupported value: \"Foo\": supported values: \"ApplyConfiguration\", \"JSONPatch\""
            ]
        );
        let rules =
            json!([{"operations": ["DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
        assert_eq!(
            causes(json!({"matchConstraints": {"resourceRules": rules}})),
            [
                "spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\""
            ]
        );
    }
}

//! IngressClass.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{at, set_default, text};
use crate::base::labels::dns_subdomain_error;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "networking.k8s.io",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    namespaced: false,
    generation: Generation::Spec,
    schema: "io.k8s.api.networking.v1.IngressClass",
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default: |class| {
            if at(class, "spec.parameters").is_some_and(Value::is_object) {
                set_default(class, "spec.parameters.scope", "Cluster");
            }
        },
        validate,
        validate_update: |new, old| {
            let (is, was) = (text(new, "spec.controller"), text(old, "spec.controller"));
            if is == was { Errors::new() } else { [field::invalid("spec.controller", is, check::IMMUTABLE)].into() }
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"controller":"example.com/c"}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Controller", "Who serves its Ingresses."),
    string("Parameters", "What its controller is configured by."),
    table::AGE,
];
/// The name of a controller may be this long.
const CONTROLLER_BYTES: usize = 250;
/// An Ingress without a class gets the class that has this annotation.
const DEFAULT_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

/// Whether Ingresses without a class are of this one.
pub fn is_default(class: &Value) -> bool {
    class["metadata"]["annotations"][DEFAULT_ANNOTATION] == "true"
}

fn row(class: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match at(class, "spec.parameters").filter(|p| p.is_object()) {
        None => "<none>".to_owned(),
        Some(p) => {
            let group = text(p, "apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", text(p, "kind"), text(p, "name"))
        }
    };
    vec![table::name(class), text(class, "spec.controller").into(), parameters.into(), table::age(class, now)]
}

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    let (path, controller) = (spec.field("controller"), text(class, "spec.controller"));
    if controller.len() > CONTROLLER_BYTES {
        errors.push(field::too_long(&path, CONTROLLER_BYTES));
    }
    if check::given(&mut errors, &path, controller) {
        let wrong = match controller.split_once('/') {
            Some((domain, rest)) if !rest.is_empty() => dns_subdomain_error(domain),
            _ => Some("must be a domain-prefixed path (such as \"acme.io/foo\")".into()),
        };
        errors.extend(wrong.map(|why| field::invalid(&path, controller, why)));
    }
    if let Some(parameters) = at(class, "spec.parameters").filter(|p| p.is_object()) {
        validate_parameters(&mut errors, &spec.field("parameters"), parameters);
    }
    errors
}

fn validate_parameters(errors: &mut Errors, path: &Path<'_>, parameters: &Value) {
    for key in ["kind", "name"] {
        check::given(errors, &path.field(key), text(parameters, key));
    }
    let (scope, namespace) = (text(parameters, "scope"), text(parameters, "namespace"));
    check::required_one_of(errors, &path.field("scope"), scope, &["Cluster", "Namespace"]);
    let here = path.field("namespace");
    match scope {
        "Namespace" if check::given(errors, &here, namespace) => check::dns_label(errors, &here, namespace),
        "Cluster" if !namespace.is_empty() => {
            errors.push(field::forbidden(&here, "`parameters.scope` is set to 'Cluster'"));
        }
        _ => {}
    }
}

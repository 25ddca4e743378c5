//! Whether the expressions of a policy fit the kinds that it is about: what does not is told in its status
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/validating/typechecking.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::expressions::Compiler;
use crate::base::json::{at, list, text};
use crate::cel::{Decl, DeclKind, Field, ObjectType, Order, REQUEST_BYTES_MAX, Type, escape};
use crate::kinds::KindRef;
use crate::kinds::registry::Snapshot;
use crate::schema::{ListKind, Node, Scalar, TypeRef};

/// Kinds that one rule is checked against, at most.
const KINDS_MAX: usize = 10;
/// Types that objects of one kind are made of, at most: what is beyond them is of any type.
const TYPES_MAX: usize = 20_000;

/// What does not fit, as `ExpressionWarning`s.
pub fn check(policy: &Value, kinds: &Snapshot) -> Vec<Value> {
    let of = |path: &str| at(policy, path).filter(|of| of.is_object());
    let params = of("spec.paramKind").map(|kind| {
        let found = kinds.by_kind(text(kind, "apiVersion"), text(kind, "kind"));
        found.map_or(Type::Dyn, |kind| declared(kind).type_of())
    });
    let mut checkers: Vec<(String, Compiler)> = matched(policy, kinds)
        .into_iter()
        .map(|kind| {
            let variables = list(policy, "spec.variables");
            let object = declared(&kind).type_of();
            let mut compiler = Compiler::typed(object, params.clone(), !variables.is_empty());
            for variable in variables {
                // What is wrong with it shows where it is used.
                let _ = compiler.add_variable(text(variable, "name"), text(variable, "expression"));
            }
            (format!("{}, Kind={}", kind.api_version(), kind.kind()), compiler)
        })
        .collect();
    let mut warnings = Vec::new();
    for (i, validation) in list(policy, "spec.validations").iter().enumerate() {
        for key in ["expression", "messageExpression"] {
            let expression = text(validation, key);
            let found: Vec<String> = checkers
                .iter_mut()
                .filter(|_| !expression.is_empty())
                .filter_map(|(kind, compiler)| Some(format!("{kind}: {}\n", compiler.issues(expression)?)))
                .collect();
            if !found.is_empty() {
                let place = format!("spec.validations[{i}].{key}");
                warnings.push(json!({"fieldRef": place, "warning": found.join("\n")}));
            }
        }
    }
    warnings
}

/// The kinds that rules name without a wildcard, in the order of their names.
fn matched(policy: &Value, kinds: &Snapshot) -> Vec<KindRef> {
    let mut found = BTreeMap::new();
    for rule in list(policy, "spec.matchConstraints.resourceRules") {
        let all = |key: &str| list(rule, key).iter().filter_map(Value::as_str).collect::<BTreeSet<_>>();
        let (groups, versions, mut resources) = (all("apiGroups"), all("apiVersions"), all("resources"));
        if groups.iter().chain(&versions).any(|name| name.contains('*')) {
            continue;
        }
        resources.retain(|name| !name.contains(['*', '/']));
        let named = |kind: &&KindRef| {
            groups.contains(kind.group()) && versions.contains(kind.version()) && resources.contains(kind.plural())
        };
        let of = |kind: &KindRef| (kind.group().to_owned(), kind.version().to_owned(), kind.kind().to_owned());
        let rule: BTreeMap<_, _> = kinds.iter().filter(named).map(|kind| (of(kind), kind.clone())).collect();
        found.extend(rule.into_iter().take(KINDS_MAX));
    }
    found.into_values().take(KINDS_MAX).collect()
}

/// Objects of a kind as expressions see them.
fn declared(kind: &KindRef) -> Decl {
    let mut declarer = Declarer { within: Vec::new(), left: TYPES_MAX };
    declarer.declare(kind.type_ref(), kind.kind())
}

struct Declarer<'k> {
    /// The structs around a place: one that contains itself is of any type there.
    within: Vec<&'k str>,
    left: usize,
}

// === impl Declarer ===

impl<'k> Declarer<'k> {
    fn declare(&mut self, place: TypeRef<'k>, name: &str) -> Decl {
        if self.left == 0 {
            return decl(DeclKind::Untyped);
        }
        self.left -= 1;
        decl(match place.node() {
            Node::Scalar(of) => scalar(*of),
            Node::List { kind, .. } => {
                let item =
                    place.item().map_or_else(|| decl(DeclKind::Untyped), |i| self.declare(i, &format!("{name}.@idx")));
                let order = if *kind == ListKind::Set { Order::Set } else { Order::Atomic };
                DeclKind::List(Arc::new(item), order)
            }
            Node::Map { .. } => match place.child("") {
                Some(value) => DeclKind::Map(Arc::new(self.declare(value, &format!("{name}.@elem")))),
                None => DeclKind::Untyped,
            },
            Node::Struct { .. } => self.object(place, name),
            Node::Any | Node::Raw | Node::SchemaOr(_) => DeclKind::Untyped,
        })
    }

    fn object(&mut self, place: TypeRef<'k>, name: &str) -> DeclKind {
        let Some(of) = place.as_struct() else { return DeclKind::Untyped };
        if of.preserve_unknown || (!of.name.is_empty() && self.within.contains(&&*of.name)) {
            return DeclKind::Untyped;
        }
        self.within.push(&of.name);
        let mut fields = BTreeMap::new();
        for field in place.fields() {
            let decl = Arc::new(self.declare(place.of(field), &format!("{name}.{}", field.name)));
            let of = Field { name: field.name.as_ref().into(), decl };
            // A word that no variable can have is the name of a field all the same.
            fields.insert(field.name.as_ref().into(), of.clone());
            if let Some(escaped) = escape(&field.name) {
                fields.insert(escaped, of);
            }
        }
        self.within.pop();
        DeclKind::Object(Arc::new(ObjectType { name: name.into(), fields }))
    }
}

fn decl(kind: DeclKind) -> Decl {
    Decl::new(kind, REQUEST_BYTES_MAX, 1)
}

fn scalar(of: Scalar) -> DeclKind {
    match of {
        Scalar::String | Scalar::Duration => DeclKind::String,
        Scalar::Bytes => DeclKind::Bytes,
        Scalar::Bool => DeclKind::Bool,
        Scalar::Int32 | Scalar::Int64 => DeclKind::Int,
        Scalar::Double => DeclKind::Double,
        Scalar::Time | Scalar::MicroTime => DeclKind::DateTime,
        Scalar::IntOrString => DeclKind::IntOrString,
        // A text or a number.
        Scalar::Quantity => DeclKind::Untyped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::registry::builtin;

    fn warnings(group: &str, resource: &str, expression: &str) -> Vec<String> {
        let rules =
            json!([{"apiGroups": [group], "apiVersions": ["v1"], "operations": ["*"], "resources": [resource]}]);
        let policy = json!({"spec": {"matchConstraints": {"resourceRules": rules}, "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "variables": [{"name": "replicas", "expression": "object.spec.replicas"}, {"name": "meta", "expression": "object.metadata"}],
            "validations": [{"expression": expression}]}});
        check(&policy, builtin()).iter().map(|w| text(w, "warning").to_owned()).collect()
    }

    #[test]
    fn expressions_are_checked_against_the_kinds_that_rules_name() {
        for right in [
            "object.spec.replicas > 1 && variables.replicas == 1 && variables.meta.name == ''",
            "object.metadata.namespace == '' && object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')",
            "object.spec.template.spec.containers.all(c, c.resources.limits['cpu'] == '1' && c.ports[0].containerPort > 1)",
            "object.spec.strategy.rollingUpdate.maxSurge == '25%' && params.data['a'] == 'b' && oldObject == null",
            "authorizer.requestResource.check('get').allowed() && has(namespaceObject.metadata.labels)",
        ] {
            assert_eq!(warnings("apps", "deployments", right), Vec::<String>::new(), "{right}");
        }
        let found = warnings("apps", "deployments", "object.spec.replicas > '1'");
        let why = "ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'";
        assert!(found[0].starts_with(&format!("apps/v1, Kind=Deployment: {why}\n")), "{found:?}");
        assert!(warnings("apps", "deployments", "object.spec.nothing == 1")[0].contains("undefined field 'nothing'"));
        assert!(warnings("apps", "deployments", "variables.replicas == ''")[0].contains("no matching overload"));
        assert!(warnings("apps", "deployments", "params.nothing == ''")[0].contains("undefined field 'nothing'"));
        // What no rule names without a wildcard is of any type.
        for (group, resource) in
            [("*", "deployments"), ("apps", "*"), ("apps", "deployments/scale"), ("e.example", "foos")]
        {
            assert_eq!(warnings(group, resource, "object.spec.nothing == 1"), Vec::<String>::new());
        }
    }

    #[test]
    fn a_type_that_contains_itself_ends() {
        let expression = "object.spec.versions[0].schema.openAPIV3Schema.properties['a'].nothing.nothing == 1";
        assert_eq!(warnings("apiextensions.k8s.io", "customresourcedefinitions", expression), Vec::<String>::new());
    }
}

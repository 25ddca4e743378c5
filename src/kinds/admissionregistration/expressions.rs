//! Expressions of admission policies: what they may name and what they must give (`k8s.io/apiserver/pkg/admission/plugin/cel`).

use std::sync::{Arc, LazyLock};

use super::conditions::{AUTHORIZER, RESOURCE_CHECK, list, object, request, text};
use crate::cel::{
    Compositions, Decl, DeclKind, Env, Expression, JSON_PATCH, OBJECT, ObjectType, Program, REQUEST_BYTES_MAX, Type,
};

/// The variables of all expressions, in the order in which their values are given. Not every expression has all of them.
pub const VARIABLES: [&str; 8] = [
    "object",
    "oldObject",
    "request",
    "namespaceObject",
    "params",
    "variables",
    "authorizer",
    "authorizer.requestResource",
];
/// The place of what a policy's own variables are fields of.
pub const COMPOSED: usize = 5;
/// What all expressions of a policy may have of parts together. Kubernetes knows no limit but that of a request.
const NODES_MAX: u32 = 500_000;
const TOO_LARGE: &str = "the expressions of the policy are too large together";

static NAMESPACE: LazyLock<Arc<Decl>> = LazyLock::new(|| Arc::new(declared_namespace()));

/// What an expression is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Whether the policy is about a request at all.
    Condition,
    Validation,
    Message,
    AuditAnnotation,
    /// What an object is to become, as an applied configuration.
    ApplyConfiguration,
    /// What an object is to become, as a JSON patch.
    JsonPatch,
}

/// Compiles the expressions of one policy.
#[derive(Debug)]
pub struct Compiler {
    conditions: Env,
    messages: Env,
    others: Env,
    nodes_left: u32,
    /// Its variables so far.
    pub compositions: Compositions,
}

// === impl Purpose ===

impl Purpose {
    fn gives(self) -> Vec<Type> {
        match self {
            Self::Condition | Self::Validation => vec![Type::Bool],
            Self::Message => vec![Type::String],
            Self::AuditAnnotation => vec![Type::String, Type::Null],
            Self::ApplyConfiguration => vec![Type::message(OBJECT)],
            Self::JsonPatch => vec![Type::list(Type::message(JSON_PATCH))],
        }
    }
}

// === impl Compiler ===

impl Compiler {
    /// For a policy with parameters, or with variables of its own.
    pub fn new(has_params: bool, has_variables: bool) -> Self {
        Self {
            conditions: env(has_params, false, true),
            messages: env(has_params, has_variables, false),
            others: env(has_params, has_variables, true),
            nodes_left: NODES_MAX,
            compositions: Compositions::default(),
        }
    }

    /// For a policy that changes objects.
    pub fn mutating(has_params: bool, has_variables: bool) -> Self {
        let compiler = Self::new(has_params, has_variables);
        Self { others: compiler.others.with_messages(), ..compiler }
    }

    /// For a policy whose objects and parameters are of known types.
    pub fn typed(object: Type, params: Option<Type>, has_variables: bool) -> Self {
        let others = env_of(&object, params, has_variables, true);
        Self { others, ..Self::new(false, has_variables) }
    }

    /// What is wrong with the types of an expression, whatever it gives.
    pub fn issues(&mut self, text: &str) -> Option<String> {
        if self.nodes_left == 0 {
            return None;
        }
        match self.others.compile(text) {
            Ok(expression) => {
                self.nodes_left = self.nodes_left.saturating_sub(expression.nodes());
                None
            }
            Err(issues) => Some(issues.to_string()),
        }
    }

    /// Compiles an expression; the error says what is wrong with it.
    pub fn compile(&mut self, text: &str, purpose: Purpose) -> Result<Program, String> {
        let env = match purpose {
            Purpose::Condition => &self.conditions,
            Purpose::Message => &self.messages,
            Purpose::Validation | Purpose::AuditAnnotation | Purpose::ApplyConfiguration | Purpose::JsonPatch => {
                &self.others
            }
        };
        let expression = checked(env, text, &mut self.nodes_left)?;
        let (found, wanted) = (expression.output(), purpose.gives());
        if !wanted.contains(found) {
            let shown = |of: &Type| if *of == Type::Null { of.name().to_owned() } else { of.to_string() };
            let wanted: Vec<String> = wanted.iter().map(shown).collect();
            return Err(match &wanted[..] {
                [one] => format!("must evaluate to {one} but got {found}"),
                some => format!("must evaluate to one of [{}] but got {found}", some.join(" ")),
            });
        }
        planned(&expression, env)
    }

    /// Compiles a variable, which those behind it may name; the error says what is wrong with it.
    pub fn add_variable(&mut self, name: &str, text: &str) -> Result<(), String> {
        let expression = checked(&self.others, text, &mut self.nodes_left);
        let of = expression.as_ref().map_or(Type::Dyn, |expression| expression.output().clone());
        let plan = |expression: &Expression| planned(expression, &self.others);
        let given = expression.as_ref().map_err(String::clone);
        let done = self.compositions.add(name, VARIABLES[COMPOSED], given, plan);
        drop(expression);
        for env in [&mut self.messages, &mut self.others] {
            env.add_field(VARIABLES[COMPOSED], name, Decl::of_type(&of));
        }
        done
    }
}

fn checked(env: &Env, text: &str, nodes_left: &mut u32) -> Result<Expression, String> {
    if *nodes_left == 0 {
        return Err(TOO_LARGE.to_owned());
    }
    let expression = env.compile(text).map_err(|issues| format!("compilation failed: {issues}"))?;
    *nodes_left = nodes_left.saturating_sub(expression.nodes());
    Ok(expression)
}

fn planned(expression: &Expression, env: &Env) -> Result<Program, String> {
    expression.program(env).map_err(|error| format!("program instantiation failed: {error}"))
}

fn env(has_params: bool, has_variables: bool, has_authorizer: bool) -> Env {
    env_of(&Type::Dyn, has_params.then_some(Type::Dyn), has_variables, has_authorizer)
}

fn env_of(object: &Type, params: Option<Type>, has_variables: bool, has_authorizer: bool) -> Env {
    let composed = ObjectType { name: "kubernetes.variables".into(), fields: Default::default() };
    let mut env = Env::new();
    for name in VARIABLES {
        let of = match name {
            "request" => Some(request().type_of()),
            "namespaceObject" => Some(namespace().type_of()),
            "params" => params.clone(),
            "variables" => has_variables.then(|| Type::Object(Arc::new(composed.clone()))),
            "authorizer" => has_authorizer.then_some(Type::Named(AUTHORIZER)),
            "authorizer.requestResource" => has_authorizer.then_some(Type::Named(RESOURCE_CHECK)),
            _ => Some(object.clone()),
        };
        env = match of {
            Some(of) => env.with(name, of),
            None => env.without_one(),
        };
    }
    env
}

/// What a Namespace is in expressions.
pub fn namespace() -> &'static Arc<Decl> {
    &NAMESPACE
}

fn declared_namespace() -> Decl {
    let int = || Decl::new(DeclKind::Int, 0, 1);
    let time = || Decl::new(DeclKind::DateTime, 0, 2);
    let labels = || Decl::new(DeclKind::Map(Arc::new(text())), REQUEST_BYTES_MAX, 2);
    let metadata = [
        ("name", text()),
        ("generateName", text()),
        ("namespace", text()),
        ("labels", labels()),
        ("annotations", labels()),
        ("UID", text()),
        ("creationTimestamp", time()),
        ("deletionGracePeriodSeconds", int()),
        ("deletionTimestamp", time()),
        ("generation", int()),
        ("resourceVersion", text()),
        ("finalizers", list(text())),
    ];
    let condition =
        [("status", text()), ("type", text()), ("lastTransitionTime", time()), ("message", text()), ("reason", text())];
    let conditions = list(object("kubernetes.NamespaceCondition", condition));
    let fields = [
        ("metadata", object("kubernetes.NamespaceMetadata", metadata)),
        ("spec", object("kubernetes.NamespaceSpec", [("finalizers", list(text()))])),
        ("status", object("kubernetes.NamespaceStatus", [("conditions", conditions), ("phase", text())])),
    ];
    Decl { nullable: true, ..object("kubernetes.Namespace", fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str, purpose: Purpose) -> String {
        let mut compiler = Compiler::new(false, true);
        compiler.add_variable("count", "object.spec.replicas + 1").unwrap();
        compiler.add_variable("names", "request.userInfo.groups.map(g, g + '!')").unwrap();
        compiler.compile(text, purpose).err().unwrap_or_default()
    }

    #[test]
    fn each_expression_names_what_is_there_for_it() {
        for (right, purpose) in [
            ("object.a == oldObject.a && variables.names[0] == '!'", Purpose::Validation),
            ("authorizer.requestResource.check('update').allowed()", Purpose::Validation),
            ("namespaceObject.metadata.labels['a'] == namespaceObject.metadata.name", Purpose::Validation),
            ("namespaceObject.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')", Purpose::Validation),
            ("'count is ' + string(variables.count)", Purpose::Message),
            ("null", Purpose::AuditAnnotation),
            ("'a' + request.name", Purpose::AuditAnnotation),
            ("request.operation == 'CREATE' && authorizer.path('/').check('get').allowed()", Purpose::Condition),
        ] {
            assert_eq!(why(right, purpose), "", "{right}");
        }
        for (wrong, purpose, because) in [
            ("object.a", Purpose::Validation, "must evaluate to bool but got dyn"),
            ("1", Purpose::Message, "must evaluate to string but got int"),
            ("1", Purpose::AuditAnnotation, "must evaluate to one of [string null_type] but got int"),
            ("params.a == 1", Purpose::Validation, "undeclared reference to 'params'"),
            ("variables.other == 1", Purpose::Validation, "undefined field 'other'"),
            ("variables.names == 1", Purpose::Validation, "found no matching overload for '_==_'"),
            ("variables.names[0] == ''", Purpose::Condition, "undeclared reference to 'variables'"),
            ("authorizer.path('/').check('get').reason()", Purpose::Message, "undeclared reference to 'authorizer'"),
            ("namespaceObject.metadata.uid == ''", Purpose::Validation, "undefined field 'uid'"),
        ] {
            assert!(why(wrong, purpose).contains(because), "{wrong}: {}", why(wrong, purpose));
        }
    }

    #[test]
    fn messages_are_for_what_changes_objects() {
        let why = |text: &str, purpose| {
            let mut compiler = Compiler::mutating(false, true);
            compiler.add_variable("labels", "Object.metadata.labels{a: 'b'}").unwrap();
            compiler.compile(text, purpose).err().unwrap_or_default()
        };
        let (apply, patch) = (Purpose::ApplyConfiguration, Purpose::JsonPatch);
        for (right, purpose) in [
            ("Object{spec: Object.spec{replicas: 3, ?paused: object.spec.?paused}}", apply),
            ("has(object.spec) ? Object{} : Object{metadata: Object.metadata{labels: variables.labels}}", apply),
            ("[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: {'d': 1}}]", patch),
            ("object.x ? [JSONPatch{op: 'test', path: '/a', value: dyn(1)}] : []", patch),
        ] {
            assert_eq!(why(right, purpose), "", "{right}");
        }
        for (wrong, purpose, because) in [
            ("{'spec': 1}", apply, "must evaluate to Object but got map(string, int)"),
            ("Object.spec{}", apply, "must evaluate to Object but got Object.spec"),
            ("Objects{}", apply, "undeclared reference to 'Objects'"),
            ("JSONPatch{}", patch, "must evaluate to list(JSONPatch) but got JSONPatch"),
            ("[JSONPatch{op: 1}]", patch, "expected type of field 'op' is 'string' but provided type is 'int'"),
            ("[JSONPatch{ops: ''}]", patch, "undefined field 'ops'"),
            ("Object{} == Object{}", Purpose::Condition, "undeclared reference to 'Object'"),
        ] {
            assert!(why(wrong, purpose).contains(because), "{wrong}: {}", why(wrong, purpose));
        }
        let mut others = Compiler::new(false, false);
        let why = others.compile("jsonpatch.escapeKey('a') == 'a'", Purpose::Validation).unwrap_err();
        assert!(why.contains("undeclared reference to"), "{why}");
    }

    #[test]
    fn variables_are_made_of_one_another_so_deep_and_no_deeper() {
        let mut compiler = Compiler::new(false, true);
        compiler.add_variable("v0", "[1]").unwrap();
        let made = |i: usize| format!("[variables.v{}]", i - 1);
        let deep = (1..).take_while(|i| compiler.add_variable(&format!("v{i}"), &made(*i)).is_ok()).count();
        assert!((200..2000).contains(&deep), "{deep}");
        // Nor where it does not show which ones are used.
        let mut compiler = Compiler::new(false, true);
        compiler.add_variable("v0", "[1]").unwrap();
        let hidden = |i: usize| format!("[dyn(variables).v{}]", i - 1);
        let deep = (1..).take_while(|i| compiler.add_variable(&format!("v{i}"), &hidden(*i)).is_ok()).count();
        assert!((200..2000).contains(&deep), "{deep}");
    }

    #[test]
    fn a_policy_compiles_so_much_and_no_more() {
        let mut compiler = Compiler::new(false, false);
        let large = format!("[1, 2].all(a, [1, 2].all(b, [1, 2].all(c, {})))", vec!["a == b + c"; 500].join(" && "));
        let compiled = (0..10_000).take_while(|_| compiler.compile(&large, Purpose::Validation).is_ok()).count();
        assert!((10..200).contains(&compiled), "{compiled}");
        assert_eq!(compiler.compile("true", Purpose::Validation).unwrap_err(), TOO_LARGE);
    }
}

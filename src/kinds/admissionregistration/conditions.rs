//! The conditions under which a webhook is asked (`matchConditions`): expressions about the request.

use std::sync::{Arc, LazyLock};

use crate::cel::{Decl, DeclKind, Env, Field, ObjectType, Order, Program, REQUEST_BYTES_MAX, Type};

/// What all conditions of a webhook may cost together (`RuntimeCELCostBudgetMatchConditions`).
pub const CONDITIONS_COST_MAX: u64 = 2_500_000;
pub(super) const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub(super) const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";

static ENV: LazyLock<Env> = LazyLock::new(|| {
    Env::new()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("request", request().type_of())
        .with("authorizer", Type::Named(AUTHORIZER))
        .with("authorizer.requestResource", Type::Named(RESOURCE_CHECK))
});
static REQUEST: LazyLock<Arc<Decl>> = LazyLock::new(|| Arc::new(declared_request()));

/// What an `AdmissionRequest` is in expressions.
pub fn request() -> &'static Arc<Decl> {
    &REQUEST
}

/// Compiles a condition; the error says what is wrong with it. Its variables are the object, what it was, the request, who may do
/// what, and whether the user may do something to what the request is about.
pub fn compile(expression: &str) -> Result<Program, String> {
    let compiled = ENV.compile(expression).map_err(|issues| format!("compilation failed: {issues}"))?;
    if compiled.output() != &Type::Bool {
        return Err(format!("must evaluate to bool but got {}", compiled.output()));
    }
    compiled.program(&ENV).map_err(|error| format!("program instantiation failed: {error}"))
}

pub(super) fn text() -> Decl {
    Decl::new(DeclKind::String, REQUEST_BYTES_MAX, 2)
}

pub(super) fn list(of: Decl) -> Decl {
    Decl::new(DeclKind::List(Arc::new(of), Order::Atomic), REQUEST_BYTES_MAX, 2)
}

pub(super) fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Decl)>) -> Decl {
    let field = |(name, decl): (&str, Decl)| (name.into(), Field { name: name.into(), decl: Arc::new(decl) });
    let object = ObjectType { name: name.into(), fields: fields.into_iter().map(field).collect() };
    Decl::new(DeclKind::Object(Arc::new(object)), 0, 2)
}

fn declared_request() -> Decl {
    let kind = || object("kubernetes.GroupVersionKind", [("group", text()), ("version", text()), ("kind", text())]);
    let resource =
        || object("kubernetes.GroupVersionResource", [("group", text()), ("version", text()), ("resource", text())]);
    let extra = Decl::new(DeclKind::Map(Arc::new(list(text()))), REQUEST_BYTES_MAX, 2);
    let user = [("username", text()), ("uid", text()), ("groups", list(text())), ("extra", extra)];
    let fields = [
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", text()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", text()),
        ("name", text()),
        ("namespace", text()),
        ("operation", text()),
        ("userInfo", object("kubernetes.UserInfo", user)),
        ("dryRun", Decl::new(DeclKind::Bool, 0, 4)),
        ("options", Decl { nullable: true, ..Decl::new(DeclKind::Untyped, 0, 2) }),
    ];
    object("kubernetes.AdmissionRequest", fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_about_the_request() {
        for right in [
            "request.operation == 'CREATE' && !('system:nodes' in request.userInfo.groups)",
            "object.metadata.?labels.app.orValue('') != '' || oldObject == null",
            "authorizer.group('').resource('pods').check('get').allowed()",
            "authorizer.requestResource.check('update').allowed() && has(request.userInfo.extra)",
            "!(request.resource.resource in ['leases']) && request.dryRun",
        ] {
            assert!(compile(right).is_ok(), "{right}: {:?}", compile(right).err());
        }
        for (wrong, why) in [
            ("request.nope == ''", "compilation failed: ERROR: <input>:1:8: undefined field 'nope'"),
            ("params.x == 1", "undeclared reference to 'params'"),
            ("'x'", "must evaluate to bool but got string"),
            ("object.spec.enabled", "must evaluate to bool but got dyn"),
            ("object.x.matches('(')", "invalid matches argument"),
        ] {
            assert!(compile(wrong).unwrap_err().contains(why), "{wrong}: {:?}", compile(wrong).err());
        }
    }
}

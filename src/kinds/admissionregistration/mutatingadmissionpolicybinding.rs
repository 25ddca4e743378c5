//! MutatingAdmissionPolicyBinding: puts a policy in force.

use linkme::distributed_slice;

use super::binding;
use crate::kinds::{BUILTIN, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "admissionregistration.k8s.io",
    kind: "MutatingAdmissionPolicyBinding",
    plural: "mutatingadmissionpolicybindings",
    singular: "mutatingadmissionpolicybinding",
    categories: &["api-extensions"],
    namespaced: false,
    schema: "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding",
    unconditional_update: false,
    generation: Generation::Spec,
    columns: binding::COLUMNS,
    row: binding::row,
    strategy: Strategy { default: binding::default, validate: binding::validate, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"policyName":"p"}}"#,
    ..Kind::BASE
});

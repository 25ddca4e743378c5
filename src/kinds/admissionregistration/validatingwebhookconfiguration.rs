//! ValidatingWebhookConfiguration.

use linkme::distributed_slice;

use super::webhook;
use crate::kinds::{BUILTIN, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "admissionregistration.k8s.io",
    kind: "ValidatingWebhookConfiguration",
    plural: "validatingwebhookconfigurations",
    singular: "validatingwebhookconfiguration",
    categories: &["api-extensions"],
    namespaced: false,
    schema: "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
    unconditional_update: false,
    generation: Generation::Spec,
    columns: webhook::COLUMNS,
    row: webhook::row,
    strategy: Strategy {
        default: webhook::default_validating,
        validate_create: webhook::validate_create,
        validate_update: webhook::validate_update,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"}}"#,
    ..Kind::BASE
});

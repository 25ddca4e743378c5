//! ServiceAccount.

use crate::kinds::{Kind, Subresource};

/// The kind.
pub static KIND: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    delete_answers_object: true,
    ..Kind::BASE
};

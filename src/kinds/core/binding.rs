//! Binding.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    kind: "Binding",
    plural: "bindings",
    singular: "binding",
    verbs: &["create"],
    schema: "io.k8s.api.core.v1.Binding",
    ..Kind::BASE
};

//! Endpoints.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    create_on_update: true,
    ..Kind::BASE
};

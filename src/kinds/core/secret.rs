//! Secret.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind =
    Kind { kind: "Secret", plural: "secrets", singular: "secret", schema: "io.k8s.api.core.v1.Secret", ..Kind::BASE };

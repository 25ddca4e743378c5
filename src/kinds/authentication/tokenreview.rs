//! TokenReview.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "authentication.k8s.io",
    kind: "TokenReview",
    plural: "tokenreviews",
    singular: "tokenreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authentication.v1.TokenReview",
    ..Kind::BASE
};

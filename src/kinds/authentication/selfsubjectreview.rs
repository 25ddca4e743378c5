//! SelfSubjectReview.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "authentication.k8s.io",
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
    ..Kind::BASE
};

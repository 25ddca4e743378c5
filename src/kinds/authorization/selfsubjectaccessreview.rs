//! SelfSubjectAccessReview.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "authorization.k8s.io",
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    ..Kind::BASE
};

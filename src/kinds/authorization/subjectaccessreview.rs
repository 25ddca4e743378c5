//! SubjectAccessReview.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "authorization.k8s.io",
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    singular: "subjectaccessreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
    ..Kind::BASE
};

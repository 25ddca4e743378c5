//! LocalSubjectAccessReview.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "authorization.k8s.io",
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    verbs: &["create"],
    schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    ..Kind::BASE
};

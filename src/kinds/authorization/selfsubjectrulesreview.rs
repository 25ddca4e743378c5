//! SelfSubjectRulesReview.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "authorization.k8s.io",
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    ..Kind::BASE
};

//! SelfSubjectRulesReview.

use crate::kinds::{BUILTIN, Creation, Kind, KindRef, Strategy};
use linkme::distributed_slice;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "authorization.k8s.io",
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    strategy: Strategy { creation: Creation::Answered, ..Strategy::BASE },
    ..Kind::BASE
});

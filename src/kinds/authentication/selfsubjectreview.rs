//! SelfSubjectReview.

use crate::kinds::{BUILTIN, Creation, Kind, KindRef, Strategy};
use linkme::distributed_slice;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "authentication.k8s.io",
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
    strategy: Strategy { creation: Creation::Answered, ..Strategy::BASE },
    ..Kind::BASE
});

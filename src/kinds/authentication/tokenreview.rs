//! TokenReview.

use crate::kinds::{BUILTIN, Creation, Kind, KindRef, Strategy};
use linkme::distributed_slice;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "authentication.k8s.io",
    kind: "TokenReview",
    plural: "tokenreviews",
    singular: "tokenreview",
    namespaced: false,
    verbs: &["create"],
    schema: "io.k8s.api.authentication.v1.TokenReview",
    strategy: Strategy { creation: Creation::Answered, ..Strategy::BASE },
    ..Kind::BASE
});

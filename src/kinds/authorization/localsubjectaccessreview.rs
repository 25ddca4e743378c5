//! LocalSubjectAccessReview.

use crate::kinds::{BUILTIN, Creation, Kind, KindRef, Strategy};
use linkme::distributed_slice;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "authorization.k8s.io",
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    verbs: &["create"],
    schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    strategy: Strategy { creation: Creation::Answered, ..Strategy::BASE },
    ..Kind::BASE
});

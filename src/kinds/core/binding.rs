//! Binding.

use crate::kinds::{BUILTIN, Creation, Kind, KindRef, Strategy};
use linkme::distributed_slice;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Binding",
    plural: "bindings",
    singular: "binding",
    verbs: &["create"],
    schema: "io.k8s.api.core.v1.Binding",
    strategy: Strategy { creation: Creation::Binding, ..Strategy::BASE },
    ..Kind::BASE
});

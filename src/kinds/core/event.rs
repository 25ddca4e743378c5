//! Event.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    create_on_update: true,
    volatile: |_| true,
    ..Kind::BASE
};

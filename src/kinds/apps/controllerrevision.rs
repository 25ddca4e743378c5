//! ControllerRevision.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    schema: "io.k8s.api.apps.v1.ControllerRevision",
    ..Kind::BASE
};

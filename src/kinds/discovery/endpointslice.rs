//! EndpointSlice.

use crate::kinds::{Generation, Kind};

/// The kind.
pub static KIND: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    generation: Generation::SpecAndLabels,
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    ..Kind::BASE
};

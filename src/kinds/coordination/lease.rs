//! Lease.

use crate::kinds::Kind;

/// The kind.
pub static KIND: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    create_on_update: true,
    unconditional_update: false,
    volatile: |namespace| namespace == "kube-node-lease",
    ..Kind::BASE
};

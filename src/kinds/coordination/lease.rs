//! Lease.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{at, map_mut, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::Errors;
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy, Volatile};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    create_on_update: true,
    unconditional_update: false,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        volatile: Volatile::InNamespace("kube-node-lease"),
        prepare_create: drop_coordinated,
        prepare_update: |new, _| drop_coordinated(new),
        validate,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"holderIdentity":"h"}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, string("Holder", "Who holds it."), table::AGE];

fn row(lease: &Value, now: Timestamp) -> Vec<Value> {
    vec![table::name(lease), text(lease, "spec.holderIdentity").into(), table::age(lease, now)]
}

/// Coordinated leader election is not enabled in Kubernetes by default, and nobody elects here.
fn drop_coordinated(lease: &mut Value) {
    let spec = map_mut(lease, "spec");
    spec.remove("strategy");
    spec.remove("preferredHolder");
}

fn validate(lease: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    check::positive(&mut errors, &path.field("leaseDurationSeconds"), at(lease, "spec.leaseDurationSeconds"));
    check::non_negative(&mut errors, &path.field("leaseTransitions"), at(lease, "spec.leaseTransitions"));
    errors
}

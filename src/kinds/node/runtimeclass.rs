//! RuntimeClass: what runs a pod, what that costs, and on which nodes it is.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{list, map, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    namespaced: false,
    schema: "io.k8s.api.node.v1.RuntimeClass",
    columns: COLUMNS,
    row: |class, now: Timestamp| vec![table::name(class), text(class, "handler").into(), table::age(class, now)],
    strategy: Strategy {
        default: |class| {
            class.pointer_mut("/overhead/podFixed").into_iter().for_each(podspec::default_resource_list);
        },
        validate,
        validate_update,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"handler":"amphipod"}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, string("Handler", "The configuration of a node's runtime."), table::AGE];

/// The handlers that nodes have: the runtime that is built in, without and by its name.
pub const HANDLERS: [&str; 2] = ["", "amphipod"];

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let handler = Path::root("handler");
    match text(class, "handler") {
        "" => errors.push(field::required(&handler, "")),
        name => check::dns_label(&mut errors, &handler, name),
    }
    podspec::validate_overhead(&mut errors, &Path::root("overhead"), map(class, "overhead.podFixed"));
    let scheduling = Path::root("scheduling");
    check::labels(&mut errors, &scheduling.field("nodeSelector"), class.pointer("/scheduling/nodeSelector"));
    let (path, tolerations) = (scheduling.field("tolerations"), list(class, "scheduling.tolerations"));
    podspec::toleration_list(&mut errors, &path, tolerations);
    for (i, toleration) in tolerations.iter().enumerate() {
        if tolerations[..i].contains(toleration) {
            errors.push(field::duplicate(&path.index(i), toleration.to_string()));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if new["handler"] != old["handler"] {
        errors.push(field::invalid("handler", text(new, "handler"), "field is immutable"));
    }
    errors
}

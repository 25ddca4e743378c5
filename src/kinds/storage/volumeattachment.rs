//! VolumeAttachment.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::json::{at, flag, map_mut, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "storage.k8s.io",
    kind: "VolumeAttachment",
    plural: "volumeattachments",
    singular: "volumeattachment",
    namespaced: false,
    subresources: &[Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.storage.v1.VolumeAttachment",
    delete_answers_object: true,
    unconditional_update: false,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        prepare_create: |attachment| drop(map_mut(attachment, "").insert("status".into(), json!({"attached": false}))),
        validate,
        validate_update: |new, old| {
            if new["spec"] == old["spec"] {
                return Errors::new();
            }
            [field::invalid("spec", new["spec"].clone(), check::IMMUTABLE)].into()
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"attacher":"d.example.com","nodeName":"n",
        "source":{"persistentVolumeName":"p"}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    Column { format: "name", ..string("Attacher", "Who attaches the volume.") },
    string("PV", "The volume."),
    string("Node", "Where it is attached."),
    Column { kind: "boolean", ..string("Attached", "Whether it is.") },
    table::AGE,
];

fn row(attachment: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        table::name(attachment),
        text(attachment, "spec.attacher").into(),
        text(attachment, "spec.source.persistentVolumeName").into(),
        text(attachment, "spec.nodeName").into(),
        flag(attachment, "status.attached").into(),
        table::age(attachment, now),
    ]
}

fn validate(attachment: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    super::provisioner_name(&mut errors, &spec.field("attacher"), text(attachment, "spec.attacher"));
    check::dns_subdomain(&mut errors, &spec.field("nodeName"), text(attachment, "spec.nodeName"));
    let volume = at(attachment, "spec.source.persistentVolumeName").and_then(Value::as_str);
    let inline = at(attachment, "spec.source.inlineVolumeSpec").is_some_and(Value::is_object);
    let source = spec.field("source");
    match (volume, inline) {
        (None, false) => {
            let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(field::required(&source, why));
        }
        (Some(_), true) => {
            errors.push(field::forbidden(&source, "may not specify both inlineVolumeSpec and persistentVolumeName"));
        }
        (Some(""), false) => errors.push(field::required(&source.field("persistentVolumeName"), "must be specified")),
        _ => {}
    }
    errors
}

//! ResourceClaimTemplate: what claims of pods are made of.

use linkme::distributed_slice;
use serde_json::Value;

use super::{claim, nothing_allocates};
use crate::base::json::at;
use crate::kinds::check::{self, Path};
use crate::kinds::field::Errors;
use crate::kinds::{BUILTIN, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "resource.k8s.io",
    kind: "ResourceClaimTemplate",
    plural: "resourceclaimtemplates",
    singular: "resourceclaimtemplate",
    schema: "io.k8s.api.resource.v1.ResourceClaimTemplate",
    delete_answers_object: true,
    strategy: Strategy {
        default: |template| {
            if let Some(spec) = template.pointer_mut("/spec/spec") {
                claim::default(spec);
            }
        },
        validate_create: |template| {
            let mut errors = Errors::new();
            let spec = Path::root("spec");
            let metadata = spec.field("metadata");
            check::labels(&mut errors, &metadata.field("labels"), at(template, "spec.metadata.labels"));
            check::annotations(&mut errors, &metadata.field("annotations"), at(template, "spec.metadata.annotations"));
            let nothing = Value::Null;
            claim::validate(&mut errors, &spec.field("spec"), at(template, "spec.spec").unwrap_or(&nothing));
            errors
        },
        validate_update: |new, old| {
            let mut errors = Errors::new();
            check::immutable(&mut errors, &Path::root("spec"), new.get("spec"), old.get("spec"));
            errors
        },
        warnings: |_, old| nothing_allocates(old, "spec.spec.devices"),
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"spec":{"devices":{"requests":[
        {"name":"r","exactly":{"deviceClassName":"c"}}]}}}}"#,
    ..Kind::BASE
});

/// The requests of the claims that are for administrators alone.
pub fn admin_requests(template: &Value) -> Vec<usize> {
    at(template, "spec.spec").map(|spec| claim::admin_requests(spec).collect()).unwrap_or_default()
}

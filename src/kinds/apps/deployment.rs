//! Deployment.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::workload;
use crate::base::json::{at, int, map_mut, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    has_status: true,
    generation: Generation::SpecAndAnnotations,
    schema: "io.k8s.api.apps.v1.Deployment",
    columns: COLUMNS,
    row,
    status_resets: &["spec", "metadata.labels"],
    pod_template: Some("/spec/template"),
    strategy: Strategy {
        default,
        prepare_create: |d| {
            workload::drop_disabled(d);
            map_mut(d, "").insert("status".into(), json!({}));
        },
        prepare_status: |new, old| {
            // Labels belong to the object and not to its status.
            match at(old, "metadata.labels") {
                Some(labels) => map_mut(new, "metadata").insert("labels".into(), labels.clone()),
                None => map_mut(new, "metadata").remove("labels"),
            };
        },
        validate,
        prepare_update: |new, _| workload::drop_disabled(new),
        validate_update: workload::fixed_selector,
        validate_status,
        warnings: workload::warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{
        "metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Ready", "How many pods are ready, of how many."),
    string("Up-to-date", "How many pods have the newest template."),
    string("Available", "How many pods have been ready for long enough."),
    table::AGE,
    table::CONTAINERS,
    table::IMAGES,
    table::SELECTOR,
];

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path: &str| int(object, path).unwrap_or(0);
    let mut cells = vec![
        table::name(object),
        format!("{}/{}", count("status.readyReplicas"), count("spec.replicas")).into(),
        count("status.updatedReplicas").into(),
        count("status.availableReplicas").into(),
        table::age(object, now),
    ];
    cells.extend(workload::container_cells(object));
    cells.push(workload::selector_cell(object));
    cells
}

fn default(object: &mut Value) {
    for (path, number) in
        [("spec.replicas", 1), ("spec.revisionHistoryLimit", 10), ("spec.progressDeadlineSeconds", 600)]
    {
        set_default(object, path, number);
    }
    if text(object, "spec.strategy.type").is_empty() {
        map_mut(object, "spec.strategy").insert("type".into(), "RollingUpdate".into());
    }
    if text(object, "spec.strategy.type") == "RollingUpdate" {
        set_default(object, "spec.strategy.rollingUpdate.maxUnavailable", "25%");
        set_default(object, "spec.strategy.rollingUpdate.maxSurge", "25%");
    }
    podspec::default_template(map_mut(object, "spec").entry("template").or_insert_with(|| json!({})));
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    workload::validate(&mut errors, object);
    let path = Path::root("spec");
    strategy(&mut errors, &path.field("strategy"), at(object, "spec.strategy").unwrap_or(&Value::Null));
    if let Some(deadline) = int(object, "spec.progressDeadlineSeconds") {
        let path = path.field("progressDeadlineSeconds");
        check::non_negative(&mut errors, &path, Some(&deadline.into()));
        if deadline >= 0 && deadline <= int(object, "spec.minReadySeconds").unwrap_or(0) {
            errors.push(field::invalid(&path, deadline, "must be greater than minReadySeconds"));
        }
    }
    errors
}

fn strategy(errors: &mut Errors, path: &Path<'_>, strategy: &Value) {
    let rolling = strategy.get("rollingUpdate").filter(|r| !r.is_null());
    let path_of = path.field("rollingUpdate");
    match (text(strategy, "type"), rolling) {
        ("Recreate", Some(_)) => {
            errors.push(field::forbidden(&path_of, "may not be specified when strategy `type` is 'Recreate'"));
        }
        ("Recreate", None) => {}
        ("RollingUpdate", None) => errors.push(field::required(&path_of, "this should be defaulted and never be nil")),
        ("RollingUpdate", Some(rolling)) => rolling_update(errors, &path_of, rolling),
        (other, _) => errors.push(field::not_supported(path, other, &["Recreate", "RollingUpdate"])),
    }
}

fn rolling_update(errors: &mut Errors, path: &Path<'_>, rolling: &Value) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    check::count_or_percent(errors, &path.field("maxUnavailable"), unavailable);
    check::count_or_percent(errors, &path.field("maxSurge"), surge);
    if check::amount(unavailable) == 0 && check::amount(surge) == 0 {
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(field::invalid(&path.field("maxUnavailable"), unavailable.cloned().unwrap_or_default(), why));
    }
    check::at_most_all(errors, &path.field("maxUnavailable"), unavailable);
}

fn validate_status(new: &Value, old: &Value) -> Errors {
    let mut errors = workload::validate_status(new, &["updatedReplicas", "readyReplicas", "availableReplicas"]);
    workload::collisions_grow(&mut errors, new, old);
    errors
}

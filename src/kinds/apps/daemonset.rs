//! DaemonSet: a pod on every node that it is meant for.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::workload;
use crate::base::json::{at, int, map, map_mut, set, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.apps.v1.DaemonSet",
    columns: COLUMNS,
    row,
    pod_template: Some("/spec/template"),
    strategy: Strategy {
        default,
        prepare_create: |d| {
            workload::drop_disabled(d);
            let none = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
            set(d, "status", none);
            if let Ok(number) = template_generation(d).parse::<i64>() {
                set_template_generation(d, number.max(1));
            }
        },
        prepare_update: |new, old| {
            workload::drop_disabled(new);
            let changed = at(new, "spec.template") != at(old, "spec.template");
            let before = template_generation(old).parse().unwrap_or(1);
            set_template_generation(new, before + i64::from(changed));
        },
        // The count is of the specification and changes with it alone, though it is told as an annotation.
        prepare_status: |new, old| set_template_generation(new, template_generation(old).parse().unwrap_or(1)),
        validate,
        validate_update: workload::fixed_selector,
        validate_status,
        warnings: workload::warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{
        "metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}}}"#,
    ..Kind::BASE
});

/// The annotation that counts changes of the template, which newer versions tell by the hash of a revision.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

const COLUMNS: &[Column] = &[
    table::NAME,
    integer("Desired", "How many nodes it is meant for."),
    integer("Current", "How many of them have a pod of it."),
    integer("Ready", "How many of them have a ready pod of it."),
    integer("Up-to-date", "How many of them have a pod of the newest template."),
    integer("Available", "How many of them have a pod that has been ready for long enough."),
    string("Node Selector", "Labels of the nodes that it is meant for."),
    table::AGE,
    table::CONTAINERS,
    table::IMAGES,
    table::SELECTOR,
];

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |key: &str| Value::from(int(&object["status"], key).unwrap_or(0));
    let mut cells = vec![
        table::name(object),
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        table::labels(map(object, "spec.template.spec.nodeSelector")).into(),
        table::age(object, now),
    ];
    cells.extend(workload::container_cells(object));
    cells.push(workload::selector_cell(object));
    cells
}

/// How often the template was changed, as the object says it.
pub fn template_generation(object: &Value) -> &str {
    object["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().unwrap_or("")
}

fn set_template_generation(object: &mut Value, number: i64) {
    map_mut(object, "metadata.annotations").insert(TEMPLATE_GENERATION.into(), number.to_string().into());
}

fn default(object: &mut Value) {
    set_default(object, "spec.revisionHistoryLimit", 10);
    if text(object, "spec.updateStrategy.type").is_empty() {
        map_mut(object, "spec.updateStrategy").insert("type".into(), "RollingUpdate".into());
    }
    if text(object, "spec.updateStrategy.type") == "RollingUpdate" {
        set_default(object, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
        set_default(object, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
    }
    podspec::default_template(map_mut(object, "spec").entry("template").or_insert_with(|| json!({})));
    // Here already, so that it belongs to whoever made the object.
    if template_generation(object).is_empty() {
        set_template_generation(object, 0);
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, null) = (Path::root("spec"), Value::Null);
    let generation = template_generation(object);
    if generation.parse::<i64>().is_err() {
        let path = Path::root("metadata");
        let path = path.field("annotations");
        errors.push(field::invalid(&path.key(TEMPLATE_GENERATION), generation, "must be an integer"));
    }
    let selector = at(object, "spec.selector").filter(|s| s.is_object());
    if let Some(selector) = selector {
        let path = path.field("selector");
        check::label_selector(&mut errors, &path, Some(selector));
        if check::selects_nothing(selector) {
            errors.push(field::invalid(&path, selector.clone(), "empty selector is invalid for daemonset"));
        }
    }
    let template = at(object, "spec.template").unwrap_or(&null);
    podspec::validate_template(&mut errors, &path.field("template"), template, selector, "DaemonSet");
    check::non_negative(&mut errors, &path.field("minReadySeconds"), at(object, "spec.minReadySeconds"));
    let strategy = at(object, "spec.updateStrategy").unwrap_or(&null);
    update_strategy(&mut errors, &path.field("updateStrategy"), strategy);
    check::non_negative(&mut errors, &path.field("revisionHistoryLimit"), at(object, "spec.revisionHistoryLimit"));
    errors
}

fn update_strategy(errors: &mut Errors, path: &Path<'_>, strategy: &Value) {
    let rolling = strategy.get("rollingUpdate").filter(|r| !r.is_null());
    match (text(strategy, "type"), rolling) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errors.push(field::required(&path.field("rollingUpdate"), "")),
        ("RollingUpdate", Some(rolling)) => rolling_update(errors, &path.field("rollingUpdate"), rolling),
        _ => errors.push(field::not_supported(path, strategy.clone(), &["RollingUpdate", "OnDelete"])),
    }
}

fn rolling_update(errors: &mut Errors, path: &Path<'_>, rolling: &Value) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    let both = [("maxUnavailable", unavailable), ("maxSurge", surge)];
    for (key, value) in both {
        check::count_or_percent(errors, &path.field(key), value);
    }
    for (key, value) in both {
        check::at_most_all(errors, &path.field(key), value);
    }
    match (check::amount(unavailable) != 0, check::amount(surge) != 0) {
        (true, true) => {
            let why = "may not be set when maxUnavailable is non-zero";
            errors.push(field::invalid(&path.field("maxSurge"), surge.cloned().unwrap_or_default(), why));
        }
        (false, false) => {
            errors.push(field::required(&path.field("maxUnavailable"), "cannot be 0 when maxSurge is 0"));
        }
        _ => {}
    }
}

fn validate_status(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("status");
    for key in [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ] {
        check::non_negative(&mut errors, &path.field(key), new["status"].get(key));
    }
    workload::collisions_grow(&mut errors, new, old);
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: Value) -> Value {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let mut object =
            json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        KIND.default(&mut object);
        object
    }

    #[test]
    fn exactly_one_of_surge_and_unavailability_is_given() {
        let rolling = |unavailable: Value, surge: Value| {
            let rolling = json!({"maxUnavailable": unavailable, "maxSurge": surge});
            let errors = KIND.validate(&object(json!({"updateStrategy": {"rollingUpdate": rolling}})));
            errors.iter().map(|e| e.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(rolling(json!(1), json!(0)), [""; 0]);
        assert_eq!(rolling(json!("0%"), json!("30%")), [""; 0]);
        let path = "spec.updateStrategy.rollingUpdate";
        let both = format!("{path}.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero");
        assert_eq!(rolling(json!(1), json!(1)), [both]);
        let none = format!("{path}.maxUnavailable: Required value: cannot be 0 when maxSurge is 0");
        assert_eq!(rolling(json!(0), json!(0)), [none]);
        let much = format!("{path}.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%");
        assert_eq!(rolling(json!("101%"), json!(0)), [much]);
    }

    #[test]
    fn the_template_generation_counts_changes_of_the_template_alone() {
        let mut old = object(json!({}));
        KIND.prepare_create(&mut old);
        assert_eq!(template_generation(&old), "1");
        let mut same = object(json!({"minReadySeconds": 5}));
        same["metadata"]["annotations"][TEMPLATE_GENERATION] = "7".into();
        KIND.prepare_update(&mut same, &old);
        assert_eq!(template_generation(&same), "1");
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into();
        KIND.prepare_update(&mut new, &old);
        assert_eq!(template_generation(&new), "2");
        let mut status = json!({"metadata": {}, "status": {}});
        KIND.prepare_status(&mut status, &new);
        assert_eq!(template_generation(&status), "2");
        new["metadata"]["annotations"][TEMPLATE_GENERATION] = "x".into();
        assert_eq!(KIND.validate(&new)[0].field, format!("metadata.annotations[{TEMPLATE_GENERATION}]"));
    }
}

//! Job: pods that run until enough of them have succeeded.

mod selector;
mod spec;
mod status;
mod template;
mod update;

pub(super) use spec::validate_free as validate_free_spec;
pub use status::{condition, is_finished};

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use spec::COMPLETIONS_SOFT;

use crate::base::clock::{between, human_duration, parse_time};
use crate::base::json::{at, flag, int, list, list_mut, map_mut, set_default, text};
use crate::base::labels::dns_label_error;
use crate::kinds::check::Path;
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Field, Generation, Kind, KindRef, Strategy, Subresource};

/// What keeps a pod from going before its Job has counted it.
pub const TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Which of the completions of an Indexed Job a pod is for: annotation and label.
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The controller that is part of this program, for `spec.managedBy`.
pub const CONTROLLER: &str = "kubernetes.io/job-controller";
/// More pods than that of an Indexed Job with many completions may be too much to follow.
const PARALLELISM_SOFT: i64 = 10_000;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: &["all"],
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.batch.v1.Job",
    columns: COLUMNS,
    row,
    fields: &[Field { name: "status.successful", get: |job| int(job, "status.succeeded").unwrap_or(0).to_string() }],
    pod_template: Some("/spec/template"),
    orphans_dependents: true,
    deletion_warning: Some(
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set \
         propagationPolicy=Orphan to suppress this warning",
    ),
    strategy: Strategy {
        default,
        prepare_create: |job| {
            selector::generate(job);
            drop_disabled(job);
            map_mut(job, "").insert("status".into(), json!({}));
        },
        prepare_update: |new, _| drop_disabled(new),
        validate,
        validate_update: update::validate,
        validate_status: status::validate,
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"template":{
        "spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"busybox:1"}]}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Status", "What has become of it."),
    string("Completions", "How many pods have succeeded, of how many."),
    string("Duration", "How long it has run."),
    table::AGE,
    table::CONTAINERS,
    table::IMAGES,
    table::SELECTOR,
];

fn row(job: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = table::container_cells(list(job, "spec.template.spec.containers"));
    vec![
        table::name(job),
        outcome(job).into(),
        completions(job).into(),
        duration(job, now).into(),
        table::age(job, now),
        names,
        images,
        table::selector(at(job, "spec.selector")).into(),
    ]
}

/// What a Job's row says of it.
fn outcome(job: &Value) -> &'static str {
    for (of_type, words) in [("Complete", "Complete"), ("Failed", "Failed")] {
        if status::condition(job, of_type).is_some() {
            return words;
        }
    }
    if at(job, "metadata.deletionTimestamp").is_some() {
        return "Terminating";
    }
    for (of_type, words) in
        [("Suspended", "Suspended"), ("FailureTarget", "FailureTarget"), ("SuccessCriteriaMet", "SuccessCriteriaMet")]
    {
        if status::condition(job, of_type).is_some() {
            return words;
        }
    }
    "Running"
}

fn completions(job: &Value) -> String {
    let succeeded = int(job, "status.succeeded").unwrap_or(0);
    match (int(job, "spec.completions"), int(job, "spec.parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn duration(job: &Value, now: Timestamp) -> String {
    let Some(start) = parse_time(text(job, "status.startTime")) else { return String::new() };
    let failed = status::condition(job, "Failed").and_then(|c| parse_time(text(c, "lastTransitionTime")));
    let end = parse_time(text(job, "status.completionTime")).or(failed);
    human_duration(between(start, end.unwrap_or(now)))
}

fn default(job: &mut Value) {
    let absent = |job: &Value, path: &str| at(job, path).is_none_or(Value::is_null);
    if absent(job, "spec.completions") && absent(job, "spec.parallelism") {
        set_default(job, "spec.completions", 1);
    }
    set_default(job, "spec.parallelism", 1);
    let per_index = !absent(job, "spec.backoffLimitPerIndex");
    set_default(job, "spec.backoffLimit", if per_index { i32::MAX } else { 6 });
    set_default(job, "spec.completionMode", "NonIndexed");
    set_default(job, "spec.suspend", false);
    set_default(job, "spec.manualSelector", false);
    let replaced = if absent(job, "spec.podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    set_default(job, "spec.podReplacementPolicy", replaced);
    default_spec(map_mut(job, "spec"));
    selector::label(job);
}

/// Defaults that a Job's template in a CronJob has too.
pub(super) fn default_spec(spec: &mut serde_json::Map<String, Value>) {
    podspec::default_template(spec.entry("template").or_insert_with(|| json!({})));
    let Some(policy) = spec.get_mut("podFailurePolicy") else { return };
    for rule in list_mut(policy, "rules").into_iter().flatten() {
        for pattern in list_mut(rule, "onPodConditions").into_iter().flatten() {
            if text(pattern, "status").is_empty() {
                map_mut(pattern, "").insert("status".into(), "True".into());
            }
        }
    }
}

fn drop_disabled(job: &mut Value) {
    if let Some(spec) = job.get_mut("spec").and_then(|s| s.get_mut("template")).and_then(|t| t.get_mut("spec")) {
        podspec::drop_disabled(spec);
    }
}

fn validate(job: &Value) -> Errors {
    let mut errors = Errors::new();
    selector::validate(&mut errors, job);
    let path = Path::root("spec");
    let null = Value::Null;
    let spec = job.get("spec").unwrap_or(&null);
    spec::validate(&mut errors, &path, spec);
    let indexed = text(spec, "completionMode") == "Indexed";
    if let Some(completions) = int(spec, "completions").filter(|c| indexed && *c > 0) {
        // The last pod's host name has the last index at its end.
        let name = text(job, "metadata.name");
        let host = format!("{name}-{}", completions - 1);
        if dns_label_error(&host).is_some() {
            let why = format!("will not able to create pod with invalid DNS label: {host}");
            errors.push(field::invalid("metadata.name", name, why));
        }
    }
    errors
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none()
        && let Some(why) = dns_label_error(text(new, "metadata.name"))
    {
        all.push(name_warning(&why));
    }
    let path = Path::root("spec");
    all.extend(spec_warnings(&path, new.get("spec"), old.map(|o| o.get("spec"))));
    all
}

/// What clients are told of a name that is no DNS label.
pub(super) fn name_warning(why: &str) -> String {
    format!(
        "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is \
         recommended: [{why}]"
    )
}

/// What clients are warned of in a Job's spec that is new or changed.
pub(super) fn spec_warnings(path: &Path<'_>, new: Option<&Value>, old: Option<Option<&Value>>) -> Vec<String> {
    let Some(spec) = new else { return Vec::new() };
    if old.is_some_and(|old| old == new) {
        return Vec::new();
    }
    let mut all = Vec::new();
    let count = |key: &str| spec.get(key).and_then(Value::as_i64).unwrap_or(0);
    if text(spec, "completionMode") == "Indexed"
        && count("completions") > COMPLETIONS_SOFT
        && count("parallelism") > PARALLELISM_SOFT
    {
        all.push(format!(
            "{}: In Indexed Jobs with a number of completions higher than {COMPLETIONS_SOFT} and a parallelism higher than \
             {PARALLELISM_SOFT}, Kubernetes might not be able to track completions when a big number of indexes fail",
            path.field("parallelism")
        ));
    }
    let template = spec.get("template");
    if old.flatten().is_none_or(|o| o.get("template") != template) {
        all.extend(template.map(|t| podspec::warnings_for_template(&path.field("template"), t)).unwrap_or_default());
    }
    all
}

/// Whether the Job asks for no pods now.
pub fn is_suspended(job: &Value) -> bool {
    flag(job, "spec.suspend")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(spec: &Value) -> Value {
        let mut spec = spec.clone();
        set_default(
            &mut spec,
            "template",
            json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}),
        );
        let mut job = json!({"metadata": {"name": "j"}, "spec": spec});
        KIND.default(&mut job);
        job["metadata"]["uid"] = "u".into();
        KIND.prepare_create(&mut job);
        job
    }

    fn fields(errors: &Errors) -> Vec<&str> {
        errors.iter().map(|e| e.field.as_str()).collect()
    }

    #[test]
    fn a_new_job_selects_its_own_pods_and_has_their_labels() {
        let made = job(&json!({}));
        assert_eq!(made["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": "u"}));
        let labels = json!({"job-name": "j", "batch.kubernetes.io/job-name": "j", "controller-uid": "u",
            "batch.kubernetes.io/controller-uid": "u"});
        assert_eq!((&made["spec"]["template"]["metadata"]["labels"], &made["metadata"]["labels"]), (&labels, &labels));
        assert!(KIND.validate(&made).is_empty());
        // Who chooses for themselves gets nothing, and must choose.
        let manual = job(&json!({"manualSelector": true}));
        assert_eq!(fields(&KIND.validate(&manual)), ["spec.selector", "spec.template.metadata.labels"]);
        let mut other = made;
        other["spec"]["template"]["metadata"]["labels"]["job-name"] = "k".into();
        assert_eq!(fields(&KIND.validate(&other)), ["spec.template.metadata.labels[job-name]"]);
    }

    #[test]
    fn what_a_job_may_ask_for_is_checked() {
        let codes = |v: Value| json!({"rules": [{"action": "FailJob", "onExitCodes": v}]});
        for (spec, want) in [
            (json!({"parallelism": -1, "completions": -1}), &["spec.parallelism", "spec.completions"][..]),
            (json!({"backoffLimitPerIndex": 1}), &["spec.backoffLimitPerIndex"]),
            (
                json!({"completionMode": "Indexed", "completions": 3, "maxFailedIndexes": 4}),
                &["spec.backoffLimitPerIndex", "spec.maxFailedIndexes"],
            ),
            (
                json!({"completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001, "backoffLimitPerIndex": 1}),
                &["spec.maxFailedIndexes", "spec.parallelism"],
            ),
            (json!({"completionMode": "Indexed", "completions": 1_000_000_000, "parallelism": 100_000}), &[]),
            (json!({"completionMode": "Indexed", "completions": 1, "parallelism": 100_001}), &["spec.parallelism"]),
            (
                json!({"podFailurePolicy": codes(json!({"operator": "In", "values": [2, 1, 1, 0]}))}),
                &[
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[2]",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[3]",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values",
                ],
            ),
            (
                json!({"podFailurePolicy": codes(json!({"operator": "Is", "values": []}))}),
                &[
                    "spec.podFailurePolicy.rules[0].onExitCodes.operator",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values",
                ],
            ),
            (
                json!({"podReplacementPolicy": "TerminatingOrFailed", "podFailurePolicy": {"rules": []}}),
                &["spec.podReplacementPolicy"],
            ),
            (json!({"successPolicy": {"rules": [{}]}}), &["spec.successPolicy"]),
            (
                json!({"completionMode": "Indexed", "completions": 3, "successPolicy": {"rules": [{}, {"succeededIndexes": "0-1",
                "succeededCount": 3}]}}),
                &["spec.successPolicy.rules[0]", "spec.successPolicy.rules[1].succeededCount"],
            ),
            (json!({"managedBy": "a"}), &["spec.managedBy"]),
            (json!({"managedBy": "a_b/c"}), &["spec.managedBy"]),
            (json!({"managedBy": "a.b/c d"}), &["spec.managedBy"]),
            (
                json!({"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}),
                &["spec.template.spec.restartPolicy"],
            ),
            (
                json!({"podFailurePolicy": {"rules": []},
                "template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}),
                &["spec.template.spec.restartPolicy"],
            ),
        ] {
            assert_eq!(fields(&KIND.validate(&job(&spec))), want, "{spec}");
        }
    }

    #[test]
    fn the_template_changes_only_while_the_job_waits_and_only_in_where_its_pods_go_and_what_they_get() {
        let change = |spec: Value, status: Value, path: &str, to: Value| {
            let mut old = job(&spec);
            old["status"] = status;
            let mut new = old.clone();
            crate::base::json::set(&mut new, path, to);
            let errors = KIND.validate_update(&new, &old);
            errors.iter().map(|e| e.field.clone()).collect::<Vec<_>>().join(" ")
        };
        let (waits, runs) = (json!({"suspend": true}), json!({}));
        let nodes = json!({"nodeAffinity": {"x": 1}});
        for (path, to) in [
            ("spec.template.spec.nodeSelector", json!({"a": "b"})),
            ("spec.template.spec.affinity", nodes),
            ("spec.template.metadata.annotations", json!({"a": "b"})),
        ] {
            assert_eq!(change(waits.clone(), json!({}), path, to.clone()), "", "{path}");
            assert_eq!(change(runs.clone(), json!({}), path, to), "spec.template", "{path}");
        }
        let started = json!({"startTime": "2026-01-01T00:00:00Z", "active": 1});
        let selector = "spec.template.spec.nodeSelector";
        assert_eq!(change(waits.clone(), started, selector, json!({"a": "b"})), "spec.template");
        let stopped =
            json!({"startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Suspended", "status": "True"}]});
        assert_eq!(change(waits.clone(), stopped, selector, json!({"a": "b"})), "");
        assert_eq!(
            change(waits.clone(), json!({}), "spec.template.spec.hostNetwork", json!(true)),
            "spec.template.spec"
        );
        let pods = json!({"podAffinity": {"x": 1}});
        assert_eq!(change(waits.clone(), json!({}), "spec.template.spec.affinity", pods), "spec.template.spec");
        let containers = json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]);
        let mut same = job(&waits)["spec"]["template"]["spec"]["containers"].clone();
        same[0]["resources"] = containers[0]["resources"].clone();
        assert_eq!(change(waits.clone(), json!({}), "spec.template.spec.containers", same), "");
        assert_eq!(change(runs, json!({}), "spec.completions", json!(3)), "spec.completions");
        let elastic = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3});
        assert_eq!(change(elastic.clone(), json!({}), "spec.completions", json!(2)), "spec.completions");
        let mut old = job(&elastic);
        old["status"] = json!({});
        let mut new = old.clone();
        (new["spec"]["completions"], new["spec"]["parallelism"]) = (2.into(), 2.into());
        assert!(KIND.validate_update(&new, &old).is_empty());
    }

    #[test]
    fn a_status_that_makes_no_sense_is_refused() {
        let check = |spec: Value, old: Value, new: Value| {
            let mut before = job(&spec);
            before["status"] = old;
            let mut after = before.clone();
            after["status"] = new;
            let errors = KIND.validate_status(&after, &before);
            errors.iter().map(|e| e.field.trim_start_matches("status.").to_owned()).collect::<Vec<_>>().join(" ")
        };
        let is = |types: &[&str]| -> Value { types.iter().map(|t| json!({"type": t, "status": "True"})).collect() };
        let start = "2026-01-01T00:00:00Z";
        let done =
            json!({"startTime": start, "completionTime": start, "conditions": is(&["SuccessCriteriaMet", "Complete"])});
        assert_eq!(check(json!({}), json!({}), done.clone()), "");
        let mut early = done.clone();
        early["completionTime"] = "2025-01-01T00:00:00Z".into();
        assert_eq!(check(json!({}), json!({}), early), "completionTime");
        assert_eq!(check(json!({}), done.clone(), json!({"startTime": start})), "conditions conditions");
        let complete = json!({"conditions": is(&["Complete"])});
        assert_eq!(check(json!({}), json!({}), complete), "completionTime conditions startTime");
        let failed = json!({"startTime": start, "conditions": is(&["Failed", "FailureTarget"])});
        assert_eq!(check(json!({}), json!({}), failed.clone()), "");
        let mut busy = failed;
        (busy["active"], busy["terminating"]) = (1.into(), 1.into());
        assert_eq!(check(json!({}), json!({}), busy), "active terminating");
        assert_eq!(check(json!({}), json!({"failed": 2}), json!({"failed": 1})), "failed");
        assert_eq!(check(json!({}), json!({}), json!({"active": 1, "ready": 2})), "ready");
        assert_eq!(check(json!({}), json!({}), json!({"completedIndexes": "0"})), "completedIndexes");
        let indexed = json!({"completionMode": "Indexed", "completions": 5, "backoffLimitPerIndex": 1});
        let overlap = json!({"completedIndexes": "0-2", "failedIndexes": "2"});
        assert_eq!(check(indexed.clone(), json!({}), overlap), "failedIndexes");
        assert_eq!(check(indexed.clone(), json!({}), json!({"completedIndexes": "7"})), "completedIndexes");
        let uncounted = json!({"uncountedTerminatedPods": {"succeeded": ["a", ""], "failed": ["a"]}});
        let paths = "uncountedTerminatedPods.succeeded[1] uncountedTerminatedPods.failed[0]";
        assert_eq!(check(json!({}), json!({}), uncounted), paths);
    }
}

//! CronJob: a Job each time that a schedule is due.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::job;
use super::schedule::{self, Schedule};
use crate::base::json::{at, flag, int, list, map_mut, set_default, text};
use crate::base::labels::dns_label_error;
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource};

/// When a Job should have been made, in its annotations.
pub const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// What remains of a Job's name beside `-` and the minute.
const NAME_BYTES_MAX: usize = 52;
const ZONE_PART_BYTES_MAX: usize = 14;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "batch",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.batch.v1.CronJob",
    columns: COLUMNS,
    row,
    pod_template: Some("/spec/jobTemplate/spec/template"),
    strategy: Strategy {
        default,
        prepare_create: |cron| {
            drop_disabled(cron);
            map_mut(cron, "").insert("status".into(), json!({}));
        },
        prepare_update: |new, _| drop_disabled(new),
        validate,
        validate_create: |cron| {
            let mut errors = Errors::new();
            let name = text(cron, "metadata.name");
            if name.len() > NAME_BYTES_MAX {
                let why = format!("must be no more than {NAME_BYTES_MAX} characters");
                errors.push(field::invalid("metadata.name", name, why));
            }
            zone(&mut errors, cron);
            errors
        },
        validate_update: |new, old| {
            let mut errors = Errors::new();
            // A zone that this program does not know any more stops no other change.
            if at(new, "spec.timeZone") != at(old, "spec.timeZone") {
                zone(&mut errors, new);
            }
            errors
        },
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"schedule":"@hourly","jobTemplate":{"spec":{"template":{
        "spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"busybox:1"}]}}}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Schedule", "When its Jobs are due."),
    string("Timezone", "Whose time the schedule means."),
    Column { kind: "boolean", ..string("Suspend", "Whether no Jobs are made for now.") },
    integer("Active", "How many of its Jobs have not ended."),
    string("Last Schedule", "How long ago a Job was last due."),
    table::AGE,
    table::CONTAINERS,
    table::IMAGES,
    table::SELECTOR,
];

fn row(cron: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = table::container_cells(list(cron, "spec.jobTemplate.spec.template.spec.containers"));
    let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
    let last = text(cron, "status.lastScheduleTime");
    vec![
        table::name(cron),
        text(cron, "spec.schedule").into(),
        or_none(text(cron, "spec.timeZone")).into(),
        if flag(cron, "spec.suspend") { "True" } else { "False" }.into(),
        list(cron, "status.active").len().into(),
        if last.is_empty() { "<none>".into() } else { table::since(last, now).into() },
        table::age(cron, now),
        names,
        images,
        table::selector(at(cron, "spec.jobTemplate.spec.selector")).into(),
    ]
}

fn default(cron: &mut Value) {
    if text(cron, "spec.concurrencyPolicy").is_empty() {
        map_mut(cron, "spec").insert("concurrencyPolicy".into(), "Allow".into());
    }
    set_default(cron, "spec.suspend", false);
    set_default(cron, "spec.successfulJobsHistoryLimit", 3);
    set_default(cron, "spec.failedJobsHistoryLimit", 1);
    set_default(cron, "spec.jobTemplate.metadata", json!({}));
    job::default_spec(map_mut(cron, "spec.jobTemplate.spec"));
}

fn drop_disabled(cron: &mut Value) {
    let spec = cron.pointer_mut("/spec/jobTemplate/spec/template/spec");
    spec.into_iter().for_each(podspec::drop_disabled);
}

fn validate(cron: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let null = Value::Null;
    let spec = cron.get("spec").unwrap_or(&null);
    schedule(&mut errors, &path.field("schedule"), text(spec, "schedule"));
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        check::non_negative(&mut errors, &path.field(key), spec.get(key));
    }
    let policies = ["Allow", "Forbid", "Replace"];
    check::required_one_of(&mut errors, &path.field("concurrencyPolicy"), text(spec, "concurrencyPolicy"), &policies);
    let template = path.field("jobTemplate");
    job::validate_free_spec(&mut errors, &template.field("spec"), at(spec, "jobTemplate.spec").unwrap_or(&null));
    errors
}

fn schedule(errors: &mut Errors, path: &Path<'_>, schedule: &str) {
    if schedule.is_empty() {
        errors.push(field::required(path, ""));
    } else if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(field::invalid(path, schedule, why));
    } else if let Err(why) = Schedule::parse(schedule) {
        errors.push(field::invalid(path, schedule, why));
    }
}

fn zone(errors: &mut Errors, cron: &Value) {
    let path = "spec.timeZone";
    let Some(name) = at(cron, path).and_then(Value::as_str) else { return };
    let mut refuse = |why: String| errors.push(field::invalid(path, name, why));
    if name.is_empty() {
        return refuse("timeZone must be nil or non-empty string".into());
    }
    let fine = |part: &str| {
        let chars = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b));
        chars
            && !part.is_empty()
            && part.len() <= ZONE_PART_BYTES_MAX
            && !part.starts_with('-')
            && !matches!(part, "." | "..")
    };
    if !name.split('/').all(fine) {
        return refuse(format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("Local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        return refuse(why.into());
    }
    if let Err(why) = schedule::zone(name) {
        refuse(why);
    }
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none()
        && let Some(why) = dns_label_error(text(new, "metadata.name"))
    {
        all.push(job::name_warning(&why));
    }
    let path = Path::root("spec");
    let template = path.field("jobTemplate");
    let spec = |cron: &'_ Value| at(cron, "spec.jobTemplate.spec").cloned();
    let before = old.map(spec);
    all.extend(job::spec_warnings(&template.field("spec"), spec(new).as_ref(), before.as_ref().map(Option::as_ref)));
    all
}

/// How many Jobs that have ended well, or not, are kept; `None` is all.
pub fn history_limit(cron: &Value, well: bool) -> Option<usize> {
    let path = if well { "spec.successfulJobsHistoryLimit" } else { "spec.failedJobsHistoryLimit" };
    int(cron, path).map(|limit| usize::try_from(limit).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cron_job_may_ask_for_is_checked() {
        let check = |change: Value| {
            let mut cron: Value = serde_json::from_str(KIND.sample()).unwrap();
            for (key, value) in change.as_object().unwrap() {
                cron["spec"][key] = value.clone();
            }
            KIND.default(&mut cron);
            let errors: Errors = KIND.validate(&cron).into_iter().chain(KIND.validate_create(&cron)).collect();
            errors.iter().map(|e| e.field.trim_start_matches("spec.").to_owned()).collect::<Vec<_>>().join(" ")
        };
        for (change, want) in [
            (json!({}), ""),
            (json!({"schedule": "", "concurrencyPolicy": "Foo"}), "schedule concurrencyPolicy"),
            (json!({"schedule": "TZ=UTC * * * * *"}), "schedule"),
            (json!({"schedule": "0 0 31 2 *"}), ""),
            (
                json!({"startingDeadlineSeconds": -1, "failedJobsHistoryLimit": -1}),
                "startingDeadlineSeconds failedJobsHistoryLimit",
            ),
            (json!({"timeZone": "Europe/Berlin"}), ""),
            (json!({"timeZone": ""}), "timeZone"),
            (json!({"timeZone": "Local"}), "timeZone"),
            (json!({"timeZone": "../etc/passwd"}), "timeZone"),
            (json!({"timeZone": "Mars"}), "timeZone"),
            (
                json!({"jobTemplate": {"spec": {"selector": {}, "manualSelector": true, "template": {"spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "i"}]}}}}}),
                "jobTemplate.spec.selector jobTemplate.spec.manualSelector",
            ),
        ] {
            assert_eq!(check(change.clone()), want, "{change}");
        }
        let long = json!({"metadata": {"name": "a".repeat(53)}, "spec": {}});
        assert_eq!(KIND.validate_create(&long)[0].field, "metadata.name");
    }
}

//! What may be said of a Job: others than our controller may say it (`spec.managedBy`), so what makes no sense is refused. A
//! rule counts where what it is about changes, so that a spec that has just changed stops nobody.

use std::collections::HashSet;

use serde_json::Value;

use crate::base::clock::parse_time;
use crate::base::json::{at, flag, int, list, text};
use crate::kinds::batch::indexes::Indexes;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Error, Errors};

/// The condition of a type, where it is true.
pub fn condition<'a>(job: &'a Value, of_type: &str) -> Option<&'a Value> {
    list(job, "status.conditions").iter().find(|c| text(c, "type") == of_type && text(c, "status") == "True")
}

/// Whether it has ended, well or not.
pub fn is_finished(job: &Value) -> bool {
    condition(job, "Complete").is_some() || condition(job, "Failed").is_some()
}

fn is(job: &Value, of_type: &str) -> bool {
    condition(job, of_type).is_some()
}

fn given<'a>(job: &'a Value, key: &str) -> Option<&'a Value> {
    job.get("status").and_then(|s| s.get(key)).filter(|v| !v.is_null())
}

fn count(job: &Value, key: &str) -> i64 {
    given(job, key).and_then(Value::as_i64).unwrap_or(0)
}

/// An error of all conditions together.
fn conditions(why: impl Into<String>) -> Error {
    field::invalid_unshown("status.conditions", why)
}

pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("status");
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        check::non_negative(&mut errors, &path.field(key), given(new, key));
    }
    uncounted(&mut errors, &path.field("uncountedTerminatedPods"), new);
    let changed = |of_type: &str| is(new, of_type) != is(old, of_type);
    let differs = |key: &str| given(new, key) != given(old, key);
    ends(&mut errors, new, &changed, &differs);
    finished(&mut errors, new, is_finished(new) != is_finished(old), &differs);
    indexes(&mut errors, new, &differs);
    let ready = given(new, "ready").filter(|_| differs("ready") || differs("active"));
    if ready.is_some() && count(new, "ready") > count(new, "active") {
        let why = "cannot set more ready pods than active";
        errors.push(field::invalid(path.field("ready"), count(new, "ready"), why));
    }
    for other in ["Failed", "FailureTarget"] {
        if is(new, "SuccessCriteriaMet") && is(new, other) {
            let other = if other == "Failed" { "Failed=true" } else { "FailureTarget=true" };
            errors.push(conditions(format!("cannot set SuccessCriteriaMet=True and {other} conditions")));
        }
    }
    let policy = at(new, "spec.successPolicy").is_some_and(Value::is_object);
    if policy && is(new, "Complete") && !is(new, "SuccessCriteriaMet") {
        let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        errors.push(conditions(why));
    }
    transitions(&mut errors, new, old);
    errors
}

/// Pods that have ended and are not counted yet are named once.
fn uncounted(errors: &mut Errors, path: &Path<'_>, job: &Value) {
    let mut seen = HashSet::new();
    for key in ["succeeded", "failed"] {
        let path = path.field(key);
        for (i, uid) in list(job, &format!("status.uncountedTerminatedPods.{key}")).iter().enumerate() {
            let uid = uid.as_str().unwrap_or("");
            if uid.is_empty() {
                errors.push(field::invalid(path.index(i), uid, "must not be empty"));
            } else if !seen.insert(uid) {
                errors.push(field::duplicate(path.index(i), uid));
            }
        }
    }
}

fn ends(errors: &mut Errors, new: &Value, changed: &dyn Fn(&str) -> bool, differs: &dyn Fn(&str) -> bool) {
    let complete = is(new, "Complete");
    let (end, start) = (given(new, "completionTime"), given(new, "startTime"));
    let end_path = "status.completionTime";
    if (changed("Complete") || changed("Failed")) && complete && is(new, "Failed") {
        errors.push(conditions("cannot set Complete=True and Failed=true conditions"));
    }
    if (changed("Complete") || changed("FailureTarget")) && complete && is(new, "FailureTarget") {
        errors.push(conditions("cannot set Complete=True and FailureTarget=true conditions"));
    }
    if changed("Complete") || differs("completionTime") {
        match end {
            Some(end) if !complete => {
                let why = "cannot set completionTime when there is no Complete=True condition";
                errors.push(field::invalid(end_path, end.clone(), why));
            }
            None if complete => errors.push(field::required(end_path, "completionTime is required for Complete jobs")),
            _ => {}
        }
    }
    let time = |v: Option<&Value>| v.and_then(Value::as_str).and_then(parse_time);
    if (differs("startTime") || differs("completionTime"))
        && let (Some(start), Some(ended)) = (time(start), time(end))
        && ended < start
    {
        let why = "completionTime cannot be set before startTime";
        errors.push(field::invalid(end_path, end.cloned().unwrap_or_default(), why));
    }
    if (changed("Failed") || changed("FailureTarget")) && is(new, "Failed") && !is(new, "FailureTarget") {
        errors.push(conditions("cannot set Failed=True condition without the FailureTarget=true condition"));
    }
    if (changed("Complete") || changed("SuccessCriteriaMet")) && complete && !is(new, "SuccessCriteriaMet") {
        errors.push(conditions("cannot set Complete=True condition without the SuccessCriteriaMet=true condition"));
    }
}

/// What a Job that has ended cannot have any more.
fn finished(errors: &mut Errors, new: &Value, changed: bool, differs: &dyn Fn(&str) -> bool) {
    if !is_finished(new) {
        return;
    }
    for key in ["active", "terminating"] {
        if (changed || differs(key)) && count(new, key) > 0 {
            let why = format!("{key}>0 is invalid for finished job");
            errors.push(field::invalid(Path::root("status").field(key), count(new, key), why));
        }
    }
    if (changed || differs("startTime")) && given(new, "startTime").is_none() {
        errors.push(field::required("status.startTime", "startTime is required for finished job"));
    }
    if changed || differs("uncountedTerminatedPods") {
        let waiting = |key: &str| !list(new, &format!("status.uncountedTerminatedPods.{key}")).is_empty();
        if waiting("succeeded") || waiting("failed") {
            let value = given(new, "uncountedTerminatedPods").cloned().unwrap_or_default();
            let why = "uncountedTerminatedPods needs to be empty for finished job";
            errors.push(field::invalid("status.uncountedTerminatedPods", value, why));
        }
    }
}

fn indexes(errors: &mut Errors, new: &Value, differs: &dyn Fn(&str) -> bool) {
    let completions = int(new, "spec.completions");
    let (completed, failed) =
        (text(new, "status.completedIndexes"), given(new, "failedIndexes").and_then(Value::as_str));
    let per_index = at(new, "spec.backoffLimitPerIndex").is_some_and(|v| !v.is_null());
    let check = |errors: &mut Errors, key: &str, value: &str| {
        let Some(Err(why)) = completions.map(|c| Indexes::parse(value, c)) else { return };
        let why = format!("error parsing {key}: {why}");
        errors.push(field::invalid(Path::root("status").field(key), value, why));
    };
    if differs("completedIndexes") {
        check(errors, "completedIndexes", completed);
        if !completed.is_empty() && text(new, "spec.completionMode") != "Indexed" {
            let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
            errors.push(field::invalid("status.completedIndexes", completed, why));
        }
    }
    let Some(failed) = failed else { return };
    if differs("failedIndexes") {
        if per_index {
            check(errors, "failedIndexes", failed);
        } else {
            let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            errors.push(field::invalid("status.failedIndexes", failed, why));
        }
    }
    if differs("failedIndexes") || differs("completedIndexes") {
        let read = |text: &str| Indexes::of_status(text, completions.unwrap_or(0));
        if let Some(index) = read(completed).first_common(&read(failed)) {
            let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.push(field::invalid("status.failedIndexes", failed, why));
        }
    }
}

/// What cannot be unsaid.
fn transitions(errors: &mut Errors, new: &Value, old: &Value) {
    for of_type in ["Failed", "Complete", "FailureTarget"] {
        if is(old, of_type) && !is(new, of_type) {
            errors.push(conditions(format!("cannot disable the terminal {of_type}=True condition")));
        }
    }
    let path = Path::root("status");
    // A Job that can be made smaller may forget what it has no place for any more.
    let elastic =
        text(new, "spec.completionMode") == "Indexed" && int(new, "spec.completions") == int(new, "spec.parallelism");
    for key in ["failed", "succeeded"] {
        if count(new, key) < count(old, key) && !(key == "succeeded" && elastic) {
            errors.push(field::invalid(path.field(key), count(new, key), format!("cannot decrease the {key} counter")));
        }
    }
    let (end, was) = (given(new, "completionTime"), given(old, "completionTime"));
    if end.is_some() && was.is_some() && end != was {
        let why = "completionTime cannot be mutated";
        errors.push(field::invalid(path.field("completionTime"), end.cloned().unwrap_or_default(), why));
    }
    let started = given(old, "startTime");
    if started.is_some() && given(new, "startTime") != started && !flag(new, "spec.suspend") {
        errors.push(field::required(path.field("startTime"), "startTime cannot be removed for unsuspended job"));
    }
    let met = "SuccessCriteriaMet";
    if is(old, met) && !is(new, met) {
        errors.push(conditions("cannot disable the SuccessCriteriaMet=True condition"));
    }
    if is(old, "Complete") && !is(old, met) && is(new, met) {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.push(conditions(why));
    }
}

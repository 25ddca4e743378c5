//! The selector and the labels that a Job gets when it is made, and what must be true of them.

use serde_json::{Map, Value, json};

use crate::base::json::{at, flag, map, map_mut, text};
use crate::base::labels::{Labels, Selector};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// As above, from before labels had the group's name before them.
const OLD_CONTROLLER_UID: &str = "controller-uid";
const OLD_JOB_NAME: &str = "job-name";

/// Gives a new Job its selector, unless the client takes care of it, and labels.
pub(super) fn generate(job: &mut Value) {
    // Defaulting gave a Job without labels those of its template. In Kubernetes both are one map, which grows here.
    if map(job, "metadata.labels") == map(job, "spec.template.metadata.labels") {
        map_mut(job, "metadata").remove("labels");
    }
    if !flag(job, "spec.manualSelector") {
        let (name, uid) = (text(job, "metadata.name").to_owned(), text(job, "metadata.uid").to_owned());
        let labels = map_mut(job, "spec.template.metadata.labels");
        // What the client wrote there stays, and is refused where it differs.
        for (key, value) in
            [(OLD_JOB_NAME, &name), (JOB_NAME, &name), (OLD_CONTROLLER_UID, &uid), (CONTROLLER_UID, &uid)]
        {
            labels.entry(key).or_insert_with(|| json!(value));
        }
        map_mut(job, "spec.selector.matchLabels").entry(CONTROLLER_UID).or_insert_with(|| json!(uid));
    }
    label(job);
}

/// A Job without labels has those of its template.
pub(super) fn label(job: &mut Value) {
    let labels = map(job, "spec.template.metadata.labels").filter(|l| !l.is_empty()).cloned();
    if let Some(labels) = labels.filter(|_| map(job, "metadata.labels").is_none_or(Map::is_empty)) {
        map_mut(job, "metadata").insert("labels".into(), labels.into());
    }
}

pub(super) fn validate(errors: &mut Errors, job: &Value) {
    let path = Path::root("spec");
    let selector_path = path.field("selector");
    let selector = at(job, "spec.selector").filter(|s| s.is_object());
    let matches = |labels: &Labels| {
        let parsed = selector.map(Selector::from_object);
        parsed.is_some_and(|s| s.is_ok_and(|s| s.matches(labels)))
    };
    if let Some(selector) = selector {
        if !flag(job, "spec.manualSelector") {
            generated(errors, job, selector, matches);
        }
        check::label_selector(errors, &selector_path, Some(selector));
    } else {
        errors.push(field::required(&selector_path, ""));
    }
    let given = map(job, "spec.template.metadata.labels");
    let pairs = given.into_iter().flatten().filter_map(|(k, v)| Some((Box::from(k.as_str()), Box::from(v.as_str()?))));
    if !matches(&pairs.collect()) {
        let template = path.field("template");
        let labels = given.cloned().map(Value::from).unwrap_or_default();
        let why = "`selector` does not match template `labels`";
        errors.push(field::invalid(template.field("metadata").field("labels"), labels, why));
    }
}

/// Labels and selector of a Job that did not ask to choose them.
fn generated(errors: &mut Errors, job: &Value, selector: &Value, matches: impl Fn(&Labels) -> bool) {
    let (name, uid) = (text(job, "metadata.name"), text(job, "metadata.uid"));
    let labels = map(job, "spec.template.metadata.labels");
    let expected = [(OLD_CONTROLLER_UID, uid), (OLD_JOB_NAME, name), (CONTROLLER_UID, uid), (JOB_NAME, name)];
    let root = Path::root("spec.template.metadata.labels");
    for (key, value) in expected {
        let why = format!("must be '{value}'");
        match labels.and_then(|l| l.get(key)).and_then(Value::as_str) {
            None => errors.push(field::required(root.key(key), why)),
            Some(other) if other != value => {
                errors.push(field::invalid(root.key(key), labels.cloned().map(Value::from).unwrap_or_default(), why));
            }
            Some(_) => {}
        }
    }
    if !matches(&expected.into_iter().map(|(k, v)| (Box::from(k), Box::from(v))).collect()) {
        errors.push(field::invalid("spec.selector", selector.clone(), "`selector` not auto-generated"));
    }
}

//! What a Job may ask for.

use std::collections::HashSet;

use serde_json::Value;

use crate::base::json::{list, text};
use crate::base::labels::dns_subdomain_error;
use crate::kinds::batch::indexes::Indexes;
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};

const PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
/// An Indexed Job with more completions than these has narrower bounds.
pub(super) const COMPLETIONS_SOFT: i64 = 100_000;
/// Bounds of such a Job whose indexes fail by themselves.
const MANY_PARALLELISM_MAX: i64 = 10_000;
const MANY_FAILED_INDEXES_MAX: i64 = 10_000;
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const CONDITIONS_MAX: usize = 20;
const SUCCEEDED_INDEXES_BYTES_MAX: usize = 64 << 10;
const MANAGED_BY_BYTES_MAX: usize = 63;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

fn given<'a>(spec: &'a Value, key: &str) -> Option<&'a Value> {
    spec.get(key).filter(|v| !v.is_null())
}

fn count(spec: &Value, key: &str) -> Option<i64> {
    given(spec, key).and_then(Value::as_i64)
}

/// Everything but the selector.
pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        check::non_negative(errors, &path.field(key), given(spec, key));
    }
    if count(spec, "maxFailedIndexes").is_some() && count(spec, "backoffLimitPerIndex").is_none() {
        errors.push(field::required(path.field("backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
    managed_by(errors, path, spec);
    completion_mode(errors, path, spec);
    if let Some(policy) = given(spec, "podFailurePolicy") {
        failure_policy(errors, &path.field("podFailurePolicy"), spec, policy);
    }
    if let Some(policy) = given(spec, "successPolicy") {
        let path = path.field("successPolicy");
        if text(spec, "completionMode") == "Indexed" {
            success_policy(errors, &path, spec, policy);
        } else {
            errors.push(field::invalid(&path, policy.clone(), "requires indexed completion mode"));
        }
    }
    replacement(errors, &path.field("podReplacementPolicy"), spec);
    let null = Value::Null;
    let template = spec.get("template").unwrap_or(&null);
    podspec::validate_free_template(errors, &path.field("template"), template);
    restart_policy(errors, path, spec, template);
}

/// A Job's spec in a template, which has no selector yet.
pub(crate) fn validate_free(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    validate(errors, path, spec);
    if let Some(selector) = given(spec, "selector") {
        let why = "`selector` will be auto-generated";
        errors.push(field::invalid(path.field("selector"), selector.clone(), why));
    }
    if spec.get("manualSelector") == Some(&Value::Bool(true)) {
        errors.push(field::not_supported(path.field("manualSelector"), true, &["nil", "false"]));
    }
}

fn managed_by(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let Some(manager) = given(spec, "managedBy").and_then(Value::as_str) else { return };
    let path = path.field("managedBy");
    match manager.split_once('/') {
        _ if manager.is_empty() => errors.push(field::required(&path, "")),
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            if let Some(why) = dns_subdomain_error(host) {
                errors.push(field::invalid(&path, host, why));
            }
            // As in a URL's path (RFC 3986).
            let fine = |b: u8| b.is_ascii_alphanumeric() || b"/%:@!$&'()*+,;=._~-".contains(&b);
            if !rest.bytes().all(fine) {
                let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
                errors.push(field::invalid(&path, rest, why));
            }
        }
        _ => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(field::invalid(&path, manager, why));
        }
    }
    if manager.len() > MANAGED_BY_BYTES_MAX {
        errors.push(field::too_long(&path, MANAGED_BY_BYTES_MAX));
    }
}

fn completion_mode(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let (per_index, most_failed) = (count(spec, "backoffLimitPerIndex"), count(spec, "maxFailedIndexes"));
    match text(spec, "completionMode") {
        "Indexed" => indexed(errors, path, spec, per_index.is_some(), most_failed),
        "NonIndexed" | "" => {
            for (key, value) in [("backoffLimitPerIndex", per_index), ("maxFailedIndexes", most_failed)] {
                if let Some(value) = value {
                    errors.push(field::invalid(path.field(key), value, "requires indexed completion mode"));
                }
            }
        }
        other => errors.push(field::not_supported(path.field("completionMode"), other, &["Indexed", "NonIndexed"])),
    }
}

fn indexed(errors: &mut Errors, path: &Path<'_>, spec: &Value, per_index: bool, most_failed: Option<i64>) {
    let parallelism = count(spec, "parallelism").unwrap_or(0);
    let (parallelism_path, failed_path) = (path.field("parallelism"), path.field("maxFailedIndexes"));
    let completions = count(spec, "completions");
    if completions.is_none() {
        errors.push(field::required(path.field("completions"), "when completion mode is Indexed"));
    }
    if parallelism > PARALLELISM_MAX {
        let why = format!("must be less than or equal to {PARALLELISM_MAX} when completion mode is Indexed");
        errors.push(field::invalid(&parallelism_path, parallelism, why));
    }
    if let (Some(completions), Some(most)) = (completions, most_failed)
        && most > completions
    {
        errors.push(field::invalid(&failed_path, most, "must be less than or equal to completions"));
    }
    if let Some(most) = most_failed.filter(|m| *m > FAILED_INDEXES_MAX) {
        let why = format!("must be less than or equal to {FAILED_INDEXES_MAX}");
        errors.push(field::invalid(&failed_path, most, why));
    }
    let soft = COMPLETIONS_SOFT;
    if !per_index || completions.is_none_or(|c| c <= soft) {
        return;
    }
    let bound = |max: i64| {
        format!(
            "must be less than or equal to {max} when completions are above {soft} and used with backoff limit per index"
        )
    };
    if most_failed.is_none() {
        errors.push(field::required(&failed_path, format!("must be specified when completions is above {soft}")));
    }
    if parallelism > MANY_PARALLELISM_MAX {
        errors.push(field::invalid(&parallelism_path, parallelism, bound(MANY_PARALLELISM_MAX)));
    }
    if let Some(most) = most_failed.filter(|m| *m > MANY_FAILED_INDEXES_MAX) {
        errors.push(field::invalid(&failed_path, most, bound(MANY_FAILED_INDEXES_MAX)));
    }
}

/// `valid values: ["a" "b"]`
fn valid_values(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn failure_policy(errors: &mut Errors, path: &Path<'_>, spec: &Value, policy: &Value) {
    let rules = list(policy, "rules");
    let path = path.field("rules");
    if rules.len() > RULES_MAX {
        errors.push(field::too_many(&path, rules.len(), RULES_MAX));
    }
    let mut names = HashSet::new();
    for key in ["template.spec.containers", "template.spec.initContainers"] {
        names.extend(list(spec, key).iter().map(|c| text(c, "name")));
    }
    for (i, rule) in rules.iter().enumerate() {
        failure_rule(errors, &path.index(i), spec, rule, &names);
    }
}

fn failure_rule(errors: &mut Errors, path: &Path<'_>, spec: &Value, rule: &Value, names: &HashSet<&str>) {
    let (action, action_path) = (text(rule, "action"), path.field("action"));
    match action {
        "" => errors.push(field::required(&action_path, valid_values(&ACTIONS))),
        "FailIndex" if count(spec, "backoffLimitPerIndex").is_none() => {
            errors.push(field::invalid(&action_path, action, "requires the backoffLimitPerIndex to be set"));
        }
        _ => check::one_of(errors, &action_path, action, &ACTIONS),
    }
    let (codes, conditions) = (given(rule, "onExitCodes"), list(rule, "onPodConditions"));
    if let Some(codes) = codes {
        exit_codes(errors, &path.field("onExitCodes"), codes, names);
    }
    let conditions_path = path.field("onPodConditions");
    if conditions.len() > CONDITIONS_MAX {
        errors.push(field::too_many(&conditions_path, conditions.len(), CONDITIONS_MAX));
    }
    for (i, pattern) in conditions.iter().enumerate() {
        let path = conditions_path.index(i);
        check::qualified(errors, &path.field("type"), text(pattern, "type"));
        let statuses = ["False", "True", "Unknown"];
        match text(pattern, "status") {
            "" => errors.push(field::required(path.field("status"), valid_values(&statuses))),
            status => check::one_of(errors, &path.field("status"), status, &statuses),
        }
    }
    match (codes.is_some(), !conditions.is_empty()) {
        (true, true) => {
            let why = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.push(field::invalid_unshown(path, why));
        }
        (false, false) => {
            let why = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.push(field::invalid_unshown(path, why));
        }
        _ => {}
    }
}

fn exit_codes(errors: &mut Errors, path: &Path<'_>, codes: &Value, names: &HashSet<&str>) {
    let (operator, operator_path) = (text(codes, "operator"), path.field("operator"));
    match operator {
        "" => errors.push(field::required(&operator_path, valid_values(&["In", "NotIn"]))),
        _ => check::one_of(errors, &operator_path, operator, &["In", "NotIn"]),
    }
    if let Some(name) = given(codes, "containerName").and_then(Value::as_str)
        && !names.contains(name)
    {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.push(field::invalid(path.field("containerName"), name, why));
    }
    let path = path.field("values");
    let values = list(codes, "values");
    if values.is_empty() {
        errors.push(field::invalid(&path, Value::Array(values.to_vec()), "at least one value is required"));
    } else if values.len() > EXIT_CODES_MAX {
        errors.push(field::too_many(&path, values.len(), EXIT_CODES_MAX));
    }
    let mut seen = HashSet::new();
    for (i, value) in values.iter().enumerate() {
        let code = value.as_i64().unwrap_or(0);
        if operator == "In" && code == 0 {
            errors.push(field::invalid(path.index(i), 0, "must not be 0 for the In operator"));
        }
        if !seen.insert(code) {
            errors.push(field::duplicate(path.index(i), code));
        }
    }
    if !values.is_sorted_by_key(|v| v.as_i64().unwrap_or(0)) {
        errors.push(field::invalid(&path, Value::Array(values.to_vec()), "must be ordered"));
    }
}

fn success_policy(errors: &mut Errors, path: &Path<'_>, spec: &Value, policy: &Value) {
    let rules = list(policy, "rules");
    let path = path.field("rules");
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.push(field::required(&path, why));
    }
    if rules.len() > RULES_MAX {
        errors.push(field::too_many(&path, rules.len(), RULES_MAX));
    }
    let completions = count(spec, "completions").unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        success_rule(errors, &path.index(i), rule, completions);
    }
}

fn success_rule(errors: &mut Errors, path: &Path<'_>, rule: &Value, completions: i64) {
    let (indexes, wanted) = (given(rule, "succeededIndexes").and_then(Value::as_str), count(rule, "succeededCount"));
    if indexes.is_none() && wanted.is_none() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(field::required(path, why));
    }
    let mut total = 0;
    if let Some(indexes) = indexes {
        let path = path.field("succeededIndexes");
        if indexes.len() > SUCCEEDED_INDEXES_BYTES_MAX {
            errors.push(field::too_long(&path, SUCCEEDED_INDEXES_BYTES_MAX));
        }
        match Indexes::parse(indexes, completions) {
            Ok(parsed) => total = parsed.count(),
            Err(why) => errors.push(field::invalid(&path, indexes, format!("error parsing succeededIndexes: {why}"))),
        }
    }
    let Some(wanted) = wanted else { return };
    let path = path.field("succeededCount");
    check::non_negative(errors, &path, Some(&wanted.into()));
    if wanted > completions {
        let why = format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.push(field::invalid(&path, wanted, why));
    }
    if indexes.is_some() && wanted > total {
        let why = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.push(field::invalid(&path, wanted, why));
    }
}

fn replacement(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let Some(policy) = given(spec, "podReplacementPolicy").and_then(Value::as_str) else { return };
    let supported: &[&str] = match given(spec, "podFailurePolicy") {
        Some(_) => &["Failed"],
        None => &["Failed", "TerminatingOrFailed"],
    };
    if !supported.contains(&policy) {
        errors.push(field::not_supported(path, policy, supported));
    }
}

fn restart_policy(errors: &mut Errors, path: &Path<'_>, spec: &Value, template: &Value) {
    let template_path = path.field("template");
    let spec_path = template_path.field("spec");
    let path = spec_path.field("restartPolicy");
    match text(template, "spec.restartPolicy") {
        "Always" | "" => errors.push(field::required(&path, "valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" if given(spec, "podFailurePolicy").is_some() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(field::invalid(&path, "OnFailure", why));
        }
        "OnFailure" | "Never" => {}
        other => errors.push(field::not_supported(&path, other, &["Never", "OnFailure"])),
    }
}

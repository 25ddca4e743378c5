//! APIService: which server answers for a version of a group: this one, or one behind a Service.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::json::{at, flag, int, list, remove, set, set_default, text};
use crate::base::labels::{dns_1035_error, dns_subdomain_error};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, NameRule, Strategy, Subresource, keep};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: GROUP,
    kind: "APIService",
    plural: "apiservices",
    singular: "apiservice",
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::Status],
    schema: "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
    has_status: true,
    status_resets: &["metadata", "spec"],
    name_rule: NameRule::PathSegment,
    unconditional_update: false,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default: |service| {
            if is_remote(service) {
                set_default(service, "spec.service.port", PORT);
            }
        },
        prepare_create: |service| {
            set(service, "status", json!({}));
            if !is_remote(service) {
                let now = text(service, "metadata.creationTimestamp").to_owned();
                set_available(service, LOCAL, &now);
            }
        },
        prepare_update: |new, old| keep(new, old, "status"),
        prepare_status: |new, old| {
            for field in ["metadata.labels", "metadata.annotations", "metadata.finalizers", "metadata.ownerReferences"]
            {
                match at(old, field) {
                    Some(value) => set(new, field, value.clone()),
                    None => drop(remove(new, field)),
                }
            }
        },
        validate,
        validate_status: |new, _| {
            let mut errors = Errors::new();
            for (i, condition) in list(new, "status.conditions").iter().enumerate() {
                let (status, path) = (text(condition, "status"), Path::root("status.conditions"));
                check::one_of(&mut errors, &path.index(i).field("status"), status, &["True", "False", "Unknown"]);
            }
            errors
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"v1.sample.example.com"},"spec":{"group":"sample.example.com","version":"v1",
        "groupPriorityMinimum":1000,"versionPriority":15}}"#,
    ..Kind::BASE
});

/// The group of the kind itself, for which there is no APIService.
pub const GROUP: &str = "apiregistration.k8s.io";
/// The condition that says whether requests are handed on.
pub const AVAILABLE: &str = "Available";
/// Reason and message of what this server answers for itself.
pub const LOCAL: (bool, &str, &str) = (true, "Local", "Local APIServices are always available");

const PORT: i64 = 443;
const GROUP_PRIORITY_MAX: i64 = 20_000;
const VERSION_PRIORITY_MAX: i64 = 1000;
const COLUMNS: &[Column] = &[
    table::NAME,
    string("Service", "The reference to the service that hosts this API endpoint."),
    string("Available", "Whether this service is available."),
    table::AGE,
];

/// The name of the object for a version of a group.
pub fn name_of(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

/// Whether a server behind a Service answers.
pub fn is_remote(service: &Value) -> bool {
    at(service, "spec.service").is_some_and(Value::is_object)
}

/// The condition [`AVAILABLE`].
pub fn available(service: &Value) -> Option<&Value> {
    list(service, "status.conditions").iter().find(|c| text(c, "type") == AVAILABLE)
}

/// Sets the condition [`AVAILABLE`]: whether it holds, its reason and message.
pub fn set_available(service: &mut Value, is: (bool, &str, &str), now: &str) {
    let (status, reason, message) = (if is.0 { "True" } else { "False" }, is.1, is.2);
    let same = available(service).filter(|c| text(c, "status") == status);
    let since = same.map_or(now, |c| text(c, "lastTransitionTime")).to_owned();
    let condition = json!({
        "type": AVAILABLE, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    let mut all = list(service, "status.conditions").to_vec();
    match all.iter_mut().find(|c| text(c, "type") == AVAILABLE) {
        Some(there) => *there = condition,
        None => all.push(condition),
    }
    set(service, "status.conditions", all);
}

fn row(service: &Value, now: Timestamp) -> Vec<Value> {
    let place = match is_remote(service) {
        true => format!("{}/{}", text(service, "spec.service.namespace"), text(service, "spec.service.name")),
        false => "Local".to_owned(),
    };
    let available = match available(service).map(|c| (text(c, "status"), text(c, "reason"))) {
        None => "Unknown".to_owned(),
        Some((status, reason)) if status == "True" || reason.is_empty() => status.to_owned(),
        Some((status, reason)) => format!("{status} ({reason})"),
    };
    vec![table::name(service), place.into(), available.into(), table::age(service, now)]
}

fn validate(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let (group, version) = (text(service, "spec.group"), text(service, "spec.version"));
    let (name, wanted) = (text(service, "metadata.name"), name_of(group, version));
    if name != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(field::invalid("metadata.name", name, why));
    }
    if group.is_empty() && version != "v1" {
        let why = "only v1 may have an empty group and it better be legacy kube";
        errors.push(field::required("spec.group", why));
    }
    if !group.is_empty() {
        errors.extend(dns_subdomain_error(group).map(|why| field::invalid("spec.group", group, why)));
    }
    errors.extend(dns_1035_error(version).map(|why| field::invalid("spec.version", version, why)));
    for (key, max) in [("groupPriorityMinimum", GROUP_PRIORITY_MAX), ("versionPriority", VERSION_PRIORITY_MAX)] {
        let path = format!("spec.{key}");
        let priority = int(service, &path).unwrap_or(0);
        if priority <= 0 || priority > max {
            errors.push(field::invalid(path, priority, format!("must be positive and less than {max}")));
        }
    }
    how_reached(&mut errors, service);
    errors
}

fn how_reached(errors: &mut Errors, service: &Value) {
    let bundle = text(service, "spec.caBundle");
    let unverified = flag(service, "spec.insecureSkipTLSVerify");
    if is_remote(service) {
        for key in ["namespace", "name"] {
            let path = format!("spec.service.{key}");
            if text(service, &path).is_empty() {
                errors.push(field::required(path, ""));
            }
        }
        if unverified && !bundle.is_empty() {
            let why = "may not be true if caBundle is present";
            errors.push(field::invalid("spec.insecureSkipTLSVerify", true, why));
        }
        return;
    }
    if !bundle.is_empty() {
        let bytes = STANDARD.decode(bundle).map_or(bundle.len(), |bytes| bytes.len());
        let why = "local APIServices may not have a caBundle";
        errors.push(field::invalid("spec.caBundle", format!("{bytes} bytes"), why));
    }
    if unverified {
        let why = "local APIServices may not have insecureSkipTLSVerify";
        errors.push(field::invalid("spec.insecureSkipTLSVerify", true, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> Value {
        json!({"metadata": {"name": "v1.a.example"}, "spec": {"group": "a.example", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 100, "service": {"namespace": "n", "name": "s"}}})
    }

    #[test]
    fn a_name_says_version_and_group_and_only_a_remote_one_has_a_certificate() {
        let said = |service: &Value| {
            validate(service).iter().map(|e| format!("{}: {}", e.field, e.message())).collect::<Vec<_>>()
        };
        assert!(said(&remote()).is_empty());
        let mut other = remote();
        set(&mut other, "metadata.name", "v1.b.example");
        assert_eq!(
            said(&other),
            [
                "metadata.name: Invalid value: \"v1.b.example\": must be `spec.version+\".\"+spec.group`: \"v1.a.example\""
            ]
        );
        let mut local = remote();
        remove(&mut local, "spec.service");
        set(&mut local, "spec.caBundle", "YWI=");
        assert_eq!(
            said(&local),
            ["spec.caBundle: Invalid value: \"2 bytes\": local APIServices may not have a caBundle"]
        );
        for (key, value) in [("groupPriorityMinimum", 20_001), ("versionPriority", 0)] {
            let mut far = remote();
            set(&mut far, &format!("spec.{key}"), value);
            assert_eq!(said(&far).len(), 1, "{key}");
        }
        let core = json!({"metadata": {"name": "v1."}, "spec": {"version": "v1", "groupPriorityMinimum": 18_000,
            "versionPriority": 1}});
        assert!(said(&core).is_empty());
    }

    #[test]
    fn a_row_says_who_answers_and_why_nobody_does() {
        let now = Timestamp::UNIX_EPOCH;
        let mut service = remote();
        assert_eq!(row(&service, now)[1..3], [json!("n/s"), json!("Unknown")]);
        set_available(&mut service, (false, "MissingEndpoints", "m"), "2026-01-01T00:00:00Z");
        assert_eq!(row(&service, now)[2], "False (MissingEndpoints)");
        set_available(&mut service, (false, "ServiceNotFound", "m"), "2026-01-02T00:00:00Z");
        assert_eq!(text(available(&service).unwrap(), "lastTransitionTime"), "2026-01-01T00:00:00Z");
        set_available(&mut service, (true, "Passed", "all checks passed"), "2026-01-03T00:00:00Z");
        assert_eq!(text(available(&service).unwrap(), "lastTransitionTime"), "2026-01-03T00:00:00Z");
        assert_eq!(row(&service, now)[2], "True");
        remove(&mut service, "spec.service");
        assert_eq!(row(&service, now)[1], "Local");
    }
}

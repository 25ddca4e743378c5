//! CSIDriver.

use jiff::Timestamp;
use linkme::distributed_slice;
use std::collections::HashSet;

use serde_json::{Value, json};

use crate::base::json::{at, flag, int, list, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "storage.k8s.io",
    kind: "CSIDriver",
    plural: "csidrivers",
    singular: "csidriver",
    namespaced: false,
    schema: "io.k8s.api.storage.v1.CSIDriver",
    delete_answers_object: true,
    unconditional_update: false,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default,
        validate,
        validate_update,
        warnings: |new, old| {
            let asks = |driver: &Value| {
                !list(driver, "spec.tokenRequests").is_empty()
                    && at(driver, "spec.serviceAccountTokenInSecrets").is_none()
            };
            let text = "spec.tokenRequests is set without spec.serviceAccountTokenInSecrets: tokens are passed in the \
                    volume context, which may be logged";
            (asks(new) && !old.is_some_and(asks)).then(|| text.to_owned()).into_iter().collect()
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample.example.com"},"spec":{}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    boolean("AttachRequired", "Whether volumes are attached to nodes before they are mounted."),
    boolean("PodInfoOnMount", "Whether the driver is told of the pod."),
    boolean("StorageCapacity", "Whether scheduling regards the driver's capacities."),
    string("TokenRequests", "Audiences of the tokens it gets."),
    boolean("RequiresRepublish", "Whether mounts are renewed from time to time."),
    string("Modes", "Life cycles of volumes it knows."),
    table::AGE,
];
/// The shortest life of a token, in seconds.
const TOKEN_SECONDS_MIN: i64 = 600;
/// The shortest period between updates of what a node can take, in seconds.
const UPDATE_SECONDS_MIN: i64 = 10;

const fn boolean(name: &'static str, description: &'static str) -> Column<'static> {
    Column { kind: "boolean", ..string(name, description) }
}

fn row(driver: &Value, now: Timestamp) -> Vec<Value> {
    let requests: Vec<&str> = list(driver, "spec.tokenRequests").iter().map(|r| text(r, "audience")).collect();
    let requests = if requests.is_empty() { "<unset>".to_owned() } else { requests.join(",") };
    let modes: Vec<&str> = list(driver, "spec.volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    let modes = if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") };
    vec![
        table::name(driver),
        at(driver, "spec.attachRequired").is_none_or(|v| v == true).into(),
        flag(driver, "spec.podInfoOnMount").into(),
        flag(driver, "spec.storageCapacity").into(),
        requests.into(),
        flag(driver, "spec.requiresRepublish").into(),
        modes.into(),
        table::age(driver, now),
    ]
}

fn default(driver: &mut Value) {
    set_default(driver, "spec.attachRequired", true);
    for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        set_default(driver, &format!("spec.{key}"), false);
    }
    set_default(driver, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
    if list(driver, "spec.volumeLifecycleModes").is_empty() {
        crate::base::json::set(driver, "spec.volumeLifecycleModes", json!(["Persistent"]));
    }
}

fn validate(driver: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    check::required_one_of(&mut errors, &spec.field("fsGroupPolicy"), text(driver, "spec.fsGroupPolicy"), &policies);
    for mode in list(driver, "spec.volumeLifecycleModes") {
        let path = spec.field("volumeLifecycleModes");
        check::required_one_of(&mut errors, &path, mode.as_str().unwrap_or(""), &["Ephemeral", "Persistent"]);
    }
    let requests = list(driver, "spec.tokenRequests");
    let base = spec.field("tokenRequests");
    let mut seen = HashSet::new();
    for (i, request) in requests.iter().enumerate() {
        let (path, audience) = (base.index(i), text(request, "audience"));
        if !seen.insert(audience) {
            errors.push(field::duplicate(&path.field("audience"), audience));
        }
        if let Some(seconds) = int(request, "expirationSeconds").filter(|s| !(TOKEN_SECONDS_MIN..=1 << 32).contains(s))
        {
            let why = "may not specify a duration less than 10 minutes or larger than 2^32 seconds";
            errors.push(field::invalid(&path.field("expirationSeconds"), seconds, why));
        }
    }
    let period = int(driver, "spec.nodeAllocatableUpdatePeriodSeconds").filter(|s| *s < UPDATE_SECONDS_MIN);
    if let Some(seconds) = period {
        let path = spec.field("nodeAllocatableUpdatePeriodSeconds");
        errors.push(field::invalid(&path, seconds, "must be greater than or equal to 10 seconds"));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    // The path in Kubernetes' answer is misspelt.
    for (key, shown) in [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")] {
        let value = new["spec"].get(key);
        if value != old["spec"].get(key) {
            let value = value.cloned().unwrap_or_default();
            errors.push(field::invalid(format!("spec.{shown}"), value, check::IMMUTABLE));
        }
    }
    errors
}

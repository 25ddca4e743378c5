//! Node.

use jiff::Timestamp;
use linkme::distributed_slice;
use std::collections::HashSet;

use serde_json::{Value, json};

use super::podspec;
use crate::base::json::{at, flag, list, map, map_mut, set, text};
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string, wide};
use crate::kinds::{BUILTIN, Column, Field, Kind, KindRef, Strategy, Subresource};

/// What a Node says its key for the encrypted overlay is; a node without it has none.
pub const OVERLAY_KEY: &str = "amphipod.io/wireguard-public-key";

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Proxy, Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.core.v1.Node",
    columns: COLUMNS,
    row,
    fields: &[Field { name: "spec.unschedulable", get: |n| flag(n, "spec.unschedulable").to_string() }],
    strategy: Strategy {
        default,
        prepare_create: drop_config,
        prepare_update: |new, old| keep_config(new, old),
        prepare_status: |new, old| keep_config(new, old),
        validate,
        validate_update,
        validate_status,
        warnings,
        creates_status: true,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Status", "Whether the node is ready and takes pods."),
    string("Roles", "What it is labelled to do."),
    table::AGE,
    string("Version", "The version of its agent."),
    wide("Internal-IP", "Its first address inside the cluster's network."),
    wide("External-IP", "Its first address for the outside."),
    wide("OS-Image", "The operating system."),
    wide("Kernel-Version", "The kernel."),
    wide("Container-Runtime", "The runtime and its version."),
];

fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    let or_unknown = |path: &str| -> Value {
        let text = text(node, path);
        if text.is_empty() { "<unknown>".into() } else { text.into() }
    };
    let address = |kind: &str| -> Value {
        let found = list(node, "status.addresses").iter().find(|a| text(a, "type") == kind);
        found.map_or("<none>".into(), |a| text(a, "address").into())
    };
    let kernel = match (text(node, "status.nodeInfo.kernelVersion"), text(node, "status.nodeInfo.architecture")) {
        ("", _) => "<unknown>".to_owned(),
        (kernel, "") => kernel.to_owned(),
        (kernel, architecture) => format!("{kernel} ({architecture})"),
    };
    vec![
        table::name(node),
        status(node).into(),
        roles(node).into(),
        table::age(node, now),
        text(node, "status.nodeInfo.kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        or_unknown("status.nodeInfo.osImage"),
        kernel.into(),
        or_unknown("status.nodeInfo.containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = list(node, "status.conditions").iter().find(|c| text(c, "type") == "Ready");
    let mut status = match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(node, "spec.unschedulable") {
        status += ",SchedulingDisabled";
    }
    status
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in map(node, "metadata.labels").into_iter().flatten() {
        let role = match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => role,
            None if key == "kubernetes.io/role" => value.as_str().unwrap_or(""),
            None => "",
        };
        if !role.is_empty() && !roles.contains(&role) {
            roles.push(role);
        }
    }
    roles.sort_unstable();
    if roles.is_empty() { "<none>".into() } else { roles.join(",") }
}

fn default(node: &mut Value) {
    for key in ["capacity", "allocatable"] {
        if let Some(amounts) = node.get_mut("status").and_then(|s| s.get_mut(key)) {
            podspec::default_resource_list(amounts);
        }
    }
    if at(node, "status.allocatable").is_none()
        && let Some(capacity) = at(node, "status.capacity").cloned()
    {
        set(node, "status.allocatable", capacity);
    }
    // The single range is the first of the list.
    let (one, many) = (text(node, "spec.podCIDR").to_owned(), list(node, "spec.podCIDRs").first().cloned());
    match (one.as_str(), many) {
        ("", Some(first)) => set(node, "spec.podCIDR", first),
        ("", None) => {}
        (one, None) => set(node, "spec.podCIDRs", json!([one])),
        (one, Some(first)) if first != one => set(node, "spec.podCIDRs", json!([one])),
        _ => {}
    }
}

/// Configuration through the API is no longer a thing; what was there stays.
fn drop_config(node: &mut Value) {
    map_mut(node, "spec").remove("configSource");
    if let Some(status) = node.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("config");
    }
}

fn keep_config(new: &mut Value, old: &Value) {
    if at(old, "spec.configSource").is_none() {
        map_mut(new, "spec").remove("configSource");
    }
    if at(old, "status.config").is_none()
        && let Some(status) = new.get_mut("status").and_then(Value::as_object_mut)
    {
        status.remove("config");
    }
}

fn validate(node: &Value) -> Errors {
    let mut errors = Errors::new();
    annotations(&mut errors, node);
    taints(&mut errors, list(node, "spec.taints"));
    amounts(&mut errors, node);
    ranges(&mut errors, node);
    errors
}

fn annotations(errors: &mut Errors, node: &Value) {
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let given = at(node, "metadata.annotations").and_then(|a| a.get(AVOID)).and_then(Value::as_str);
    if given.is_some_and(|text| serde_json::from_str::<Value>(text).is_err()) {
        errors.push(field::invalid("metadata.annotations.AvoidPods", AVOID, "must be JSON"));
    }
}

/// `spec.taints`; the errors have always stood at the metadata.
fn taints(errors: &mut Errors, taints: &[Value]) {
    let base = Path::root("metadata.taints");
    let mut seen = HashSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let path = base.index(i);
        check::qualified(errors, &path.field("key"), text(taint, "key"));
        check::label_value(errors, &path.field("value"), text(taint, "value"));
        let supported = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        check::required_one_of(errors, &path.field("effect"), text(taint, "effect"), &supported);
        if !seen.insert((text(taint, "key"), text(taint, "effect"))) {
            errors.push(field::duplicate(&path, taint.clone()));
        }
    }
}

fn amounts(errors: &mut Errors, node: &Value) {
    for part in ["capacity", "allocatable"] {
        let base = Path::root("status");
        let base = base.field(part);
        for (name, amount) in
            at(node, "status").and_then(|s| s.get(part)).and_then(Value::as_object).into_iter().flatten()
        {
            let path = base.field(name);
            let Some(amount) = amount.as_str().and_then(|a| a.parse::<Quantity>().ok()) else { continue };
            if amount.is_negative() {
                errors.push(field::invalid(&path, amount.to_string(), check::NEGATIVE));
            }
            let extended = name.contains('/') && !name.contains("kubernetes.io/");
            if extended && amount.milli() % 1000 != 0 {
                errors.push(field::invalid(&path, amount.to_string(), "must be an integer"));
            }
        }
    }
}

fn ranges(errors: &mut Errors, node: &Value) {
    let path = Path::root("spec");
    let path = path.field("podCIDRs");
    let ranges = list(node, "spec.podCIDRs");
    let mut families = Vec::new();
    for (i, range) in ranges.iter().enumerate() {
        if let Some((address, _)) = check::cidr(errors, &path.index(i), range.as_str().unwrap_or("")) {
            families.push(address.is_ipv4());
        }
    }
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        let why = "may specify no more than one CIDR for each IP family";
        errors.push(field::invalid(&path, ranges.to_vec(), why));
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if !list(old, "spec.podCIDRs").is_empty() && at(new, "spec.podCIDRs") != at(old, "spec.podCIDRs") {
        errors.push(field::forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid"));
    }
    if !text(old, "spec.providerID").is_empty() && text(new, "spec.providerID") != text(old, "spec.providerID") {
        errors.push(field::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    if text(new, "spec.externalID") != text(old, "spec.externalID") {
        errors.push(field::forbidden("spec.externalID", "may not be updated"));
    }
    errors
}

fn validate_status(new: &Value, _old: &Value) -> Errors {
    let mut errors = validate(new);
    let path = Path::root("status.addresses");
    let addresses = list(new, "status.addresses");
    let mut seen = HashSet::new();
    for (i, address) in addresses.iter().enumerate() {
        if !seen.insert(address.to_string()) {
            errors.push(field::duplicate(&path.index(i), address.clone()));
        }
    }
    errors
}

fn warnings(node: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if at(node, "spec.configSource").is_some() && !old.is_some_and(|o| at(o, "spec.configSource").is_some()) {
        out.push("spec.configSource: the feature is no longer supported".into());
    }
    if !text(node, "spec.externalID").is_empty() && !old.is_some_and(|o| at(o, "spec.externalID").is_some()) {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
    }
    out
}

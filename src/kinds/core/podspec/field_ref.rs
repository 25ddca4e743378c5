//! References to fields of a pod and to resources of its containers, from variables and from files.

use serde_json::Value;

use crate::base::json::text;
use crate::base::labels::label_key_error;
use crate::base::quantity::Quantity;
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

/// Fields of a pod that a file of a downward API volume may show.
pub(super) const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Fields that name something in a pod at all; others are no fields.
pub(super) const KNOWN: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "spec.hostNetwork",
    "status.nominatedNodeName",
];

/// `metadata.labels['key']` and its like: the path and the key.
pub(super) fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// A reference to a field of the pod, which must be one of `supported`.
pub(super) fn field_ref(errors: &mut Errors, path: &Path<'_>, reference: &Value, supported: &[&str]) {
    let (version, name) = (text(reference, "apiVersion"), text(reference, "fieldPath"));
    let at = path.field("fieldPath");
    if version.is_empty() {
        errors.push(field::required(&path.field("apiVersion"), ""));
        return;
    }
    if name.is_empty() {
        errors.push(field::required(&at, ""));
        return;
    }
    if let Some((map, key)) = subscript(name) {
        if version != "v1" || !["metadata.annotations", "metadata.labels"].contains(&map) {
            errors.push(field::invalid(&at, name, "does not support subscript"));
            return;
        }
        let key = if map.ends_with("annotations") { key.to_lowercase() } else { key.to_owned() };
        if let Some(why) = label_key_error(&key) {
            errors.push(field::invalid(path, key, why));
        }
        return;
    }
    let name = if name == "spec.host" { "spec.nodeName" } else { name };
    if version != "v1" || !KNOWN.contains(&name) {
        errors.push(field::invalid(
            &at,
            name,
            format!("error converting fieldPath: field label not supported: {name}"),
        ));
    } else if !supported.contains(&name) {
        errors.push(field::not_supported(&at, name, supported));
    }
}

/// A reference to a resource of a container; volumes must name the container.
pub(super) fn resource_field_ref(errors: &mut Errors, path: &Path<'_>, reference: &Value, in_volume: bool) {
    let resource = text(reference, "resource");
    if in_volume && text(reference, "containerName").is_empty() {
        errors.push(field::required(&path.field("containerName"), ""));
        return;
    }
    if resource.is_empty() {
        errors.push(field::required(&path.field("resource"), ""));
        return;
    }
    let supported = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p));
    if !supported.contains(&resource) && !huge {
        errors.push(field::not_supported(&path.field("resource"), resource, &supported));
        return;
    }
    let divisor = text(reference, "divisor").parse::<Quantity>().ok().filter(|d| !d.is_zero());
    let Some(divisor) = divisor.map(|d| d.to_string()) else { return };
    let fine: &[&str] = match resource.split_once('.').map_or("", |(_, r)| r) {
        "cpu" => &["1m", "1"],
        _ => &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
    };
    if !fine.contains(&divisor.as_str()) {
        let why = format!("only divisor's values {fine:?} are supported");
        errors.push(field::invalid(&path.field("divisor"), resource, why));
    }
}

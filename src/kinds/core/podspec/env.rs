//! Environment variables and where they come from.

use serde_json::Value;

use super::names::Names;
use crate::base::json::{flag, text};
use crate::base::labels::{dns_subdomain_error, label_key_error};
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Fields of a pod that an environment variable may show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that a file of a downward API volume may show.
pub(super) const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields that name something in a pod at all; others are no fields.
const KNOWN: &[&str] = &[
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

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, env: &[Value], names: &Names<'_>) {
    for (i, var) in env.iter().enumerate() {
        let path = path.index(i);
        let name = text(var, "name");
        if name.is_empty() {
            errors.push(field::required(&path.field("name"), ""));
        } else if let Some(why) = check::env_name_error(name) {
            errors.push(field::invalid(&path.field("name"), name, why));
        }
        if let Some(from) = var.get("valueFrom").filter(|f| f.is_object()) {
            value_from(errors, &path.field("valueFrom"), var, from, names);
        }
    }
}

fn value_from(errors: &mut Errors, path: &Path<'_>, var: &Value, from: &Value, names: &Names<'_>) {
    let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given = sources.iter().filter(|s| from.get(**s).is_some()).count();
    if let Some(reference) = from.get("fieldRef") {
        field_ref(errors, &path.field("fieldRef"), reference, ENV_FIELDS);
    }
    if let Some(reference) = from.get("resourceFieldRef") {
        resource_field_ref(errors, &path.field("resourceFieldRef"), reference, false);
    }
    for source in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = from.get(source) {
            key_ref(errors, &path.field(source), reference);
        }
    }
    if let Some(reference) = from.get("fileKeyRef") {
        file_key_ref(errors, &path.field("fileKeyRef"), reference, names);
    }
    if !text(var, "value").is_empty() {
        if given > 0 {
            errors.push(field::invalid(path, "", "may not be specified when `value` is not empty"));
        }
    } else if given == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errors.push(field::invalid(path, "", why));
    } else if given > 1 {
        errors.push(field::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

/// `metadata.labels['key']` and its like: the path and the key.
fn subscript(path: &str) -> Option<(&str, &str)> {
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

fn key_ref(errors: &mut Errors, path: &Path<'_>, reference: &Value) {
    let (name, key) = (text(reference, "name"), text(reference, "key"));
    if name.is_empty() && !flag(reference, "optional") {
        // An empty name has always been let through here; it can never be found.
    } else if let Some(why) = dns_subdomain_error(name).filter(|_| !name.is_empty()) {
        errors.push(field::invalid(&path.field("name"), name, why));
    }
    if key.is_empty() {
        errors.push(field::required(&path.field("key"), ""));
    } else if let Some(why) = check::config_key_error(key) {
        errors.push(field::invalid(&path.field("key"), key, why));
    }
}

fn file_key_ref(errors: &mut Errors, path: &Path<'_>, reference: &Value, names: &Names<'_>) {
    let (key, volume, file) = (text(reference, "key"), text(reference, "volumeName"), text(reference, "path"));
    if check::given(errors, &path.field("key"), key)
        && let Some(why) = check::env_name_error(key)
    {
        errors.push(field::invalid(&path.field("key"), key, why));
    }
    if check::given(errors, &path.field("volumeName"), volume) {
        match names.volume(volume) {
            None => errors.push(field::not_found(&path.field("volumeName"), volume)),
            Some(v) if v.get("emptyDir").is_none() => {
                errors.push(field::invalid(
                    &path.field("volumeName"),
                    volume,
                    "referenced volume must be of type emptyDir",
                ));
            }
            Some(_) => {}
        }
    }
    if check::given(errors, &path.field("path"), file) {
        check::relative_path_strict(errors, &path.field("path"), file);
    }
}

pub(super) fn validate_from(errors: &mut Errors, path: &Path<'_>, sources: &[Value]) {
    for (i, source) in sources.iter().enumerate() {
        let path = path.index(i);
        check::env_prefix(errors, &path.field("prefix"), text(source, "prefix"));
        let mut given = 0;
        for name in ["configMapRef", "secretRef"] {
            let Some(reference) = source.get(name) else { continue };
            given += 1;
            let at = path.field(name);
            let at = at.field("name");
            if check::given(errors, &at, text(reference, "name")) {
                check::dns_subdomain(errors, &at, text(reference, "name"));
            }
        }
        match given {
            0 => errors.push(field::invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(field::invalid(&path, "", "may not have more than one field specified at a time")),
        }
    }
}

//! Environment variables and where they come from.

use serde_json::Value;

use super::field_ref::{field_ref, resource_field_ref};
use super::names::Names;
use crate::base::json::{flag, text};
use crate::base::labels::dns_subdomain_error;
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

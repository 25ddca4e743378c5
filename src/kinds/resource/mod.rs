//! Devices that drivers offer and claims to them (dynamic resource allocation). The objects are kept and checked; nothing
//! allocates devices yet, which whoever makes one is told.

mod claim;
mod claim_status;
mod device;
pub mod deviceclass;
pub mod resourceclaim;
pub mod resourceclaimtemplate;
pub mod resourceslice;
mod selector;

use std::collections::HashSet;

use serde_json::Value;

use super::check::{self, Path};
use super::field::{self, Errors};
use crate::base::json::{list, text};
use crate::base::labels::{dns_subdomain_error, label_value_error};

const DRIVER_BYTES_MAX: usize = 63;
const POOL_BYTES_MAX: usize = 253;
const DOMAIN_BYTES_MAX: usize = 63;
const ID_BYTES_MAX: usize = 32;
/// What a driver is told may have as many bytes as JSON.
const OPAQUE_BYTES_MAX: usize = 10 << 10;
/// How many configurations there are, of a class or of a claim.
const CONFIGS_MAX: usize = 32;
/// Attributes and capacities of a device.
const ATTRIBUTES_MAX: usize = 32;
/// Bytes of an attribute.
const ATTRIBUTE_BYTES_MAX: usize = 64;
const BINDING_CONDITIONS_MAX: usize = 4;
const TOLERATIONS_MAX: usize = 16;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// Each item of a list of no more than `max`.
fn each(
    errors: &mut Errors,
    path: &Path<'_>,
    items: &[Value],
    max: usize,
    of: impl Fn(&mut Errors, &Path<'_>, &Value),
) {
    if items.len() > max {
        errors.push(field::too_many(path, items.len(), max));
        return;
    }
    for (i, item) in items.iter().enumerate() {
        of(errors, &path.index(i), item);
    }
}

/// As [`each`], where no two may have the same key.
fn each_once(
    errors: &mut Errors,
    path: &Path<'_>,
    items: &[Value],
    max: usize,
    key: impl Fn(&Value) -> String,
    of: impl Fn(&mut Errors, &Path<'_>, &Value),
) {
    each(errors, path, items, max, of);
    if items.len() > max {
        return;
    }
    let mut seen = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let key = key(item);
        if seen.contains(&key) {
            errors.push(field::duplicate(path.index(i), key));
        } else {
            seen.insert(key);
        }
    }
}

fn driver_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if !check::given(errors, path, name) {
        return;
    }
    if name.len() > DRIVER_BYTES_MAX {
        errors.push(field::too_long(path, DRIVER_BYTES_MAX));
    }
    errors.extend(dns_subdomain_error(&name.to_lowercase()).map(|why| field::invalid(path, name, why)));
}

fn pool_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if !check::given(errors, path, name) {
        return;
    }
    if name.len() > POOL_BYTES_MAX {
        errors.push(field::too_long(path, POOL_BYTES_MAX));
    }
    for part in name.split('/') {
        check::dns_subdomain(errors, path, part);
    }
}

/// The name of an attribute or a capacity: with a domain or without.
fn qualified_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    match name.split('/').collect::<Vec<_>>()[..] {
        [id] => identifier(errors, path, id),
        [domain, id] => {
            match domain {
                "" => errors.push(field::invalid(path, "", "the domain must not be empty")),
                domain if domain.len() > DOMAIN_BYTES_MAX => errors.push(field::too_long(path, DOMAIN_BYTES_MAX)),
                domain => check::dns_subdomain(errors, path, &domain.to_lowercase()),
            }
            match id {
                "" => errors.push(field::invalid(path, "", "the name must not be empty")),
                id => identifier(errors, path, id),
            }
        }
        _ => errors.push(field::invalid(path, name, "must not contain more than one slash")),
    }
}

fn fully_qualified_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    qualified_name(errors, path, name);
    if !name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errors.push(field::invalid(path, name, why));
    }
}

fn identifier(errors: &mut Errors, path: &Path<'_>, id: &str) {
    if id.len() > ID_BYTES_MAX {
        errors.push(field::too_long(path, ID_BYTES_MAX));
    }
    let begins = id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        let why = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
                   characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
                   '[A-Za-z_][A-Za-z0-9_]*')";
        errors.push(field::invalid(path, id, why));
    }
}

/// What only a driver understands.
fn configuration(errors: &mut Errors, path: &Path<'_>, config: &Value) {
    let path = path.field("opaque");
    let Some(opaque) = config.get("opaque").filter(|o| o.is_object()) else {
        errors.push(field::required(&path, ""));
        return;
    };
    driver_name(errors, &path.field("driver"), text(opaque, "driver"));
    raw_object(errors, &path.field("parameters"), opaque.get("parameters"));
}

/// An object of any form.
fn raw_object(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    match value {
        None | Some(Value::Null) => errors.push(field::required(path, "")),
        Some(value) if value.to_string().len() > OPAQUE_BYTES_MAX => {
            errors.push(field::too_long(path, OPAQUE_BYTES_MAX))
        }
        Some(value) if !value.is_object() => {
            errors.push(field::invalid(path, "<value omitted>", "must be a valid JSON object"));
        }
        Some(_) => {}
    }
}

fn tolerations(errors: &mut Errors, path: &Path<'_>, of: &Value) {
    each(errors, &path.field("tolerations"), list(of, "tolerations"), TOLERATIONS_MAX, |errors, path, toleration| {
        let part = |key: &str| text(toleration, key);
        if !part("key").is_empty() {
            check::qualified(errors, &path.field("key"), part("key"));
        }
        let value = path.field("value");
        match part("operator") {
            "Exists" if !part("value").is_empty() => {
                errors.push(field::invalid(&value, part("value"), "must be empty for operator `Exists`"));
            }
            "Exists" => {}
            "Equal" => {
                errors.extend(label_value_error(part("value")).map(|why| field::invalid(&value, part("value"), why)));
            }
            other => check::required_one_of(errors, &path.field("operator"), other, &["Equal", "Exists"]),
        }
        check::one_of(errors, &path.field("effect"), part("effect"), EFFECTS);
    });
}

fn taint(errors: &mut Errors, path: &Path<'_>, taint: &Value) {
    check::qualified(errors, &path.field("key"), text(taint, "key"));
    let value = text(taint, "value");
    errors.extend(label_value_error(value).map(|why| field::invalid(path.field("value"), value, why)));
    check::required_one_of(errors, &path.field("effect"), text(taint, "effect"), EFFECTS);
}

/// The conditions under which a pod is bound, and under which it is not.
fn binding_conditions(errors: &mut Errors, path: &Path<'_>, of: &Value) {
    let keys = ["bindingConditions", "bindingFailureConditions"];
    let [wanted, failed] = keys.map(|key| list(of, key));
    for (key, names) in keys.iter().zip([wanted, failed]) {
        let key_of = |name: &Value| name.as_str().unwrap_or_default().to_owned();
        each_once(errors, &path.field(key), names, BINDING_CONDITIONS_MAX, key_of, |errors, path, name| {
            check::qualified(errors, path, name.as_str().unwrap_or_default());
        });
    }
    let failures = path.field(keys[1]);
    for (i, name) in failed.iter().enumerate().filter(|(_, name)| wanted.contains(name)).take(BINDING_CONDITIONS_MAX) {
        let why = "bindingFailureConditions must not overlap with bindingConditions";
        errors.push(field::invalid(failures.index(i), name.clone(), why));
    }
    if wanted.is_empty() && !failed.is_empty() {
        let why = "bindingConditions are required to use bindingFailureConditions";
        errors.push(field::invalid(path.field(keys[0]), wanted.to_vec(), why));
    }
    if failed.is_empty() && !wanted.is_empty() {
        let why = "bindingFailureConditions are required to use bindingConditions";
        errors.push(field::invalid(&failures, failed.to_vec(), why));
    }
}

/// Fields of features that are not there.
fn unknown_features(errors: &mut Errors, path: &Path<'_>, of: &Value, keys: &[&str]) {
    for key in keys.iter().filter(|key| of.get(**key).is_some_and(|value| !value.is_null())) {
        errors.push(field::forbidden(path.field(key), "is not supported in this version"));
    }
}

/// What whoever makes such an object is told.
fn nothing_allocates(old: Option<&Value>, path: &str) -> Vec<String> {
    let told = || format!("{path}: nothing allocates devices in this version");
    old.is_none().then(told).into_iter().collect()
}

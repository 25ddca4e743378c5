//! What storage drivers and the cluster tell each other. Volumes and claims are in the core group.

pub mod csidriver;
pub mod csinode;
pub mod csistoragecapacity;
pub mod storageclass;
pub mod volumeattachment;
pub mod volumeattributesclass;

use serde_json::Value;

use crate::base::json::{map, text};
use crate::base::labels::{dns_subdomain_error, label_key_error};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

/// What a class is marked with that claims without a class get.
pub const IS_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// The longest name of a driver.
const DRIVER_BYTES: usize = 63;

/// The name of a CSI driver, at `path`.
fn driver_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(field::required(path, ""));
        return;
    }
    if name.len() > DRIVER_BYTES {
        errors.push(field::too_long(path, DRIVER_BYTES));
    }
    errors.extend(dns_subdomain_error(&name.to_lowercase()).map(|why| field::invalid(path, name, why)));
}

/// The name of whoever makes or attaches volumes.
fn provisioner_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(field::required(path, ""));
        return;
    }
    errors.extend(label_key_error(&name.to_lowercase()).map(|why| field::invalid(path, name, why)));
}

/// The parameters for a driver: any keys and values, but no empty key and not too much in all.
fn parameters(errors: &mut Errors, object: &Value) {
    const COUNT: usize = 512;
    const BYTES: usize = 256 << 10;
    let path = Path::root("parameters");
    let given = map(object, "parameters");
    if given.is_some_and(|m| m.len() > COUNT) {
        errors.push(field::too_many(&path, given.map_or(0, serde_json::Map::len), COUNT));
        return;
    }
    let mut total = 0;
    for (key, value) in given.into_iter().flatten() {
        if key.is_empty() {
            errors.push(field::invalid(&path, key.as_str(), "field can not be empty."));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > BYTES {
        errors.push(field::too_long(&path, BYTES));
    }
}

/// The name of a class, marked where it is the default one.
fn class_name(class: &Value) -> Value {
    let annotations = &class["metadata"]["annotations"];
    let is_default = IS_DEFAULT.iter().any(|a| annotations[*a] == "true");
    let name = text(class, "metadata.name");
    if is_default { format!("{name} (default)").into() } else { name.into() }
}

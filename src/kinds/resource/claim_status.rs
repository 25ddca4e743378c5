//! What became of a claim: devices that were allocated, who uses them, and what drivers say of them.

use std::collections::HashSet;

use serde_json::Value;

use super::claim::Requests;
use super::{
    CONFIGS_MAX, binding_conditions, configuration, driver_name, each, each_once, pool_name, raw_object, tolerations,
    unknown_features,
};
use crate::base::json::{at, list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};

const RESERVED_MAX: usize = 256;
const RESULTS_MAX: usize = 32;
const CONDITIONS_MAX: usize = 8;
const INTERFACE_BYTES_MAX: usize = 256;
const HARDWARE_ADDRESS_BYTES_MAX: usize = 128;
const ADDRESSES_MAX: usize = 16;

/// What is wrong with the status of a claim, by what it was.
pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::root("status");
    let uid = |of: &Value| text(of, "uid").to_owned();
    let reserved = list(new, "status.reservedFor");
    let path = status.field("reservedFor");
    each_once(&mut errors, &path, reserved, RESERVED_MAX, uid, |errors, path, by| {
        for key in ["resource", "name", "uid"] {
            check::given(errors, &path.field(key), text(by, key));
        }
    });
    let given = |of: &'_ Value| at(of, "status.allocation").filter(|a| a.is_object()).cloned();
    let (allocation, was) = (given(new), given(old));
    let nothing = Value::Null;
    let results = allocation.as_ref().map_or(&[][..], |a| list(a, "devices.results"));
    let allocated: HashSet<String> = results.iter().map(device_key).collect();
    let path = status.field("devices");
    let told = list(new, "status.devices");
    each_once(&mut errors, &path, told, told.len(), device_key, |errors, path, device| {
        one_device(errors, path, device, &allocated);
    });
    if !reserved.is_empty() {
        let path = status.field("reservedFor");
        let before = list(old, "status.reservedFor");
        if allocation.is_none() {
            errors.push(field::forbidden(&path, "may not be specified when `allocated` is not set"));
        } else if at(new, "metadata.deletionTimestamp").is_some() && reserved.iter().any(|r| !before.contains(r)) {
            let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.push(field::forbidden(&path, why));
        }
    }
    let path = status.field("allocation");
    match (&allocation, &was) {
        (Some(is), Some(was)) => check::immutable(&mut errors, &path, Some(is), Some(was)),
        (Some(is), None) => allocation_result(&mut errors, &path, is, new.get("spec").unwrap_or(&nothing)),
        (None, _) => {}
    }
    errors
}

/// Driver, pool, device and share.
fn device_key(of: &Value) -> String {
    ["driver", "pool", "device", "shareID"].map(|key| text(of, key)).join("/")
}

fn one_device(errors: &mut Errors, path: &Path<'_>, device: &Value, allocated: &HashSet<String>) {
    names(errors, path, device);
    if !allocated.contains(&device_key(device)) {
        errors.push(field::invalid(path, device_key(device), "must be an allocated device in the claim"));
    }
    let conditions = list(device, "conditions");
    if conditions.len() > CONDITIONS_MAX {
        errors.push(field::too_many(path.field("conditions"), conditions.len(), CONDITIONS_MAX));
    }
    check::conditions(errors, &path.field("conditions"), conditions);
    if let Some(data) = device.get("data").filter(|data| !data.is_null()) {
        raw_object(errors, &path.field("data"), Some(data));
    }
    let Some(network) = device.get("networkData").filter(|data| data.is_object()) else { return };
    let path = path.field("networkData");
    for (key, max) in [("interfaceName", INTERFACE_BYTES_MAX), ("hardwareAddress", HARDWARE_ADDRESS_BYTES_MAX)] {
        if text(network, key).len() > max {
            errors.push(field::too_long(path.field(key), max));
        }
    }
    let key = |address: &Value| address.as_str().unwrap_or_default().to_owned();
    each_once(errors, &path.field("ips"), list(network, "ips"), ADDRESSES_MAX, key, |errors, path, address| {
        let given = address.as_str().unwrap_or_default();
        if check::parse_cidr(given).is_none() {
            let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
            errors.push(field::invalid(path, given, why));
        }
    });
}

fn names(errors: &mut Errors, path: &Path<'_>, of: &Value) {
    driver_name(errors, &path.field("driver"), text(of, "driver"));
    pool_name(errors, &path.field("pool"), text(of, "pool"));
    check::dns_label(errors, &path.field("device"), text(of, "device"));
    if let Some(share) = of.get("shareID").and_then(Value::as_str) {
        let is_hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_dash = |i: usize| matches!(i, 8 | 13 | 18 | 23);
        let is_uid = share.len() == 36
            && share.bytes().enumerate().all(|(i, b)| if is_dash(i) { b == b'-' } else { is_hexadecimal(b) });
        if !is_uid {
            let why = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
                       hexadecimal characters";
            errors.push(field::invalid(path.field("shareID"), share, why));
        }
    }
}

fn allocation_result(errors: &mut Errors, path: &Path<'_>, allocation: &Value, spec: &Value) {
    let requests = Requests::of(spec);
    let devices = path.field("devices");
    let results = list(allocation, "devices.results");
    each(errors, &devices.field("results"), results, RESULTS_MAX, |errors, path, result| {
        requests.reference(errors, &path.field("request"), text(result, "request"));
        names(errors, path, result);
        binding_conditions(errors, path, result);
        tolerations(errors, path, result);
        unknown_features(errors, path, result, &["skipNodeOperations"]);
    });
    let configs = list(allocation, "devices.config");
    each(errors, &devices.field("config"), configs, 2 * CONFIGS_MAX, |errors, path, config| {
        let sources = ["FromClaim", "FromClass"];
        check::required_one_of(errors, &path.field("source"), text(config, "source"), &sources);
        requests.references(errors, path, config);
        configuration(errors, path, config);
    });
    if let Some(selector) = allocation.get("nodeSelector").filter(|s| s.is_object()) {
        podspec::validate_node_selector(errors, &path.field("nodeSelector"), selector);
    }
}

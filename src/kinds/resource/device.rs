//! One device that is offered.

use serde_json::{Map, Value};

use super::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, binding_conditions, each, each_once, qualified_name, taint, unknown_features,
};
use crate::base::json::{at, flag, list, map, text};
use crate::base::labels::dns_subdomain_error;
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};

/// Values of all attributes of a device.
const VALUES_MAX: usize = 48;
const TAINTS_MAX: usize = 16;
const COUNTER_USES_MAX: usize = 2;
const COUNTERS_MAX: usize = 32;
const OPTIONS_MAX: usize = 10;
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

/// Whether a slice with it may have fewer devices.
pub(super) fn is_advanced(device: &Value) -> bool {
    let has_list = |attribute: &Value| LISTS.iter().any(|key| attribute.get(*key).is_some());
    !list(device, "taints").is_empty()
        || !list(device, "consumesCounters").is_empty()
        || map(device, "attributes").is_some_and(|all| all.values().any(has_list))
}

/// The ways in which it is said where something is.
pub(super) fn nodes(errors: &mut Errors, path: &Path<'_>, of: &Value, empty: &str) -> Vec<&'static str> {
    let mut said = Vec::new();
    match at(of, "nodeName").and_then(Value::as_str) {
        None => {}
        Some("") => errors.push(field::invalid(path.field("nodeName"), "", empty)),
        Some(name) => {
            said.push("`nodeName`");
            errors.extend(dns_subdomain_error(name).map(|why| field::invalid(path.field("nodeName"), name, why)));
        }
    }
    if at(of, "nodeSelector").is_some_and(Value::is_object) {
        said.push("`nodeSelector`");
    }
    match at(of, "allNodes") {
        Some(Value::Bool(true)) => said.push("`allNodes`"),
        Some(Value::Bool(false)) => {
            errors.push(field::invalid(path.field("allNodes"), false, "must be either unset or set to true"));
        }
        _ => {}
    }
    said
}

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, device: &Value, has_nodes: bool) {
    check::dns_label(errors, &path.field("name"), text(device, "name"));
    let nothing = Map::new();
    let of = |key: &str| map(device, key).unwrap_or(&nothing);
    let (attributes, capacity) = (of("attributes"), of("capacity"));
    if attributes.len() + capacity.len() > ATTRIBUTES_MAX {
        let why = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.push(field::invalid(path, attributes.len() + capacity.len(), why));
        return;
    }
    let count = |of: &Value| LISTS.iter().map(|key| list(of, key).len()).sum::<usize>().max(1);
    let values: usize = attributes.values().map(count).sum();
    if values > VALUES_MAX {
        let why = format!("the total number of attribute values must not exceed {VALUES_MAX}");
        errors.push(field::invalid(path, values, why));
        return;
    }
    let base = path.field("attributes");
    for (name, value) in attributes {
        qualified_name(errors, &base, name);
        attribute(errors, &base.key(name), value);
    }
    let base = path.field("capacity");
    for (name, value) in capacity {
        qualified_name(errors, &base, name);
        capacity_policy(errors, &base.key(name), value, flag(device, "allowMultipleAllocations"));
    }
    each(errors, &path.field("taints"), list(device, "taints"), TAINTS_MAX, taint);
    let set = |of: &Value| text(of, "counterSet").to_owned();
    let uses = list(device, "consumesCounters");
    each_once(errors, &path.field("consumesCounters"), uses, COUNTER_USES_MAX, set, |errors, path, of| {
        counters(errors, path, "counterSet", of);
        unknown_features(errors, path, of, &["compatibilityGroups"]);
    });
    where_it_is(errors, path, device, has_nodes);
    binding_conditions(errors, path, device);
    unknown_features(errors, path, device, &["nodeAllocatableResources"]);
}

fn where_it_is(errors: &mut Errors, path: &Path<'_>, device: &Value, has_nodes: bool) {
    if !has_nodes {
        let given = ["nodeName", "nodeSelector", "allNodes"].iter().any(|key| device.get(*key).is_some());
        if given {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in \
                       the ResourceSlice spec";
            errors.push(field::invalid(path, Value::Null, why));
        }
        return;
    }
    let said = nodes(errors, path, device, "must not be empty");
    if let Some(selector) = at(device, "nodeSelector").filter(|s| s.is_object()) {
        podspec::validate_node_selector(errors, &path.field("nodeSelector"), selector);
    }
    let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true \
               in the ResourceSlice spec";
    match &said[..] {
        [] => errors.push(field::required(path, why)),
        [_] => {}
        said => errors.push(field::invalid(path, format!("{{{}}}", said.join(", ")), why)),
    }
}

/// Counters under a name of their set.
pub(super) fn counters(errors: &mut Errors, path: &Path<'_>, key: &str, set: &Value) {
    let (name, path_of_name) = (text(set, key), path.field(key));
    if check::given(errors, &path_of_name, name) {
        check::dns_label(errors, &path_of_name, name);
    }
    let path = path.field("counters");
    match map(set, "counters").filter(|counters| !counters.is_empty()) {
        None => errors.push(field::required(&path, "")),
        Some(counters) if counters.len() > COUNTERS_MAX => {
            errors.push(field::too_many(&path, counters.len(), COUNTERS_MAX));
        }
        Some(counters) => counters.keys().for_each(|name| check::dns_label(errors, &path, name)),
    }
}

fn attribute(errors: &mut Errors, path: &Path<'_>, attribute: &Value) {
    let keys = ["bool", "int", "string", "version"].iter().chain(&LISTS);
    let given = keys.filter(|key| attribute.get(**key).is_some_and(|value| !value.is_null())).count();
    let is_short = |errors: &mut Errors, path: &Path<'_>, value: &Value| {
        if value.as_str().is_some_and(|text| text.len() > ATTRIBUTE_BYTES_MAX) {
            errors.push(field::too_long(path, ATTRIBUTE_BYTES_MAX));
        }
    };
    let is_version = |errors: &mut Errors, path: &Path<'_>, value: &Value| {
        if !value.as_str().is_some_and(is_semantic_version) {
            errors.push(field::invalid(path, value.clone(), "must be a string compatible with semver.org spec 2.0.0"));
        }
        is_short(errors, path, value);
    };
    if let Some(value) = attribute.get("string") {
        is_short(errors, &path.field("string"), value);
    }
    if let Some(value) = attribute.get("version").filter(|v| !v.is_null()) {
        is_version(errors, &path.field("version"), value);
    }
    each(errors, &path.field("strings"), list(attribute, "strings"), VALUES_MAX, is_short);
    each(errors, &path.field("versions"), list(attribute, "versions"), VALUES_MAX, is_version);
    match given {
        1 => {}
        0 => errors.push(field::invalid(path, "", "exactly one value must be specified")),
        _ => errors.push(field::invalid(path, attribute.clone(), "exactly one value must be specified")),
    }
}

/// `1.2.3`, with identifiers of an earlier release and of a build where there are some.
fn is_semantic_version(text: &str) -> bool {
    let is_number = |part: &str| part == "0" || !part.starts_with('0') && is_digits(part);
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, early) = rest.split_once('-').map_or((rest, None), |(core, early)| (core, Some(early)));
    let is_early = |part: &str| is_word(part) && (!is_digits(part) || is_number(part));
    core.split('.').count() == 3
        && core.split('.').all(is_number)
        && early.is_none_or(|early| early.split('.').all(is_early))
        && build.is_none_or(|build| build.split('.').all(is_word))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn capacity_policy(errors: &mut Errors, path: &Path<'_>, capacity: &Value, is_shared: bool) {
    let Some(policy) = capacity.get("requestPolicy").filter(|p| p.is_object()) else { return };
    let path = path.field("requestPolicy");
    if !is_shared {
        errors.push(field::forbidden(&path, "allowMultipleAllocations must be true"));
        return;
    }
    let quantity = |of: &Value, key: &str| text(of, key).parse::<Quantity>().ok();
    let value = quantity(capacity, "value").unwrap_or(Quantity::from_units(0));
    let (values, range) = (list(policy, "validValues"), policy.get("validRange").filter(|r| r.is_object()));
    let key = match (values.is_empty(), range) {
        (false, Some(_)) => {
            let why = r#"exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time"#;
            errors.push(field::forbidden(&path, why));
            return;
        }
        (true, None) => return,
        (false, None) => "validValues",
        (true, Some(_)) => "validRange",
    };
    let Some(default) = quantity(policy, "default") else {
        errors.push(field::required(path.field("default"), format!("required when {key} is defined")));
        return;
    };
    let path = path.field(key);
    match range {
        None => options(errors, &path, values, &default, &value),
        Some(range) => {
            let [min, max, step] = ["min", "max", "step"].map(|key| quantity(range, key));
            match min {
                None => errors.push(field::required(path.field("min"), "required when validRange is defined")),
                Some(min) => steps(errors, &path, (&min, max.as_ref(), step.as_ref()), &default, &value),
            }
        }
    }
}

fn options(errors: &mut Errors, path: &Path<'_>, values: &[Value], default: &Quantity, capacity: &Quantity) {
    let parsed = |value: &Value| value.as_str().and_then(|text| text.parse::<Quantity>().ok());
    for (i, pair) in values.windows(2).enumerate().take(OPTIONS_MAX) {
        if parsed(&pair[0]) > parsed(&pair[1]) {
            errors.push(field::invalid(path.index(i + 1), pair[1].clone(), "values must be sorted in ascending order"));
        }
    }
    let key = |value: &Value| parsed(value).map(|q| q.to_string()).unwrap_or_default();
    each_once(errors, path, values, OPTIONS_MAX, key, |errors, path, value| {
        if parsed(value).is_some_and(|option| option > *capacity) {
            errors.push(field::invalid(
                path,
                value.clone(),
                format!("option is larger than capacity value: {capacity}"),
            ));
        }
    });
    if !values.iter().any(|value| parsed(value).as_ref() == Some(default)) {
        let why = "default value is not valid according to the requestPolicy";
        errors.push(field::invalid(path, default.to_string(), why));
    }
}

fn steps(
    errors: &mut Errors,
    path: &Path<'_>,
    (min, max, step): (&Quantity, Option<&Quantity>, Option<&Quantity>),
    default: &Quantity,
    capacity: &Quantity,
) {
    let mut refuse = |key: &str, value: &Quantity, why: String| {
        errors.push(field::invalid(path.field(key), value.to_string(), why));
    };
    if min > capacity {
        refuse("min", min, format!("min is larger than capacity value: {capacity}"));
    }
    if default < min {
        refuse("default", default, format!("default is less than min: {min}"));
    }
    if let Some(max) = max {
        if min > max {
            refuse("max", min, format!("min is larger than max: {max}"));
        }
        if max > capacity {
            refuse("max", max, format!("max is larger than capacity value: {capacity}"));
        }
        if default > max {
            refuse("default", default, format!("default is more than max: {max}"));
        }
    }
    let Some(step) = step else { return };
    if step.is_negative() || step.milli() <= 0 {
        refuse("step", step, "must be greater than zero".into());
        return;
    }
    let one = *min + *step;
    if one > *capacity {
        refuse("step", step, format!("one step {one} is larger than capacity value: {capacity}"));
    }
    for value in [Some(default), max].into_iter().flatten() {
        let from_min = i128::from(value.milli()) - i128::from(min.milli());
        if from_min % i128::from(step.milli()) != 0 {
            refuse("step", value, format!("value is not a multiple of a given step ({step}) from ({min})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semantic() {
        for right in ["0.0.0", "1.2.3", "1.2.3-alpha.1", "1.2.3-0a.b-c+build.01", "10.20.30+x"] {
            assert!(is_semantic_version(right), "{right}");
        }
        for wrong in ["", "x", "1.2", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "1.2.3-a..b", "1.2.3+a_b"] {
            assert!(!is_semantic_version(wrong), "{wrong}");
        }
    }
}

//! LimitRange: what containers and pods of a namespace ask for where they say nothing, and the least and most they may ask
//! for. The admission plugin LimitRanger applies it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use linkme::distributed_slice;
use serde_json::{Map, Value};

use super::podspec;
use crate::base::json::{list, list_mut, map, text};
use crate::base::labels::label_key_error;
use crate::base::quantity::Quantity;
use crate::kinds::check::Path;
use crate::kinds::core::resourcequota;
use crate::kinds::field::{self, Errors};
use crate::kinds::table;
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "LimitRange",
    plural: "limitranges",
    singular: "limitrange",
    short_names: &["limits"],
    schema: "io.k8s.api.core.v1.LimitRange",
    columns: COLUMNS,
    row: |range, _| vec![table::name(range), text(range, "metadata.creationTimestamp").into()],
    create_on_update: true,
    strategy: Strategy { default, validate, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"limits":[{"type":"Container","max":{"cpu":"2"}}]}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    Column { name: "Created At", kind: "date", format: "", priority: 0, description: "When it was created." },
];

/// What an item has a list of amounts for.
const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
const TYPES: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];

/// The default limit of a container is the most it may have; the default request is that limit, else the least it may have.
fn default(range: &mut Value) {
    for item in list_mut(range, "spec.limits").into_iter().flatten() {
        if text(item, "type") == "Container" {
            fill(item, "default", &["max"]);
            fill(item, "defaultRequest", &["default", "min"]);
        }
        for name in LISTS {
            if let Some(amounts) = item.get_mut(name) {
                podspec::default_resource_list(amounts);
            }
        }
    }
}

fn fill(item: &mut Value, name: &str, from: &[&str]) {
    let mut amounts = map(item, name).cloned().unwrap_or_default();
    for (key, amount) in from.iter().filter_map(|f| map(item, f)).flatten() {
        amounts.entry(key.clone()).or_insert_with(|| amount.clone());
    }
    if let Some(item) = item.as_object_mut().filter(|_| !amounts.is_empty()) {
        item.insert(name.to_owned(), amounts.into());
    }
}

fn validate(range: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    let limits = spec.field("limits");
    let mut seen = HashSet::new();
    for (i, item) in list(range, "spec.limits").iter().enumerate() {
        let path = limits.index(i);
        let (type_path, of_type) = (path.field("type"), text(item, "type"));
        if let Some(why) = label_key_error(of_type) {
            errors.push(field::invalid(&type_path, of_type, why));
        } else if !of_type.contains('/') && !TYPES.contains(&of_type) {
            errors.push(field::invalid(&type_path, of_type, "must be a standard limit type or fully qualified"));
        }
        if !seen.insert(of_type) {
            errors.push(field::duplicate(&type_path, of_type));
        }
        validate_item(&mut errors, &path, of_type, item);
    }
    errors
}

/// The amounts of one item by the name of their list.
type Amounts<'a> = BTreeMap<&'static str, BTreeMap<&'a str, Quantity>>;

fn validate_item(errors: &mut Errors, path: &Path<'_>, of_type: &str, item: &Value) {
    let mut amounts = Amounts::new();
    for name in LISTS {
        let given: Option<&Map<String, Value>> = map(item, name).filter(|m| !m.is_empty());
        let list_path = path.field(name);
        if of_type == "Pod" && matches!(name, "default" | "defaultRequest") {
            if given.is_some() {
                errors.push(field::forbidden(&list_path, "may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for (key, amount) in given.into_iter().flatten() {
            let wrong = match of_type {
                "Pod" | "Container" => podspec::resource_name_error(key),
                _ => resourcequota::standard_name_error(key),
            };
            errors.extend(wrong.map(|why| field::invalid(&list_path.key(key), key.as_str(), why)));
            if let Some(amount) = amount.as_str().and_then(|a| a.parse().ok()) {
                amounts.entry(name).or_default().insert(key, amount);
            }
        }
    }
    let has = |name: &str| map(item, name).is_some_and(|m| m.contains_key("storage"));
    if of_type == "PersistentVolumeClaim" && !has("min") && !has("max") {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(field::required(&path.field("limits"), why));
    }
    let keys: BTreeSet<&str> = amounts.values().flat_map(|m| m.keys().copied()).collect();
    for key in keys {
        compare(errors, path, key, &amounts);
    }
}

/// What the amounts of one resource say against each other.
fn compare(errors: &mut Errors, path: &Path<'_>, key: &str, amounts: &Amounts<'_>) {
    let get = |name: &str| amounts.get(name).and_then(|m| m.get(key)).copied();
    let (min, max, limit, request) = (get("min"), get("max"), get("default"), get("defaultRequest"));
    // Each row: where it is told, its value, the smaller one in words, the larger one in words.
    let ordered = [
        ("min", min, ("min", min), ("max", max)),
        ("defaultRequest", request, ("min", min), ("default request", request)),
        ("defaultRequest", request, ("default request", request), ("max", max)),
        ("defaultRequest", request, ("default request", request), ("default limit", limit)),
        ("default", min, ("min", min), ("default", limit)),
        ("default", max, ("default", limit), ("max", max)),
    ];
    for (list, shown, (small, low), (large, high)) in ordered {
        if let (Some(shown), Some(low), Some(high)) = (shown, low, high)
            && low > high
        {
            let why = format!("{small} value {low} is greater than {large} value {high}");
            errors.push(field::invalid(&path.field(list).key(key), shown.to_string(), why));
        }
    }
    if let Some(ratio) = get("maxLimitRequestRatio") {
        check_ratio(errors, &path.field("maxLimitRequestRatio").key(key), ratio, min, max);
    }
    if let (Some(limit), Some(request)) = (limit, request)
        && limit != request
        && !podspec::may_overcommit(key)
    {
        let why = format!("default value {limit} must equal to defaultRequest value {request} in {key}");
        errors.push(field::invalid(&path.field("defaultRequest").key(key), request.to_string(), why));
    }
}

fn check_ratio(errors: &mut Errors, path: &Path<'_>, ratio: Quantity, min: Option<Quantity>, max: Option<Quantity>) {
    if ratio < Quantity::from_units(1) {
        errors.push(field::invalid(path, ratio.to_string(), format!("ratio {ratio} is less than 1")));
    }
    if let (Some(min), Some(max)) = (min, max) {
        let possible = max.as_f64() / min.as_f64();
        if ratio.as_f64() > possible {
            let why = format!("ratio {ratio} is greater than max/min = {possible:.6}");
            errors.push(field::invalid(path, ratio.to_string(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(item: &Value) -> Value {
        let mut range = json!({"metadata": {"name": "l"}, "spec": {"limits": [item]}});
        KIND.default(&mut range);
        range
    }

    #[test]
    fn defaults_of_a_container_come_from_its_bounds() {
        let range = of(&json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "0.0005", "memory": "1Mi"}}));
        let item = &range["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "2"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
        assert_eq!(item["min"]["cpu"], "1m");
        assert_eq!(of(&json!({"type": "Pod", "max": {"cpu": "2"}}))["spec"]["limits"][0].get("default"), None);
    }

    #[test]
    fn bounds_that_contradict_each_other_are_refused_where_kubernetes_says() {
        for (item, want) in [
            (json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "1"}}), &[][..]),
            (json!({"type": "Pod", "default": {"cpu": "1"}}), &["spec.limits[0].default"]),
            (json!({"type": "PersistentVolumeClaim"}), &["spec.limits[0].limits"]),
            (
                json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "3"}}),
                &["spec.limits[0].maxLimitRequestRatio[cpu]"],
            ),
            (
                json!({"type": "Container", "default": {"a.b/c": "2"}, "defaultRequest": {"a.b/c": "1"}}),
                &["spec.limits[0].defaultRequest[a.b/c]"],
            ),
            (json!({"type": "Other", "max": {"cpu": "1"}}), &["spec.limits[0].type"]),
            (json!({"type": "example.com/other", "max": {"storage": "1"}}), &[]),
            (
                json!({"type": "Container", "default": {"storage": "1"}, "defaultRequest": {"storage": "1"}}),
                &["spec.limits[0].default[storage]", "spec.limits[0].defaultRequest[storage]"],
            ),
        ] {
            let errors = KIND.validate(&of(&item));
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), want, "{item}");
        }
    }
}

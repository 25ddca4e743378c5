//! ResourceQuota: how much of what a namespace may hold in all. The admission plugin of that name holds it, a controller
//! counts what is used; what counts how is in [`usage`].

mod names;
mod scope;
pub mod usage;

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Map, Value, json};

use super::podspec;
use crate::base::json::{at, list, map, map_mut, set};
use crate::base::labels::label_key_error;
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy, Subresource};
use names::{COUNTED, is_standard};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &["quota"],
    subresources: &[Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.core.v1.ResourceQuota",
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default: |quota| {
            for path in ["/spec/hard", "/status/hard", "/status/used"] {
                quota.pointer_mut(path).into_iter().for_each(podspec::default_resource_list);
            }
        },
        prepare_create: |quota| set(quota, "status", json!({})),
        validate,
        validate_update: |new, old| {
            let scopes = |q: &Value| -> HashSet<String> {
                list(q, "spec.scopes").iter().filter_map(|s| s.as_str().map(str::to_owned)).collect()
            };
            if scopes(new) == scopes(old) {
                return Errors::new();
            }
            let value = at(new, "spec.scopes").cloned().unwrap_or_default();
            [field::invalid("spec.scopes", value, check::IMMUTABLE)].into()
        },
        validate_status: |new, _| {
            let mut errors = Errors::new();
            let path = Path::root("status");
            validate_amounts(&mut errors, &path.field("hard"), map(new, "status.hard"));
            validate_amounts(&mut errors, &path.field("used"), map(new, "status.used"));
            errors
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"hard":{"pods":"5"}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Request", "What is used of what may be asked for."),
    string("Limit", "What is used of what may be taken at most."),
    table::AGE,
];

fn row(quota: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let (hard, used) = (amounts(quota, "status.hard"), amounts(quota, "status.used"));
    for (name, most) in hard {
        let used = used.get(name).map_or_else(|| "0".to_owned(), ToString::to_string);
        let cells = if name.starts_with("limits.") { &mut limits } else { &mut requests };
        cells.push(format!("{name}: {used}/{most}"));
    }
    vec![table::name(quota), requests.join(", ").into(), limits.join(", ").into(), table::age(quota, now)]
}

/// The amounts at a path of a quota, by name.
pub fn amounts<'q>(quota: &'q Value, path: &str) -> BTreeMap<&'q str, Quantity> {
    let given = map(quota, path).into_iter().flatten();
    given.filter_map(|(name, amount)| Some((name.as_str(), amount.as_str()?.parse().ok()?))).collect()
}

/// Amounts as a quota shows them.
pub fn to_json<'n>(amounts: impl IntoIterator<Item = (&'n str, Quantity)>) -> Value {
    amounts.into_iter().map(|(name, amount)| (name.to_owned(), amount.to_string().into())).collect::<Map<_, _>>().into()
}

/// Why a name is no resource at all, if it is none.
pub fn standard_name_error(name: &str) -> Option<String> {
    let unknown = || !name.contains('/') && name != "storage" && !is_standard(name);
    label_key_error(name)
        .or_else(|| unknown().then(|| "must be a standard resource type or fully qualified".to_owned()))
}

fn validate(quota: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    validate_amounts(&mut errors, &spec.field("hard"), map(quota, "spec.hard"));
    scope::validate(&mut errors, &spec, quota);
    errors
}

fn validate_amounts(errors: &mut Errors, path: &Path<'_>, amounts: Option<&Map<String, Value>>) {
    for (name, amount) in amounts.into_iter().flatten() {
        let path = path.key(name);
        if let Some(why) = standard_name_error(name) {
            errors.push(field::invalid(&path, name.as_str(), why));
        }
        if !name.contains('/') && !is_standard(name) {
            errors.push(field::invalid(&path, name.as_str(), "must be a standard resource for quota"));
        }
        let Some(amount) = amount.as_str().and_then(|a| a.parse::<Quantity>().ok()) else { continue };
        if amount.is_negative() {
            errors.push(field::invalid(&path, amount.to_string(), check::NEGATIVE));
        }
        let is_whole = COUNTED.contains(&name.as_str()) || podspec::is_extended(name);
        if is_whole && amount.milli() % 1000 != 0 {
            errors.push(field::invalid(&path, amount.to_string(), "must be an integer"));
        }
    }
}

/// Sets what is used in the status.
pub fn set_used<'n>(quota: &mut Value, used: impl IntoIterator<Item = (&'n str, Quantity)>) {
    map_mut(quota, "status").insert("used".to_owned(), to_json(used));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(spec: &Value) -> Vec<String> {
        let mut quota = json!({"metadata": {"name": "q"}, "spec": spec});
        KIND.default(&mut quota);
        KIND.validate(&quota).iter().map(|e| e.field.clone()).collect()
    }

    #[test]
    fn amounts_have_known_names_and_whole_numbers_where_things_are_counted() {
        let fine = json!({"hard": {"cpu": "500m", "count/deployments.apps": "3", "requests.example.com/gpu": "2",
            "gold.storageclass.storage.k8s.io/requests.storage": "1Gi", "requests.hugepages-2Mi": "2Mi"}});
        assert!(fields(&fine).is_empty(), "{:?}", fields(&fine));
        for (name, amount) in
            [("pods", "1.5"), ("pods", "-1"), ("count/x", "500m"), ("example.com/x", "1.5"), ("a b/c", "1")]
        {
            assert_eq!(fields(&json!({"hard": {name: amount}})), [format!("spec.hard[{name}]")], "{amount}");
        }
        assert_eq!(fields(&json!({"hard": {"storage": "1"}})), ["spec.hard[storage]"]);
    }

    #[test]
    fn scopes_fit_what_they_are_about_and_each_other() {
        let term = |scope: &str, operator: &str, values: &[&str]| {
            json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions":
                [{"scopeName": scope, "operator": operator, "values": values}]}})
        };
        for (spec, want) in [
            (json!({"hard": {"pods": "1"}, "scopes": ["Terminating", "BestEffort"]}), ""),
            (json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]}), "spec.scopes"),
            (json!({"hard": {"secrets": "1"}, "scopes": ["NotTerminating"]}), "spec.scopes"),
            (json!({"hard": {"count/x": "1"}, "scopes": ["NotTerminating"]}), ""),
            (json!({"hard": {"pods": "1"}, "scopes": ["Terminating", "NotTerminating"]}), "spec.scopes"),
            (term("PriorityClass", "In", &["a"]), ""),
            (term("PriorityClass", "In", &[]), "spec.scopeSelector.matchExpressions.values"),
            (term("PriorityClass", "Exists", &["a"]), "spec.scopeSelector.matchExpressions.values"),
            (term("PriorityClass", "Is", &[]), "spec.scopeSelector.matchExpressions.operator"),
            (term("BestEffort", "DoesNotExist", &[]), "spec.scopeSelector.matchExpressions.operator"),
        ] {
            let found = fields(&spec);
            assert_eq!(found, if want.is_empty() { vec![] } else { vec![want] }, "{spec}");
        }
    }

    #[test]
    fn scopes_stay_as_they_are() {
        let quota = |scopes: &[&str]| json!({"spec": {"scopes": scopes}});
        let change = |new: &[&str], old: &[&str]| KIND.validate_update(&quota(new), &quota(old)).len();
        assert_eq!(change(&["BestEffort", "Terminating"], &["Terminating", "BestEffort"]), 0);
        assert_eq!(change(&["BestEffort"], &["NotBestEffort"]), 1);
    }
}

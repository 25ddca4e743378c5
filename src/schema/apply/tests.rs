//! Laws of server-side apply over random objects.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::bundle::type_of;

const NOW: &str = "2026-01-02T03:04:05Z";

fn put(live: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApplyError> {
    let none = FieldSet::default();
    let writer = Writer { manager, api_version: "v1", subresource: "", now: NOW, reset: &none, versions: None };
    apply(live, config, &type_of("io.k8s.api.core.v1.PodTemplate").unwrap(), &writer, force, &mut Budget::new())
}

/// A configuration: labels, and containers with images, under distinct names.
fn config() -> impl Strategy<Value = Value> {
    let labels = proptest::collection::btree_map("[a-d]", "[xy]", 0..4);
    let containers = proptest::collection::btree_map("[a-e]", "[1-3]", 0..4);
    (labels, containers, any::<u64>()).prop_map(|(labels, containers, turn)| {
        let mut items: Vec<Value> = containers.iter().map(|(n, i)| json!({"name": n, "image": i})).collect();
        if !items.is_empty() {
            let by = (turn % items.len() as u64) as usize;
            items.rotate_left(by);
        }
        json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t", "labels": labels},
            "template": {"spec": {"containers": items}}})
    })
}

fn labels_of(object: &Value) -> Value {
    object["metadata"].get("labels").cloned().unwrap_or_else(|| json!({}))
}

fn owners(object: &Value) -> Managed {
    Managed::read(&object["metadata"]["managedFields"]).unwrap()
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(a in config(), b in config()) {
        let first = put(None, &a, "a", false).unwrap();
        let both = put(Some(&first), &b, "b", true).unwrap();
        let again = put(Some(&both), &b, "b", false).unwrap();
        prop_assert_eq!(both, again);
    }

    #[test]
    fn what_is_applied_is_there(a in config(), b in config()) {
        let first = put(None, &a, "a", false).unwrap();
        let both = put(Some(&first), &b, "b", true).unwrap();
        for (key, value) in b["metadata"]["labels"].as_object().unwrap() {
            prop_assert_eq!(&labels_of(&both)[key], value);
        }
        let wanted: Vec<&Value> = b["template"]["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        let none = vec![];
        let got = both["template"]["spec"]["containers"].as_array().unwrap_or(&none);
        let got: Vec<&Value> = got.iter().map(|c| &c["name"]).filter(|n| wanted.contains(n)).collect();
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn giving_up_removes_only_what_nobody_else_owns(a in config(), b in config()) {
        let first = put(None, &a, "a", false).unwrap();
        let both = put(Some(&first), &b, "b", true).unwrap();
        let empty = json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}});
        let left = put(Some(&both), &empty, "a", false).unwrap();
        prop_assert_eq!(labels_of(&left), labels_of(&b));
        prop_assert!(owners(&left).entries.keys().all(|k| k.manager == "b"));
    }

    #[test]
    fn conflicts_are_exactly_the_other_managers_changed_fields(a in config(), b in config()) {
        // An empty map is owned as a leaf, which is another matter.
        prop_assume!(a["metadata"]["labels"] != json!({}));
        let first = put(None, &a, "a", false).unwrap();
        let differs = |x: &Value, y: &Value| x.as_object().unwrap().iter().any(|(k, v)| y.get(k).is_some_and(|w| w != v));
        let images = |c: &Value| -> Value {
            let items = c["template"]["spec"]["containers"].as_array().unwrap();
            Value::Object(items.iter().map(|c| (c["name"].as_str().unwrap().to_owned(), c["image"].clone())).collect())
        };
        let clash = differs(&labels_of(&a), &labels_of(&b)) || differs(&images(&a), &images(&b));
        let result = put(Some(&first), &b, "b", false);
        prop_assert_eq!(clash, matches!(result, Err(ApplyError::Conflicts(_))), "{:?}", result);
    }
}

#[test]
fn updates_beyond_ten_managers_are_merged() {
    let of = type_of("io.k8s.api.core.v1.ConfigMap").unwrap();
    let none = FieldSet::default();
    let mut live: Option<Value> = None;
    for i in 0..14 {
        let (manager, now) = (format!("m{i:02}"), format!("2026-01-01T00:00:{i:02}Z"));
        let writer =
            Writer { manager: &manager, api_version: "v1", subresource: "", now: &now, reset: &none, versions: None };
        let mut new = live.clone().unwrap_or_else(|| json!({"metadata": {"name": "a"}, "data": {}}));
        new["data"][format!("k{i}")] = "v".into();
        after_update(live.as_ref(), &mut new, &of, &writer).expect("one version");
        live = Some(new);
    }
    let live = live.unwrap();
    let names: Vec<&str> =
        live["metadata"]["managedFields"].as_array().unwrap().iter().filter_map(|e| e["manager"].as_str()).collect();
    assert_eq!(names.len(), 10);
    assert_eq!(names[0], "ancient-changes");
    assert_eq!(live["metadata"]["managedFields"][0]["time"], "2026-01-01T00:00:04Z");
}

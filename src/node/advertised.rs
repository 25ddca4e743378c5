//! Resources that somebody else advertises in the capacity of the Node: all of them is there for pods, as kubelets have it.

use serde_json::{Map, Value};

use crate::base::json::map;

/// What the Node's allocatable amounts lack, or have (`null`) though the capacity has it no more. The node's `own` resources
/// are its own to tell.
pub(super) fn changes(node: &Value, own: &Value) -> Map<String, Value> {
    let none = Map::new();
    let (capacity, allocatable) =
        (map(node, "status.capacity").unwrap_or(&none), map(node, "status.allocatable").unwrap_or(&none));
    let is_own = |name: &String| own.get(name).is_some();
    let lacking = capacity.iter().filter(|(name, amount)| !is_own(name) && allocatable.get(*name) != Some(amount));
    let gone = allocatable.keys().filter(|name| !is_own(name) && !capacity.contains_key(*name));
    let mut all: Map<String, Value> = lacking.map(|(name, amount)| (name.clone(), amount.clone())).collect();
    all.extend(gone.map(|name| (name.clone(), Value::Null)));
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_advertise_is_there_for_pods_until_they_take_it_back() {
        let own = json!({"cpu": "4", "memory": "1Gi"});
        let of = |capacity: Value, allocatable: Value| {
            Value::from(changes(&json!({"status": {"capacity": capacity, "allocatable": allocatable}}), &own))
        };
        assert_eq!(of(json!({"cpu": "4", "e.com/x": "3"}), json!({"cpu": "4"})), json!({"e.com/x": "3"}));
        assert_eq!(of(json!({"e.com/x": "3"}), json!({"e.com/x": "2"})), json!({"e.com/x": "3"}));
        assert_eq!(of(json!({"e.com/x": "3"}), json!({"e.com/x": "3"})), json!({}));
        assert_eq!(of(json!({"cpu": "4"}), json!({"cpu": "2", "e.com/x": "3"})), json!({"e.com/x": null}));
        assert_eq!(Value::from(changes(&json!({}), &own)), json!({}));
    }
}

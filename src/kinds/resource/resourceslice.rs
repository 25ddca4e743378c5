//! ResourceSlice: devices that a driver offers, on one node or on more.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use super::{device, driver_name, each_once, nothing_allocates, pool_name, unknown_features};
use crate::base::json::{at, int, list, map, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Field, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "resource.k8s.io",
    kind: "ResourceSlice",
    plural: "resourceslices",
    singular: "resourceslice",
    namespaced: false,
    generation: Generation::Spec,
    schema: "io.k8s.api.resource.v1.ResourceSlice",
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    fields: &[
        Field { name: "spec.nodeName", get: |slice| text(slice, "spec.nodeName").to_owned() },
        Field { name: "spec.driver", get: |slice| text(slice, "spec.driver").to_owned() },
    ],
    strategy: Strategy {
        validate,
        validate_update: |new, old| {
            let mut errors = Errors::new();
            let spec = Path::root("spec");
            for key in ["pool.name", "driver", "nodeName"] {
                let of = |slice| at(slice, "spec").and_then(|spec| at(spec, key));
                check::immutable(&mut errors, &spec.field(key), of(new), of(old));
            }
            errors
        },
        warnings: |_, old| nothing_allocates(old, "spec"),
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"driver":"d.example.com","nodeName":"n",
        "pool":{"name":"p","generation":1,"resourceSliceCount":1},"devices":[{"name":"d"}]}}"#,
    ..Kind::BASE
});

const DEVICES_MAX: usize = 128;
/// Where devices have taints, shared counters or lists of values.
const DEVICES_MAX_ADVANCED: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COLUMNS: &[Column] = &[
    table::NAME,
    string("Node", "The node of the devices."),
    string("Driver", "Who offers them."),
    string("Pool", "The devices that belong together."),
    table::AGE,
];

fn row(slice: &Value, now: Timestamp) -> Vec<Value> {
    let part = |path: &str| text(slice, path).into();
    let cells = [part("spec.nodeName"), part("spec.driver"), part("spec.pool.name")];
    [table::name(slice)].into_iter().chain(cells).chain([table::age(slice, now)]).collect()
}

fn validate(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, nothing) = (Path::root("spec"), Value::Null);
    let spec = slice.get("spec").unwrap_or(&nothing);
    driver_name(&mut errors, &path.field("driver"), text(spec, "driver"));
    pool(&mut errors, &path.field("pool"), spec);
    nodes(&mut errors, &path, spec);
    let (devices, counters) = (list(spec, "devices"), list(spec, "sharedCounters"));
    if !devices.is_empty() && !counters.is_empty() {
        errors.push(field::invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let max = if devices.iter().any(device::is_advanced) { DEVICES_MAX_ADVANCED } else { DEVICES_MAX };
    let name = |of: &Value| text(of, "name").to_owned();
    let each_has_nodes = at(spec, "perDeviceNodeSelection") == Some(&Value::Bool(true));
    each_once(&mut errors, &path.field("devices"), devices, max, name, |errors, path, one| {
        device::validate(errors, path, one, each_has_nodes);
    });
    each_once(&mut errors, &path.field("sharedCounters"), counters, COUNTER_SETS_MAX, name, |errors, path, set| {
        device::counters(errors, path, "name", set);
    });
    unknown_features(&mut errors, &path, spec, &["partitionTypeAttribute", "skipNodeOperations"]);
    errors
}

fn pool(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    pool_name(errors, &path.field("name"), text(spec, "pool.name"));
    let number = |key: &str| int(spec, &format!("pool.{key}")).unwrap_or(0);
    if number("resourceSliceCount") <= 0 {
        let path = path.field("resourceSliceCount");
        errors.push(field::invalid(path, number("resourceSliceCount"), "must be greater than zero"));
    }
    if number("generation") < 0 {
        let why = "must be greater than or equal to zero";
        errors.push(field::invalid(path.field("generation"), number("generation"), why));
    }
}

/// Where the devices are: said in one way.
fn nodes(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let mut said = device::nodes(errors, path, spec, "must be either unset or set to a non-empty string");
    if let Some(terms) = map(spec, "nodeSelector").map(|_| list(spec, "nodeSelector.nodeSelectorTerms"))
        && terms.len() != 1
    {
        let why = "must have exactly one node selector term";
        errors.push(field::invalid(path.field("nodeSelector.nodeSelectorTerms"), terms.to_vec(), why));
    }
    match at(spec, "perDeviceNodeSelection") {
        Some(Value::Bool(true)) => said.push("`perDeviceNodeSelection`"),
        Some(Value::Bool(false)) => {
            let why = "must be either unset or set to true";
            errors.push(field::invalid(path.field("perDeviceNodeSelection"), false, why));
        }
        _ => {}
    }
    let why = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match &said[..] {
        [] => errors.push(field::required(path, why)),
        [_] => {}
        said => {
            let why = format!("{why}, but multiple fields are set");
            errors.push(field::invalid(path, format!("{{{}}}", said.join(", ")), why));
        }
    }
    if let Some(selector) = at(spec, "nodeSelector").filter(|s| s.is_object()) {
        podspec::validate_node_selector(errors, &path.field("nodeSelector"), selector);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(more: Value) -> Vec<String> {
        let mut spec =
            json!({"driver": "d.example.com", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}});
        spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        validate(&json!({"spec": spec})).iter().map(|e| e.field.clone()).collect()
    }

    #[test]
    fn a_slice_says_in_one_way_where_its_devices_are() {
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]});
        let device = |more: Value| {
            let mut device = json!({"name": "d"});
            device.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            json!([device])
        };
        for right in [
            json!({"nodeName": "n"}),
            json!({"allNodes": true}),
            json!({"nodeSelector": {"nodeSelectorTerms": [term]}}),
            json!({"perDeviceNodeSelection": true, "devices": device(json!({"nodeName": "n"}))}),
        ] {
            assert_eq!(wrong(right.clone()), [""; 0], "{right}");
        }
        for (other, expected) in [
            (json!({}), "spec"),
            (json!({"allNodes": true, "nodeName": "n"}), "spec"),
            (json!({"nodeSelector": {"nodeSelectorTerms": [term, term]}}), "spec.nodeSelector.nodeSelectorTerms"),
            (json!({"nodeName": "n", "devices": device(json!({"allNodes": true}))}), "spec.devices[0]"),
            (json!({"perDeviceNodeSelection": true, "devices": device(json!({}))}), "spec.devices[0]"),
            (json!({"nodeName": "n", "partitionTypeAttribute": "a"}), "spec.partitionTypeAttribute"),
        ] {
            assert_eq!(wrong(other.clone()), [expected], "{other}");
        }
    }

    #[test]
    fn devices_have_one_value_an_attribute_and_policies_within_their_capacity() {
        let with = |device: Value| {
            let mut device = device;
            device["name"] = json!("d");
            wrong(json!({"nodeName": "n", "devices": [device]}))
        };
        let fine = json!({"attributes": {"a": {"string": "s"}, "d.example.com/b": {"versions": ["1.2.3-a+b"]}, "c": {"ints": [1]}},
            "capacity": {"mem": {"value": "1Gi"}}, "taints": [{"key": "t", "effect": "None"}],
            "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": "1"}}}],
            "bindingConditions": ["a"], "bindingFailureConditions": ["b"]});
        assert_eq!(with(fine), [""; 0]);
        let policy = |of: Value| json!({"allowMultipleAllocations": true, "capacity": {"mem": {"value": "10", "requestPolicy": of}}});
        for right in [
            json!({"default": "2", "validValues": ["1", "2", "10"]}),
            json!({"default": "4", "validRange": {"min": "2", "max": "10", "step": "2"}}),
        ] {
            assert_eq!(with(policy(right.clone())), [""; 0], "{right}");
        }
        let at = "spec.devices[0]";
        for (other, expected) in [
            (json!({"attributes": {"a": {}}}), "attributes[a]"),
            (json!({"attributes": {"a": {"int": 1, "bool": true}}}), "attributes[a]"),
            (json!({"attributes": {"a": {"version": "1.2"}}}), "attributes[a].version"),
            (json!({"attributes": {"a-b": {"int": 1}}}), "attributes"),
            (json!({"attributes": {"a/b/c": {"int": 1}}}), "attributes"),
            (
                json!({"capacity": {"m": {"value": "1", "requestPolicy": {"default": "1"}}}}),
                "capacity[m].requestPolicy",
            ),
            (policy(json!({"validValues": ["1"]})), "capacity[mem].requestPolicy.default"),
            (policy(json!({"default": "3", "validValues": ["1", "2"]})), "capacity[mem].requestPolicy.validValues"),
            (
                policy(json!({"default": "3", "validRange": {"min": "2", "step": "2"}})),
                "capacity[mem].requestPolicy.validRange.step",
            ),
            (
                policy(json!({"default": "2", "validRange": {"min": "2", "max": "11"}})),
                "capacity[mem].requestPolicy.validRange.max",
            ),
            (json!({"consumesCounters": [{"counterSet": "s", "counters": {}}]}), "consumesCounters[0].counters"),
            (json!({"taints": [{"key": "t", "effect": "Other"}]}), "taints[0].effect"),
            (json!({"bindingConditions": ["a"]}), "bindingFailureConditions"),
            (json!({"nodeAllocatableResources": {"cpu": {}}}), "nodeAllocatableResources"),
        ] {
            assert_eq!(with(other.clone()), [format!("{at}.{expected}")], "{other}");
        }
        let many: Vec<Value> = (0..129).map(|n| json!({"name": format!("d{n}")})).collect();
        assert_eq!(wrong(json!({"nodeName": "n", "devices": many})), ["spec.devices"]);
    }
}

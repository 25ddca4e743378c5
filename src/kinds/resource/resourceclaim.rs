//! ResourceClaim: devices that somebody wants.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::{claim, claim_status, nothing_allocates};
use crate::base::json::{at, list, list_mut, map_mut};
use crate::kinds::check::{self, Path};
use crate::kinds::field::Errors;
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "resource.k8s.io",
    kind: "ResourceClaim",
    plural: "resourceclaims",
    singular: "resourceclaim",
    subresources: &[Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.resource.v1.ResourceClaim",
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default: |object| {
            if let Some(spec) = object.get_mut("spec") {
                claim::default(spec);
            }
            let results = list_mut(object, "status.allocation.devices.results");
            results.into_iter().flatten().for_each(claim::default_tolerations);
        },
        prepare_create: |object| drop(map_mut(object, "").insert("status".into(), json!({}))),
        validate_create: |object| {
            let mut errors = Errors::new();
            claim::validate(&mut errors, &Path::root("spec"), object.get("spec").unwrap_or(&Value::Null));
            errors
        },
        validate_update: |new, old| {
            let mut errors = Errors::new();
            check::immutable(&mut errors, &Path::root("spec"), new.get("spec"), old.get("spec"));
            errors
        },
        validate_status: claim_status::validate,
        warnings: |_, old| nothing_allocates(old, "spec.devices"),
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"devices":{"requests":[{"name":"r","exactly":{"deviceClassName":"c"}}]}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, string("State", "What has become of it."), table::AGE];

/// The requests of a claim that are for administrators alone.
pub fn admin_requests(object: &Value) -> Vec<usize> {
    object.get("spec").map(|spec| claim::admin_requests(spec).collect()).unwrap_or_default()
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let is_deleted = at(object, "metadata.deletionTimestamp").is_some();
    let is_allocated = at(object, "status.allocation").is_some_and(Value::is_object);
    let states = [
        (is_deleted, "deleted"),
        (!is_allocated && !is_deleted, "pending"),
        (is_allocated, "allocated"),
        (is_allocated && !list(object, "status.reservedFor").is_empty(), "reserved"),
    ];
    let states: Vec<&str> = states.into_iter().filter(|(holds, _)| *holds).map(|(_, state)| state).collect();
    vec![table::name(object), states.join(",").into(), table::age(object, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(errors: &Errors) -> Vec<String> {
        errors.iter().map(|e| e.field.clone()).collect()
    }

    fn claim_of(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "c"}, "spec": {"devices": spec}});
        claim::default(&mut object["spec"]);
        object
    }

    fn wrong(spec: Value) -> Vec<String> {
        let mut errors = Errors::new();
        claim::validate(&mut errors, &Path::root("spec"), &claim_of(spec)["spec"]);
        fields(&errors)
    }

    #[test]
    fn requests_are_of_one_class_or_of_the_first_of_some() {
        let exactly = |more: Value| {
            let mut request = json!({"name": "r", "exactly": {"deviceClassName": "c"}});
            request["exactly"].as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            json!({"requests": [request]})
        };
        assert!(wrong(exactly(json!({"allocationMode": "All", "tolerations": [{"key": "a"}]}))).is_empty());
        assert_eq!(
            wrong(exactly(json!({"allocationMode": "All", "count": 2}))),
            ["spec.devices.requests[0].exactly.count"]
        );
        let feature = exactly(json!({"derivedAttributes": [{"name": "a", "expression": "1"}]}));
        assert_eq!(wrong(feature), ["spec.devices.requests[0].exactly.derivedAttributes"]);
        let both = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}, "firstAvailable": [{"name": "s", "deviceClassName": "c"}]}]});
        assert_eq!(wrong(both), ["spec.devices.requests[0]"]);
        let first = json!({"requests": [{"name": "r", "firstAvailable": [{"name": "s", "deviceClassName": "c"}, {"name": "s", "deviceClassName": ""}]}],
            "constraints": [{"requests": ["r/s"], "matchAttribute": "a.example.com/numa"}, {"requests": ["r/t"]}],
            "config": [{"requests": ["r"], "opaque": {"driver": "d.example.com", "parameters": {"a": 1}}}, {"opaque": {"driver": "d", "parameters": []}}]});
        assert_eq!(
            wrong(first),
            [
                "spec.devices.requests[0].firstAvailable[1].deviceClassName",
                "spec.devices.requests[0].firstAvailable[1]",
                "spec.devices.constraints[1].requests[0]",
                "spec.devices.constraints[1]",
                "spec.devices.config[1].opaque.parameters",
            ]
        );
    }

    #[test]
    fn a_status_is_of_the_claims_own_requests_and_an_allocation_stays() {
        let mut claim = claim_of(json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}));
        claim["status"] = json!({});
        let with = |status: Value| {
            let mut new = claim.clone();
            new["status"] = status;
            new
        };
        let result = json!({"request": "r", "driver": "d.example.com", "pool": "p", "device": "d"});
        let allocation = json!({"devices": {"results": [result]}});
        let allocated = with(
            json!({"allocation": allocation, "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}],
            "devices": [{"driver": "d.example.com", "pool": "p", "device": "d", "networkData": {"ips": ["10.0.0.1/24"]}}]}),
        );
        assert!(claim_status::validate(&allocated, &claim).is_empty());
        let mut other = allocated.clone();
        other["status"]["allocation"]["devices"]["results"][0]["device"] = json!("e");
        assert_eq!(fields(&claim_status::validate(&other, &allocated)), ["status.devices[0]", "status.allocation"]);
        let stray = with(
            json!({"allocation": {"devices": {"results": [{"request": "z", "driver": "d", "pool": "p", "device": "d",
            "shareID": "x"}], "config": [{"source": "Other", "opaque": {"driver": "d", "parameters": {}}}]}}}),
        );
        assert_eq!(
            fields(&claim_status::validate(&stray, &claim)),
            [
                "status.allocation.devices.results[0].request",
                "status.allocation.devices.results[0].shareID",
                "status.allocation.devices.config[0].source",
            ]
        );
        let mut ending = allocated.clone();
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let before = ending.clone();
        ending["status"]["reservedFor"] = json!([{"resource": "pods", "name": "q", "uid": "v"}]);
        assert_eq!(fields(&claim_status::validate(&ending, &before)), ["status.reservedFor"]);
    }
}

//! Cases from recorded answers of Kubernetes, and properties.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::bundle::type_of;
use super::{decode, zero};
use crate::base::budget::{Budget, Exceeded};

fn run(kind: &str, mut value: Value) -> (Value, Vec<String>) {
    let of = type_of(&format!("io.k8s.api.{kind}")).unwrap();
    let unknown = decode(&mut value, &of, &mut Budget::new()).unwrap_or_else(|e| panic!("{e}"));
    (value, unknown)
}

fn refused(kind: &str, mut value: Value) -> String {
    let of = type_of(&format!("io.k8s.api.{kind}")).unwrap();
    decode(&mut value, &of, &mut Budget::new()).unwrap_err().message
}

#[test]
fn drops_unknown_null_and_empty() {
    let (pod, unknown) = run(
        "core.v1.Pod",
        json!({
            "metadata": {"name": "p", "labels": {}, "annotations": null, "bogus": 1},
            "spec": {"containers": [{"name": "c", "image": "", "args": [], "foo": {"x": 1}, "securityContext": {}}], "hostNetwork": false},
            "extra": 1,
        }),
    );
    assert_eq!(unknown, ["extra", "metadata.bogus", "spec.containers[0].foo"]);
    assert_eq!(
        pod,
        json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {}, "securityContext": {}}]},
            "status": {},
        })
    );
}

#[test]
fn writes_what_go_always_writes() {
    assert_eq!(
        zero(&type_of("io.k8s.api.apps.v1.Deployment").unwrap()),
        json!({"metadata": {}, "spec": {"selector": null, "strategy": {},
            "template": {"metadata": {}, "spec": {"containers": null}}}, "status": {}})
    );
    assert_eq!(run("rbac.v1.Role", json!({})).0, json!({"metadata": {}, "rules": null}));
    let mut role = run("rbac.v1.Role", json!({"rules": []})).0;
    assert_eq!(role, json!({"metadata": {}, "rules": []}), "given, and so somebody's");
    crate::schema::settle(&mut role, &type_of("io.k8s.api.rbac.v1.Role").unwrap());
    assert_eq!(role, json!({"metadata": {}, "rules": null}));
    assert_eq!(
        run("core.v1.Service", json!({})).0,
        json!({"metadata": {}, "spec": {}, "status": {"loadBalancer": {}}})
    );
}

#[test]
fn refuses_wrong_types_in_gos_words() {
    assert_eq!(
        refused("apps.v1.Deployment", json!({"spec": {"replicas": "3"}})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        refused("apps.v1.Deployment", json!({"spec": {"replicas": 2147483648u64}})),
        "json: cannot unmarshal number 2147483648 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let bad = [
        ("apps.v1.Deployment", json!({"spec": {"replicas": 1.0}})),
        ("core.v1.Pod", json!({"spec": {"containers": {}}})),
        ("core.v1.Pod", json!({"spec": {"containers": [5]}})),
        ("core.v1.Pod", json!({"metadata": {"name": 5}})),
        ("core.v1.Pod", json!({"metadata": {"labels": {"a": 5}}})),
        ("core.v1.Pod", json!({"metadata": {"labels": []}})),
        ("core.v1.Pod", json!({"metadata": {"creationTimestamp": "yesterday"}})),
        ("core.v1.Pod", json!({"metadata": {"creationTimestamp": ""}})),
        ("core.v1.Pod", json!({"metadata": {"creationTimestamp": "2020-13-01T00:00:00Z"}})),
        ("core.v1.Pod", json!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00"}})),
        ("core.v1.Pod", json!({"metadata": {"creationTimestamp": "2020-01-01t00:00:00z"}})),
        ("core.v1.Service", json!({"spec": {"ports": [{"targetPort": true}]}})),
        ("core.v1.Service", json!({"spec": {"ports": [{"targetPort": 99999999999u64}]}})),
        ("core.v1.ResourceQuota", json!({"spec": {"hard": {"cpu": "1x"}}})),
        ("core.v1.ResourceQuota", json!({"spec": {"hard": {"cpu": ""}}})),
        ("core.v1.ResourceQuota", json!({"spec": {"hard": {"cpu": true}}})),
        ("core.v1.Secret", json!({"data": {"a": "***"}})),
        ("core.v1.Secret", json!({"data": {"a": "YQ"}})),
        ("core.v1.Secret", json!({"data": {"a": "a b="}})),
        ("core.v1.ConfigMap", json!({"data": "x"})),
        ("coordination.v1.Lease", json!({"spec": {"renewTime": "2020-01-01T00:00:00Z"}})),
        ("core.v1.ConfigMap", json!([])),
    ];
    for (kind, value) in bad {
        refused(kind, value);
    }
}

#[test]
fn scalars_take_their_canonical_form() {
    let (quota, _) = run(
        "core.v1.ResourceQuota",
        json!({"spec": {"hard": {"a": 5, "b": 0.5, "c": " 1", "d": "0.1n", "e": ".5", "f": "5.", "g": null, "h": "1e9"}}}),
    );
    assert_eq!(
        quota["spec"]["hard"],
        json!({"a": "5", "b": "500m", "c": "1", "d": "1n", "e": "500m", "f": "5", "g": "0", "h": "1e9"})
    );
    let (secret, _) = run("core.v1.Secret", json!({"data": {"a": [104, 105], "b": null, "c": "", "d": "aG\nk="}}));
    assert_eq!(secret["data"], json!({"a": "aGk=", "b": "", "c": "", "d": "aGk="}));
    let (pod, _) = run("core.v1.Pod", json!({"metadata": {"creationTimestamp": "2020-01-01T02:00:00.123+02:00"}}));
    assert_eq!(pod["metadata"]["creationTimestamp"], "2020-01-01T00:00:00Z");
    let (lease, _) = run(
        "coordination.v1.Lease",
        json!({"spec": {"renewTime": "2020-02-30T00:00:00.000000Z".replace("02-30", "02-29")}}),
    );
    assert_eq!(lease["spec"]["renewTime"], "2020-02-29T00:00:00.000000Z");
    let (service, _) = run(
        "core.v1.Service",
        json!({"spec": {"ports": [{"port": 80, "targetPort": null}, {"port": 81, "targetPort": "http"}]}}),
    );
    assert_eq!(service["spec"]["ports"], json!([{"port": 80, "targetPort": 0}, {"port": 81, "targetPort": "http"}]));
    let minus_zero: Value = serde_json::from_str(r#"{"spec":{"replicas":-0}}"#).unwrap();
    assert_eq!(run("apps.v1.Deployment", minus_zero).0["spec"]["replicas"], 0);
}

#[test]
fn null_items_become_zero_values() {
    let (pod, _) =
        run("core.v1.Pod", json!({"spec": {"containers": [{"name": "c", "command": ["a", null]}], "volumes": [null]}}));
    assert_eq!(pod["spec"]["containers"][0]["command"], json!(["a", ""]));
    assert_eq!(pod["spec"]["volumes"], json!([{"name": ""}]));
}

#[test]
fn a_quarter_of_a_million_unknown_fields_are_a_hundred_warnings() {
    let many: serde_json::Map<String, Value> = (0..250_000).map(|i| (format!("x{i}"), json!(1))).collect();
    let (value, unknown) = run("core.v1.Pod", json!({"spec": many}));
    assert_eq!((unknown.len(), &value["spec"]), (100, &json!({"containers": null})));
    let long = json!({"metadata": {"managedFields": [{"k".repeat(1_000_000): 1}]}});
    assert!(run("core.v1.Pod", long).1[0].len() < 400);
}

#[test]
fn items_that_are_completed_are_counted() {
    let of = type_of("io.k8s.api.core.v1.Pod").unwrap();
    for item in [json!(null), json!({})] {
        let mut pod = json!({"spec": {"containers": vec![item; 100_000]}});
        let error = decode(&mut pod, &of, &mut Budget::new()).unwrap_err();
        assert_eq!(error.limit, Some(Exceeded::Bytes), "{error}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..100).prop_map(Value::from),
        "[a-z0-9]{0,3}".prop_map(Value::from)
    ];
    let names = "metadata|spec|status|template|containers|name|labels|ports|containerPort|env|value|resources|limits|cpu|volumes|secret|x";
    leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(names, inner, 0..5).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_twice_is_decoding_once(value in any_json()) {
        for kind in ["core.v1.Pod", "apps.v1.Deployment", "core.v1.Service"] {
            let of = type_of(&format!("io.k8s.api.{kind}")).unwrap();
            let mut once = value.clone();
            if decode(&mut once, &of, &mut Budget::new()).is_ok() {
                let mut twice = once.clone();
                prop_assert_eq!(decode(&mut twice, &of, &mut Budget::new()), Ok(vec![]));
                prop_assert_eq!(&once, &twice);
            }
        }
    }
}

//! Plans of slices: they settle, change little, and never hold too much.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::{Value, json};

use super::slice::{Step, plan};
use super::{Port, Target, classic};
use crate::base::object::Object;

fn service() -> Object {
    let value = json!({"metadata": {"name": "s", "namespace": "n", "uid": "u", "labels": {"l": "1"}}});
    Object::new("s".into(), 1, &value, Box::default())
}

fn target(i: usize, ready: bool) -> Target {
    Target {
        addresses: vec![format!("10.0.{}.{}", i / 250, i % 250 + 1).parse().unwrap()],
        ports: vec![Port { name: "http".into(), port: 80, protocol: "TCP".into(), app_protocol: None }],
        pod_ready: ready,
        terminating: false,
        node: "node".into(),
        hostname: None,
        reference: json!({"kind": "Pod", "name": format!("p{i:04}"), "uid": format!("u{i}")}),
    }
}

/// Carries out the plan.
fn apply(slices: &mut Vec<Value>, targets: &[Target]) -> usize {
    let steps = plan(&service(), &ServiceSpec::default(), targets, &BTreeMap::new(), slices);
    let count = steps.len();
    for step in steps {
        match step {
            Step::Create(mut new) => {
                new["metadata"]["name"] = format!("s-{}", slices.len() + 1000).into();
                slices.push(new);
            }
            Step::Update(name, new) => *slices.iter_mut().find(|s| s["metadata"]["name"] == *name).unwrap() = new,
            Step::Delete(name) => slices.retain(|s| s["metadata"]["name"] != *name),
        }
    }
    count
}

#[test]
fn slices_hold_a_hundred_and_change_one_at_a_time() {
    let mut slices = Vec::new();
    assert_eq!(apply(&mut slices, &[]), 1);
    assert!(slices[0]["endpoints"].is_null() && slices[0]["ports"].is_null());
    assert_eq!(apply(&mut slices, &[]), 0);
    let mut targets: Vec<Target> = (0..250).map(|i| target(i, true)).collect();
    apply(&mut slices, &targets);
    let sizes: Vec<usize> = slices.iter().map(|s| s["endpoints"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    assert_eq!(apply(&mut slices, &targets), 0);
    targets[120].pod_ready = false;
    assert_eq!(apply(&mut slices, &targets), 1);
    let all = slices.iter().flat_map(|s| s["endpoints"].as_array().unwrap());
    assert_eq!(all.filter(|e| e["conditions"]["ready"] == false).count(), 1);
    assert_eq!(slices[0]["metadata"]["labels"]["l"], "1");
    apply(&mut slices, &[]);
    assert_eq!(slices.len(), 1);
    assert_eq!(apply(&mut slices, &[]), 0);
}

#[test]
fn endpoints_divide_by_ports_and_readiness() {
    let mut other = target(3, true);
    other.ports[0].port = 8080;
    let subsets = classic::subsets(&ServiceSpec::default(), &[target(1, true), target(2, false), other]);
    assert_eq!(subsets.len(), 2);
    assert_eq!(subsets[0]["addresses"][0]["ip"], "10.0.0.2");
    assert_eq!(subsets[0]["notReadyAddresses"][0]["ip"], "10.0.0.3");
    assert_eq!(subsets[1]["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
}

//! Plans of single runs; whole rollouts are driven by the simulation.

use std::sync::Arc;

use serde_json::{Value, json};

use super::observed::Observed;
use super::plan::{Plan, Step, plan};
use super::sets::Set;
use super::{DESIRED, HISTORY, MAX, REVISION};
use crate::base::object::Object;

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn set(name: &str, image: &str, replicas: i32, available: i32, revision: &str, desired: i32) -> Set {
    let value = json!({
        "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {REVISION: revision, DESIRED: desired.to_string(), MAX: (desired + desired / 4 + 1).to_string()}},
        "spec": {"replicas": replicas, "selector": {}, "template": template(image)},
        "status": {"replicas": replicas, "availableReplicas": available, "readyReplicas": available},
    });
    Set::new(Arc::new(Object::new(name.into(), 1, &value, Box::default()))).unwrap()
}

fn observe(spec: Value, sets: Vec<Set>) -> Observed {
    let mut value = json!({"metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 1},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template("new")}});
    for (k, v) in spec.as_object().unwrap() {
        value["spec"][k] = v.clone();
    }
    let object = Arc::new(Object::new("d".into(), 1, &value, Box::default()));
    let deployment = object.typed().unwrap();
    let now = "2026-01-01T00:00:10Z".parse().unwrap();
    Observed { deployment, template: template("new"), sets, old_pods_run: false, now, object }
}

fn scales(plan: &Plan) -> Vec<(&str, i32)> {
    let one = |s| match s {
        &Step::Scale { ref name, to, .. } => Some((name.as_str(), to)),
        Step::Create { .. } | Step::Annotate { .. } | Step::MinReady { .. } | Step::Delete { .. } => None,
    };
    plan.steps.iter().filter_map(one).collect()
}

#[test]
fn a_rollout_begins_with_a_set_of_the_surge() {
    let p = plan(&observe(json!({"replicas": 10}), vec![set("old", "old", 10, 10, "1", 10)]));
    let [Step::Create { set, replicas: 3 }] = p.steps.as_slice() else { panic!("{:?}", p.steps) };
    assert_eq!(p.revision.as_deref(), Some("2"));
    assert_eq!(set["metadata"]["annotations"][REVISION], "2");
    assert_eq!(set["metadata"]["annotations"][MAX], "13");
    let hash = set["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert_eq!(set["metadata"]["name"], format!("d-{hash}"));
    assert_eq!(set["spec"]["selector"]["matchLabels"]["pod-template-hash"], hash);
    let reasons: Vec<_> = p.status["conditions"].as_array().unwrap().iter().map(|c| c["reason"].clone()).collect();
    assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetCreated"]);
}

#[test]
fn a_scale_during_a_rollout_is_shared_in_proportion() {
    let sets = vec![set("old", "old", 8, 8, "1", 10), set("new", "new", 5, 0, "2", 10)];
    assert_eq!(scales(&plan(&observe(json!({"replicas": 15}), sets))), [("old", 12), ("new", 7)]);
}

#[test]
fn paused_deployments_scale_but_do_not_roll() {
    let spec = json!({"replicas": 4, "paused": true});
    let p = plan(&observe(spec, vec![set("old", "old", 2, 2, "1", 2)]));
    assert_eq!(scales(&p), [("old", 4)]);
    assert!(p.steps.len() == 1 && p.revision.is_none());
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let spec = json!({"replicas": 2, "strategy": {"type": "Recreate"}});
    let p = plan(&observe(spec.clone(), vec![set("old", "old", 2, 2, "1", 2)]));
    assert_eq!(scales(&p), [("old", 0)]);
    let mut o = observe(spec, vec![set("old", "old", 0, 0, "1", 2)]);
    o.old_pods_run = true;
    assert!(plan(&o).steps.is_empty());
    o.old_pods_run = false;
    assert!(matches!(plan(&o).steps.as_slice(), [Step::Create { replicas: 2, .. }]));
}

#[test]
fn an_undo_renumbers_and_old_sets_are_cleaned_up() {
    let sets = vec![set("first", "new", 0, 0, "1", 1), set("second", "old", 1, 1, "2", 1)];
    let p = plan(&observe(json!({"replicas": 1}), sets));
    assert_eq!(p.revision.as_deref(), Some("3"));
    let Some(Step::Annotate { annotations, .. }) = p.steps.first() else { panic!("{:?}", p.steps) };
    assert_eq!((annotations[REVISION].as_str(), annotations[HISTORY].as_str()), ("3", "1"));
    let sets = vec![set("x", "x", 0, 0, "1", 1), set("y", "y", 0, 0, "2", 1), set("new", "new", 1, 1, "3", 1)];
    let p = plan(&observe(json!({"replicas": 1, "revisionHistoryLimit": 1}), sets));
    assert_eq!(p.steps, [Step::Delete { name: "x".into(), uid: "x".into() }]);
}

#[test]
fn progress_times_out() {
    let mut o = observe(json!({"replicas": 1, "progressDeadlineSeconds": 5}), vec![set("new", "new", 1, 0, "1", 1)]);
    let mut value = o.object.value();
    let condition = |reason: &str| {
        json!({"type": "Progressing", "status": "True", "reason": reason, "message": "",
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    value["status"] = json!({"replicas": 1, "updatedReplicas": 1, "conditions": [condition("ReplicaSetUpdated")]});
    o.object = Arc::new(Object::new("d".into(), 1, &value, Box::default()));
    o.deployment = o.object.typed().unwrap();
    let status = plan(&o).status;
    let progressing = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Progressing").unwrap();
    assert_eq!((&progressing["status"], &progressing["reason"]), (&json!("False"), &json!("ProgressDeadlineExceeded")));
}

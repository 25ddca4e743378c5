//! Every change of the pods and ReplicaSets of a rollout, in the order of their revisions, and the bounds at each of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::lab::Lab;

const KINDS: [&str; 2] = ["/api/v1/namespaces/default/pods", "/apis/apps/v1/namespaces/default/replicasets"];

/// How many pods there may be, and how many of them must be available.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub most: u64,
    pub available: usize,
}

/// Watches that write down what they see.
pub struct Recording(Vec<(Child, PathBuf)>);

impl Recording {
    /// Begins with what is there.
    pub fn start(lab: &Lab, name: &str) -> Self {
        let one = |(n, path): (usize, &&str)| {
            let file = lab.path(&format!("{name}-{n}"));
            let mut command = lab.command("kubectl");
            command.args(["get", "--raw", &format!("{path}?watch=true&timeoutSeconds=120")]);
            let out = fs::File::create(&file).unwrap();
            (command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn().unwrap(), file)
        };
        let recording = Self(KINDS.iter().enumerate().map(one).collect());
        lab.until("the watches have begun", || recording.0.iter().all(|(_, f)| fs::metadata(f).unwrap().len() > 0));
        recording
    }

    /// Ends the watches when they have seen what is there now; what they saw, by revision.
    pub fn stop(self, lab: &Lab) -> Vec<Value> {
        let mut events = Vec::new();
        for ((mut child, file), path) in self.0.into_iter().zip(KINDS) {
            lab.until("the watch has seen the newest object", || {
                let all: Value = serde_json::from_str(&lab.kubectl(&["get", "--raw", path])).unwrap();
                let newest = all["items"].as_array().unwrap().iter().map(revision_of).max().unwrap();
                fs::read_to_string(&file).unwrap().contains(&format!("\"resourceVersion\":\"{newest}\""))
            });
            child.kill().unwrap();
            child.wait().unwrap();
            let text = fs::read_to_string(file).unwrap();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            events.extend(whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        events.sort_by_key(revision);
        events
    }
}

fn revision_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn revision(event: &Value) -> u64 {
    revision_of(&event["object"])
}

/// Goes through the changes one by one; the bounds must hold after each one later than `from`. Answers how many those were.
pub fn check(events: &[Value], from: u64, bounds: Bounds) -> usize {
    let (mut pods, mut sets) = (BTreeMap::new(), BTreeMap::new());
    let mut checked = 0;
    for event in events {
        let (object, name) = (&event["object"], event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
        let gone = event["type"] == "DELETED";
        if object["kind"] == "Pod" {
            let conditions = object["status"]["conditions"].as_array();
            let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            pods.insert(name.clone(), ready);
            if gone || !object["metadata"]["deletionTimestamp"].is_null() {
                pods.remove(&name);
            }
        } else {
            sets.insert(name.clone(), object["spec"]["replicas"].as_u64().unwrap());
            if gone {
                sets.remove(&name);
            }
        }
        if revision(event) > from {
            let wanted: u64 = sets.values().sum();
            let available = pods.values().filter(|ready| **ready).count();
            let seen = format!("revision {}, {name}: {pods:?} {sets:?}", revision(event));
            assert!(pods.len() as u64 <= bounds.most && wanted <= bounds.most, "beyond {bounds:?}: {seen}");
            assert!(available >= bounds.available, "below {bounds:?}: {seen}");
            checked += 1;
        }
    }
    checked
}

#[test]
#[should_panic(expected = "below")]
fn a_pod_too_few_is_noticed() {
    let pod = |revision: &str, ready: &str| {
        let condition = serde_json::json!([{"type": "Ready", "status": ready}]);
        let metadata = serde_json::json!({"name": "a", "resourceVersion": revision});
        serde_json::json!({"type": "MODIFIED", "object": {"kind": "Pod", "metadata": metadata, "status": {"conditions": condition}}})
    };
    let bounds = Bounds { most: 1, available: 1 };
    assert_eq!(check(&[pod("1", "False"), pod("2", "True")], 1, bounds), 1);
    check(&[pod("1", "True"), pod("2", "False"), pod("3", "True")], 1, bounds);
}

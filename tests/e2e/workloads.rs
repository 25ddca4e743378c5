//! DaemonSets and StatefulSets with the built-in image, worked with by kubectl.

use crate::lab::Lab;

const DAEMONS: &str = r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: daemons, annotations: {kubernetes.io/change-cause: the first}}
spec:
  selector: {matchLabels: {app: daemons}}
  template:
    metadata: {labels: {app: daemons}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: hello, image: 'amphipod.local/hello', env: [{name: COLOUR, value: red}]}
";

const NUMBERED: &str = r"
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, selector: {app: numbered}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: numbered}
spec:
  replicas: 3
  serviceName: peers
  selector: {matchLabels: {app: numbered}}
  template:
    metadata: {labels: {app: numbered}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: hello, image: 'amphipod.local/hello', env: [{name: COLOUR, value: red}]}
";

fn apply(lab: &Lab, manifest: &str) {
    let path = lab.path("workload.yaml");
    std::fs::write(&path, manifest).unwrap();
    lab.kubectl(&["apply", "-f", path.to_str().unwrap()]);
}

/// What the pods of an application have as COLOUR, by their names.
fn colours(lab: &Lab, app: &str) -> Vec<(String, String)> {
    let pods = lab.json(&["get", "pods", "-l", &format!("app={app}")]);
    let pods = pods["items"].as_array().unwrap().iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null());
    let text = |v: &serde_json::Value| v.as_str().unwrap_or("").to_owned();
    pods.map(|p| (text(&p["metadata"]["name"]), text(&p["spec"]["containers"][0]["env"][0]["value"]))).collect()
}

#[test]
fn a_daemon_set_is_rolled_undone_and_stays_on_a_drained_node() {
    let lab = Lab::start("daem");
    let done = || lab.kubectl(&["rollout", "status", "daemonset/daemons", "--timeout=60s"]);
    apply(&lab, DAEMONS);
    done();
    let first = colours(&lab, "daemons");
    assert_eq!((first.len(), first[0].1.as_str()), (1, "red"));
    lab.kubectl(&["set", "env", "daemonset/daemons", "COLOUR=blue"]);
    done();
    assert_eq!(colours(&lab, "daemons")[0].1, "blue");
    let history = lab.kubectl(&["rollout", "history", "daemonset/daemons"]);
    assert!(history.contains("\n1         the first") && history.contains("\n2 "), "{history}");
    lab.kubectl(&["rollout", "undo", "daemonset/daemons"]);
    done();
    assert_eq!(colours(&lab, "daemons")[0].1, "red");
    let again = lab.kubectl(&["rollout", "undo", "daemonset/daemons", "--to-revision=3"]);
    assert!(again.contains("skipped rollback (current template already matches revision 3)"), "{again}");
    lab.kubectl(&["rollout", "restart", "daemonset/daemons"]);
    done();
    let told = lab.kubectl(&["get", "daemonset", "daemons", "--no-headers"]);
    let cells: Vec<&str> = told.split_whitespace().take(7).collect();
    assert_eq!(cells, ["daemons", "1", "1", "1", "1", "1", "<none>"]);
    let before = colours(&lab, "daemons");
    let node = lab.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    lab.kubectl(&["drain", &node, "--ignore-daemonsets", "--force", "--timeout=60s"]);
    assert_eq!(colours(&lab, "daemons"), before);
    // A node that takes nothing new takes its daemons.
    lab.kubectl(&["delete", "pod", &before[0].0]);
    done();
    assert_ne!(colours(&lab, "daemons"), before);
    lab.kubectl(&["uncordon", &node]);
    lab.kubectl(&["delete", "daemonset", "daemons"]);
    lab.until("its pods are gone", || colours(&lab, "daemons").is_empty());
}

#[test]
fn a_stateful_set_keeps_names_over_updates_and_deletions() {
    let lab = Lab::start("numb");
    let done = || lab.kubectl(&["rollout", "status", "statefulset/numbered", "--timeout=90s"]);
    let all = |colour: &str| {
        let names = ["numbered-0", "numbered-1", "numbered-2"];
        names.map(|name| (name.to_owned(), colour.to_owned())).to_vec()
    };
    apply(&lab, NUMBERED);
    done();
    assert_eq!(colours(&lab, "numbered"), all("red"));
    assert_eq!(
        lab.kubectl(&["exec", "numbered-1", "--", "/amphipod", "version"]).split_whitespace().next(),
        Some("amphipod")
    );
    let address = |pod: &str| lab.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
    let resolved = |pod: &str| {
        let name = format!("{pod}.peers.default.svc.cluster.local");
        lab.inside(&["dig", "+short", "+time=2", "@10.43.0.10", &name]).trim().to_owned()
    };
    lab.until("its name leads to it", || resolved("numbered-1") == address("numbered-1"));
    lab.kubectl(&["delete", "pod", "numbered-1"]);
    done();
    lab.until("its name leads to the new one", || {
        let address = address("numbered-1");
        !address.is_empty() && resolved("numbered-1") == address
    });
    lab.kubectl(&["set", "env", "statefulset/numbered", "COLOUR=blue"]);
    done();
    assert_eq!(colours(&lab, "numbered"), all("blue"));
    let history = lab.kubectl(&["rollout", "history", "statefulset/numbered"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    lab.kubectl(&["rollout", "undo", "statefulset/numbered"]);
    done();
    assert_eq!(colours(&lab, "numbered"), all("red"));
    lab.kubectl(&["rollout", "restart", "statefulset/numbered"]);
    done();
    lab.kubectl(&["scale", "statefulset/numbered", "--replicas=1"]);
    lab.until("the last are gone", || colours(&lab, "numbered") == all("red")[..1]);
    let told = lab.kubectl(&["get", "statefulset", "numbered", "--no-headers"]);
    assert_eq!(told.split_whitespace().take(2).collect::<Vec<_>>(), ["numbered", "1/1"]);
}

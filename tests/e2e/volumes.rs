//! Claims on two nodes, worked with by kubectl: directories that are made where pods are, data that outlives pods, servers
//! and agents, and what pods are told that cannot have what they claim.

use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::busybox;
use crate::cluster::text;
use crate::machines::Machines;

const WAIT: &str = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.1; done";

fn start(name: &str) -> Machines {
    let machines = Machines::prepare(name, 2);
    for machine in &machines.all {
        let directory = machine.path("data/agent/images");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("busybox.tar"), busybox::archive()).unwrap();
    }
    machines.joined_with(&[])
}

fn apply(machines: &Machines, object: &Value) {
    let mut kubectl = machines.command(0, "kubectl").args(["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut kubectl.stdin.take().unwrap(), object.to_string().as_bytes()).unwrap();
    assert!(kubectl.wait().unwrap().success(), "{object}");
}

fn shell(script: &str, more: Value) -> Value {
    let mut container = json!({"name": "c", "image": busybox::IMAGE, "command": ["/bin/busybox", "sh", "-c", script]});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    container
}

fn exec(machines: &Machines, pod: &str, script: &str) -> String {
    let said = machines.command(0, "kubectl").args(["exec", pod, "--", "/bin/busybox", "sh", "-c", script]).output();
    String::from_utf8_lossy(&said.unwrap().stdout).trim().to_owned()
}

/// Two numbered pods, one on each node, with a claim each.
fn numbered() -> Value {
    let spread = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "db"}}}]);
    let mounts = json!({"volumeMounts": [
        {"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/part", "subPath": "a/part"},
    ]});
    let script = format!("echo begun >> /data/log; {WAIT}");
    let security = json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000});
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }});
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "replicas": 2, "serviceName": "db", "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "terminationGracePeriodSeconds": 1, "securityContext": security, "topologySpreadConstraints": spread,
            "containers": [shell(&script, mounts)],
        }},
        "volumeClaimTemplates": [claim],
    }})
}

/// The volume of a claim, which node it is on, and where there.
fn volume(machines: &Machines, claim: &str) -> (String, usize, PathBuf) {
    let name = text(&machines.json(&["get", "pvc", claim]), "/spec/volumeName").to_owned();
    let volume = machines.json(&["get", "pv", &name]);
    let expression = volume.pointer("/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0").unwrap();
    let node = machines.all.iter().position(|m| expression["values"] == json!([m.name])).expect("one of the nodes");
    (name, node, text(&volume, "/spec/local/path").into())
}

#[test]
fn a_stateful_set_keeps_its_data_on_either_node_over_deletions_and_kills() {
    let mut machines = start("keep");
    apply(&machines, &numbered());
    let done = |machines: &Machines| {
        machines.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    };
    done(&machines);
    let mut nodes = Vec::new();
    for n in 0..2 {
        let (name, node, path) = volume(&machines, &format!("data-db-{n}"));
        let directory = format!("data/storage/{name}_default_data-db-{n}");
        assert_eq!(path, std::path::absolute(machines.all[node].path(&directory)).unwrap());
        let pod = format!("db-{n}");
        assert_eq!(exec(&machines, &pod, "/bin/busybox cat /data/log; /bin/busybox id -G"), "begun\n1000 2000");
        assert_eq!(
            exec(&machines, &pod, &format!("echo {pod} > /part/name && /bin/busybox cat /data/a/part/name")),
            pod
        );
        assert_eq!(exec(&machines, &pod, "/bin/busybox stat -c %g /data/log"), "2000", "it is the group's");
        assert_eq!(std::fs::read_to_string(path.join("a/part/name")).unwrap().trim(), pod);
        nodes.push(node);
    }
    assert_ne!(nodes[0], nodes[1]);
    let table = machines.kubectl(&["get", "pvc", "--no-headers"]);
    let first: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!((first[1], first[3], first[4], first[5]), ("Bound", "1Gi", "RWO", "local-path"), "{table}");

    // The server is killed; pods are deleted and come back to what they had.
    machines.all[0].kill();
    machines.start_server(&[]);
    machines.until("the nodes are back", || machines.is_ready(0) && machines.is_ready(1));
    machines.kubectl(&["delete", "pod", "db-0", "db-1"]);
    done(&machines);
    for (n, node) in nodes.iter().enumerate() {
        let said = exec(&machines, &format!("db-{n}"), "/bin/busybox cat /data/log /part/name");
        assert_eq!(said, format!("begun\nbegun\ndb-{n}"));
        assert_eq!(volume(&machines, &format!("data-db-{n}")).1, *node);
    }

    // An agent that begins without its server gives a container that restarts what it had.
    let away = machines.pods("app=db").into_iter().find(|p| p["spec"]["nodeName"] == machines.all[1].name.as_str());
    let away = away.expect("one is on the agent");
    machines.all[0].stop();
    machines.all[1].kill();
    machines.start_agent(1, "");
    machines.until("the agent is back", || machines.all[1].log().contains("what it told last is used"));
    kill(Pid::from_raw(machines.processes(&away)[0].pid), Signal::SIGKILL).unwrap();
    let path = volume_path(&machines, &away);
    let begun = || std::fs::read_to_string(path.join("log")).unwrap_or_default().lines().count();
    machines.until("it has begun again, with its data", || begun() == 3);
    machines.start_server(&[]);
    machines.until("the nodes are back", || machines.is_ready(0) && machines.is_ready(1));
    done(&machines);

    // A claim is held while a pod has it, and its directory goes with it.
    let paths = [0, 1].map(|n| volume(&machines, &format!("data-db-{n}")).2);
    machines.kubectl(&["delete", "pvc", "data-db-0", "--wait=false"]);
    let held = machines.json(&["get", "pvc", "data-db-0"]);
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert!(machines.kubectl(&["get", "pvc", "data-db-0", "--no-headers"]).contains("Terminating"));
    machines.kubectl(&["delete", "statefulset", "db"]);
    machines.kubectl(&["delete", "pvc", "--all", "--timeout=60s"]);
    machines.until("the volumes are gone", || {
        machines.json(&["get", "pv"])["items"].as_array().unwrap().is_empty() && !paths.iter().any(|p| p.exists())
    });
}

/// Where the volume of the agent's pod is.
fn volume_path(machines: &Machines, pod: &Value) -> PathBuf {
    let claim = text(pod, "/spec/volumes/0/persistentVolumeClaim/claimName").to_owned();
    let all = std::fs::read_dir(machines.all[1].path("data/storage")).unwrap().flatten();
    let found = all.map(|e| e.path()).find(|p| p.to_string_lossy().ends_with(&format!("_default_{claim}")));
    found.expect("its directory")
}

#[test]
fn pods_get_what_their_claims_say_and_are_told_what_is_wrong_with_them() {
    let machines = start("said");
    let claim = |name: &str, spec: Value| {
        let mut all = json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}, "storageClassName": "",
        });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": all})
    };
    let volume = |name: &str, spec: Value| {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Mi"}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": all})
    };
    let pod = |name: &str, node: Option<&str>, source: Value| {
        let mut of = json!({"name": "v"});
        of.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        let mut spec =
            json!({"terminationGracePeriodSeconds": 1, "containers": [shell(WAIT, mounts)], "volumes": [of]});
        if let Some(node) = node {
            spec["nodeName"] = node.into();
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    };
    let claimed =
        |claim: &str, read_only: bool| json!({"persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}});
    let told = |machines: &Machines, pod: &str, reason: &str, what: &str| {
        let events = machines.json(&["get", "events", "--field-selector", &format!("involvedObject.name={pod}")]);
        let says = |e: &Value| e["reason"] == reason && text(e, "/message").contains(what);
        events["items"].as_array().unwrap().iter().any(says)
    };
    for n in 0..2 {
        let node = machines.all[n].name.clone();
        let wait = |what: &str, reason: &str, pod: &str, words: &str| {
            machines.until(what, || told(&machines, pod, reason, words));
        };
        // One that is there already, for reading only, and again for writing.
        let path = machines.all[n].path("kept");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("word"), "there").unwrap();
        let place = json!({"hostPath": {"path": path, "type": "Directory"}, "claimRef": {"namespace": "default", "name": format!("kept-{n}")}});
        apply(&machines, &volume(&format!("kept-{n}"), place));
        apply(&machines, &claim(&format!("kept-{n}"), json!({"volumeName": format!("kept-{n}")})));
        let reader = format!("reader-{n}");
        apply(&machines, &pod(&reader, Some(&node), claimed(&format!("kept-{n}"), true)));
        machines.kubectl(&["wait", &format!("pod/{reader}"), "--for=condition=Ready", "--timeout=60s"]);
        let script = "/bin/busybox cat /v/word; echo; echo x 2>/dev/null > /v/new || echo refused";
        assert_eq!(exec(&machines, &reader, script), "there\nrefused");
        // No claim; then one that is not bound; then one that is.
        let late = format!("late-{n}");
        apply(&machines, &pod(&late, Some(&node), claimed(&late, false)));
        wait("the claim is missed", "FailedMount", &late, "persistentvolumeclaims \"late-");
        apply(&machines, &claim(&late, json!({})));
        wait("it is not bound", "FailedMount", &late, "PVC is not bound");
        apply(&machines, &volume(&late, json!({"hostPath": {"path": path}})));
        machines.kubectl(&["wait", &format!("pod/{late}"), "--for=condition=Ready", "--timeout=90s"]);
        assert_eq!(exec(&machines, &late, "/bin/busybox cat /v/word"), "there");
        // What this version does not mount is refused in words.
        let block = format!("block-{n}");
        let nfs =
            json!({"nfs": {"server": "192.0.2.9", "path": "/"}, "claimRef": {"namespace": "default", "name": block}});
        apply(&machines, &volume(&block, nfs));
        apply(&machines, &claim(&block, json!({"volumeName": block})));
        apply(&machines, &pod(&block, Some(&node), claimed(&block, false)));
        wait("it is refused", "FailedMount", &block, "persistent volumes of this type are not supported yet");
        // A pod brings its own, which goes with it.
        let own = format!("own-{n}");
        let template =
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
        let mut brings = pod(&own, None, json!({"ephemeral": {"volumeClaimTemplate": template}}));
        brings["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        apply(&machines, &brings);
        machines.kubectl(&["wait", &format!("pod/{own}"), "--for=condition=Ready", "--timeout=60s"]);
        assert_eq!(exec(&machines, &own, "echo mine > /v/f && /bin/busybox cat /v/f"), "mine");
        let storage = machines.all[n].path("data/storage");
        assert_eq!(std::fs::read_dir(&storage).unwrap().count(), 1);
        machines.kubectl(&["delete", "pod", &own]);
        machines.until("it is gone with its pod", || std::fs::read_dir(&storage).unwrap().count() == 0);
    }
    // The scheduler says what it waits for.
    apply(&machines, &pod("none", None, claimed("none", false)));
    machines.until("it is told", || {
        told(&machines, "none", "FailedScheduling", "persistentvolumeclaim \"none\" not found")
    });
    apply(&machines, &claim("none", json!({})));
    let unbound = "pod has unbound immediate PersistentVolumeClaims";
    machines.until("it is told again", || told(&machines, "none", "FailedScheduling", unbound));
    let of_one = json!({"accessModes": ["ReadWriteOncePod"], "storageClassName": "local-path"});
    apply(&machines, &claim("alone", of_one));
    apply(&machines, &pod("first", None, claimed("alone", false)));
    machines.kubectl(&["wait", "pod/first", "--for=condition=Ready", "--timeout=60s"]);
    apply(&machines, &pod("second", None, claimed("alone", false)));
    machines.until("only one may have it", || {
        told(&machines, "second", "FailedScheduling", "ReadWriteOncePod access mode")
    });
    machines.kubectl(&["delete", "pod", "first"]);
    machines.kubectl(&["wait", "pod/second", "--for=condition=Ready", "--timeout=60s"]);
}

//! Jobs and CronJobs on two nodes, worked with by kubectl: pods that end, on either node, and what is counted of them.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::busybox;
use crate::machines::Machines;

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

fn kubectl(machines: &Machines, arguments: &[&str]) -> String {
    machines.kubectl(arguments).trim().to_owned()
}

/// A Job's template: a shell that runs `script`, on one of the nodes or on any.
fn template(script: &str, restart: &str, node: Option<&str>) -> Value {
    let container = json!({"name": "c", "image": busybox::IMAGE, "command": ["/bin/busybox", "sh", "-c", script]});
    let mut spec = json!({"restartPolicy": restart, "terminationGracePeriodSeconds": 1, "containers": [container]});
    if let Some(node) = node {
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    json!({"spec": spec})
}

fn job(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
}

#[test]
fn jobs_run_their_pods_to_the_end_on_either_node_and_count_them() {
    let machines = start("jobs");
    let script = "echo $JOB_COMPLETION_INDEX of $(/bin/busybox hostname)";
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 2,
        "template": template(script, "Never", None)});
    apply(&machines, &job("indexed", spec));
    kubectl(&machines, &["wait", "--for=condition=complete", "job/indexed", "--timeout=60s"]);
    let status = machines.json(&["get", "job", "indexed"])["status"].clone();
    assert_eq!((&status["succeeded"], &status["completedIndexes"]), (&json!(4), &json!("0-3")));
    assert_eq!(
        (&status["ready"], &status["terminating"], &status["uncountedTerminatedPods"]),
        (&json!(0), &json!(0), &json!({}))
    );
    let selector = "batch.kubernetes.io/job-name=indexed,batch.kubernetes.io/job-completion-index=2";
    assert_eq!(kubectl(&machines, &["logs", "-l", selector]), "2 of indexed-2");
    let pods = machines.json(&["get", "pods", "-l", "job-name=indexed"]);
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), 4, "they stay to be looked at");
    assert!(pods.iter().all(|p| p["status"]["phase"] == "Succeeded" && p["metadata"]["finalizers"].is_null()));
    let table = kubectl(&machines, &["get", "jobs"]);
    assert!(table.contains("Complete") && table.contains("4/4"), "{table}");
    let described = kubectl(&machines, &["describe", "job", "indexed"]);
    for part in ["Completed Indexes:  0-3", "SuccessfulCreate", "Completed"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    for machine in &machines.all {
        let name = format!("fails-{}", machine.name);
        let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
        let spec = json!({"podFailurePolicy": policy, "backoffLimit": 3, "ttlSecondsAfterFinished": 3600,
            "template": template("exit 42", "Never", Some(&machine.name))});
        apply(&machines, &job(&name, spec));
        kubectl(&machines, &["wait", "--for=condition=failed", &format!("job/{name}"), "--timeout=60s"]);
        let failed = machines.json(&["get", "job", &name])["status"].clone();
        assert_eq!((&failed["failed"], &failed["conditions"][1]["reason"]), (&json!(1), &json!("PodFailurePolicy")));
        let why = failed["conditions"][1]["message"].as_str().unwrap().to_owned();
        assert!(
            why.starts_with("Container c for pod default/")
                && why.ends_with("failed with exit code 42 matching FailJob rule at index 0"),
            "{why}"
        );
        // A container that its pod starts again.
        let name = format!("again-{}", machine.name);
        let script = "if [ -e /d/x ]; then exit 0; fi; echo > /d/x; exit 1";
        let mut again = template(script, "OnFailure", Some(&machine.name));
        again["spec"]["volumes"] = json!([{"name": "d", "emptyDir": {}}]);
        again["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "d", "mountPath": "/d"}]);
        apply(&machines, &job(&name, json!({"template": again})));
        kubectl(&machines, &["wait", "--for=condition=complete", &format!("job/{name}"), "--timeout=90s"]);
        // One whose time is over ends its pod, and is not over before that is.
        let name = format!("late-{}", machine.name);
        let script = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.1; done";
        let spec = json!({"activeDeadlineSeconds": 3, "template": template(script, "Never", Some(&machine.name))});
        apply(&machines, &job(&name, spec));
        kubectl(&machines, &["wait", "--for=condition=failed", &format!("job/{name}"), "--timeout=60s"]);
        let late = machines.json(&["get", "job", &name])["status"].clone();
        assert_eq!((&late["failed"], &late["conditions"][1]["reason"]), (&json!(1), &json!("DeadlineExceeded")));
        machines.until("its pod is gone", || {
            machines.json(&["get", "pods", "-l", &format!("job-name={name}")])["items"] == json!([])
        });
    }
}

#[test]
fn a_cron_job_makes_jobs_and_kubectl_makes_one_of_it() {
    let machines = start("cron");
    let spec =
        json!({"schedule": "@every 2s", "jobTemplate": {"spec": {"template": template("exit 0", "Never", None)}}});
    apply(&machines, &json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"}, "spec": spec}));
    machines.until("it has succeeded", || {
        machines.json(&["get", "cronjob", "tick"])["status"]["lastSuccessfulTime"].is_string()
    });
    kubectl(&machines, &["create", "job", "by-hand", "--from=cronjob/tick"]);
    kubectl(&machines, &["wait", "--for=condition=complete", "job/by-hand", "--timeout=60s"]);
    kubectl(&machines, &["patch", "cronjob", "tick", "-p", r#"{"spec":{"suspend":true}}"#]);
    let table = kubectl(&machines, &["get", "cronjobs"]);
    assert!(table.contains("@every 2s") && table.contains("True"), "{table}");
    let described = kubectl(&machines, &["describe", "cronjob", "tick"]);
    assert!(described.contains("SuccessfulCreate") && described.contains("SawCompletedJob"), "{described}");
    kubectl(&machines, &["delete", "cronjob", "tick"]);
    machines.until("its Jobs and their pods are gone", || machines.json(&["get", "jobs,pods"])["items"] == json!([]));
}

//! An agent that is killed and started again while the server is away: its pods, Services and DNS go on from what it was
//! told last, and what had changed meanwhile is made good when the server is back.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::text;
use crate::lab::first_processes;
use crate::machines::Machines;

/// Pods that serve, with a Secret that a container needs to start; one that runs once; a Service that will be gone.
const PODS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {word: open-sesame}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{name: word, secret: {secretName: word}}]
      containers:
      - name: hello
        image: amphipod.local/hello
        env: [{name: WORD, valueFrom: {secretKeyRef: {name: word, key: word}}}]
        volumeMounts: [{name: word, mountPath: /word}]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: once, labels: {app: once}}
spec:
  restartPolicy: Never
  containers: [{name: hello, image: amphipod.local/hello}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: soon-gone}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

fn ready(pods: &[Value]) -> bool {
    let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    pods.iter().all(|p| p["status"]["conditions"].as_array().is_some_and(|c| c.iter().any(is_ready)))
}

#[test]
fn an_agent_that_is_killed_while_the_server_is_away_goes_on_from_what_it_was_told() {
    let mut machines = Machines::start("lone", 2);
    machines.kubectl(&["cordon", &machines.all[0].name]);
    let path = machines.all[0].path("pods.yaml");
    std::fs::write(&path, PODS).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    machines.kubectl(&["wait", "pod/once", "--for=condition=Ready", "--timeout=60s"]);
    let (pods, once) = (machines.pods("app=web"), machines.pods("app=once").remove(0));
    let ip = |service: &str| text(&machines.json(&["get", "service", service]), "/spec/clusterIP").to_owned();
    let (web, soon_gone) = (ip("web"), ip("soon-gone"));
    let [client, killed_before, killed_after] = [0, 1, 2].map(|n| pods[n].clone());
    let goes_on = machines.processes(&client);
    let end = |machines: &Machines, pod: &Value| {
        kill(Pid::from_raw(machines.processes(pod)[0].pid), Signal::SIGKILL).unwrap();
    };
    let dig = |machines: &Machines, service: &str| {
        let name = format!("{service}.default.svc.cluster.local");
        let answer = machines.in_pod(&client, &["dig", "+short", "+time=1", "+tries=1", "@10.43.0.10", &name]);
        answer.unwrap_or_default().trim().to_owned()
    };
    let answers = |machines: &Machines, address: &str| {
        let url = format!("http://{address}/");
        machines.in_pod(&client, &["curl", "-sS", "--max-time", "2", &url]).is_some_and(|a| a.contains("Hello"))
    };
    let of = |pod: &Value| format!("{}:8080", text(pod, "/status/podIP"));

    machines.all[0].stop();
    // One pod ends for good while nobody can be told, and the sandbox that proves it must not be lost.
    end(&machines, &once);
    std::thread::sleep(Duration::from_secs(2));
    machines.all[1].kill();
    end(&machines, &killed_before);
    assert_eq!(dig(&machines, "web"), "", "without the agent there is no DNS");
    machines.start_agent(1, "");
    machines.until("DNS answers", || dig(&machines, "web") == web && dig(&machines, "soon-gone") == soon_gone);
    machines.until("the Service answers", || answers(&machines, &web));
    machines.until("what ended without the agent restarts", || answers(&machines, &of(&killed_before)));
    end(&machines, &killed_after);
    machines.until("what ends now restarts", || answers(&machines, &of(&killed_after)));
    assert!(machines.all[1].log().contains("what it told last is used"));
    let there = first_processes();
    assert!(goes_on.iter().all(|p| there.values().any(|q| p == q)), "what ran runs");
    let of_once = text(&once, "/status/containerStatuses/0/containerID").replace("amphipod://", "");
    assert!(!there.contains_key(&of_once));

    // What changes while the agent is away is not known to it when it begins without the server.
    machines.all[1].kill();
    machines.start_server(&[]);
    machines.kubectl(&["delete", "service", "soon-gone"]);
    machines.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    machines.kubectl(&["delete", "pod", text(&client, "/metadata/name"), "--wait=false"]);
    machines.all[0].stop();
    machines.start_agent(1, "");
    machines.until("DNS answers again", || dig(&machines, "web") == web);
    machines.start_server(&[]);
    machines.until("the node is back", || machines.is_ready(1));
    machines.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let mut now = Vec::new();
    machines.until("the Deployment is as it was changed", || {
        now = machines.pods("app=web");
        now.len() == 4 && ready(&now)
    });
    machines.until("what was deleted is stopped", || {
        let there = first_processes();
        !goes_on.iter().any(|p| there.values().any(|q| p == q))
    });
    let old = |pod: &Value| now.iter().find(|p| p["metadata"]["uid"] == pod["metadata"]["uid"]).cloned();
    assert!(old(&client).is_none());
    for pod in [&killed_before, &killed_after] {
        let now = old(pod).expect("it was not moved");
        assert_eq!(now["status"]["containerStatuses"][0]["restartCount"], 1, "{now}");
        assert_eq!(now["status"]["podIP"], pod["status"]["podIP"]);
    }
    let addresses: BTreeSet<&str> = now.iter().map(|p| text(p, "/status/podIP")).collect();
    assert_eq!(addresses.len(), 4);
    let has_ended = |machines: &Machines| {
        let pod = machines.json(&["get", "pod", "once"]);
        pod["status"]["phase"] == "Failed" && pod["status"]["containerStatuses"][0]["restartCount"] == 0
    };
    machines.until("what ended for good has", || has_ended(&machines));
    // The first one is gone, and with it the network from which was asked.
    let resolved = |service: &str| {
        let name = format!("{service}.default.svc.cluster.local");
        machines.in_pod(&now[0], &["dig", "+short", "+time=2", "@10.43.0.10", &name]).unwrap_or_default()
    };
    machines.until("what had gone is gone", || resolved("soon-gone").is_empty() && resolved("web").trim() == web);

    // Of a pod that has ended a later process knows only what the API says, and leaves it so.
    let before = machines.json(&["get", "pod", "once"]);
    machines.all[1].kill();
    machines.start_agent(1, "");
    machines.kubectl(&["rollout", "restart", "deployment/web"]);
    machines.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(machines.json(&["get", "pod", "once"]), before);
    assert_eq!(machines.kubectl(&["logs", "once"]).trim(), "hello: listening on port 8080");
    machines.kubectl(&["delete", "pod", "once", "--timeout=30s"]);
}

/// Nobody refuses: there is only silence.
#[test]
fn an_agent_that_is_killed_while_its_cable_is_pulled_goes_on_from_what_it_was_told() {
    let mut machines = Machines::start("mute", 2);
    machines.kubectl(&["cordon", &machines.all[0].name]);
    let path = machines.all[0].path("pods.yaml");
    std::fs::write(&path, PODS).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pods = machines.pods("app=web");
    let processes: Vec<_> = pods.iter().flat_map(|p| machines.processes(p)).collect();
    // What changes is kept within a second, and without the node's pod range nothing can begin.
    std::thread::sleep(Duration::from_millis(1500));
    machines.cable(1, false);
    machines.all[1].kill();
    machines.start_agent(1, "");
    let dig = ["dig", "+short", "+time=1", "+tries=1", "@10.43.0.10", "web.default.svc.cluster.local"];
    machines.until("DNS answers", || machines.in_pod(&pods[0], &dig).is_some_and(|a| a.starts_with("10.43.")));
    kill(Pid::from_raw(processes[1].pid), Signal::SIGKILL).unwrap();
    let url = format!("http://{}:8080/", text(&pods[1], "/status/podIP"));
    let answers = || machines.in_pod(&pods[0], &["curl", "-sS", "--max-time", "2", &url]);
    machines.until("the killed container restarts", || answers().is_some_and(|a| a.contains("Hello")));
    machines.until("the node counts as lost", || !machines.is_ready(1));
    machines.cable(1, true);
    machines.until("the node is back", || machines.is_ready(1));
    machines.until("the restart is known, and nothing else has happened", || {
        let restarts = |p: &Value| p["status"]["containerStatuses"][0]["restartCount"].as_u64();
        let now = machines.pods("app=web");
        ready(&now) && now.iter().map(restarts).sum::<Option<u64>>() == Some(1)
    });
    let there = first_processes();
    let same = processes.iter().filter(|p| there.values().any(|q| q == *p)).count();
    assert_eq!(same, processes.len() - 1);
}

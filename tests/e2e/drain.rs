//! What an administrator does with nodes: cordon, drain, uncordon, delete and join again.

use std::collections::BTreeSet;

use crate::cluster::text;
use crate::lab::BINARY;
use crate::machines::Machines;

const DEPLOYMENT: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: moving}
spec:
  replicas: 6
  selector: {matchLabels: {app: moving}}
  template:
    metadata: {labels: {app: moving}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: hello, image: 'amphipod.local/hello'}
";

fn nodes_of(machines: &Machines) -> BTreeSet<String> {
    machines.pods("app=moving").iter().map(|p| text(p, "/spec/nodeName").to_owned()).collect()
}

#[test]
fn a_node_is_cordoned_drained_uncordoned_deleted_and_joins_again() {
    let mut machines = Machines::start("drain", 2);
    let path = machines.all[0].path("moving.yaml");
    std::fs::write(&path, DEPLOYMENT).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["rollout", "status", "deployment/moving", "--timeout=60s"]);
    assert_eq!(nodes_of(&machines).len(), 2);
    let (server, agent) = (machines.all[0].name.clone(), machines.all[1].name.clone());

    machines.kubectl(&["cordon", &agent]);
    let node = machines.json(&["get", "node", &agent]);
    assert_eq!(node["spec"]["unschedulable"], true);
    let before = machines.pods("app=moving").iter().filter(|p| text(p, "/spec/nodeName") == agent).count();
    machines.kubectl(&["scale", "deployment/moving", "--replicas=9"]);
    machines.kubectl(&["rollout", "status", "deployment/moving", "--timeout=60s"]);
    let after = machines.pods("app=moving").iter().filter(|p| text(p, "/spec/nodeName") == agent).count();
    assert_eq!(after, before, "nothing new comes to a cordoned node");
    let running =
        machines.pods("app=moving").iter().filter(|p| text(p, "/spec/nodeName") == agent).cloned().collect::<Vec<_>>();
    assert!(running.iter().all(|p| machines.processes(p).len() == 1), "and what is there goes on");

    machines.kubectl(&["drain", &agent, "--ignore-daemonsets", "--timeout=60s"]);
    assert!(running.iter().all(|p| machines.processes(p).is_empty()), "drain waits until the pods have gone");
    machines.kubectl(&["rollout", "status", "deployment/moving", "--timeout=60s"]);
    assert_eq!(nodes_of(&machines), BTreeSet::from([server.clone()]));

    machines.kubectl(&["uncordon", &agent]);
    machines.until("the taint is gone", || {
        machines.json(&["get", "node", &agent])["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
    });
    machines.kubectl(&["rollout", "restart", "deployment/moving"]);
    machines.kubectl(&["rollout", "status", "deployment/moving", "--timeout=60s"]);
    machines.until("pods come back", || nodes_of(&machines).len() == 2);

    // Deleted while its agent runs: it stays so, its certificate is good for nothing more, and with a token it is a node again.
    machines.kubectl(&["delete", "node", &agent]);
    machines
        .until("the agent says so", || machines.all[1].log().contains("the Node object of this machine was deleted"));
    machines.all[1].stop();
    let url = format!("https://{}:6443", machines.all[0].address);
    let mut again = machines.command(1, "timeout");
    again.args(["20", BINARY, "agent", "--server", &url, "--node-ip", &machines.all[1].address, "--node-name", &agent]);
    let ended = again.args(machines.all[1].directories()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(
        (ended.status.code(), said.contains("start its agent with a token (--token)")),
        (Some(1), true),
        "{said}"
    );
    assert!(!machines.kubectl(&["get", "nodes"]).contains(&agent));
    let token = machines.token();
    machines.start_agent(1, &token);
    machines.until("the node is Ready again", || machines.is_ready(1));

    // Installed anew, with nothing of what it had: a node of that name must not be there.
    machines.all[1].stop();
    machines.kubectl(&["delete", "node", &agent]);
    std::fs::remove_dir_all(machines.all[1].path("data/agent/tls")).unwrap();
    std::fs::remove_file(machines.all[1].path("data/agent/node-password")).unwrap();
    machines.start_agent(1, &token);
    machines.until("the machine has joined anew", || machines.is_ready(1));
}

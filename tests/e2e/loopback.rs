//! Ports of nodes, asked for by 127.0.0.1 on every node: all endpoints answer, or it is refused at once.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::json;

use crate::lab::run;
use crate::machines::Machines;

#[test]
fn a_node_port_answers_by_the_loopback_address_of_every_node() {
    let machines = Machines::start("loop", 2);
    for (n, machine) in machines.all.iter().enumerate() {
        let name = format!("p{n}");
        let overrides = json!({"spec": {"nodeName": machine.name}}).to_string();
        machines.kubectl(&[
            "run",
            &name,
            "--image=amphipod.local/hello",
            "--labels",
            &format!("app=w,at=n{n}"),
            "--overrides",
            &overrides,
        ]);
        machines.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
    let service = |name: &str, selector: &str, port: u16| {
        machines.kubectl(&["create", "service", "nodeport", name, "--tcp=80:8080", &format!("--node-port={port}")]);
        machines.kubectl(&["set", "selector", "service", name, selector]);
    };
    service("both", "app=w", 30080);
    service("first", "at=n0", 30081);
    service("second", "at=n1", 30082);
    for n in 0..2 {
        for (port, endpoints) in [(30080, 2), (30081, 1), (30082, 1)] {
            let url = format!("http://127.0.0.1:{port}/");
            machines.until("the port answers", || {
                machines.command(n, "curl").args(["-sS", "--max-time", "2", &url]).output().unwrap().status.success()
            });
            let mut answered = BTreeSet::new();
            for _ in 0..24 {
                let page = run(machines.command(n, "curl").args(["-sS", "--max-time", "5", &url])).stdout;
                let page = String::from_utf8(page).unwrap();
                answered.extend(["p0", "p1"].into_iter().filter(|name| page.contains(name)));
            }
            assert_eq!(answered.len(), endpoints, "node {n}, port {port}: {answered:?}");
        }
    }
    // An endpoint that is another machine, whose answers come in by a link that is not ours.
    let other = &machines.all[1].address;
    machines.kubectl(&["create", "service", "nodeport", "machine", "--tcp=80:10000", "--node-port=30083"]);
    machines.kubectl(&["patch", "service", "machine", "--type=merge", "-p", r#"{"spec":{"selector":null}}"#]);
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "machine", "labels": {"kubernetes.io/service-name": "machine"}},
        "ports": [{"name": "80-10000", "port": 10000, "protocol": "TCP"}], "endpoints": [{"addresses": [other], "conditions": {"ready": true}}]});
    let path = machines.all[0].path("slice.json");
    std::fs::write(&path, slice.to_string()).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    let mut took = None;
    machines.until("it is refused", || {
        let began = Instant::now();
        let asked =
            machines.command(0, "curl").args(["-sS", "--max-time", "3", "http://127.0.0.1:30083/"]).output().unwrap();
        took = Some(began.elapsed());
        // Not 28, which is too late.
        asked.status.code() == Some(7)
    });
    assert!(took.unwrap().as_secs() < 2);
}

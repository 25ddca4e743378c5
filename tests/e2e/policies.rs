//! Network policies, on a server's node and on an agent's.

use serde_json::{Value, json};

use crate::cluster::text;
use crate::machines::Machines;

fn apply(machines: &Machines, objects: &[Value]) {
    let path = machines.all[0].path("objects.yaml");
    let documents: Vec<String> = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    std::fs::write(&path, documents.concat()).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
}

fn pod(namespace: &str, name: &str, app: &str, node: &str) -> Value {
    let container =
        json!({"name": "hello", "image": "amphipod.local/hello", "ports": [{"name": "http", "containerPort": 8080}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}})
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

fn get(machines: &Machines, namespace: &str, name: &str) -> Value {
    machines.json(&["get", "pod", "-n", namespace, name])
}

fn reaches(machines: &Machines, from: &Value, to: &Value) -> bool {
    let url = format!("http://{}:8080/", text(to, "/status/podIP"));
    machines.in_pod(from, &["curl", "-sS", "--max-time", "1", &url]).is_some_and(|answer| answer.contains("Hello"))
}

#[test]
fn policies_hold_between_pods_of_all_nodes_as_pods_and_labels_change() {
    let machines = Machines::start("netpol", 2);
    let nodes: Vec<String> = machines.all.iter().map(|m| m.name.clone()).collect();
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    apply(&machines, &[namespace("other")]);
    let mut all = Vec::new();
    for (n, node) in nodes.iter().enumerate() {
        all.push(pod("default", &format!("web-{n}"), "web", node));
        all.push(pod("default", &format!("client-{n}"), "client", node));
    }
    all.push(pod("other", "stranger", "client", &nodes[1]));
    apply(&machines, &all);
    let names = [
        ("default", "web-0"),
        ("default", "web-1"),
        ("default", "client-0"),
        ("default", "client-1"),
        ("other", "stranger"),
    ];
    machines.until("all run", || {
        names.iter().all(|(ns, name)| text(&get(&machines, ns, name), "/status/phase") == "Running")
    });
    let [web0, web1, client0, client1, stranger] = names.map(|(ns, name)| get(&machines, ns, name));
    let from_all = |to: &Value| [&client0, &client1, &stranger].map(|from| reaches(&machines, from, to));
    assert_eq!([from_all(&web0), from_all(&web1)], [[true; 3]; 2], "without policies");

    // Nobody reaches them, on either node.
    let web = json!({"matchLabels": {"app": "web"}});
    apply(&machines, &[policy("deny", json!({"podSelector": web}))]);
    machines.until("both are closed", || from_all(&web0) == [false; 3] && from_all(&web1) == [false; 3]);
    assert!(reaches(&machines, &web0, &client1), "the other way is open");
    assert!(machines.kubectl(&["get", "netpol"]).contains("app=web"));

    // Pods of the namespace by their labels, at a port by its name.
    let clients = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    let open = json!({"podSelector": web, "ingress": [{"from": clients, "ports": [{"port": "http"}]}]});
    apply(&machines, &[policy("open", open)]);
    machines.until("clients reach both", || {
        from_all(&web0) == [true, true, false] && from_all(&web1) == [true, true, false]
    });

    // Another namespace by its labels, as soon as it has them.
    let guests = json!([{"namespaceSelector": {"matchLabels": {"guest": "yes"}}}]);
    apply(&machines, &[policy("guests", json!({"podSelector": web, "ingress": [{"from": guests}]}))]);
    assert!(!reaches(&machines, &stranger, &web0));
    machines.kubectl(&["label", "namespace", "other", "guest=yes"]);
    machines.until("the stranger is a guest", || from_all(&web0) == [true; 3] && from_all(&web1) == [true; 3]);

    // A pod that is a client no longer is shut out, and new ones are let in.
    machines.kubectl(&["label", "pod", "client-1", "app=former", "--overwrite"]);
    machines.until("it is shut out", || !reaches(&machines, &client1, &web0) && !reaches(&machines, &client1, &web1));
    apply(&machines, &[pod("default", "late", "client", &nodes[1])]);
    machines.until("it runs", || text(&get(&machines, "default", "late"), "/status/phase") == "Running");
    let late = get(&machines, "default", "late");
    machines.until("it is let in", || reaches(&machines, &late, &web0) && reaches(&machines, &late, &web1));

    // What pods may speak to: names of Services are still answered.
    let only_web = json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": web}], "ports": [{"port": "http"}]}]});
    apply(&machines, &[policy("only-web", only_web)]);
    machines.until("clients reach nothing else", || !reaches(&machines, &client0, &client1));
    assert!(reaches(&machines, &client0, &web0) && reaches(&machines, &client0, &web1));
    let dig = ["dig", "+short", "+time=2", "@10.43.0.10", "kubernetes.default.svc.cluster.local"];
    assert!(machines.in_pod(&client0, &dig).is_some_and(|answer| answer.starts_with("10.43.0.1")));

    // All is open again without them, and nothing of them is left.
    machines.kubectl(&["delete", "netpol", "--all"]);
    machines.until("all is open", || from_all(&web0) == [true; 3] && from_all(&web1) == [true; 3]);
    let slices = machines.kubectl(&["get", "endpointslices", "-l", "amphipod.io/network-policy-peers", "-o", "name"]);
    assert_eq!(slices.trim(), "");
    for n in 0..2 {
        let tables = machines.command(n, "nft").args(["list", "tables"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&tables.stdout).contains("policy"));
    }
}

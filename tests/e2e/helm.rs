//! helm with the chart that it makes itself.

use crate::lab::{Lab, run};

#[test]
fn a_chart_is_installed_upgraded_rolled_back_and_removed() {
    let lab = Lab::start("helm");
    let helm = |args: &[&str]| {
        let mut command = lab.command("helm");
        for part in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{part}_HOME"), lab.path(&format!("helm-{part}")));
        }
        String::from_utf8(run(command.args(args)).stdout).unwrap()
    };
    let chart = lab.path("demo");
    let chart = chart.to_str().unwrap();
    helm(&["create", chart]);
    let image = ["--set", "image.repository=amphipod.local/hello,image.tag=latest,service.port=8080"];
    helm(&[&["install", "demo", chart, "--wait", "--timeout", "60s"], &image[..]].concat());
    assert!(helm(&["list"]).contains("deployed"));
    let address = lab.kubectl(&["get", "service", "demo", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(lab.curl(&format!("http://{address}:8080/")).starts_with("Hello from pod demo-"));
    let replicas = || lab.kubectl(&["get", "deployment", "demo", "-o", "jsonpath={.status.readyReplicas}"]);
    let three = ["--set", "replicaCount=3", "--wait", "--timeout", "60s"];
    helm(&[&["upgrade", "demo", chart], &image[..], &three[..]].concat());
    assert_eq!(replicas(), "3");
    helm(&["rollback", "demo", "1", "--wait", "--timeout", "60s"]);
    lab.until("one replica again", || replicas() == "1");
    assert_eq!(helm(&["history", "demo", "-o", "json"]).matches("\"revision\"").count(), 3);
    assert!(helm(&["get", "manifest", "demo"]).contains("kind: Deployment"));
    helm(&["uninstall", "demo", "--wait", "--timeout", "60s"]);
    let left =
        lab.kubectl(&["get", "all,secrets,serviceaccounts", "-l", "app.kubernetes.io/instance=demo", "-o", "name"]);
    assert_eq!(left, "");
}

//! A cluster without any registry: what is put into one machine's directory runs on all of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{BINARY, run};
use crate::machines::Machines;

/// The tag `latest` makes the policy `Always`; the port of the machine lets one pod on each.
const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  replicas: COUNT
  strategy: {type: Recreate}
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: IMAGE, ports: [{containerPort: 8080, hostPort: PORT}]}
"#;

/// An archive with Debian's busybox, as `docker save` writes it; the page tells one release from another.
fn archive(directory: &Path, name: &str, page: &str) -> std::path::PathBuf {
    let scratch = directory.join(format!("{page}.scratch"));
    let (rootfs, layout) = (scratch.join("rootfs"), scratch.join("layout").display().to_string());
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::create_dir_all(rootfs.join("www")).unwrap();
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "httpd", "cat"] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    fs::write(rootfs.join("www/index.html"), page).unwrap();
    let umoci = |args: &[&str]| drop(run(Command::new("umoci").args(args)));
    let image = format!("{layout}:{page}");
    umoci(&["init", "--layout", &layout]);
    umoci(&["new", "--image", &image]);
    umoci(&["insert", "--image", &image, &rootfs.display().to_string(), "/"]);
    let command = ["/bin/httpd", "-f", "-p", "8080", "-h", "/www"].map(|word| ["--config.cmd", word]).concat();
    umoci(&[&["config", "--image", &image], &*command].concat());
    let file = scratch.join("archive.tar");
    let to = format!("docker-archive:{}:{name}", file.display());
    run(Command::new("skopeo").args(["copy", "-q", &format!("oci:{image}"), &to]));
    file
}

/// Puts a file where images are taken in, under its name in one step.
fn put(machines: &Machines, n: usize, file: &Path, name: &str) {
    let directory = machines.all[n].path("data/agent/images");
    fs::create_dir_all(&directory).unwrap();
    let hidden = directory.join(format!(".{name}"));
    fs::copy(file, &hidden).unwrap();
    fs::rename(hidden, directory.join(name)).unwrap();
}

fn deploy(machines: &Machines, name: &str, image: &str, port: &str) {
    let (path, count) = (machines.all[0].path(&format!("{name}.yaml")), machines.all.len().to_string());
    fs::write(&path, PODS.replace("NAME", name).replace("IMAGE", image).replace("PORT", port).replace("COUNT", &count))
        .unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
}

/// One pod on each machine, each of which answers with the page.
fn answer_everywhere(machines: &Machines, name: &str, page: &str) {
    machines.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
    let pods = machines.pods(&format!("app={name}"));
    let nodes: BTreeSet<&str> = pods.iter().filter_map(|p| p["spec"]["nodeName"].as_str()).collect();
    assert_eq!(
        nodes.len(),
        machines.all.len(),
        "a pod on each node: {}",
        machines.kubectl(&["get", "pods,nodes", "-o", "wide"])
    );
    for pod in &pods {
        let url = format!("http://{}:8080/", pod["status"]["podIP"].as_str().unwrap());
        let answer = || run(machines.command(0, "curl").args(["-sS", "--max-time", "5", &url])).stdout;
        assert_eq!(String::from_utf8(answer()).unwrap(), page);
    }
    let ids: BTreeSet<&str> =
        pods.iter().filter_map(|p| p["status"]["containerStatuses"][0]["imageID"].as_str()).collect();
    assert_eq!(ids.len(), 1, "all nodes say the same of the image: {ids:?}");
}

fn messages(machines: &Machines) -> String {
    let events = machines.json(&["get", "events"])["items"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|e: &Value| e["message"].as_str()).collect::<Vec<_>>().join("\n")
}

/// What the image command of a machine prints.
fn image(machines: &Machines, n: usize, args: &[&str]) -> String {
    let mut command = machines.command(n, BINARY);
    command.arg("image").args(machines.all[n].directories()).args(args);
    String::from_utf8(run(&mut command).stdout).unwrap()
}

fn offline(name: &str) -> Machines {
    let mut machines = Machines::prepare(name, 3);
    machines.start_server(&["--offline"]);
    let token = machines.token();
    for n in 1..3 {
        machines.start_agent_with(n, &token, &["--offline"]);
    }
    for n in 0..3 {
        machines.until("all nodes are Ready", || machines.is_ready(n));
    }
    machines
}

#[test]
fn an_image_put_on_the_server_runs_on_every_node_without_a_registry() {
    let machines = offline("air");
    let directory = tempfile::tempdir().unwrap();
    let name = "registry.example/team/web";
    deploy(&machines, "web", name, "18080");
    let wanted = machines.all[1].path("data/agent/images").display().to_string();
    machines.until("the event says which image is missing and where to put it", || {
        let said = messages(&machines);
        said.contains(&format!("{name}:latest")) && said.contains(&wanted)
    });
    put(&machines, 0, &archive(directory.path(), &format!("{name}:latest"), "one"), "web.tar");
    // The pods wait no longer for their next try than they have to.
    machines.kubectl(&["delete", "pods", "-l", "app=web"]);
    answer_everywhere(&machines, "web", "one");
    assert!(machines.all.iter().skip(1).all(|m| !m.path("data/agent/images/web.tar").exists()));

    // A new release under the same name, with the policy Always: the server's word counts on every node.
    put(&machines, 0, &archive(directory.path(), &format!("{name}:latest"), "two"), "web.tar");
    machines.until("the server has the new release", || {
        machines.all[0].log().matches("an image was taken in").count() == 2
    });
    machines.kubectl(&["rollout", "restart", "deployment/web"]);
    answer_everywhere(&machines, "web", "two");

    // What an agent calls its images counts for the others, also for the server, once an administrator says so.
    machines.kubectl(&["label", "node", &machines.all[2].name, "node-restriction.kubernetes.io/image-source=true"]);
    put(&machines, 2, &archive(directory.path(), "registry.example/other:1", "three"), "other.tar");
    machines.until("the agent has it", || image(&machines, 2, &["ls"]).contains("registry.example/other:1"));
    deploy(&machines, "other", "registry.example/other:1", "18081");
    answer_everywhere(&machines, "other", "three");
    nobody_else_gets_images(&machines);

    // Out of one machine's store and into another's, which has it not yet.
    let file = directory.path().join("out.tar.zst");
    image(&machines, 1, &["save", "registry.example/other:1", "-o", file.to_str().unwrap()]);
    let came = image(&machines, 0, &["import", file.to_str().unwrap()]);
    assert!(came.contains("imported registry.example/other:1"), "{came}");
}

/// Dropped into the directory, or imported by a process of its own.
#[test]
fn a_pod_that_waits_for_an_image_starts_as_soon_as_it_is_there() {
    let mut machines = Machines::prepare("wake", 1);
    machines.start_server(&["--offline"]);
    machines.until("the node is Ready", || machines.is_ready(0));
    let directory = tempfile::tempdir().unwrap();
    let names = ["dropped", "imported"];
    let files = names.map(|n| archive(directory.path(), &format!("registry.example/{n}:1"), n));
    for (name, port) in names.iter().zip(["18080", "18081"]) {
        deploy(&machines, name, &format!("registry.example/{name}:1"), port);
    }
    // After the second failure the next try is 20 seconds away.
    machines.until("both have failed twice", || {
        let events = machines.json(&["get", "events"])["items"].as_array().cloned().unwrap_or_default();
        let failed = |name: &str| {
            let about = format!("Failed to pull image \"registry.example/{name}:1\"");
            let of_name = events.iter().filter(|e| e["message"].as_str().is_some_and(|m| m.starts_with(&about)));
            of_name.filter_map(|e| e["count"].as_u64()).sum::<u64>()
        };
        names.iter().all(|name| failed(name) == 2)
    });
    let began = Instant::now();
    put(&machines, 0, &files[0], "dropped.tar");
    image(&machines, 0, &["import", files[1].to_str().unwrap()]);
    for name in names {
        answer_everywhere(&machines, name, name);
    }
    assert!(began.elapsed() < Duration::from_secs(12), "it took {:?}", began.elapsed());
}

/// No registry can be reached here either, but nobody has said so.
#[test]
fn without_the_flag_nodes_are_still_asked_before_the_internet() {
    let machines = Machines::start("air2", 2);
    let directory = tempfile::tempdir().unwrap();
    put(&machines, 0, &archive(directory.path(), "web:1", "one"), "web.tar");
    machines.until("the server has it", || image(&machines, 0, &["ls"]).contains("docker.io/library/web:1"));
    deploy(&machines, "web", "web:1", "18080");
    answer_everywhere(&machines, "web", "one");
}

/// The images are for nodes: not for strangers, not even for administrators' clients.
fn nobody_else_gets_images(machines: &Machines) {
    let url =
        format!("https://{}:6443/v1-amphipod/images/v2/registry.example/other/manifests/1", machines.all[0].address);
    let tls = |part: &str| machines.all[1].path(&format!("data/agent/tls/{part}")).display().to_string();
    let (ca, cert, key) = (tls("ca.crt"), tls("node.crt"), tls("node.key"));
    let ask = |more: &[&str]| {
        let args = ["-sS", "-o", "/dev/null", "-w", "%{http_code} %header{content-type}", "--cacert", &ca];
        String::from_utf8(run(machines.command(1, "curl").args(args).args(more).arg(&url)).stdout).unwrap()
    };
    assert!(ask(&[]).starts_with("401"));
    assert!(ask(&["-H", "Authorization: Bearer x"]).starts_with("401"));
    assert_eq!(ask(&["--cert", &cert, "--key", &key]), "200 application/vnd.oci.image.manifest.v1+json");
}

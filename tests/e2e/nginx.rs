//! The main job with an image from a registry: Debian's nginx out of Debian's registry as mirror of docker.io, the simplest
//! Deployment that people write, and all that kubectl does with it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::lab::{HOST, Lab, OUTSIDE};
use crate::recording::{Bounds, Recording, check};
use crate::registry::Registry;

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/simple-deployment.yaml");
pub const IT: &str = "deployment/simple-deployment";
const ROLLED: [&str; 4] = ["rollout", "status", IT, "--timeout=60s"];

/// A machine with a registry beside it and the Deployment on it.
pub fn machine(name: &str) -> (Registry, Lab) {
    let mut lab = Lab::prepare(name);
    let registry = Registry::start(&lab);
    let mirrors = format!("mirrors:\n  docker.io:\n    endpoint: ['http://{}']\n", registry.address());
    fs::create_dir_all(lab.path("etc")).unwrap();
    fs::write(lab.path("etc/registries.yaml"), mirrors).unwrap();
    lab.start_server();
    assert_eq!(lab.kubectl(&["apply", "-f", MANIFEST]).trim(), "deployment.apps/simple-deployment created");
    let said = lab.kubectl(&ROLLED);
    assert!(said.contains("deployment \"simple-deployment\" successfully rolled out"), "{said}");
    assert_eq!(lab.kubectl(&["apply", "-f", MANIFEST]).trim(), "deployment.apps/simple-deployment unchanged");
    (registry, lab)
}

/// The names of the pods once only `count` are there and all of them are ready.
fn pods(lab: &Lab, count: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    lab.until(&format!("{count} pods are there and ready"), || {
        let all = lab.json(&["get", "pods", "-l", "app=hello"])["items"].as_array().cloned().unwrap();
        names = all.iter().map(|p| p["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        names.len() == count && all.iter().all(|p| p["status"]["containerStatuses"][0]["ready"] == true)
    });
    names
}

/// Who answered: `POD release WHICH`, asked again and again until all pods of the set did.
fn ask_all(lab: &Lab, release: &str, pods: &BTreeSet<String>, mut ask: impl FnMut() -> String) {
    let mut answered = BTreeSet::new();
    lab.until(&format!("all of {pods:?} have answered"), || {
        let page = ask();
        for line in page.lines() {
            let (pod, rest) = line.split_once(' ').unwrap_or((line, ""));
            assert_eq!(rest, format!("release {release}"), "{page}");
            answered.insert(pod.to_owned());
        }
        answered.is_superset(pods)
    });
    assert_eq!(answered, *pods);
}

#[test]
fn the_simplest_deployment_shows_itself_in_every_form() {
    let (_registry, lab) = machine("show");
    let names = pods(&lab, 2);
    every_form(&lab, &names);
    described(&lab, &names);
    services(&lab, &names);
    let pod = names.first().unwrap();
    terminal(&lab, pod);
    logs_are_followed(&lab, pod);
    a_killed_container_restarts(&lab, pod);
    a_deleted_pod_is_replaced(&lab, pod);
    lab.kubectl(&["delete", IT, "service/simple-deployment", "service/outside"]);
    lab.until("everything is gone", || {
        let left = lab.kubectl(&["get", "all,endpointslices", "-o", "name"]);
        left.lines().all(|l| l == "service/kubernetes" || l == "endpointslice.discovery.k8s.io/kubernetes")
    });
}

fn every_form(lab: &Lab, names: &BTreeSet<String>) {
    let get = |form: &[&str]| lab.kubectl(&[&["get", IT], form].concat());
    let words =
        |text: &str| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    let plain = words(&get(&[]));
    assert_eq!(plain[0], "NAME READY UP-TO-DATE AVAILABLE AGE");
    assert!(plain[1].starts_with("simple-deployment 2/2 2 2 "), "{plain:?}");
    let wide = words(&get(&["-o", "wide"]));
    assert_eq!(wide[0], "NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR");
    assert!(wide[1].ends_with(" simple-container nginx app=hello"), "{wide:?}");
    assert!(get(&["--show-labels"]).contains("LABELS") && !get(&["--no-headers"]).contains("NAME"));

    let json: Value = serde_json::from_str(&get(&["-o", "json"])).unwrap();
    assert_eq!(json["spec"]["template"]["spec"]["containers"][0]["image"], "nginx");
    for form in ["yaml", "kyaml"] {
        let same: Value = serde_yaml::from_str(&get(&["-o", form])).unwrap();
        assert_eq!(same, json, "{form}");
    }
    assert_eq!(get(&["-o", "name"]), "deployment.apps/simple-deployment\n");
    let (path, columns, template) = (lab.path("jsonpath"), lab.path("columns"), lab.path("template"));
    fs::write(&path, "{.spec.replicas}").unwrap();
    fs::write(&columns, "NAME          WANTED\nmetadata.name spec.replicas\n").unwrap();
    fs::write(&template, "{{.spec.replicas}}").unwrap();
    let file = |form: &str, path: &std::path::Path| get(&["-o", &format!("{form}={}", path.display())]);
    assert_eq!(get(&["-o", "jsonpath={.spec.replicas}"]), "2");
    assert_eq!(file("jsonpath-file", &path), "2");
    assert_eq!(words(&get(&["-o", "jsonpath-as-json={.spec.replicas}"])).concat(), "[2]");
    assert_eq!(get(&["-o", "go-template={{.spec.replicas}}"]), "2");
    assert_eq!(file("go-template-file", &template), "2");
    assert_eq!(get(&["-o", "template={{.metadata.name}}"]), "simple-deployment");
    let expected = ["NAME WANTED", "simple-deployment 2"];
    assert_eq!(words(&get(&["-o", "custom-columns=NAME:.metadata.name,WANTED:.spec.replicas"])), expected);
    assert_eq!(words(&file("custom-columns-file", &columns)), expected);

    let listed = lab.kubectl(&["get", "pods", "-o", "wide", "--sort-by=.metadata.name"]);
    let listed = words(&listed);
    assert_eq!(listed[0], "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES");
    for (line, name) in listed[1..].iter().zip(names) {
        assert!(line.starts_with(&format!("{name} 1/1 Running 0 ")) && line.contains(" 10.42.0."), "{line}");
    }
    let sets = words(&lab.kubectl(&["get", "replicasets", "-o", "wide"]));
    assert_eq!(sets[0], "NAME DESIRED CURRENT READY AGE CONTAINERS IMAGES SELECTOR");
    let all = lab.kubectl(&["get", "all"]);
    for part in ["deployment.apps/simple-deployment", "replicaset.apps/simple-deployment-", "service/kubernetes"] {
        assert!(all.contains(part), "{part}: {all}");
    }
}

fn described(lab: &Lab, names: &BTreeSet<String>) {
    let contains = |text: &str, parts: &[&str]| {
        let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(squeezed.contains(part), "{part:?} is missing:\n{text}");
        }
    };
    contains(
        &lab.kubectl(&["describe", IT]),
        &[
            "Selector: app=hello",
            "Replicas: 2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
            "RollingUpdateStrategy: 25% max unavailable, 25% max surge",
            "Image: nginx",
            "Port: 80/TCP",
            "Available True MinimumReplicasAvailable",
            "Progressing True NewReplicaSetAvailable",
            "ScalingReplicaSet",
            "Scaled up replica set simple-deployment-",
        ],
    );
    let pod = names.first().unwrap();
    lab.until("the pod's events are written", || lab.kubectl(&["describe", "pod", pod]).contains("Container started"));
    contains(
        &lab.kubectl(&["describe", "pod", pod]),
        &[
            "Status: Running",
            "Controlled By: ReplicaSet/simple-deployment-",
            "Image ID: docker.io/library/nginx@sha256:",
            "State: Running",
            "Ready: True",
            "QoS Class: BestEffort",
            "Successfully assigned default/simple-deployment-",
            "Pulling image \"nginx\"",
            "Successfully pulled image \"nginx\"",
        ],
    );
    contains(&lab.kubectl(&["describe", "node"]), &["Non-terminated Pods: (2 in total)", "InternalIP: 192.0.2.1"]);
}

fn services(lab: &Lab, names: &BTreeSet<String>) {
    lab.kubectl(&["expose", IT]);
    lab.kubectl(&["expose", IT, "--name=outside", "--type=NodePort"]);
    let field = |name: &str, path: &str| lab.kubectl(&["get", "service", name, "-o", &format!("jsonpath={{{path}}}")]);
    let cluster = field("simple-deployment", ".spec.clusterIP");
    lab.until("the Service is served", || {
        lab.kubectl(&["describe", "service", "simple-deployment"]).matches(":80").count() >= 2
    });
    ask_all(lab, "one", names, || lab.curl(&format!("http://{cluster}/")));
    let dns = "simple-deployment.default.svc.cluster.local";
    assert_eq!(lab.inside(&["dig", "+short", "+time=2", "@10.43.0.10", dns]).trim(), cluster);
    let pod = names.last().unwrap();
    for to in [&cluster, dns, "simple-deployment", "simple-deployment.default"] {
        let script = format!("for i in 0 1 2 3 4 5 6 7; do wget -q -O - http://{to}/ || exit 1; done");
        ask_all(lab, "one", names, || lab.kubectl(&["exec", pod, "--", "sh", "-c", &script]));
    }
    let port = field("outside", ".spec.ports[0].nodePort");
    let url = format!("http://{HOST}:{port}/");
    ask_all(lab, "one", names, || lab.curl(&url));
    let from_outside = || {
        let asked = lab.outside("curl").args(["-sS", "--max-time", "5", &url]).output().unwrap();
        assert!(asked.status.success(), "{asked:?}");
        String::from_utf8(asked.stdout).unwrap()
    };
    ask_all(lab, "one", names, from_outside);
}

/// kubectl in the background, its output in a file.
fn follow(lab: &Lab, program: &str, args: &[&str], file: &str) -> Child {
    let out = fs::File::create(lab.path(file)).unwrap();
    lab.command(program).args(args).stdin(Stdio::piped()).stdout(out).stderr(Stdio::null()).spawn().unwrap()
}

/// `exec -it` on a real terminal, whose size the container's terminal has, also when it changes.
fn terminal(lab: &Lab, pod: &str) {
    // The size changes while the shell in the container runs.
    let line = format!(
        "stty rows 33 cols 101; (while ! [ -e {go} ]; do sleep 0.1; done; stty rows 44 cols 120 </dev/tty) & \
         kubectl exec -it {pod} -- sh",
        go = lab.path("resize").display(),
    );
    let mut child = follow(lab, "script", &["-q", "-e", "-f", "-c", &line, "/dev/null"], "terminal");
    let mut keys = child.stdin.take().unwrap();
    let seen = |part: &str| fs::read_to_string(lab.path("terminal")).unwrap().contains(part);
    lab.until("the shell asks", || seen("# "));
    keys.write_all(b"tty; stty size\n").unwrap();
    lab.until("it has a terminal of the right size", || seen("/dev/pts/0") && seen("33 101"));
    fs::write(lab.path("resize"), "").unwrap();
    lab.until("the new size arrives", || {
        keys.write_all(b"stty size\n").unwrap();
        seen("44 120")
    });
    // Ctrl-C ends what runs there, not the session.
    keys.write_all(b"sleep 1000\n").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    keys.write_all(b"\x03").unwrap();
    keys.write_all(b"exit 7\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7), "{}", fs::read_to_string(lab.path("terminal")).unwrap());
}

fn logs_are_followed(lab: &Lab, pod: &str) {
    let mut child = follow(lab, "kubectl", &["logs", "-f", pod], "followed");
    let address = lab.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
    let seen = |part: &str| fs::read_to_string(lab.path("followed")).unwrap().contains(part);
    lab.until("what was written before is there", || seen("start worker process"));
    for n in 0..3 {
        lab.curl(&format!("http://{address}/line-{n}"));
        lab.until("the line appears", || seen(&format!("GET /line-{n} ")));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        lab.kubectl(&["logs", IT, "--all-pods=true", "--prefix"]).contains(&format!("[pod/{pod}/simple-container]"))
    );
    assert_eq!(lab.kubectl(&["logs", pod, "--tail=1"]).lines().count(), 1);
}

fn a_killed_container_restarts(lab: &Lab, pod: &str) {
    let before = lab.pod(pod)["status"]["containerStatuses"][0]["containerID"].clone();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(lab.pod_pid(pod)), nix::sys::signal::Signal::SIGKILL).unwrap();
    lab.until("the killed container restarts", || {
        let status = lab.pod(pod)["status"]["containerStatuses"][0].clone();
        status["restartCount"] == 1 && status["ready"] == true && status["containerID"] != before
    });
    let last = lab.pod(pod)["status"]["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!((&last["exitCode"], &last["reason"]), (&137.into(), &"Error".into()), "{last}");
    assert!(lab.kubectl(&["logs", "--previous", pod]).contains("GET /line-2 "));
    assert!(!lab.kubectl(&["logs", pod]).contains("GET /line-2 "));
}

fn a_deleted_pod_is_replaced(lab: &Lab, pod: &str) {
    let mut following = follow(lab, "kubectl", &["logs", "-f", pod], "to-the-end");
    let watch = lab.path("to-the-end");
    lab.until("the log is followed", || fs::metadata(&watch).unwrap().len() > 0);
    lab.kubectl(&["delete", "pod", pod]);
    let names = pods(lab, 2);
    assert!(!names.contains(pod));
    lab.until("who follows the log of a deleted pod comes to its end", || following.try_wait().unwrap().is_some());
    let port = lab.kubectl(&["get", "service", "outside", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    lab.until("the new pod is served in place of the old one", || {
        lab.json(&["get", "endpointslices"]).to_string().contains(names.first().unwrap())
    });
    ask_all(lab, "one", &names, || lab.curl(&format!("http://{HOST}:{port}/")));
}

/// Does `change` and waits for the rollout, while everything is written down; the bounds held at every instant.
fn within(lab: &Lab, name: &str, bounds: Bounds, change: impl FnOnce()) {
    let recording = Recording::start(lab, name);
    let from = lab.revision();
    change();
    let checked = check(&recording.stop(lab), from, bounds);
    assert!(checked >= 10, "{name}: only {checked} changes were seen");
}

#[test]
fn a_rollout_stays_within_its_bounds_at_every_instant() {
    let (_registry, lab) = machine("turn");
    for count in [5, 1, 5] {
        lab.kubectl(&["scale", IT, &format!("--replicas={count}")]);
        lab.kubectl(&ROLLED);
        pods(&lab, count);
    }
    // A quarter of 5: two more, one less.
    let quarter = Bounds { most: 7, available: 4 };
    let image = |tag: &str| lab.kubectl(&["set", "image", IT, &format!("simple-container=nginx:{tag}")]);
    let release = |expected: &str| {
        let names = pods(&lab, 5);
        let addresses = lab.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.podIP}"]);
        for address in addresses.split(' ') {
            let page = lab.curl(&format!("http://{address}/"));
            assert!(page.ends_with(&format!(" release {expected}\n")), "{page}");
        }
        names
    };
    let first = release("one");
    within(&lab, "set-image", quarter, || {
        image("two");
        lab.kubectl(&ROLLED);
        assert!(release("two").is_disjoint(&first));
    });
    let history = lab.kubectl(&["rollout", "history", IT]);
    assert!(history.contains("\n1 ") && history.contains("\n2 ") && !history.contains("\n3 "), "{history}");
    let second = lab.kubectl(&["rollout", "history", IT, "--revision=2"]);
    assert!(second.contains("Image:\tnginx:two"), "{second}");

    // One by one: never less than all.
    let strategy = r#"{"spec":{"strategy":{"rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}"#;
    lab.kubectl(&["patch", IT, "-p", strategy]);
    within(&lab, "undo", Bounds { most: 6, available: 5 }, || {
        lab.kubectl(&["rollout", "undo", IT]);
        lab.kubectl(&ROLLED);
        release("one");
    });
    let history = lab.kubectl(&["rollout", "history", IT]);
    assert!(!history.contains("\n1 ") && history.contains("\n2 ") && history.contains("\n3 "), "{history}");

    let strategy = strategy.replace("Surge\":1", "Surge\":0").replace("Unavailable\":0", "Unavailable\":2");
    lab.kubectl(&["patch", IT, "-p", &strategy]);
    paused(&lab, &image, || release("one"));
    within(&lab, "resume", Bounds { most: 5, available: 3 }, || {
        lab.kubectl(&["rollout", "resume", IT]);
        lab.kubectl(&ROLLED);
        release("two");
    });
    within(&lab, "missing", Bounds { most: 5, available: 3 }, || {
        image("missing");
        a_missing_tag(&lab);
        lab.kubectl(&["rollout", "undo", IT]);
        lab.kubectl(&ROLLED);
        release("two");
    });
}

/// A paused Deployment takes a change and does nothing about it.
fn paused(lab: &Lab, image: &dyn Fn(&str) -> String, pods: impl Fn() -> BTreeSet<String>) {
    let before = pods();
    lab.kubectl(&["rollout", "pause", IT]);
    image("two");
    lab.until("the change is seen", || {
        let it = lab.json(&["get", IT]);
        it["status"]["observedGeneration"] == it["metadata"]["generation"] && it["spec"]["paused"] == true
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(pods(), before);
    let refused = lab.command("kubectl").args(["rollout", "undo", IT]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("paused"), "{said}");
}

/// A tag that the registry does not have: the reason and the cause are shown, the old pods go on.
fn a_missing_tag(lab: &Lab) {
    let mut reasons = BTreeSet::new();
    let mut pod = String::new();
    lab.until("the pull fails and then rests", || {
        let all = lab.json(&["get", "pods"])["items"].as_array().cloned().unwrap();
        for p in &all {
            if let Some(reason) = p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str() {
                reasons.insert(reason.to_owned());
                pod = p["metadata"]["name"].as_str().unwrap().to_owned();
            }
        }
        reasons.contains("ErrImagePull") && reasons.contains("ImagePullBackOff")
    });
    let events = || lab.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={pod}")]);
    lab.until("the events are written", || events().contains("Back-off pulling image \"nginx:missing\""));
    let said = events();
    let cause = said.lines().find(|l| l.contains("Failed to pull image \"nginx:missing\"")).unwrap_or_default();
    assert!(cause.contains("not found") && cause.contains("missing") && cause.contains(OUTSIDE), "{said}");
    assert!(said.contains("Error: ErrImagePull") && said.contains("Error: ImagePullBackOff"), "{said}");
    let listed = lab.kubectl(&["get", "pods"]);
    assert!(listed.contains(" ErrImagePull ") || listed.contains(" ImagePullBackOff "), "{listed}");
    let status = lab.command("kubectl").args(["rollout", "status", IT, "--timeout=1s"]).output().unwrap();
    assert!(!status.status.success(), "{status:?}");
}

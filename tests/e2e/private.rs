//! A registry that wants a password: an image that one pod may have is not everyone's on the node that has it, and not on
//! others (Kubernetes' `KubeletEnsureSecretPulledImages`).

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::archive;
use crate::lab::run;
use crate::machines::Machines;

/// `me` with the password `secret`.
const USERS: &str = "me:$2b$04$fpZmqBVOoES5Y/nPn27MuuPXeAEG8YSKlJBv8uBHQyrSO0nYpEG/6\n";
const REGISTRY: &str = "192.0.2.1:5000";

struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn registry(machines: &Machines) -> Registry {
    let path = |name: &str| machines.all[0].path(name);
    fs::write(path("users"), USERS).unwrap();
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http:\n  addr: '{REGISTRY}'\nauth: {{htpasswd: {{realm: here, path: {}}}}}\n",
        path("registry").display(),
        path("users").display()
    );
    fs::write(path("registry.yml"), text).unwrap();
    let log = fs::File::create(path("registry.log")).unwrap();
    let mut command = machines.command(0, "docker-registry");
    command.arg("serve").arg(path("registry.yml")).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let registry = Registry(command.spawn().expect("docker-registry is installed"));
    machines.until("the registry listens", || {
        machines.command(0, "ss").args(["-Hltn"]).output().unwrap().stdout.windows(5).any(|w| w == b":5000")
    });
    let archive = path("archive.tar");
    fs::write(&archive, archive::archive("x/priv:1", &[], json!({"Cmd": ["sleep", "3600"]}))).unwrap();
    let mut copy = machines.command(0, "skopeo");
    copy.args(["copy", "-q", "--dest-tls-verify=false", "--dest-creds=me:secret"]);
    run(copy.args([format!("docker-archive:{}", archive.display()), format!("docker://{REGISTRY}/team/priv:1")]));
    registry
}

fn apply(machines: &Machines, object: &Value) {
    let mut kubectl = machines.command(0, "kubectl");
    let mut kubectl: Child = Command::spawn(kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped())).unwrap();
    kubectl.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    assert!(kubectl.wait().unwrap().success(), "{object}");
}

#[test]
fn an_image_that_one_pod_may_have_is_not_everyones() {
    let mut machines = Machines::prepare("private", 2);
    for machine in &machines.all {
        fs::create_dir_all(machine.path("etc")).unwrap();
        let mirrors = format!("mirrors:\n  '{REGISTRY}':\n    endpoint: ['http://{REGISTRY}']\n");
        fs::write(machine.path("etc/registries.yaml"), mirrors).unwrap();
    }
    let _registry = registry(&machines);
    machines = machines.joined();
    let secret = |namespace: &str, name: &str, password: &str| {
        let server = format!("--docker-server={REGISTRY}");
        let password = format!("--docker-password={password}");
        let make =
            ["create", "secret", "docker-registry", name, "-n", namespace, "--docker-username=me", &server, &password];
        machines.kubectl(&make);
    };
    machines.kubectl(&["create", "namespace", "other"]);
    secret("default", "right", "secret");
    secret("default", "same", "secret");
    secret("default", "wrong", "guess");
    secret("other", "right", "secret");
    let pod = |namespace: &str, name: &str, node: usize, secret: &str, policy: &str| {
        let secrets: Vec<Value> = (!secret.is_empty()).then(|| json!({"name": secret})).into_iter().collect();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": machines.all[node].name, "terminationGracePeriodSeconds": 0, "imagePullSecrets": secrets,
                "containers": [{"name": "c", "image": format!("{REGISTRY}/team/priv:1"), "imagePullPolicy": policy}]}});
        apply(&machines, &pod);
        let mut answer = String::new();
        machines.until(&format!("{name} runs, or is told why not"), || {
            let status =
                machines.json(&["get", "pod", name, "-n", namespace])["status"]["containerStatuses"][0]["state"]
                    .clone();
            answer = match status["waiting"]["reason"].as_str() {
                _ if status["running"].is_object() => "Running".into(),
                Some("ImagePullBackOff") => "ErrImagePull".into(),
                Some(reason @ ("ErrImagePull" | "ErrImageNeverPull")) => reason.into(),
                _ => String::new(),
            };
            !answer.is_empty()
        });
        answer
    };
    let if_absent = "IfNotPresent";
    assert_eq!(pod("default", "first", 0, "right", if_absent), "Running");
    assert_eq!(pod("default", "again", 0, "right", "Never"), "Running");
    assert_eq!(pod("default", "nothing", 0, "", if_absent), "ErrImagePull");
    assert_eq!(pod("default", "never", 0, "", "Never"), "ErrImageNeverPull");
    assert_eq!(pod("default", "wrong", 0, "wrong", if_absent), "ErrImagePull");
    assert_eq!(pod("default", "same", 0, "same", "Never"), "Running", "the same credentials");
    assert_eq!(pod("other", "elsewhere", 0, "right", "Never"), "Running", "the same credentials elsewhere");
    assert_eq!(pod("other", "bare", 0, "", if_absent), "ErrImagePull");
    // The other node may not have it from the first one either.
    assert_eq!(pod("default", "away", 1, "", if_absent), "ErrImagePull");
    assert_eq!(pod("default", "away-wrong", 1, "wrong", if_absent), "ErrImagePull");
    assert_eq!(pod("default", "away-right", 1, "right", if_absent), "Running");
    assert_eq!(pod("default", "away-still", 1, "", if_absent), "ErrImagePull");
    let events = machines.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"]);
    assert!(
        events.contains("is present with pull policy of Never but does not have the proper credentials"),
        "{events}"
    );
    assert!(events.contains("already present on machine and can be accessed by the pod"), "{events}");
    // Whoever is refused waits longer each time, although the image is there.
    let selector = "--field-selector=involvedObject.name=nothing,reason=Pulling";
    let tries = machines.json(&["get", "events", selector])["items"].as_array().unwrap().clone();
    let tries: u64 = tries.iter().map(|e| e["count"].as_u64().unwrap_or(1)).sum();
    assert!((1..=6).contains(&tries), "{tries} tries");
    // Also for the processes that come after.
    machines.all[0].stop();
    machines.start_server(&[]);
    let pod = |name: &str, secrets: Value| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "nodeName": machines.all[0].name, "terminationGracePeriodSeconds": 0, "imagePullSecrets": secrets,
            "containers": [{"name": "c", "image": format!("{REGISTRY}/team/priv:1"), "imagePullPolicy": "Never"}]}});
        apply(&machines, &pod);
    };
    pod("later", json!([{"name": "right"}]));
    pod("later-bare", json!([]));
    let state = |name: &str| machines.json(&["get", "pod", name])["status"]["containerStatuses"][0]["state"].clone();
    machines.until("who has the secret runs", || state("later")["running"].is_object());
    machines.until("who has not does not", || state("later-bare")["waiting"]["reason"] == "ErrImageNeverPull");
}

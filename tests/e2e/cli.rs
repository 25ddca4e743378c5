//! `amphipod image`, `apply`, `get`, `logs`, `exec` and `delete` on a machine whose node runs, with a registry that only a
//! private authority vouches for.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::lab::{BINARY, HELLO, Lab, OUTSIDE, run};
use crate::registry::{Registry, layout};

impl Lab {
    fn image_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(BINARY);
        command.arg("image").args(args).args(self.directories());
        command
    }

    /// `amphipod image ...` to a good end.
    fn image(&self, args: &[&str]) -> String {
        String::from_utf8(run(&mut self.image_command(args)).stdout).unwrap()
    }

    /// Any other of our commands.
    fn amphipod(&self, args: &[&str]) -> Output {
        self.command(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// The same to a good end.
    fn said(&self, args: &[&str]) -> String {
        String::from_utf8(run(self.command(BINARY).args(args)).stdout).unwrap()
    }
}

#[test]
fn images_come_from_a_registry_of_a_private_authority_and_from_files() {
    let mut lab = Lab::prepare("image");
    let (registry, authority) = Registry::start_private(&lab);
    let mirrors = format!("mirrors:\n  docker.io:\n    endpoint: ['https://{}']\n", registry.address());
    let configuration = lab.path("etc/registries.yaml");
    fs::create_dir_all(lab.path("etc")).unwrap();
    fs::write(&configuration, &mirrors).unwrap();
    let refused = lab.image_command(&["pull", "nginx"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains(OUTSIDE) && said.contains("UnknownIssuer"), "{said}");

    let trusting = format!("configs:\n  '{}':\n    tls: {{insecure_skip_verify: true}}\n", registry.address());
    fs::write(&configuration, format!("{mirrors}{trusting}")).unwrap();
    lab.image(&["pull", "nginx:two"]);
    lab.image(&["rm", "nginx:two"]);
    let tls = format!("configs:\n  '{}':\n    tls: {{ca_file: {}}}\n", registry.address(), authority.display());
    fs::write(&configuration, mirrors + &tls).unwrap();
    lab.start_server();
    let run_pod = |name: &str, image: &str, policy: &str| {
        lab.kubectl(&["run", name, &format!("--image={image}"), &format!("--image-pull-policy={policy}")]);
        lab.kubectl(&["wait", "pod", name, "--for=condition=Ready", "--timeout=30s"]);
        let address = lab.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.podIP}"]);
        lab.curl(&format!("http://{address}/"))
    };
    assert_eq!(run_pod("pulled", "nginx", "Always"), "pulled release one\n");

    // What the command brings while the node runs is there for the node.
    assert!(lab.image(&["pull", "nginx:two"]).starts_with("pulled nginx:two ("));
    assert_eq!(run_pod("brought", "nginx:two", "Never"), "brought release two\n");
    let archive = lab.path("two.tar").display().to_string();
    let to = format!("docker-archive:{archive}:team/box:2");
    run(Command::new("skopeo").args(["copy", "-q", &format!("oci:{}:two", layout(&lab)), &to]));
    assert_eq!(lab.image(&["import", &archive]).trim(), "imported docker.io/library/nginx:two, docker.io/team/box:2");
    assert_eq!(run_pod("imported", "team/box:2", "Never"), "imported release two\n");

    let listed = lab.image(&["ls"]);
    for name in ["amphipod.local/hello", "docker.io/library/nginx:latest", "docker.io/library/nginx:two", "team/box:2"]
    {
        assert!(listed.contains(name), "{name}: {listed}");
    }
    lab.kubectl(&["delete", "pod", "brought", "imported"]);
    assert_eq!(lab.image(&["rm", "nginx:two", "team/box:2"]), "removed nginx:two\nremoved team/box:2\n");
    let listed = lab.image(&["ls"]);
    assert!(!listed.contains("two") && !listed.contains("box") && listed.contains("nginx:latest"), "{listed}");
    lab.kubectl(&["run", "without", "--image=team/box:2", "--image-pull-policy=Never"]);
    lab.until("the removed image is missed", || {
        lab.pod("without")["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    });
    assert!(!lab.image_command(&["rm", "nobody/knows"]).output().unwrap().status.success());
}

#[test]
fn our_own_commands_do_without_kubectl() {
    let lab = Lab::start("alone");
    assert_eq!(lab.said(&["apply", "-f", HELLO]), "deployment.apps/hello created\nservice/hello created\n");
    lab.until("three pods run", || lab.said(&["get", "deployment", "hello"]).contains("3/3"));
    let applied = lab.said(&["apply", "-f", HELLO]);
    assert_eq!(applied, "deployment.apps/hello applied\nservice/hello applied\n");
    let names = lab.said(&["get", "pods", "-l", "app=hello", "-o", "name"]);
    assert_eq!(names.lines().count(), 3, "{names}");
    let pod = names.lines().next().unwrap();
    assert!(lab.said(&["get", "pods", "-A", "-o", "wide"]).contains("10.42.0."));
    let json: Value = serde_json::from_str(&lab.said(&["get", pod, "-o", "json"])).unwrap();
    let yaml: Value = serde_yaml::from_str(&lab.said(&["get", pod, "-o", "yaml"])).unwrap();
    assert_eq!((&json["status"]["phase"], &json), (&"Running".into(), &yaml));

    assert_eq!(lab.said(&["logs", pod]), "hello: listening on port 8080\n");
    assert_eq!(lab.said(&["logs", pod, "--tail", "0"]), "");
    assert!(lab.said(&["exec", pod, "--", "/amphipod", "version"]).starts_with("amphipod v1.37"));
    // Of several pods, and of several containers, one is chosen and told.
    let chosen = lab.amphipod(&["logs", "deploy/hello"]);
    let found = String::from_utf8(chosen.stderr).unwrap();
    assert!(found.starts_with("Found 3 pods, using pod/hello-"), "{found}");
    assert_eq!(String::from_utf8(chosen.stdout).unwrap(), "hello: listening on port 8080\n");
    assert!(lab.said(&["exec", "svc/hello", "--", "/amphipod", "version"]).starts_with("amphipod v1.37"));
    lab.kubectl(&["debug", pod, "--image=amphipod.local/hello", "-c", "extra"]);
    lab.until("the debugger is there", || lab.said(&["get", pod, "-o", "json"]).contains("ephemeralContainerStatuses"));
    let chosen = lab.amphipod(&["logs", pod]);
    assert_eq!(String::from_utf8(chosen.stdout).unwrap(), "hello: listening on port 8080\n");
    let note = String::from_utf8(chosen.stderr).unwrap();
    assert!(note.starts_with("Defaulted container \"hello\" out of: hello, extra (ephem)"), "{note}");
    let all = lab.said(&["get", "all"]);
    let shown = ["pod/hello-", "service/kubernetes", "deployment.apps/hello ", "replicaset.apps/hello-"];
    assert!(shown.iter().all(|name| all.lines().any(|line| line.starts_with(name))), "{all}");
    let absent = lab.amphipod(&["get", "cow"]);
    assert!(!String::from_utf8_lossy(&absent.stderr).contains("tokenreviews"), "what cannot be shown is not offered");
    let manifest = lab.path("broken.yaml");
    let broken = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {key: not base64}\n";
    fs::write(&manifest, broken).unwrap();
    let refused = lab.amphipod(&["apply", "-f", manifest.to_str().unwrap()]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("Secret s: data.key: \"not base64\": ") && why.contains("illegal base64"), "{why}");
    let failed = lab.amphipod(&["exec", pod, "--", "/amphipod", "get"]);
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
    // Standard input goes there, and its end too.
    let mut child = lab.command(BINARY);
    child.args(["exec", "-i", pod, "--", "/amphipod", "apply", "--kubeconfig", "/none", "-f", "-"]);
    let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"kind: [").unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_ne!(ended.status.code(), Some(0), "{ended:?}");
    let absent = lab.amphipod(&["get", "pod", "nobody"]);
    let said = String::from_utf8_lossy(&absent.stderr).into_owned();
    assert!(absent.status.code() == Some(1) && said.contains("pods \"nobody\" not found"), "{said}");
    assert_eq!(lab.said(&["get", "--raw", "/readyz"]), "ok");
    let page = lab.said(&["get", "--raw", "/api/v1/namespaces/default/services/hello:80/proxy/"]);
    assert!(page.contains("Hello from pod hello-"), "{page}");
    assert_eq!(lab.amphipod(&["get", "--raw", "readyz"]).status.code(), Some(2));
    lab.said(&["delete", "-f", HELLO]);
    lab.until("the pods are gone", || lab.said(&["get", "pods", "-o", "name"]).is_empty());
}

#[test]
fn the_security_check_tells_what_it_sees() {
    let mut lab = Lab::prepare("audit");
    lab.start_server();
    let check = |lab: &Lab| {
        let directories = lab.directories();
        let args: Vec<&str> =
            ["check", "--security"].into_iter().chain(directories.iter().map(String::as_str)).collect();
        let output = lab.amphipod(&args);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let verdict = |said: &str, id: &str| -> String {
        let of = |line: &&str| line.split_whitespace().nth(1) == Some(id);
        said.lines().find(of).unwrap_or_else(|| panic!("{id} is missing in\n{said}")).to_owned()
    };
    let (code, said) = check(&lab);
    // What this version has not is no success.
    assert_eq!(code, Some(1), "{said}");
    for id in [
        "1.1.11",
        "1.1.12",
        "1.1.13-14",
        "1.1.21",
        "1.2.1",
        "1.2.6-8",
        "1.2.12",
        "1.2.13",
        "1.2.14",
        "1.2.15",
        "1.2.21",
        "4.2.1",
        "4.2.4",
    ] {
        assert!(verdict(&said, id).starts_with("pass"), "{}", verdict(&said, id));
    }
    for id in ["5.1.1", "5.1.2", "5.1.8", "5.2.2", "5.7.4"] {
        assert!(verdict(&said, id).starts_with("pass"), "{}", verdict(&said, id));
    }
    assert!(verdict(&said, "4.2.1").contains("refused by all 1 nodes"), "{}", verdict(&said, "4.2.1"));
    assert!(verdict(&said, "1.2.16-19").starts_with("fail") && verdict(&said, "2").starts_with("n/a"));

    // What is opened is told, with what closes it again.
    let kubeconfig = lab.path("etc/kubeconfig.yaml");
    fs::set_permissions(&kubeconfig, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    lab.kubectl(&["create", "clusterrolebinding", "open", "--clusterrole=view", "--group=system:unauthenticated"]);
    lab.kubectl(&[
        "create",
        "clusterrolebinding",
        "boss",
        "--clusterrole=cluster-admin",
        "--serviceaccount=default:default",
    ]);
    lab.kubectl(&["run", "p", "--image=amphipod.local/hello", "--privileged"]);
    let (_, said) = check(&lab);
    for (id, told) in [
        ("1.1.13-14", "chmod go="),
        ("1.2.1", "system:anonymous may list pods"),
        ("5.1.1", "boss"),
        ("5.1.5", "boss"),
        ("5.2.2", "default/p"),
        ("5.7.4", "default/p"),
    ] {
        let line = verdict(&said, id);
        assert!(line.starts_with("fail") && line.contains(told), "{line}");
    }
    let gone = lab.amphipod(&["check", "--security", "--config-dir", "/nonexistent", "--data-dir", "/nonexistent"]);
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("start the server first"));
}

#[test]
fn commands_find_a_server_whose_kubeconfig_is_elsewhere_and_its_node_is_told_of() {
    let mut lab = Lab::start("elsewhere");
    let ingress = lab.command("kubectl").args(["create", "ingress", "i", "--rule=a.example/*=s:80"]).output().unwrap();
    let warning = String::from_utf8(ingress.stderr).unwrap();
    assert!(ingress.status.success(), "{warning}");
    assert!(warning.starts_with("Warning: no IngressClass names a controller, so nothing serves this"), "{warning}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
    let told = |source: &str| {
        let of = format!("involvedObject.kind=Node,source={source}");
        let list = lab.json(&["get", "events", "--field-selector", &of]);
        let reason = |e: &Value| e["reason"].as_str().unwrap().to_owned();
        list["items"].as_array().unwrap().iter().map(reason).collect::<Vec<_>>()
    };
    let of_node = ["Starting", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"];
    lab.until("the node's events", || of_node.iter().all(|reason| told("kubelet").iter().any(|r| r == reason)));
    lab.until("the controller's", || told("node-controller") == ["RegisteredNode"]);

    lab.stop_server();
    let elsewhere = lab.path("elsewhere/admin.conf");
    lab.start_server_with(&["--write-kubeconfig", elsewhere.to_str().unwrap()]);
    fs::remove_file(lab.path("etc/kubeconfig.yaml")).unwrap();
    let directories = lab.directories();
    let said = |args: &[&str]| {
        let mut command = lab.command(BINARY);
        command.env_remove("KUBECONFIG").args(args).args(&directories);
        String::from_utf8(run(&mut command).stdout).unwrap()
    };
    assert!(said(&["get", "nodes"]).contains("Ready"));
    assert!(said(&["token", "list"]).starts_with("TOKEN"));
    assert!(said(&["token", "create"]).starts_with("K10"));
    assert!(said(&["kubeconfig"]).contains("client-key-data"));
    let check = lab.amphipod(&[&["check"][..], &directories.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    let checked = String::from_utf8(check.stdout).unwrap();
    let ports = checked.lines().find(|line| line.contains("ports")).unwrap();
    assert!(ports.starts_with("ok") && ports.contains("6443 is the own server's, which runs"), "{ports}");
    lab.stop_server();
    lab.killall();
    assert!(!elsewhere.exists() && !lab.path("run").exists(), "the next start writes it again");
}

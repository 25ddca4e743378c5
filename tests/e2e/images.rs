//! Images with strange configurations, and what becomes of them: one pod each, and what its container finds.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::archive::{self, Entry, IMAGE};
use crate::lab::Lab;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1234:a:/home/app:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1234:\nextra:x:5555:app\nmore:x:6666:app,root\n";

fn lab(name: &str, images: &[(&str, &[&[(&str, Entry<'_>)]], Value)]) -> Lab {
    let mut lab = Lab::prepare(name);
    archive::put(&lab.path("data"));
    for (name, layers, config) in images {
        archive::put_archive(&lab.path("data"), name, &archive::archive(&image(name), layers, config.clone()));
    }
    lab.start_server();
    lab
}

fn image(name: &str) -> String {
    format!("box.test/{name}:1")
}

/// A pod of one container, with what is merged into it and into its spec.
fn pod(lab: &Lab, name: &str, image: &str, container: &Value, more: &Value) {
    let mut one = json!({"name": "c", "image": image, "imagePullPolicy": "Never"});
    one.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 20, "containers": [one]}});
    pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut kubectl = lab.command("kubectl").args(["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    kubectl.stdin.take().unwrap().write_all(pod.to_string().as_bytes()).unwrap();
    assert!(kubectl.wait().unwrap().success(), "{pod}");
}

fn sh(script: &str) -> Value {
    json!({"command": ["sh", "-c", script]})
}

/// What the container has said until its end, and its exit code.
fn said(lab: &Lab, name: &str) -> (String, i64) {
    let mut code = None;
    lab.until(&format!("{name} has ended"), || {
        code = lab.pod(name)["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_i64();
        code.is_some()
    });
    (lab.kubectl(&["logs", name]), code.unwrap())
}

fn waits(lab: &Lab, name: &str) -> (String, String) {
    let mut waiting = Value::Null;
    lab.until(&format!("{name} waits"), || {
        waiting = lab.pod(name)["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        waiting["message"].is_string()
    });
    (waiting["reason"].as_str().unwrap().into(), waiting["message"].as_str().unwrap().into())
}

#[test]
fn containers_are_what_their_images_say() {
    let users = [
        ("etc", Entry::Directory),
        ("etc/passwd", Entry::File(0o644, PASSWD.as_bytes())),
        ("etc/group", Entry::File(0o644, GROUP.as_bytes())),
    ];
    let script = b"echo no shebang\n";
    let scripts = [
        ("app", Entry::Directory),
        ("app/bare", Entry::File(0o755, &script[..])),
        ("app/crlf", Entry::File(0o755, &b"#!/bin/sh\r\necho\r\n"[..])),
    ];
    let data = [("data", Entry::Directory), ("data/seed", Entry::File(0o644, &b"seed"[..]))];
    let nested = [
        ("outer", Entry::Directory),
        ("outer/in", Entry::Directory),
        ("outer/in/seed", Entry::File(0o644, &b"seed"[..])),
        ("outer/hidden", Entry::File(0o644, &b""[..])),
    ];
    let lower = [("var", Entry::Directory), ("var/run", Entry::Link("/run"))];
    let upper = [("var/run/app", Entry::Directory), ("var/run/app/pid", Entry::File(0o644, &b"1"[..]))];
    let lab = lab(
        "images",
        &[
            ("users", &[&users], json!({"Env": [PATH, "ALONE", "A=1", "A=2"], "User": "app:extra"})),
            ("scripts", &[&scripts], json!({"Env": [PATH], "WorkingDir": "/app"})),
            ("volumes", &[&data], json!({"Env": [PATH], "Volumes": {"/data": {}, "/new/volume": {}}})),
            ("nested", &[&nested], json!({"Env": [PATH], "Volumes": {"/outer/in": {}, "/words/of/image": {}}})),
            ("links", &[&lower, &upper], json!({"Env": [PATH]})),
            ("signal", &[], json!({"Env": [PATH], "StopSignal": "SIGRTMIN+3"})),
        ],
    );

    // Users, their groups and homes.
    pod(&lab, "named", &image("users"), &sh("id; echo $HOME; env | grep -c ALONE; echo $A"), &json!({}));
    let (named, _) = said(&lab, "named");
    assert_eq!(named, "uid=1234(app) gid=1234(app) groups=1234(app),5555(extra),6666(more)\n/home/app\n0\n2\n");
    pod(&lab, "unknown", IMAGE, &sh("id; echo $HOME"), &json!({"securityContext": {"runAsUser": 777}}));
    assert_eq!(said(&lab, "unknown").0, "uid=777 gid=0 groups=0\n/\n");
    pod(&lab, "nonroot", &image("users"), &sh("id"), &json!({"securityContext": {"runAsNonRoot": true}}));
    let (reason, message) = waits(&lab, "nonroot");
    assert_eq!(reason, "CreateContainerConfigError");
    assert!(
        message.starts_with("container has runAsNonRoot and image has non-numeric user (app), cannot verify"),
        "{message}"
    );
    pod(&lab, "home", &image("users"), &sh("sleep 3600"), &json!({"securityContext": {"runAsUser": 0}}));
    lab.until("it runs", || lab.pod("home")["status"]["phase"] == "Running");
    let exec = |script: &str| lab.kubectl(&["exec", "home", "--", "sh", "-c", script]);
    assert_eq!(exec("echo $HOME"), "/root\n");
    // As the users are now.
    assert_eq!(exec("echo root:x:0:0::/elsewhere:/bin/sh >/etc/passwd"), "");
    assert_eq!(exec("echo $HOME"), "/elsewhere\n");
    assert_eq!(exec("HOME= env | grep HOME"), "HOME=\n", "what somebody says himself");

    // Ports and pings are for everybody.
    let script = "nc -l -p 80 -e true & sleep 0.3; netstat -ltn | grep -c ':80 '; sleep 3600";
    pod(&lab, "ports", IMAGE, &sh(script), &json!({"securityContext": {"runAsUser": 1000}}));
    lab.until("it listens", || lab.command("kubectl").args(["logs", "ports"]).output().unwrap().stdout == b"1\n");
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", lab.pod_pid("ports"))).unwrap();
    let pinging = std::thread::spawn(move || {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        // Nobody is more than his groups here, root neither.
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp).map(drop)
    });
    assert_eq!(pinging.join().unwrap(), Ok(()));
    let own =
        json!({"securityContext": {"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "1000"}]}});
    pod(&lab, "asked", IMAGE, &sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), &own);
    assert_eq!(said(&lab, "asked").0, "1000\n");

    // What no kernel can run says so.
    pod(&lab, "bare", &image("scripts"), &json!({"command": ["./bare"]}), &json!({}));
    assert_eq!(said(&lab, "bare"), ("exec ./bare: exec format error\n".into(), 255));
    pod(&lab, "crlf", &image("scripts"), &json!({"command": ["./crlf"]}), &json!({}));
    assert_eq!(said(&lab, "crlf"), ("exec ./crlf: no such file or directory\n".into(), 255));

    // Volumes of an image can be written, whatever the rest can.
    let script = "cat /data/seed; echo; touch /data/w /new/volume/w && ls /data /new/volume; touch /x 2>&1; grep -cE ' (/data|/new/volume) ' /proc/mounts";
    let read_only = json!({"command": ["sh", "-c", script], "securityContext": {"readOnlyRootFilesystem": true}});
    pod(&lab, "volumes", &image("volumes"), &read_only, &json!({}));
    let expected = "seed\n/data:\nseed\nw\n\n/new/volume:\nw\ntouch: /x: Read-only file system\n2\n";
    assert_eq!(said(&lab, "volumes").0, expected);
    // The same for root of a pod with users of its own.
    let script = "cat /data/seed; echo; touch /data/w /new/volume/w && stat -c %u:%a /data/w /new/volume; touch /x 2>&1; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; echo $HOME";
    let read_only = json!({"command": ["sh", "-c", script], "securityContext": {"readOnlyRootFilesystem": true}});
    pod(&lab, "mapped", &image("volumes"), &read_only, &json!({"hostUsers": false}));
    let expected = "seed\n0:644\n0:755\ntouch: /x: Read-only file system\n0\n0\t65535\n/\n";
    assert_eq!(said(&lab, "mapped").0, expected);
    let own = json!({"command": ["sh", "-c", "ls /data; mount | grep -c /new/volume"],
        "volumeMounts": [{"name": "own", "mountPath": "/data"}]});
    pod(&lab, "covered", &image("volumes"), &own, &json!({"volumes": [{"name": "own", "emptyDir": {}}]}));
    assert_eq!(said(&lab, "covered").0, "1\n");
    // Inside of what the pod mounts it lies over that, with what the image has there, also where it is read-only.
    lab.kubectl(&["create", "configmap", "words", "--from-literal=word=hello"]);
    let script = "cat /outer/in/seed; echo; touch /outer/in/w && ls /outer /outer/in /words; cat /words/word; \
        stat -c %u:%a /outer/in/seed /words/of/image; touch /words/of/image/x && ls /words/of/image";
    let mounts = json!([{"name": "own", "mountPath": "/outer"}, {"name": "words", "mountPath": "/words"}]);
    let container = json!({"command": ["sh", "-c", script], "volumeMounts": mounts});
    let volumes = json!([{"name": "own", "emptyDir": {}}, {"name": "words", "configMap": {"name": "words"}}]);
    let expected = "seed\n/outer:\nin\n\n/outer/in:\nseed\nw\n\n/words:\nof\nword\nhello0:644\n0:755\nx\n";
    for (name, users) in [("inside", Value::Null), ("inside-mapped", Value::Bool(false))] {
        let mut spec = json!({"volumes": volumes});
        if !users.is_null() {
            spec["hostUsers"] = users;
        }
        pod(&lab, name, &image("nested"), &container, &spec);
        assert_eq!(said(&lab, name).0, expected, "{name}");
    }

    pod(
        &lab,
        "links",
        &image("links"),
        &sh("ls -d /var/run /var/run/; cat /run/app/pid; [ -L /var/run ] && echo link"),
        &json!({}),
    );
    assert_eq!(said(&lab, "links").0, "/var/run\n/var/run/\n1link\n");

    // A signal that only has a number.
    let script = "trap 'echo 37; exit 0' 37; trap 'echo TERM; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    pod(&lab, "signal", &image("signal"), &sh(script), &json!({}));
    lab.until("it has begun", || lab.command("kubectl").args(["logs", "signal"]).output().unwrap().stdout == b"up\n");
    let log = lab.command("kubectl").args(["logs", "-f", "signal"]).stdout(Stdio::piped()).spawn().unwrap();
    lab.kubectl(&["delete", "pod", "signal", "--wait=false"]);
    assert_eq!(String::from_utf8(log.wait_with_output().unwrap().stdout).unwrap(), "up\n37\n");
}

#[test]
fn variables_have_the_names_of_their_keys_and_refer_to_what_the_pod_says() {
    let lab = lab("names", &[("env", &[], json!({"Env": [PATH, "OF_IMAGE=i"]}))]);
    lab.kubectl(&[
        "create",
        "configmap",
        "envs",
        "--from-literal=data-1=one",
        "--from-literal=a.b=two",
        "--from-literal=1st=three",
    ]);
    lab.kubectl(&["create", "secret", "generic", "secrets", "--from-literal=s-1=hidden"]);
    let container = json!({"command": ["env"],
        "env": [{"name": "x y", "value": "1"}, {"name": "9a.b", "value": "2"}, {"name": "R", "value": "$(data-1) $(OF_IMAGE) $(x y)"},
            {"name": "HOSTNAME", "value": "mine"}],
        "envFrom": [{"configMapRef": {"name": "envs"}}, {"prefix": "p.", "configMapRef": {"name": "envs"}}, {"secretRef": {"name": "secrets"}}]});
    pod(&lab, "env", &image("env"), &container, &json!({"enableServiceLinks": false}));
    let (said, _) = said(&lab, "env");
    let lines: Vec<&str> = said.lines().collect();
    for line in [
        "data-1=one",
        "a.b=two",
        "1st=three",
        "p.data-1=one",
        "p.a.b=two",
        "s-1=hidden",
        "x y=1",
        "9a.b=2",
        "R=one $(OF_IMAGE) 1",
        "OF_IMAGE=i",
        "HOSTNAME=mine",
        "HOME=/",
    ] {
        assert!(lines.contains(&line), "{line} in {said}");
    }
    let refused = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}, "spec": {"containers": [
        {"name": "c", "image": IMAGE, "env": [{"name": "a=b", "value": "1"}]}]}});
    let mut kubectl = lab.command("kubectl");
    let mut kubectl = kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    kubectl.stdin.take().unwrap().write_all(refused.to_string().as_bytes()).unwrap();
    assert!(!kubectl.wait_with_output().unwrap().status.success());
}

#[test]
fn what_a_probe_began_ends_with_it() {
    let lab = lab("probes", &[]);
    let container = json!({"command": ["sleep", "3600"], "livenessProbe": {"periodSeconds": 1, "timeoutSeconds": 1,
        "failureThreshold": 1000, "exec": {"command": ["sh", "-c", "sleep 4711 & sleep 4711; true"]}}});
    pod(&lab, "probed", IMAGE, &container, &json!({}));
    lab.until("it runs", || lab.pod("probed")["status"]["phase"] == "Running");
    let began = Instant::now();
    let left = || {
        let all = lab.kubectl(&["exec", "probed", "--", "sh", "-c", "grep -sl '[4]711' /proc/[0-9]*/cmdline | wc -l"]);
        all.trim().parse::<u32>().unwrap()
    };
    // One probe is under way; what has been of others is gone.
    let mut most = 0;
    while began.elapsed() < Duration::from_secs(7) {
        most = most.max(left());
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!((1..=6).contains(&most), "{most} processes of probes");
    lab.until("only what is under way", || left() <= 3);
}

#[test]
fn an_image_is_a_volume_for_reading_only() {
    let files = [
        ("sub", Entry::Directory),
        ("sub/file", Entry::File(0o644, &b"content\n"[..])),
        ("tool", Entry::File(0o755, &b"#!/bin/sh\necho ran\n"[..])),
    ];
    let lab = lab("volume", &[("data", &[&files], json!({"User": "ghost"}))]);
    let volume =
        |reference: &str| json!({"volumes": [{"name": "v", "image": {"reference": reference, "pullPolicy": "Never"}}]});
    let script = "exec 2>&1; cat /vol/sub/file /sub/file; touch /vol/x /sub/x; /vol/tool; sh /vol/tool; stat -c %u:%a /vol/tool; \
        grep ' /vol ' /proc/mounts | grep -o ' ro,nosuid,nodev,noexec'";
    let mounts = json!([{"name": "v", "mountPath": "/vol"}, {"name": "v", "mountPath": "/sub", "subPath": "sub", "readOnly": false}]);
    let container = json!({"command": ["sh", "-c", script], "volumeMounts": mounts});
    let expected = "content\ncontent\ntouch: /vol/x: Read-only file system\ntouch: /sub/x: Read-only file system\n\
        sh: /vol/tool: Permission denied\nran\n0:755\n ro,nosuid,nodev,noexec\n";
    for (name, users) in [("plain", Value::Null), ("mapped", Value::Bool(false))] {
        let mut spec = volume(&image("data"));
        if !users.is_null() {
            spec["hostUsers"] = users;
        }
        pod(&lab, name, IMAGE, &container, &spec);
        assert_eq!(said(&lab, name).0, expected, "{name}");
    }
    pod(&lab, "absent", IMAGE, &container, &volume("box.test/none:1"));
    let (reason, message) = waits(&lab, "absent");
    assert_eq!(reason, "ErrImageNeverPull");
    assert!(message.contains("box.test/none:1"), "{message}");
    let missing = json!({"command": ["true"], "volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": "none"}]});
    pod(&lab, "missing", IMAGE, &missing, &volume(&image("data")));
    assert!(waits(&lab, "missing").1.contains("subPath"));
    // What is mounted is not collected, and goes with the container.
    let mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().matches("/volumes/v ").count();
    let own = json!({"command": ["sleep", "3600"], "volumeMounts": [{"name": "v", "mountPath": "/vol"}]});
    let before = mounted();
    pod(&lab, "stays", IMAGE, &own, &volume(&image("data")));
    lab.until("it runs", || lab.pod("stays")["status"]["phase"] == "Running");
    let mounted_image = &lab.pod("stays")["status"]["containerStatuses"][0]["volumeMounts"][0];
    let known_by = mounted_image["volumeStatus"]["image"]["imageRef"].as_str().unwrap_or_default();
    assert!(known_by.contains("sha256:"), "{mounted_image}");
    let mut remove = lab.command(crate::lab::BINARY);
    let removed = remove.arg("image").args(lab.directories()).args(["rm", &image("data")]).output().unwrap();
    assert!(!removed.status.success(), "{removed:?}");
    assert!(mounted() > before);
    lab.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"]);
    lab.until("nothing of them is mounted", || mounted() <= before);
}

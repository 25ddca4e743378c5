//! One pod with most fields that there are, and a few with what goes with nothing else: each field is looked for in what
//! became of them. The table of pod fields names this test.

use std::fs;
use std::path::Path;

use crate::image::{IMAGE, prepared};
use crate::machine::Lab;

const MANIFEST: &str = include_str!("fields.yaml");

/// What a shell in the container says.
fn ask(lab: &Lab, container: &str, script: &str) -> String {
    lab.kubectl(&["exec", "full", "-c", container, "--", "sh", "-c", script])
}

fn ended(lab: &Lab, pod: &str) -> serde_json::Value {
    lab.until(&format!("{pod} has ended"), || {
        matches!(lab.pod(pod)["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    });
    lab.pod(pod)
}

fn event(lab: &Lab, pod: &str, reason: &str, says: &str) {
    let named = format!("involvedObject.name={pod},reason={reason}");
    lab.until(&format!("an event {reason} of {pod} says {says:?}"), || {
        let list = lab.json(&["get", "events", "--field-selector", &named]);
        list["items"].as_array().unwrap().iter().any(|e| e["message"].as_str().unwrap().contains(says))
    });
}

#[test]
fn a_pod_is_what_its_fields_say() {
    let mut lab = prepared("fld");
    let host = lab.path("shared-with-the-host");
    fs::create_dir_all(lab.path("data/seccomp")).unwrap();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(lab.path("data/seccomp/strict.json"), profile).unwrap();
    lab.start_server_with(&["--allowed-unsafe-sysctls", "net.core.*"]);
    let lease = fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap();
    let file = lab.path("fields.yaml");
    let text = MANIFEST.replace("NODE", &lab.name).replace("IMAGE", IMAGE).replace("HOSTDIR", host.to_str().unwrap());
    // What pods name is there before them.
    let (named, pods) = text.split_at(text.find("---\napiVersion: v1\nkind: Pod").unwrap());
    fs::write(&file, named).unwrap();
    lab.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    fs::write(&file, pods).unwrap();
    let applied = lab.command("kubectl").args(["apply", "-f", file.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&applied.stderr).into_owned();
    assert!(applied.status.success(), "{said}");
    let warning = "spec.containers[0].volumeMounts[0].recursiveReadOnly: refused by nodes of this version";
    assert!(said.contains(warning), "{warning} in {said}");

    lab.until("full runs and its containers are ready", || {
        let all = lab.pod("full")["status"]["containerStatuses"].clone();
        all.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|c| c["ready"] == true))
    });
    let pod = lab.pod("full");
    assert_eq!(pod["spec"]["priority"], 2_000_001_000);
    let ready = pod["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!((&ready["status"], &ready["reason"]), (&"False".into(), &"ReadinessGatesNotReady".into()));
    look_inside(&lab);
    std::os::unix::fs::chown(&host, Some(1000), None).unwrap();
    assert_eq!(lab.kubectl(&["logs", "full", "-c", "main"]), "hello\n");

    // Named by its own account, of whom nothing is mounted but what a volume asks for.
    let token = ask(&lab, "main", "cat /all/token");
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["aud"][0], &claims["sub"]), (&"someone".into(), &"system:serviceaccount:default:own".into()));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 700);

    others(&lab, &lease);

    let log = || fs::read_to_string(lab.path("log")).unwrap();
    lab.until("a hook has asked the host that it names", || log().contains("http://127.0.0.1:1/"));

    // Asked to end: the hook, then the signal, then its last words; the other one is killed after the grace.
    let deleting = std::time::Instant::now();
    lab.kubectl(&["delete", "pod", "full", "--wait=false"]);
    let stopping = host.join("stopping");
    lab.until("a hook has called the host that it names", || log().contains("dial tcp 127.0.0.1:8080"));
    lab.until("the hook has run", || fs::read_to_string(&stopping).is_ok_and(|text| text == "stopping\n"));
    lab.until("full is gone", || {
        !lab.command("kubectl").args(["get", "pod", "full"]).output().unwrap().status.success()
    });
    assert!(deleting.elapsed() >= std::time::Duration::from_secs(2), "the grace was not waited for");
}

/// Facts of the first pod, as its containers see them.
fn look_inside(lab: &Lab) {
    for (container, script, expected) in [
        ("main", "pwd", "/work"),
        ("main", "id -u; id -g; id -G", "1000\n1001\n1001 2000 3000 4000"),
        ("web", "id -u; id -g", "1002\n1003"),
        ("main", "hostname; cat /etc/hostname", "host\nhost"),
        ("main", "cat /etc/resolv.conf", "search a.example\nnameserver 192.0.2.53\noptions ndots:3 rotate"),
        (
            "main",
            "grep -c 'alias-one.*alias-two' /etc/hosts; grep -c host.sub.default.svc.cluster.local /etc/hosts",
            "1\n1",
        ),
        (
            "main",
            "env | grep -E '^(FROM|MAP|word|NOT|ASIDE)' | sort",
            "FROM_FIELD=default\nFROM_LIMIT=64\nFROM_MAP=1\nFROM_SECRET=quiet\nMAP_one=1\nMAP_two=2\nword=quiet",
        ),
        ("main", "ls -d /var/run/secrets/kubernetes.io 2>/dev/null; cat /shared/first /shared/hook", "began\nstarted"),
        (
            "main",
            "touch /x 2>/dev/null || echo ro; touch /only/x 2>/dev/null || echo ro; touch /shared/y; ls -d /named; ls /shared",
            "DIRECTORIES",
        ),
        ("main", "cat /map/deep/uno /hush/word /all/two /all/word; ls /absent | wc -l", "1quiet2quiet0"),
        ("main", "cat /down/name /down/limit /all/app", "full64full"),
        (
            "main",
            "stat -Lc %a:%g /map/deep/uno /hush/word /down/name /down/limit /all/two | sort -u | wc -l; stat -Lc %g /hush/word",
            "MODES",
        ),
        (
            "main",
            "stat -c %g /shared; awk '$5 == \"/fast\" { print $(NF - 2) }' /proc/self/mountinfo; stat -fc %b /fast",
            "FAST",
        ),
        ("main", "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | sed 's/\\t/ /'", "NoNewPrivs: 1\nSeccomp: 2"),
        ("main", "mkdir /tmp/made && echo made", "made"),
        ("web", "mkdir /tmp/made 2>/dev/null || echo refused", "refused"),
        (
            "main",
            "awk '$5 == \"/host\" { print ($7 ~ /^master/) ? \"slave\" : \"private\" }' /proc/self/mountinfo",
            "PROPAGATION",
        ),
    ] {
        let said = ask(lab, container, script);
        let said = said.trim_end();
        match expected {
            "DIRECTORIES" => {
                let words: Vec<&str> = said.split_whitespace().collect();
                assert_eq!(&words[..2], ["ro", "ro"], "{said}");
                for name in ["dir-hello", "part", "first", "hook", "y"] {
                    assert!(words.contains(&name), "{name} in {said}");
                }
            }
            "MODES" => assert!(said.ends_with("2000") && !said.starts_with("1\n"), "{said}"),
            "FAST" => {
                let lines: Vec<&str> = said.lines().collect();
                assert_eq!((lines[0], lines[1], lines[2]), ("2000", "tmpfs", "256"), "{said}");
            }
            // Where the machine's own mounts are private there is nothing to be a slave of.
            "PROPAGATION" => assert!(matches!(said, "slave" | "private"), "{said}"),
            _ => assert_eq!(said, expected, "{script}"),
        }
    }
}

/// The other pods, each with a field that goes with nothing else.
fn others(lab: &Lab, lease: &str) {
    let hosted = ended(lab, "hosted");
    let message = &hosted["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(message["exitCode"], 5);
    let message = message["message"].as_str().unwrap();
    let own = |path: String| fs::read_link(path).unwrap().display().to_string();
    let pin = fs::metadata(format!("/run/netns/{}", lab.name)).unwrap();
    let net = format!("net:[{}]", std::os::unix::fs::MetadataExt::ino(&pin));
    for expected in
        [&net, &own("/proc/self/ns/ipc".into()), &own("/proc/self/ns/pid".into()), "token", "10.43.7.7", "lost"]
    {
        assert!(message.contains(expected), "{expected} in {message}");
    }
    assert!(lab.pod("elsewhere")["spec"].get("nodeName").is_none());
    lab.until("rootless is refused", || {
        let waiting = lab.pod("rootless")["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        waiting["message"].as_str().is_some_and(|m| m.contains("runAsNonRoot and image will run as root"))
    });
    lab.until("lives is restarted", || {
        lab.pod("lives")["status"]["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|n| n > 0)
    });
    lab.until("deep is refused", || {
        let waiting = lab.pod("deep")["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        waiting["message"].as_str().is_some_and(|m| m.contains("recursive read-only mounts are not supported"))
    });
    let forbidden = ended(lab, "forbidden")["status"].clone();
    assert_eq!(forbidden["reason"], "SysctlForbidden");
    let why = "forbidden sysctl: \"fs.lease-break-time\" not allowlisted";
    assert_eq!(forbidden["message"], format!("Pod was rejected: {why}"));
    event(lab, "forbidden", "SysctlForbidden", why);
    assert_eq!(fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap(), lease);
    let users = ended(lab, "users");
    assert_eq!(users["status"]["phase"], "Succeeded");
    assert!(lab.kubectl(&["logs", "users"]).split_whitespace().nth(2) == Some("65536"), "a map of its own");
    if !Path::new("/sys/module/apparmor").exists() {
        let armoured = ended(lab, "armoured")["status"].clone();
        assert_eq!(armoured["reason"], "AppArmor");
        event(lab, "armoured", "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
    }
    let tuned = ended(lab, "tuned");
    assert_eq!(tuned["status"]["containerStatuses"][0]["state"]["terminated"]["message"], "over\n");
    assert_eq!(lab.kubectl(&["logs", "tuned"]), "77\n1\n1234\n");
}

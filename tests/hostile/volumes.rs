//! Volumes: what the host writes is read-only in a container, and no link in a volume leads the host out of it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use crate::lab::slowness;
use crate::stage::{apply, container, listing, pod, running, says, start};

fn config_map(value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"key": value}})
}

/// A volume of each kind that is made of API objects.
fn volumes() -> Value {
    let field = json!([{"path": "key", "fieldRef": {"fieldPath": "metadata.name"}}]);
    json!([{"name": "map", "configMap": {"name": "map"}}, {"name": "secret", "secret": {"secretName": "secret"}},
        {"name": "down", "downwardAPI": {"items": field}},
        {"name": "all", "projected": {"sources": [{"configMap": {"name": "map"}}]}}, {"name": "scratch", "emptyDir": {}}])
}

#[test]
fn volumes_of_api_objects_are_read_only_and_their_updates_leave_the_machine_alone() {
    let lab = start("ro");
    let victim = lab.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("key"), "the machine's").unwrap();
    let before = listing(&victim);
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"key": "s"}});
    let mounts = json!([{"name": "map", "mountPath": "/map"}, {"name": "secret", "mountPath": "/secret"},
        {"name": "down", "mountPath": "/down"}, {"name": "all", "mountPath": "/all", "readOnly": false},
        {"name": "map", "mountPath": "/one", "subPath": "key"}, {"name": "scratch", "mountPath": "/map/nested"}]);
    // First as anybody would, then with the right to mount: as if the mounts were writable after all.
    let script = format!(
        "for d in map secret down all; do \
         touch /$d/new && echo writable $d; rm /$d/..data && echo writable $d; echo x > /$d/key && echo writable $d; done; \
         echo x > /one && echo writable one; touch /map/nested/mine && cat /map/key /secret/key /down/key /all/key /one; echo; \
         mount -o remount,bind,rw /map; rm -f /map/..data; ln -s {victim} /map/..data; ln -s {victim} /map/..data_tmp; \
         ln -s {victim} /map/evil; echo tried; while ! grep -q two /all/key; do sleep 0.1; done; echo updated; sleep 1000",
        victim = victim.display()
    );
    let hostile = container(
        "c",
        &script,
        json!({"volumeMounts": mounts, "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
    );
    apply(&lab, &[config_map("one"), secret, pod("ro", &[hostile], json!({"volumes": volumes()}))]);
    says(&lab, "ro", "tried");
    let said = lab.kubectl(&["logs", "ro"]);
    assert!(!said.contains("writable"), "{said}");
    assert!(said.lines().any(|l| l == "onesrooneone"), "{said}");
    // The update removes what `..data` named, and writes the next.
    apply(&lab, &[config_map("two")]);
    says(&lab, "ro", "updated");
    lab.kubectl(&["delete", "pod", "ro", "--timeout=60s"]);
    assert_eq!(listing(&victim), before);
}

#[test]
fn a_link_of_an_init_container_leads_no_sub_path_out_of_its_volume() {
    let lab = start("sub");
    let victim = lab.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("token"), "of the machine").unwrap();
    let before = listing(&victim);
    let volume = json!([{"name": "v", "emptyDir": {}}]);
    let mount = |path: &str, sub: &str| json!({"volumeMounts": [{"name": "v", "mountPath": path, "subPathExpr": sub}]});
    let init = container(
        "init",
        &format!("ln -s {0} /v/out; ln -s {0}/made /v/dangling; mkdir /v/in; ln -s in /v/inside", victim.display()),
        json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
    );
    let one = |name: &str, sub: &str| {
        let main = container("main", "cat /m/token; touch /m/mine; ls /m; sleep 1000", mount("/m", sub));
        pod(name, &[main], json!({"volumes": volume, "initContainers": [init]}))
    };
    let escapes = [("out", "out"), ("below", "out/made"), ("dangling", "dangling"), ("deeper", "dangling/x")];
    let mut objects: Vec<Value> = escapes.iter().map(|(name, sub)| one(name, sub)).collect();
    objects.push(one("inside", "inside/made"));
    apply(&lab, &objects);
    for (name, sub) in escapes {
        let mut message = String::new();
        lab.until(&format!("{name} is refused"), || {
            let state = lab.pod(name)["status"]["containerStatuses"][0]["state"].clone();
            message = state["waiting"]["message"].as_str().unwrap_or_default().to_owned();
            state["waiting"]["reason"] == "CreateContainerConfigError"
        });
        assert!(message.contains(&format!("subpath {sub:?} not within volume path")), "{name}: {message}");
    }
    running(&lab, "inside");
    says(&lab, "inside", "mine");
    assert_eq!(listing(&victim), before, "nothing was made, nothing shown");
    let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let run = lab.path("run/pods").display().to_string();
    assert!(!left.lines().any(|l| l.contains(&run) && l.contains("/pins/")), "{left}");
}

/// The parent of a subPath is exchanged with a link all the time, as a container of the pod could, while others start with it.
#[test]
fn exchanging_the_parent_of_a_sub_path_shows_nothing_of_the_machine() {
    let lab = start("race");
    let victim = lab.path("victim");
    fs::create_dir_all(victim.join("b")).unwrap();
    fs::write(victim.join("b/token"), "of the machine").unwrap();
    let before = listing(&victim.join("b"));
    let script = format!("cd /v; mkdir -p a/b; ln -s {} evil", victim.display());
    let init = container("init", &script, json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let looks = |number: usize| {
        let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": "a/b"}]});
        let script = "if [ -e /m/token ]; then echo escaped; touch /m/made; fi; echo looked; exit 1";
        container(&format!("c{number}"), script, mount)
    };
    let containers: Vec<Value> = (0..15).map(looks).collect();
    let race = json!({"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [init], "restartPolicy": "Always"});
    apply(&lab, &[pod("race", &containers, race)]);
    lab.until("the volume is prepared", || {
        lab.pod("race")["status"]["initContainerStatuses"][0]["state"]["terminated"].is_object()
    });
    let uid = lab.pod("race")["metadata"]["uid"].as_str().unwrap().to_owned();
    let volume = lab.path(&format!("data/pods/{uid}/volumes/empty-dir/v"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, evil) = (volume.join("a"), volume.join("evil"));
            while !over.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &a, CWD, &evil, RenameFlags::EXCHANGE);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        // Some are refused, and tried again; what has started has seen its own volume.
        let mut said = String::new();
        let began = Instant::now();
        while said.matches("looked").count() < 25 && began.elapsed() < Duration::from_secs(25) * slowness() {
            std::thread::sleep(Duration::from_millis(200));
            let logs = Path::new("/var/log/pods").join(format!("default_race_{uid}"));
            let files =
                fs::read_dir(logs).into_iter().flatten().flatten().flat_map(|c| fs::read_dir(c.path()).unwrap());
            said = files.flatten().map(|f| fs::read_to_string(f.path()).unwrap_or_default()).collect();
        }
        over.store(true, Ordering::Relaxed);
        assert!(said.contains("looked"), "nothing has started");
        assert!(
            !said.contains("escaped"),
            "{} of {} escaped",
            said.matches("escaped").count(),
            said.matches("looked").count()
        );
    });
    assert_eq!(listing(&victim.join("b")), before);
}

//! Pods with users of their own (`hostUsers: false`): what they are on the machine, and what root of one cannot do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::stage::{IMAGE, apply, container, pod, running, says, start};

/// Merged into a pod's spec.
fn own_users(more: Value) -> Value {
    let mut spec = json!({"hostUsers": false});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// The first of the machine's ids that a process's pod has, and how many it has.
fn range(pid: i32) -> (u32, u32) {
    let [users, groups] = ["uid_map", "gid_map"].map(|map| fs::read_to_string(format!("/proc/{pid}/{map}")).unwrap());
    assert_eq!(users, groups);
    let numbers: Vec<u32> = users.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!((numbers.len(), numbers[0]), (3, 0), "{users}");
    (numbers[1], numbers[2])
}

/// Real, effective, saved and file system user as the machine knows them.
fn users_of(pid: i32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

/// The oldest process of a pod's container.
fn process_of(lab: &Lab, pod: &str) -> i32 {
    let id = lab.pod(pod)["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().to_owned();
    let id = id.trim_start_matches("amphipod://").to_owned();
    let all =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok());
    let is_its = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&id));
    all.filter(is_its).min().unwrap_or_else(|| panic!("no process of {id}"))
}

fn upper(lab: &Lab, pod: &str) -> PathBuf {
    let id = lab.pod(pod)["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().to_owned();
    lab.path("data/containers").join(id.trim_start_matches("amphipod://")).join("upper")
}

fn ask(lab: &Lab, pod: &str, script: &str) -> String {
    lab.kubectl(&["exec", pod, "-c", "c", "--", "sh", "-c", script])
}

#[test]
fn root_of_a_pod_with_users_of_its_own_is_nobody_on_the_machine() {
    let mut lab = start("users");
    let host = lab.path("shared");
    fs::create_dir(&host).unwrap();
    fs::set_permissions(&host, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(host.join("roots"), "of root").unwrap();
    fs::set_permissions(host.join("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(host.join("strangers"), "of nobody here").unwrap();
    fs::set_permissions(host.join("strangers"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(host.join("strangers"), Some(70_000), Some(70_000)).unwrap();
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"key": "quiet"}});
    let volumes = json!([{"name": "scratch", "emptyDir": {}}, {"name": "fast", "emptyDir": {"medium": "Memory"}},
        {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 288}},
        {"name": "host", "hostPath": {"path": host, "type": "Directory"}}]);
    let mounts = json!([{"name": "scratch", "mountPath": "/scratch"}, {"name": "fast", "mountPath": "/fast"},
        {"name": "secret", "mountPath": "/secret"}, {"name": "host", "mountPath": "/host"},
        {"name": "scratch", "mountPath": "/part", "subPath": "part"}]);
    let script = "touch /tmp/own /scratch/own /fast/own /host/own /part/own; touch /scratch/user; chown 1000:1001 /scratch/user /host/own; \
        cat /secret/key; echo; stat -c %u:%g /bin/busybox /tmp/own /etc/hosts /etc/resolv.conf /dev/termination-log /dev/shm /host/roots /host/strangers /secret/..data/key; \
        cat /host/roots; echo; cat /host/strangers || echo kept; echo again > /dev/stdout; echo last > /dev/termination-log; \
        cat /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shm_rmid_forced; hostname; echo ready; sleep 1000";
    let probe = json!({"volumeMounts": mounts, "workingDir": "/made/by/the/node",
        "readinessProbe": {"exec": {"command": ["/bin/sh", "-c", "[ $(id -u) = 0 ] && cat /secret/key && echo probed > /scratch/probed"]}, "periodSeconds": 1},
        "lifecycle": {"postStart": {"exec": {"command": ["/bin/sh", "-c", "id -u > /scratch/hook"]}}}});
    let other = json!({"volumeMounts": mounts, "securityContext": {"runAsUser": 1000, "runAsGroup": 1001}});
    let security = json!({"fsGroup": 2000, "sysctls": [{"name": "net.ipv4.ping_group_range", "value": "0 1000"},
        {"name": "kernel.shm_rmid_forced", "value": "1"}]});
    let terminal = json!({"tty": true, "stdin": true, "securityContext": {"runAsUser": 1000}});
    let as_user = "cat /secret/key; echo; id -u; id -G; touch /scratch/mine && stat -c %u:%g /scratch/mine; cat /host/roots || echo kept; \
        echo out > /dev/stdout; echo ready; sleep 1000";
    apply(
        &lab,
        &[
            secret,
            pod(
                "one",
                &[container("c", script, probe)],
                own_users(json!({"volumes": volumes, "securityContext": security})),
            ),
            pod(
                "three",
                &[container("c", "stat -Lc '%u:%g %a' /proc/self/fd/0; echo ready; sleep 1000", terminal)],
                own_users(json!({})),
            ),
            pod(
                "two",
                &[container("c", as_user, other)],
                own_users(
                    json!({"volumes": volumes, "shareProcessNamespace": true, "securityContext": {"fsGroup": 2000}}),
                ),
            ),
        ],
    );
    says(&lab, "one", "ready");
    says(&lab, "two", "ready");
    lab.until("three says ready", || lab.kubectl(&["logs", "three"]).contains("ready"));
    let said = lab.kubectl(&["logs", "one"]);
    let expected = "quiet\n0:0\n0:0\n0:0\n0:0\n0:0\n0:0\n0:0\n65534:65534\n0:2000\nof root\n";
    assert!(said.starts_with(expected), "{said}");
    assert!(said.contains("kept\nagain\n0\t1000\n1\none\nready\n"), "{said}");
    let said = lab.kubectl(&["logs", "two"]);
    assert!(said.starts_with("quiet\n1000\n1001 2000\n1000:2000\n"), "{said}");
    assert!(said.contains("kept\nout\nready\n"), "{said}");

    // On the machine: two ranges that have nothing in common, and nobody who is known.
    let (one, two) = (process_of(&lab, "one"), process_of(&lab, "two"));
    let ((first, count), (second, _)) = (range(one), range(two));
    assert_eq!(count, 65_536);
    assert!(first >= 1 << 30 && first.abs_diff(second) >= count, "{first} and {second}");
    assert_eq!(users_of(one), [first; 4]);
    assert_eq!(users_of(two), [second + 1000; 4]);
    let owner = |path: PathBuf| fs::symlink_metadata(&path).map(|m| (m.uid(), m.gid())).unwrap();
    assert_eq!(owner(upper(&lab, "one").join("tmp/own")), (first, first), "its layer is its own");
    assert_eq!(owner(upper(&lab, "one").join("made/by/the/node")), (first, first));
    // Volumes show their ids, so on the disk it is as if it had been the machine's.
    let uid = lab.pod("one")["metadata"]["uid"].as_str().unwrap().to_owned();
    let scratch = lab.path(&format!("data/pods/{uid}/volumes/scratch"));
    let scratch = if scratch.exists() { scratch } else { find(&lab.path(&format!("data/pods/{uid}")), "hook") };
    assert_eq!(owner(scratch.join("own")), (0, 2000));
    assert_eq!(owner(scratch.join("user")), (1000, 1001));
    assert_eq!(owner(host.join("own")), (1000, 1001));
    // Later processes are in there, too.
    lab.until("one is ready", || lab.pod("one")["status"]["containerStatuses"][0]["ready"] == true);
    assert_eq!(fs::read_to_string(scratch.join("hook")).unwrap(), "0\n");
    assert_eq!(owner(scratch.join("probed")), (0, 2000));
    let map = ask(&lab, "one", "id -u; cat /proc/self/uid_map; echo written > /dev/stderr; pwd");
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", &*first.to_string(), "65536", "/made/by/the/node"]
    );
    let first_process = ask(&lab, "two", "id -u; cat /proc/1/comm; awk '/^Uid/ { print $2 }' /proc/1/status");
    assert_eq!(first_process, "1000\nmemfd:pause\n65535\n");
    // A terminal is its user's.
    assert!(lab.kubectl(&["logs", "three"]).contains("1000:5 620"), "{}", lab.kubectl(&["logs", "three"]));

    // An ephemeral container sees the processes of another.
    let debug = ["debug", "one", "--image", IMAGE, "--target", "c", "--container", "look", "--", "/bin/sh", "-c"];
    lab.kubectl(
        &[
            &debug[..],
            &["/bin/busybox cat /proc/1/root/tmp/own /proc/1/cmdline && /bin/busybox echo; /bin/busybox echo seen"],
        ]
        .concat(),
    );
    lab.until("the other one is seen", || {
        let said = lab.command("kubectl").args(["logs", "one", "-c", "look"]).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        said.contains("sleep\u{0}1000") && said.ends_with("seen\n")
    });

    // Another process of the node finds the same ids, and gives them to nobody else.
    lab.kill_server();
    lab.start_server();
    apply(&lab, &[pod("four", &[container("c", "sleep 1000", json!({}))], own_users(json!({})))]);
    running(&lab, "four");
    let (third, _) = range(process_of(&lab, "four"));
    assert!(![first, second].contains(&third), "{third}");
    assert_eq!((range(process_of(&lab, "one")).0, process_of(&lab, "one")), (first, one), "it runs on");
    assert_eq!(ask(&lab, "one", "id -u"), "0\n");
    let held = |uid: &str| lab.path("run/users").join(uid).exists();
    assert!(held(&uid));
    lab.kubectl(&["delete", "pod", "one", "--timeout=60s"]);
    lab.until("its ids are free", || !held(&uid));
    lab.until("nothing of it is mounted", || !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&uid));

    let node = lab.name.clone();
    lab.until("the node says that it can", || {
        let status = lab.json(&["get", "node", &node])["status"].clone();
        status["runtimeHandlers"][0]["features"]["userNamespaces"] == true
    });
}

/// The directory below which a file is.
fn find(below: &std::path::Path, name: &str) -> PathBuf {
    let found = crate::lab::run(Command::new("find").arg(below).args(["-name", name]));
    let found = String::from_utf8(found.stdout).unwrap();
    PathBuf::from(found.lines().next().unwrap_or_else(|| panic!("no {name} in {below:?}"))).parent().unwrap().to_owned()
}

#[test]
fn what_root_of_the_machine_may_do_fails_for_root_of_a_pod() {
    let lab = start("escape");
    let host = lab.path("shared");
    fs::create_dir(&host).unwrap();
    let core = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let disk = rustix::fs::stat(lab.path("data")).unwrap().st_dev;
    let (major, minor) = (rustix::fs::major(disk), rustix::fs::minor(disk));
    // Each says its name if it works; the first ones show that the capabilities count inside.
    let acts = format!(
        "try() {{ name=$1; shift; if \"$@\" >/dev/null 2>&1; then echo \"works $name\"; else echo \"fails $name\"; fi; }}; \
         w() {{ echo \"$2\" > \"$1\"; }}; mkdir -p /mnt /tmp; touch /tmp/x; \
         try mount-tmpfs mount -t tmpfs none /mnt; try mount-proc mount -t proc none /mnt; try mount-sys mount -t sysfs none /mnt; try hostname hostname other; \
         try network ip link set lo mtu 1400; try chown-inside chown 65535 /tmp; \
         try mknod mknod /tmp/disk b {major} {minor}; try mount-disk mount -t ext4 /dev/disk /mnt; \
         try core-pattern w /proc/sys/kernel/core_pattern '|/bin/false'; \
         try panic w /proc/sys/kernel/panic 1; try remount mount -o remount,bind,rw /secret; try chown-outside chown 65536 /tmp/x; try set-uid chown 1000000 /host; \
         try clock adjtimex -f 0; try oom w /proc/1/oom_score_adj -1000; \
         try cgroup w /sys/fs/cgroup/memory/memory.limit_in_bytes -1; \
         try restart w /proc/sys/kernel/ctrl-alt-del 0; echo tried; sleep 1000"
    );
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"key": "s"}});
    let everything = json!({"volumeMounts": [{"name": "host", "mountPath": "/host"}, {"name": "secret", "mountPath": "/secret"}],
        "securityContext": {"privileged": true, "procMount": "Unmasked"}});
    let volumes =
        json!([{"name": "host", "hostPath": {"path": host}}, {"name": "secret", "secret": {"secretName": "secret"}}]);
    let control = format!(
        "mkdir -p /tmp; touch /tmp/x; mknod /tmp/disk b {major} {minor} && chown 65536 /tmp/x && echo tried; sleep 1000"
    );
    apply(
        &lab,
        &[
            secret,
            pod("mean", &[container("c", &acts, everything)], own_users(json!({"volumes": volumes}))),
            pod("usual", &[container("c", &control, json!({"securityContext": {"privileged": true}}))], json!({})),
        ],
    );
    says(&lab, "usual", "tried");
    says(&lab, "mean", "tried");
    let said = lab.kubectl(&["logs", "mean"]);
    let of = |begin: &str| -> Vec<String> {
        said.lines().filter_map(|line| line.strip_prefix(begin)).map(str::to_owned).collect()
    };
    let inside = ["mount-tmpfs", "mount-proc", "mount-sys", "hostname", "network", "chown-inside"];
    assert_eq!(of("works "), inside, "{said}");
    assert_eq!(of("fails ").len(), 11, "{said}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), core);
    assert_eq!(fs::metadata(&host).unwrap().uid(), 0);
    // Another pod's processes and the node's are nobody it may signal or look into, though it has every capability.
    let (first, _) = range(process_of(&lab, "mean"));
    let pid = process_of(&lab, "mean");
    let own = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    for kind in ["net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        let namespace = fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(owner_of(&namespace), own, "{kind} belongs to the pod's users");
    }
    assert_eq!(users_of(pid), [first; 4]);
}

/// The user namespace that a namespace belongs to, as links of /proc say it.
fn owner_of(namespace: &fs::File) -> PathBuf {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the call takes no argument and returns a new descriptor.
    let owner = unsafe {
        let fd = libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    fs::read_link(format!("/proc/self/fd/{}", owner.as_raw_fd())).unwrap()
}

#[test]
fn proc_is_unmasked_for_pods_with_users_of_their_own_alone() {
    let lab = start("unmask");
    let unmasked = json!({"securityContext": {"procMount": "Unmasked"}});
    let script = "unshare -r -m -p -f --mount-proc true 2>/dev/null && echo nested || echo alone; \
        awk '$5 ~ \"^/proc/\" { n++ } END { print n + 0 }' /proc/self/mountinfo; echo ready; sleep 1000";
    apply(
        &lab,
        &[
            pod("open", &[container("c", script, unmasked.clone())], own_users(json!({}))),
            pod("usual", &[container("c", script, json!({}))], own_users(json!({}))),
        ],
    );
    for name in ["open", "usual"] {
        says(&lab, name, "ready");
    }
    assert_eq!(lab.kubectl(&["logs", "open"]), "nested\n0\nready\n");
    let usual = lab.kubectl(&["logs", "usual"]);
    assert!(usual.starts_with("alone\n") && !usual.contains("\n0\n"), "{usual}");
    let refused = pod("refused", &[container("c", script, unmasked)], json!({})).to_string();
    let file = lab.path("refused.json");
    fs::write(&file, refused).unwrap();
    let said = lab.command("kubectl").args(["apply", "-f", file.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("`hostUsers` must be false to use `Unmasked`"), "{said}");
}

/// A machine that makes none: the number of them is limited in a user namespace of its own.
#[test]
fn the_check_says_what_a_machine_lacks_for_users() {
    let directory = tempfile::tempdir().unwrap();
    let directories = ["data", "run"].map(|part| format!("--{part}-dir={}", directory.path().join(part).display()));
    let check = |program: &str, first: &[&str]| {
        let found = Command::new(program).args(first).arg("check").args(&directories).output().unwrap();
        let said = String::from_utf8(found.stdout).unwrap();
        said.lines().find(|line| line.contains("user namespaces")).unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    let binary = env!("CARGO_BIN_EXE_amphipod");
    assert!(check(binary, &[]).starts_with("ok "), "{}", check(binary, &[]));
    let limited = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" \"$@\"";
    let said = check("unshare", &["-Urm", "sh", "-c", limited, binary]);
    assert!(said.starts_with("warn ") && said.contains("this machine makes no user namespaces"), "{said}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_reason() {
    let lab = start("unmapped");
    let volume = |path: &str| json!([{"name": "v", "hostPath": {"path": path}}]);
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let as_user = json!({"securityContext": {"runAsUser": 65536}});
    apply(
        &lab,
        &[
            pod("device", &[container("c", "true", mount)], own_users(json!({"volumes": volume("/proc/sys")}))),
            pod("stranger", &[container("c", "true", as_user)], own_users(json!({}))),
        ],
    );
    for (name, why) in [
        ("device", "failed to set MOUNT_ATTR_IDMAP on "),
        ("stranger", "user or group 65536 is none of the pod's 65536"),
    ] {
        lab.until(&format!("{name} is refused"), || {
            let state = lab.pod(name)["status"]["containerStatuses"][0]["state"].clone();
            ["waiting", "terminated"]
                .iter()
                .any(|kind| state[kind]["message"].as_str().is_some_and(|m| m.contains(why)))
        });
    }
}

//! Pods on the server's own node and on an agent: what becomes of them after a reboot, while they end, when what they show
//! changes, and when they get more or less.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::busybox;
use crate::cluster::text;
use crate::lab::{BINARY, run};
use crate::machines::Machines;

/// Two nodes that have busybox.
fn start(name: &str) -> Machines {
    start_with(name, &[])
}

/// The same with further flags of the server.
fn start_with(name: &str, flags: &[&str]) -> Machines {
    let machines = Machines::prepare(name, 2);
    for machine in &machines.all {
        let directory = machine.path("data/agent/images");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("busybox.tar"), busybox::archive()).unwrap();
    }
    machines.joined_with(flags)
}

fn apply(machines: &Machines, objects: &[Value]) {
    let list = objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n");
    let mut kubectl = machines.command(0, "kubectl").args(["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut kubectl.stdin.take().unwrap(), list.as_bytes()).unwrap();
    assert!(kubectl.wait().unwrap().success(), "{list}");
}

fn container(name: &str, script: &str, more: Value) -> Value {
    let mut c = json!({"name": name, "image": busybox::IMAGE, "command": ["/bin/busybox", "sh", "-c", script]});
    c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    c
}

fn pod(machines: &Machines, name: &str, n: usize, containers: &[Value], more: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("{name}-{n}"), "labels": {"app": name}},
        "spec": {"nodeName": machines.all[n].name, "containers": containers, "terminationGracePeriodSeconds": 1}});
    pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pod
}

fn get(machines: &Machines, name: &str, n: usize) -> Value {
    machines.json(&["get", "pod", &format!("{name}-{n}")])
}

fn exec(machines: &Machines, name: &str, n: usize, script: &str) -> String {
    let pod = format!("{name}-{n}");
    let said = machines.command(0, "kubectl").args(["exec", &pod, "--", "/bin/busybox", "sh", "-c", script]).output();
    String::from_utf8_lossy(&said.unwrap().stdout).into_owned()
}

fn ready(pod: &Value) -> bool {
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// Ends everything on a machine and empties its run directory, as a reboot does.
fn reboot(machines: &mut Machines, n: usize) {
    machines.all[n].kill();
    run(machines.command(n, BINARY).arg("killall").args(machines.all[n].directories()));
    match n {
        0 => machines.start_server(&[]),
        n => machines.start_agent(n, ""),
    }
    machines.until("the node is back", || machines.is_ready(n));
}

const WAIT: &str = "trap 'exit 0' TERM; while :; do busybox sleep 0.1; done";

#[test]
fn after_a_reboot_pods_begin_as_their_policy_says_and_nothing_of_before_is_forgotten() {
    let mut machines = start("boot");
    for n in 0..2 {
        let mount = json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]});
        let volume = json!([{"name": "e", "emptyDir": {}}]);
        let init = container("i", "/bin/busybox date >> /e/log", mount.clone());
        let once = "if [ ! -e /e/x ]; then echo > /e/x; exit 5; fi; ";
        let never = pod(&machines, "never", n, &[container("c", WAIT, json!({}))], json!({"restartPolicy": "Never"}));
        let inits = json!({"initContainers": [init.clone()], "volumes": volume});
        let again = pod(&machines, "again", n, &[container("c", WAIT, mount.clone())], inits);
        let on_failure = json!({"initContainers": [init], "volumes": volume, "restartPolicy": "OnFailure"});
        let failing = pod(
            &machines,
            "failing",
            n,
            &[container("c", WAIT, mount.clone()), container("d", "exit 0", json!({}))],
            on_failure,
        );
        let last =
            pod(&machines, "last", n, &[container("c", &format!("{once}{WAIT}"), mount)], json!({"volumes": volume}));
        apply(&machines, &[never, again, failing, last]);
    }
    let status =
        |machines: &Machines, name: &str, n: usize| get(machines, name, n)["status"]["containerStatuses"][0].clone();
    for n in 0..2 {
        machines.until("all run", || {
            let runs = |name: &str| {
                get(&machines, name, n)["status"]["containerStatuses"][0]["state"].get("running").is_some()
            };
            let d = &get(&machines, "failing", n)["status"]["containerStatuses"][1]["state"]["terminated"];
            ["never", "again", "failing", "last"].iter().all(|name| runs(name)) && d["exitCode"] == 0
        });
        let before = status(&machines, "last", n);
        assert_eq!((&before["restartCount"], &before["lastState"]["terminated"]["exitCode"]), (&json!(1), &json!(5)));
        // The process alone: nothing restarts, and how the container ended before stays known.
        machines.all[n].kill();
        match n {
            0 => machines.start_server(&[]),
            n => machines.start_agent(n, ""),
        }
        machines.until("the node is back", || machines.is_ready(n));
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(status(&machines, "last", n), before);

        reboot(&mut machines, n);
        machines.until("a pod that never restarts has failed", || {
            get(&machines, "never", n)["status"]["phase"] == "Failed"
        });
        let never = status(&machines, "never", n);
        assert_eq!((&never["restartCount"], &never["state"]["terminated"]["reason"]), (&json!(0), &json!("Unknown")));
        machines.until("the others run again", || {
            ["again", "failing", "last"].iter().all(|name| {
                let status = status(&machines, name, n);
                status["state"].get("running").is_some() && status["restartCount"].as_u64() >= Some(1)
            })
        });
        for name in ["again", "failing"] {
            let log = exec(&machines, name, n, "/bin/busybox cat /e/log");
            assert_eq!(log.lines().count(), 2, "{name}: its init container runs for each sandbox: {log}");
            machines.until("the init container is through", || {
                let init = get(&machines, name, n)["status"]["initContainerStatuses"][0].clone();
                init["restartCount"] == 1 && init["ready"] == true && init["state"]["terminated"]["exitCode"] == 0
            });
        }
        let d = get(&machines, "failing", n)["status"]["containerStatuses"][1].clone();
        assert_eq!(
            (&d["restartCount"], &d["state"]["terminated"]["exitCode"]),
            (&json!(0), &json!(0)),
            "it has succeeded"
        );
        let last = status(&machines, "last", n);
        assert_eq!(
            (&last["restartCount"], &last["lastState"]["terminated"]["exitCode"]),
            (&json!(2), &json!(255)),
            "{last}"
        );
    }
}

#[test]
fn the_last_replica_serves_until_it_has_ended() {
    let machines = start("serve");
    let probe =
        json!({"readinessProbe": {"exec": {"command": ["/bin/busybox", "test", "-e", "/tmp/up"]}, "periodSeconds": 1}});
    let serve = "echo yes > /tmp/index.html; echo > /tmp/up; trap 'busybox sleep 5; exit 0' TERM; \
        busybox httpd -p 8080 -h /tmp; while :; do busybox sleep 0.1; done";
    let service = |n: usize| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n}")},
        "spec": {"selector": {"app": format!("serve{n}")}, "ports": [{"port": 80, "targetPort": 8080}]}})
    };
    for n in 0..2 {
        let name = format!("serve{n}");
        let serving = pod(
            &machines,
            &name,
            n,
            &[container("c", serve, probe.clone())],
            json!({"terminationGracePeriodSeconds": 20}),
        );
        apply(&machines, &[serving, service(n)]);
    }
    for n in 0..2 {
        let name = format!("serve{n}");
        machines.until("it is ready", || ready(&get(&machines, &name, n)));
        let ip = text(&machines.json(&["get", "service", &format!("s{n}")]), "/spec/clusterIP").to_owned();
        // From the other node: its rules follow what the API says.
        let ask = || {
            let url = format!("http://{ip}/");
            let output = machines.command(1 - n, "curl").args(["-sS", "--max-time", "2", &url]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim() == "yes"
        };
        machines.until("the Service answers", &ask);
        machines.kubectl(&["delete", "pod", &format!("{name}-{n}"), "--wait=false"]);
        let endpoint = || {
            let slices = machines.json(&["get", "endpointslice", "-l", &format!("kubernetes.io/service-name=s{n}")]);
            slices["items"][0]["endpoints"][0]["conditions"].clone()
        };
        machines.until("it is said to terminate", || endpoint()["terminating"] == true);
        let (began, mut answers) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(3) {
            let conditions = endpoint();
            assert_eq!(conditions, json!({"ready": false, "serving": true, "terminating": true}));
            assert!(ask(), "it serves after {:?} and {answers} answers", began.elapsed());
            answers += 1;
        }
        machines.until("it is gone", || {
            let said = machines.command(0, "kubectl").args(["get", "pod", &format!("{name}-{n}")]).output().unwrap();
            !said.status.success()
        });
    }
}

#[test]
fn what_a_pod_says_of_its_name_its_time_and_its_order_is_so() {
    let machines = start("say");
    for n in 0..2 {
        let sleeps = container("c", WAIT, json!({}));
        let deadline = pod(&machines, "deadline", n, &[sleeps], json!({"activeDeadlineSeconds": 3}));
        let named = json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true});
        let fqdn = pod(&machines, "fqdn", n, &[container("c", WAIT, json!({}))], named);
        let hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["/bin/busybox", "sh", "-c",
            "/bin/busybox sleep 2; echo hook >> /e/log"]}}}, "volumeMounts": [{"name": "e", "mountPath": "/e"}]});
        let second = container(
            "d",
            &format!("echo second >> /e/log; {WAIT}"),
            json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]}),
        );
        let order = pod(
            &machines,
            "order",
            n,
            &[container("c", WAIT, hook), second],
            json!({"volumes": [{"name": "e", "emptyDir": {}}]}),
        );
        // Its hook never ends, and it can be deleted all the same.
        let endless = json!({"lifecycle": {"postStart": {"exec": {"command": ["/bin/busybox", "sleep", "1000"]}}}});
        let stuck = pod(&machines, "stuck", n, &[container("c", WAIT, endless)], json!({}));
        apply(&machines, &[deadline, fqdn, order, stuck]);
    }
    for n in 0..2 {
        machines.until("it was active for too long", || {
            let status = get(&machines, "deadline", n)["status"].clone();
            status["phase"] == "Failed" && status["reason"] == "DeadlineExceeded"
        });
        machines.until("it runs", || ready(&get(&machines, "fqdn", n)));
        let said = exec(&machines, "fqdn", n, "/bin/busybox hostname; /bin/busybox cat /etc/hostname");
        assert_eq!(said.lines().collect::<Vec<_>>(), ["h.s.default.svc.cluster.local"; 2]);
        machines.until("both run", || ready(&get(&machines, "order", n)));
        assert_eq!(
            exec(&machines, "order", n, "/bin/busybox cat /e/log").lines().collect::<Vec<_>>(),
            ["hook", "second"]
        );
        machines.kubectl(&["delete", "pod", &format!("stuck-{n}"), "--timeout=15s"]);
    }
}

#[test]
fn volumes_follow_what_they_show_whatever_is_mounted_in_them() {
    let machines = start("show");
    let map = |one: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": one, "b": "bee"}});
    apply(&machines, &[map("one")]);
    for n in 0..2 {
        let volumes = json!({"volumes": [
            {"name": "gone", "configMap": {"name": "gone", "optional": false}},
            {"name": "cm", "configMap": {"name": "m"}}, {"name": "e", "emptyDir": {}},
            {"name": "labels", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "projected", "projected": {"sources": [{"downwardAPI": {"items":
                [{"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]}}]}}]});
        let nested = json!({"volumeMounts": [{"name": "cm", "mountPath": "/n"}, {"name": "e", "mountPath": "/n/from-empty"},
            {"name": "labels", "mountPath": "/l"}, {"name": "projected", "mountPath": "/p"}]});
        let missing = json!({"volumeMounts": [{"name": "cm", "mountPath": "/n"}, {"name": "cm", "mountPath": "/late", "subPath": "late"}]});
        apply(
            &machines,
            &[
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gone"}, "data": {}}),
                pod(&machines, "show", n, &[container("c", WAIT, nested), container("d", WAIT, missing)], volumes),
            ],
        );
    }
    for n in 0..2 {
        machines.until("it runs", || ready(&get(&machines, "show", n)));
    }
    // One volume cannot be brought up to date any more, which stops none of the others.
    machines.kubectl(&["delete", "configmap", "gone"]);
    apply(&machines, &[map("two")]);
    for n in 0..2 {
        let name = format!("show-{n}");
        machines.until("it shows the change", || exec(&machines, "show", n, "/bin/busybox cat /n/a") == "two");
        machines.kubectl(&["label", "pod", &name, "colour=blue"]);
        machines.kubectl(&["annotate", "pod", &name, "note=well"]);
        machines.until("it shows its label", || {
            exec(&machines, "show", n, "/bin/busybox cat /l/labels").contains("colour=\"blue\"")
        });
        machines.until("it shows its annotation", || exec(&machines, "show", n, "/bin/busybox cat /p/note") == "well");
    }
    for text in ["three", "four"] {
        apply(&machines, &[map(text)]);
        for n in 0..2 {
            machines.until("it shows the next change", || exec(&machines, "show", n, "/bin/busybox cat /n/a") == text);
        }
    }
}

/// CPU quota and memory limit of a container, or of the pod around it, from whatever control groups this machine has.
fn limits(pod: &Value, machines: &Machines, around: bool) -> (String, String) {
    limits_of(machines.processes(pod)[0].pid, around)
}

fn limits_of(pid: i32, around: bool) -> (String, String) {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |controller: &str| {
        let line = groups.lines().find(|l| l.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
        let line = line.or_else(|| groups.lines().find(|l| l.starts_with("0::"))).unwrap();
        let own = line.rsplit(':').next().unwrap();
        if around { own.rsplit_once('/').unwrap().0.to_owned() } else { own.to_owned() }
    };
    let read = |controller: &str, old: &str, new: &str| {
        let first = std::fs::read_to_string(format!("/sys/fs/cgroup/{controller}{}/{old}", path(controller)));
        let text =
            first.or_else(|_| std::fs::read_to_string(format!("/sys/fs/cgroup{}/{new}", path(controller)))).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    };
    (read("cpu", "cpu.cfs_quota_us", "cpu.max"), read("memory", "memory.limit_in_bytes", "memory.max"))
}

#[test]
fn a_pod_has_as_a_whole_what_it_says() {
    let machines = start("whole");
    let class = |name: &str, handler: &str| {
        let overhead = json!({"podFixed": {"cpu": "100m", "memory": "32Mi"}});
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": handler,
            "overhead": overhead})
    };
    apply(&machines, &[class("own", "amphipod")]);
    apply(&machines, &[class("foreign", "other")]);
    for n in 0..2 {
        let whole = json!({"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "400m", "memory": "96Mi"}});
        let small = json!({"resources": {"limits": {"memory": "32Mi"}, "requests": {"memory": "16Mi"}}});
        let containers = [container("c", WAIT, small), container("d", WAIT, json!({}))];
        let foreign = pod(&machines, "foreign", n, &containers, json!({"runtimeClassName": "foreign"}));
        let whole = json!({"resources": whole, "runtimeClassName": "own"});
        apply(&machines, &[pod(&machines, "whole", n, &containers, whole)]);
        apply(&machines, &[foreign]);
    }
    for n in 0..2 {
        machines.until("it runs", || ready(&get(&machines, "whole", n)));
        let found = get(&machines, "whole", n);
        assert_eq!(found["status"]["qosClass"], "Burstable");
        let mebibytes = |n: u64| (n << 20).to_string();
        // With the overhead of its runtime class, which is no container's.
        assert_eq!(limits(&found, &machines, true), ("50000".to_owned(), mebibytes(128)));
        let pids: Vec<i32> = machines.processes(&found).iter().map(|p| p.pid).collect();
        let mut own: Vec<_> = pids.iter().map(|pid| limits_of(*pid, false)).collect();
        own.sort();
        // Who names no limit may use all that the pod has.
        let mut expect = vec![("40000".to_owned(), mebibytes(32)), ("40000".to_owned(), mebibytes(96))];
        expect.sort();
        assert_eq!(own, expect);
        machines.until("a handler that the node lacks is told of", || {
            let about = format!("involvedObject.name=foreign-{n},reason=FailedCreatePodSandBox");
            let events = machines.command(0, "kubectl").args(["get", "events", "--field-selector", &about]).output();
            String::from_utf8_lossy(&events.unwrap().stdout).contains("no runtime for \"other\" is configured")
        });
    }
}

/// Who names no limit of its own grows and shrinks with the pod.
#[test]
fn what_a_pod_has_as_a_whole_changes_while_it_runs() {
    let machines = start("larger");
    let share = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    let resize = |n: usize, resources: Value| {
        let patch = json!({"spec": {"resources": resources}}).to_string();
        let pod = format!("whole-{n}");
        machines
            .command(0, "kubectl")
            .args(["patch", "pod", &pod, "--subresource", "resize", "--patch", &patch])
            .output()
            .unwrap()
    };
    for n in 0..2 {
        let containers = [
            container("free", WAIT, json!({})),
            container(
                "own",
                WAIT,
                json!({"resources": {"limits": {"memory": "32Mi"}, "requests": {"memory": "16Mi"}}}),
            ),
        ];
        apply(&machines, &[pod(&machines, "whole", n, &containers, json!({"resources": share("200m", "64Mi")}))]);
    }
    let mebibytes = |n: u64| (n << 20).to_string();
    for n in 0..2 {
        machines.until("it runs", || ready(&get(&machines, "whole", n)));
        let before = get(&machines, "whole", n);
        assert_eq!(before["status"]["resources"], share("200m", "64Mi"));
        assert_eq!(before["status"]["allocatedResources"], json!({"cpu": "200m", "memory": "64Mi"}));
        let mut pids: Vec<i32> = machines.processes(&before).iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        for (cpu, memory, quota, size) in [("300m", "96Mi", "30000", 96), ("100m", "48Mi", "10000", 48)] {
            assert!(resize(n, share(cpu, memory)).status.success());
            let done = |p: &Value| {
                p["status"]["resources"] == share(cpu, memory) && condition(p, "PodResizeInProgress").is_none()
            };
            machines.until("it is so", || done(&get(&machines, "whole", n)));
            let now = get(&machines, "whole", n);
            assert_eq!(now["status"]["allocatedResources"], json!({"cpu": cpu, "memory": memory}));
            assert_eq!(limits(&now, &machines, true), (quota.to_owned(), mebibytes(size)));
            let mut own: Vec<_> = pids.iter().map(|pid| limits_of(*pid, false)).collect();
            own.sort();
            let mut expect = vec![(quota.to_owned(), mebibytes(32)), (quota.to_owned(), mebibytes(size))];
            expect.sort();
            assert_eq!(own, expect, "without an end of either");
        }
        let refused = |resources: Value, why: &str| {
            let said = resize(n, resources);
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.contains(why), "{said}");
        };
        refused(Value::Null, "spec.resources: Forbidden: pod-level resources cannot be removed");
        refused(
            json!({"limits": {"cpu": null}}),
            "spec.resources.limits: Forbidden: pod-level resource limits cannot be removed",
        );
        // What is in use is not taken away.
        let free = |script: &str| {
            let (pod, shell) = (format!("whole-{n}"), ["/bin/busybox", "sh", "-c", script]);
            run(machines.command(0, "kubectl").args(["exec", &pod, "-c", "free", "--"]).args(shell));
        };
        free("busybox head -c 40000000 /dev/zero > /dev/shm/held");
        assert!(resize(n, share("100m", "34Mi")).status.success());
        let held = |p: &Value| {
            condition(p, "PodResizeInProgress").is_some_and(|c| c["reason"] == "Error")
                && text(condition(p, "PodResizeInProgress").unwrap(), "/message").contains("below current usage")
        };
        machines.until("it is in use", || held(&get(&machines, "whole", n)));
        assert_eq!(limits(&get(&machines, "whole", n), &machines, true).1, mebibytes(48));
        free("busybox rm /dev/shm/held");
        machines.until("it is so", || get(&machines, "whole", n)["status"]["resources"] == share("100m", "34Mi"));
        assert!(resize(n, share("100m", "48Mi")).status.success());
        machines
            .until("it is as before", || get(&machines, "whole", n)["status"]["resources"] == share("100m", "48Mi"));
        assert!(resize(n, share("10000", "48Mi")).status.success());
        let pending = |p: &Value| condition(p, "PodResizePending").is_some_and(|c| c["reason"] == "Infeasible");
        machines.until("it is too much", || pending(&get(&machines, "whole", n)));
        assert_eq!(get(&machines, "whole", n)["status"]["resources"], share("100m", "48Mi"));
    }
    for n in 0..2 {
        assert!(resize(n, share("100m", "40Mi")).status.success());
        machines.until("it is so", || get(&machines, "whole", n)["status"]["resources"] == share("100m", "40Mi"));
        assert_eq!(limits(&get(&machines, "whole", n), &machines, true), ("10000".to_owned(), mebibytes(40)));
    }
}

#[test]
fn resources_change_while_a_pod_runs() {
    let machines = start("size");
    let share = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    let policy = json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let resize = |name: &str, n: usize, container: &str, resources: Value| {
        let patch = json!({"spec": {"containers": [{"name": container, "resources": resources}]}}).to_string();
        machines.kubectl(&["patch", "pod", &format!("{name}-{n}"), "--subresource", "resize", "--patch", &patch]);
    };
    for n in 0..2 {
        let plain = container("c", WAIT, json!({"resources": share("100m", "64Mi")}));
        let again = container("c", WAIT, json!({"resources": share("100m", "64Mi"), "resizePolicy": policy}));
        apply(
            &machines,
            &[pod(&machines, "size", n, &[plain], json!({})), pod(&machines, "again", n, &[again], json!({}))],
        );
    }
    for n in 0..2 {
        machines.until("both run", || ready(&get(&machines, "size", n)) && ready(&get(&machines, "again", n)));
        let before = get(&machines, "size", n);
        let status = &before["status"]["containerStatuses"][0];
        assert_eq!(status["resources"], share("100m", "64Mi"));
        assert_eq!(status["allocatedResources"], share("100m", "64Mi")["requests"]);
        assert_eq!(limits(&before, &machines, false), ("10000".into(), (64 << 20).to_string()));
        for (cpu, memory, quota, mebibytes) in [("200m", "128Mi", "20000", 128), ("50m", "48Mi", "5000", 48)] {
            resize("size", n, "c", share(cpu, memory));
            machines.until("it has it", || {
                get(&machines, "size", n)["status"]["containerStatuses"][0]["resources"] == share(cpu, memory)
            });
            let now = get(&machines, "size", n);
            assert_eq!(now["status"]["containerStatuses"][0]["allocatedResources"], share(cpu, memory)["requests"]);
            assert_eq!(limits(&now, &machines, false), (quota.into(), (mebibytes << 20).to_string()));
            let same = ["containerID", "restartCount"]
                .map(|k| now["status"]["containerStatuses"][0][k] == before["status"]["containerStatuses"][0][k]);
            assert_eq!(same, [true, true], "it was not restarted");
            assert!(condition(&now, "PodResizeInProgress").is_none() && condition(&now, "PodResizePending").is_none());
        }
        // Memory is what it wants to begin anew for; less of it, too, and of the rest with it.
        for (cpu, memory, restarts) in [("100m", "96Mi", 1), ("50m", "80Mi", 2)] {
            resize("again", n, "c", share(cpu, memory));
            machines.until("it has begun anew with it", || {
                let status = get(&machines, "again", n)["status"]["containerStatuses"][0].clone();
                status["restartCount"] == restarts
                    && status["resources"] == share(cpu, memory)
                    && status["state"].get("running").is_some()
            });
            machines.until("nothing is under way", || {
                condition(&get(&machines, "again", n), "PodResizeInProgress").is_none()
            });
        }
        let less = ("5000".to_owned(), (80u64 << 20).to_string());
        assert_eq!(limits(&get(&machines, "again", n), &machines, false), less);
        machines.until("the pod has no more than its container", || {
            limits(&get(&machines, "again", n), &machines, true) == less
        });
        // More than there is, and more than there is room for.
        resize("size", n, "c", share("10000", "48Mi"));
        machines.until("it is said that it cannot be", || {
            condition(&get(&machines, "size", n), "PodResizePending").is_some_and(|c| c["reason"] == "Infeasible")
        });
        let node = machines.json(&["get", "node", &machines.all[n].name]);
        let cpus: u64 = text(&node, "/status/allocatable/cpu").parse().unwrap();
        let nearly = format!("{}m", cpus * 1000 - 20);
        resize("size", n, "c", share(&nearly, "48Mi"));
        machines.until("it is put off", || {
            condition(&get(&machines, "size", n), "PodResizePending").is_some_and(|c| c["reason"] == "Deferred")
        });
        let now = get(&machines, "size", n);
        assert_eq!(now["status"]["containerStatuses"][0]["resources"], share("50m", "48Mi"), "it keeps what it has");
        machines.kubectl(&["delete", "pod", &format!("again-{n}"), "--timeout=30s"]);
        machines.until("there is room", || {
            let now = get(&machines, "size", n);
            now["status"]["containerStatuses"][0]["resources"]["limits"]["cpu"] == nearly.as_str()
                && condition(&now, "PodResizePending").is_none()
        });
    }
}

#[test]
fn a_host_ip_that_is_not_the_nodes_is_told_of_and_opens_nothing() {
    let machines = start("hostip");
    let serve =
        "/bin/busybox mkdir -p /tmp/www; echo here > /tmp/www/index.html; /bin/busybox httpd -f -p 8080 -h /tmp/www";
    for n in 0..2 {
        let port = |number: u16, ip: &str| json!({"containerPort": 8080, "hostPort": number, "hostIP": ip});
        let ports =
            [port(8001, &machines.all[n].address), port(8002, "203.0.113.9"), port(8003, "nonsense"), port(8004, "")];
        let c = container("c", serve, json!({"ports": ports}));
        apply(&machines, &[pod(&machines, "ports", n, &[c], json!({}))]);
    }
    for n in 0..2 {
        let address = machines.all[n].address.clone();
        let answers = |port: u16| {
            let url = format!("http://{address}:{port}/");
            let said = machines.command(1 - n, "curl").args(["-sS", "--max-time", "5", &url]).output().unwrap();
            said.status.success()
        };
        machines.until("both good ports answer", || answers(8001) && answers(8004));
        assert!(!answers(8002) && !answers(8003), "on {address}");
        let events = || {
            let of = format!("involvedObject.name=ports-{n}");
            let list = machines.json(&["get", "events", "--field-selector", &of]);
            let told = |e: &Value| {
                (e["type"] == "Warning" && e["reason"] == "HostPortNotPublished")
                    .then(|| text(e, "/message").to_owned())
            };
            list["items"].as_array().unwrap().iter().filter_map(told).collect::<Vec<_>>()
        };
        machines.until("both others are told of", || events().len() >= 2);
        let mut told = events();
        told.sort();
        let begin = "spec.containers[0].ports";
        assert_eq!(
            told,
            [
                format!(
                    "{begin}[1].hostIP: \"203.0.113.9\" is not an address of this node: host port 8002/TCP is not published"
                ),
                format!("{begin}[2].hostIP: \"nonsense\" is no IP address: host port 8003/TCP is not published"),
            ]
        );
    }
}

/// Of the node itself, or of a Service: whether it was there before the pod or comes later.
#[test]
fn a_host_port_that_somebody_has_already_is_told_to_the_pod() {
    let machines = start("taken");
    let service = |name: &str, port: u16| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
               "spec": {"type": "NodePort", "selector": {"app": "x"}, "ports": [{"port": 80, "nodePort": port}]}})
    };
    apply(&machines, &[service("before", 30090)]);
    for n in 0..2 {
        let ports = json!([{"containerPort": 1, "hostPort": 30090}, {"containerPort": 2, "hostPort": 30091},
                           {"containerPort": 3, "hostPort": 8472, "protocol": "UDP"}, {"containerPort": 4, "hostPort": 8005}]);
        let c = container("c", "sleep 1000", json!({"ports": ports}));
        apply(&machines, &[pod(&machines, "taker", n, &[c], json!({}))]);
    }
    let told = |n: usize| {
        let of = format!("involvedObject.name=taker-{n},reason=HostPortConflict,type=Warning");
        let list = machines.json(&["get", "events", "--field-selector", &of]);
        let mut said: Vec<String> =
            list["items"].as_array().unwrap().iter().map(|e| text(e, "/message").to_owned()).collect();
        said.sort();
        said
    };
    let of_service = |port: u16, name: &str| {
        format!("host port {port}/TCP is not published: it is the node port of the Service default/{name}")
    };
    let own = "host port 8472/UDP is not published: it is this node's own";
    for n in 0..2 {
        machines.until("two are told of", || told(n).len() >= 2);
        assert_eq!(told(n), [of_service(30090, "before"), own.to_owned()], "on machine {n}");
    }
    apply(&machines, &[service("after", 30091)]);
    for n in 0..2 {
        machines.until("the third is told of", || told(n).len() >= 3);
        assert_eq!(told(n)[1], of_service(30091, "after"), "on machine {n}");
    }
}

/// Nobody opens host ports where the service proxy is another's, and nothing else would show it.
#[test]
fn without_the_service_proxy_pods_are_told_that_their_host_ports_are_closed() {
    let machines = start_with("noproxy", &["--disable", "service-proxy"]);
    for n in 0..2 {
        let c = container("c", WAIT, json!({"ports": [{"containerPort": 1, "hostPort": 8100}, {"containerPort": 2}]}));
        apply(&machines, &[pod(&machines, "closed", n, &[c], json!({}))]);
    }
    for n in 0..2 {
        let of = format!("involvedObject.name=closed-{n},reason=HostPortConflict,type=Warning");
        let told = || machines.json(&["get", "events", "--field-selector", &of]);
        machines.until("it is told", || !told()["items"].as_array().unwrap().is_empty());
        machines.until("it runs all the same", || ready(&get(&machines, "closed", n)));
        let all = told();
        let why = "host port 8100/TCP is not published: the service proxy of this node is disabled";
        assert_eq!((all["items"].as_array().unwrap().len(), text(&all, "/items/0/message")), (1, why), "{all}");
        assert_eq!(all["items"][0]["count"], 1);
    }
}

/// Whoever binds a pod without asking the scheduler, by its spec or by a Binding, is told what the scheduler would have said.
#[test]
fn a_pod_that_does_not_fit_its_node_has_failed_and_says_why() {
    let mut machines = start("misfit");
    let port = json!({"ports": [{"containerPort": 1, "hostPort": 8100}]});
    for n in 0..2 {
        apply(&machines, &[pod(&machines, "holder", n, &[container("c", WAIT, port.clone())], json!({}))]);
    }
    for n in 0..2 {
        machines.until("the holder of the port runs", || ready(&get(&machines, "holder", n)));
    }
    let cases = [
        ("second", port.clone(), json!({}), "NodePorts"),
        ("large", json!({"resources": {"requests": {"cpu": "1k"}}}), json!({}), "OutOfcpu"),
        ("elsewhere", json!({}), json!({"nodeSelector": {"is": "nowhere"}}), "NodeAffinity"),
    ];
    for n in 0..2 {
        for (name, of_container, of_pod, _) in &cases {
            let c = container("c", WAIT, of_container.clone());
            apply(&machines, &[pod(&machines, name, n, &[c], of_pod.clone())]);
        }
    }
    // One that nobody scheduled, bound by a request.
    let mut by_request = pod(&machines, "bound", 1, &[container("c", WAIT, port.clone())], json!({}));
    let node = std::mem::take(&mut by_request["spec"]["nodeName"]);
    by_request["spec"]["schedulerName"] = "nobody".into();
    by_request["spec"].as_object_mut().unwrap().remove("nodeName");
    apply(&machines, &[by_request]);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "bound-1"}, "target": {"kind": "Node", "name": node}});
    let path = machines.all[0].path("binding.json");
    std::fs::write(&path, binding.to_string()).unwrap();
    let path = path.display().to_string();
    let create = ["create", "--raw", "/api/v1/namespaces/default/pods/bound-1/binding", "-f", &path];
    assert!(machines.command(0, "kubectl").args(create).status().unwrap().success());
    let failed = |machines: &Machines, name: &str, n: usize, reason: &str| {
        let found = get(machines, name, n);
        let status = &found["status"];
        assert_ne!(text(status, "/phase"), "Running", "{name}-{n}");
        text(status, "/phase") == "Failed" && text(status, "/reason") == reason
    };
    for n in 0..2 {
        for (name, _, _, reason) in &cases {
            machines.until(&format!("{name}-{n} has failed"), || failed(&machines, name, n, reason));
        }
    }
    machines.until("bound-1 has failed", || failed(&machines, "bound", 1, "NodePorts"));
    let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    for n in 0..2 {
        assert_eq!(text(&get(&machines, "second", n), "/status/message"), format!("Pod was rejected: {why}"));
        let of = format!("involvedObject.name=second-{n},reason=NodePorts,type=Warning");
        let told = || machines.json(&["get", "events", "--field-selector", &of]);
        machines.until("the event is there", || text(&told(), "/items/0/message") == why);
    }
    // What runs is not asked again, and who was refused stays so.
    for n in 0..2 {
        machines.all[n].kill();
    }
    machines.start_server(&[]);
    machines.start_agent(1, "");
    for n in 0..2 {
        machines.until("the node is back", || machines.is_ready(n));
        assert!(ready(&get(&machines, "holder", n)) && failed(&machines, "second", n, "NodePorts"));
        run(machines.command(0, "kubectl").args(["delete", "pod", &format!("holder-{n}")]));
        apply(&machines, &[pod(&machines, "next", n, &[container("c", WAIT, port.clone())], json!({}))]);
        machines.until("the port is free again", || ready(&get(&machines, "next", n)));
    }
}

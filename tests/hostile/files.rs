//! Files that a container writes and the host reads: none takes the machine's memory, and none keeps the host waiting.

use std::process::Command;

use serde_json::json;

use crate::lab::run;
use crate::stage::{apply, container, ended, pod, start};

#[test]
fn a_grown_last_word_and_hosts_file_take_little_and_are_read_to_a_limit() {
    let mut lab = start("grow");
    let grow = "dd if=/dev/zero of=/dev/termination-log bs=64k count=2048; printf END >> /dev/termination-log; \
        dd if=/dev/zero of=/etc/hosts bs=64k count=2048; dd if=/dev/zero of=/etc/resolv.conf bs=64k count=2048; ";
    let last = "dd if=/dev/zero bs=5000 count=1 | tr '\\0' x > /dev/termination-log; printf END >> /dev/termination-log; exit 3";
    let logged = "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; exit 1";
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let pods = [
        pod("grown", &[container("c", &format!("{grow} sleep 1000"), json!({}))], json!({})),
        pod("long", &[container("c", last, json!({})), container("d", last, json!({}))], json!({})),
        pod("many", &["a", "b", "c", "d"].map(|name| container(name, last, json!({}))), json!({})),
        pod("logged", &[container("c", logged, fallback)], json!({})),
    ];
    apply(&lab, &pods);
    let message = |pod: &serde_json::Value, n: usize| {
        pod["status"]["containerStatuses"][n]["state"]["terminated"]["message"].as_str().unwrap_or_default().to_owned()
    };
    let long = message(&ended(&lab, "long"), 1);
    assert!(long.len() == 4096 && long.ends_with("xEND"), "{} bytes: the end, as the kubelet has it", long.len());
    let many = ended(&lab, "many");
    assert_eq!([0, 1, 2, 3].map(|n| message(&many, n).len()), [3072; 4], "12 kB for all of a pod");
    let logged = message(&ended(&lab, "logged"), 0);
    assert_eq!(logged.lines().count(), 80);
    assert!(logged.starts_with("line 420\n") && logged.ends_with("line 499\n"), "{logged}");
    lab.until("the files have been grown", || {
        let log = lab.kubectl(&["logs", "grown"]);
        log.matches("No space left on device").count() >= 3
    });
    let uid = lab.pod("grown")["metadata"]["uid"].as_str().unwrap().to_owned();
    let taken = run(Command::new("du").args(["-s", "-k", lab.path(&format!("run/pods/{uid}")).to_str().unwrap()]));
    let kilobytes: u64 = String::from_utf8_lossy(&taken.stdout).split_whitespace().next().unwrap().parse().unwrap();
    assert!(kilobytes < 2048, "{kilobytes} kB of the machine's memory");
    // The next start reads them again, and the pod runs on.
    let before = lab.pod("grown")["status"]["containerStatuses"][0]["containerID"].clone();
    lab.kill_server();
    lab.start_server();
    let status = lab.pod("grown")["status"]["containerStatuses"][0].clone();
    assert_eq!(status["containerID"], before);
    assert!(status["state"]["running"].is_object(), "{status}");
}

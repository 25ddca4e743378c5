//! `amphipod killall`: the machine before and after.

use crate::lab::{self, HELLO, Lab};

#[test]
fn killall_leaves_nothing_outside_of_the_data_directory() {
    let mut lab = Lab::start("gone");
    lab.kubectl(&["apply", "-f", HELLO]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let ours = lab.marks();
    let running = lab::traces(&ours);
    for what in ["mount ", "cgroup ", "log ", "process "] {
        assert!(running.iter().any(|t| t.starts_with(what)), "{what} while pods run: {running:#?}");
    }
    assert_ne!(lab.network_traces(), "", "links and rules while pods run");
    lab.stop_server();
    assert!(lab::traces(&ours).iter().any(|t| t.starts_with("process ")), "containers go on");
    lab.killall();
    assert_eq!(lab.network_traces(), "", "no link, rule or route is left");
    assert_eq!(lab::traces(&ours), Vec::<String>::new());
    assert!(!lab.path("run").exists(), "the run directory is gone");
}

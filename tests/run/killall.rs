//! `amphipod killall`: the machine before a node and after it.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use amphipod::containers::runtime::ShimRuntime;
use amphipod::containers::{ContainerSpec, Runtime, SandboxSpec, new_id};
use amphipod::net::nft::NftDataplane;
use amphipod::net::pod::KernelPodNetwork;
use amphipod::net::{PodAttachment, PodNetwork, ServiceTable};
use amphipod::node_paths::{NodePaths, Ranges};

use crate::lab::busybox_rootfs;

fn killall(place: &NodePaths, config: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amphipod"));
    command.arg("killall").args(flags).args(["--data-dir", place.data_dir.to_str().unwrap()]);
    command.args(["--run-dir", place.run_dir.to_str().unwrap(), "--config-dir", config.to_str().unwrap()]);
    command.output().unwrap()
}

/// What a node can leave on a machine: mounts, control groups, links, rules, logs.
fn machine(place: &NodePaths) -> Vec<String> {
    let output = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all = output("find", &["/sys/fs/cgroup", "-maxdepth", "2", "-name", &place.cgroup_root()]);
    // The namespace of this thread, not of the process.
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    all.extend(mounts.lines().filter(|line| line.contains("amphipod-killall")).map(str::to_owned));
    all.extend(output("ip", &["-o", "link"]));
    all.extend(output("ip", &["route", "show", "table", "all"]));
    all.extend(output("nft", &["list", "ruleset"]));
    all.extend(output("find", &["/var/log", "-maxdepth", "2", "-name", "*killall-test*"]));
    all
}

/// A pod with a container, its address and its logs, as the node makes them.
async fn a_pod(place: &NodePaths, ranges: &Ranges, directory: &Path) -> u32 {
    let mut config = place.containers();
    config.executable = env!("CARGO_BIN_EXE_amphipod").into();
    let network = place.network(ranges);
    NftDataplane::open(network.clone()).unwrap().apply_now(&ServiceTable::default()).unwrap();
    let pods: Arc<dyn PodNetwork> = Arc::new(KernelPodNetwork::open(network).unwrap());
    let id = new_id();
    let runtime = ShimRuntime::open(config).await.unwrap();
    let netns = Some(runtime.make_users(&id).await.unwrap().netns);
    let pod = PodAttachment { id: id.clone(), namespace: "n".into(), name: "killall-test".into(), netns };
    let attached = pods.attach(pod).await.unwrap();
    let rootfs = directory.join("rootfs");
    busybox_rootfs(&rootfs);
    let spec = SandboxSpec {
        id: id.clone(),
        netns: Some(attached.netns),
        cgroup_parent: format!("kubepods/pod{}", &id[..8]),
        log_dir: place.log_dir().join(format!("n_killall-test_{id}")),
        ..SandboxSpec::default()
    };
    runtime.create_sandbox(spec).await.unwrap();
    let container = ContainerSpec {
        id: new_id(),
        name: "main".into(),
        rootfs,
        args: ["/bin/sh", "-c", "trap 'exit 0' TERM; echo here; sleep 1000 & wait"].map(str::to_owned).into(),
        log_path: Some("main.log".into()),
        ..ContainerSpec::default()
    };
    runtime.start_container(&id, container).await.unwrap()
}

fn scenario() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let directory = tempfile::Builder::new().prefix("amphipod-killall").tempdir().unwrap();
    let place = NodePaths::new(&directory.path().join("data"), &directory.path().join("run"));
    let before = machine(&place);
    let claim = place.claim().unwrap();
    let ranges = Ranges { pods: vec!["10.42.0.0/24".parse().unwrap()], ..Ranges::default() };
    place.record(&ranges).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pid = runtime.block_on(a_pod(&place, &ranges, directory.path()));
    let during = machine(&place);
    assert!(during.len() > before.len() + 5, "{during:?}");

    let refused = killall(&place, directory.path(), &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("stop it first"), "{said}");
    assert_eq!(machine(&place), during, "a refusal touches nothing");

    drop(claim);
    let lives = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(lives());
    let done = killall(&place, directory.path(), &["--shutdown"]);
    assert!(done.status.success() && !lives(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(place.run_dir.exists() && machine(&place).len() >= during.len(), "a shutdown removes nothing");
    for _ in 0..2 {
        let done = killall(&place, directory.path(), &[]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(machine(&place), before);
    }
    // Whoever inherits the dead process may take its time to notice.
    assert!(!lives());
    assert!(!place.run_dir.exists(), "{:?}", std::fs::read_dir(&place.run_dir).unwrap().collect::<Vec<_>>());
}

#[test]
fn nothing_remains_and_a_running_server_is_left_alone() {
    // A network namespace belongs to a thread: use one of our own.
    std::thread::spawn(scenario).join().unwrap();
}

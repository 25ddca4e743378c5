//! What a sandbox costs beside its workload: memory is a promise, times are printed only.

use std::fs;
use std::time::{Duration, Instant};

use amphipod::containers::*;

use crate::lab::Lab;

/// A field of smaps_rollup in kilobytes.
fn smaps(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn a_sandbox_costs_less_than_two_megabytes() {
    let lab = Lab::new().await;
    let (mut create, mut start, mut exec, mut remove) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut pids = Vec::new();
    for _ in 0..20 {
        let begin = Instant::now();
        let sandbox = lab.runtime.create_sandbox(lab.sandbox_spec()).await.unwrap();
        create.push(begin.elapsed());
        let begin = Instant::now();
        let container = lab.start(&sandbox.spec.id, lab.script("echo hello; sleep 1000")).await;
        start.push(begin.elapsed());
        let begin = Instant::now();
        let spec = ExecSpec { args: vec!["true".into()], ..ExecSpec::default() };
        let mut session = lab.runtime.exec(&container, spec).await.unwrap();
        assert_eq!(session.control.wait().await.unwrap(), 0);
        exec.push(begin.elapsed());
        pids.push((sandbox.pid, sandbox.spec.id));
    }
    let private = |pid| smaps(pid, "Private_Dirty") + smaps(pid, "Private_Clean");
    let privates: Vec<u64> = pids.iter().map(|(pid, _)| private(*pid)).collect();
    let pss: Vec<u64> = pids.iter().map(|(pid, _)| smaps(*pid, "Pss")).collect();
    println!(
        "private kB {privates:?}\npss kB {pss:?}\n{}",
        fs::read_to_string(format!("/proc/{}/smaps_rollup", pids[0].0)).unwrap()
    );
    for (_, id) in &pids {
        let begin = Instant::now();
        lab.runtime.remove_sandbox(id).await.unwrap();
        remove.push(begin.elapsed());
    }
    println!(
        "medians of 20: create sandbox {:?}, create+start container {:?}, exec true {:?}, remove {:?}",
        median(create),
        median(start),
        median(exec),
        median(remove)
    );
    assert!(pss.iter().all(|kilobytes| *kilobytes < 2048), "{pss:?}");
}

#[tokio::test]
async fn a_sandbox_with_users_of_its_own_costs_no_more() {
    let lab = Lab::new().await;
    let (mut make, mut create, mut start, mut exec) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut pss = Vec::new();
    for number in 0..20 {
        let begin = Instant::now();
        let users = lab.runtime.make_users(&format!("p{number}")).await.unwrap();
        make.push(begin.elapsed());
        let rootfs = lab.config.data_dir.join(format!("rootfs-{number}"));
        crate::lab::busybox_rootfs(&rootfs);
        let owner = format!("{0}:{0}", users.first_id);
        assert!(std::process::Command::new("chown").args(["-hR", &owner]).arg(&rootfs).status().unwrap().success());
        let spec = SandboxSpec { netns: Some(users.netns.clone()), users: Some(users.clone()), ..lab.sandbox_spec() };
        let begin = Instant::now();
        let sandbox = lab.runtime.create_sandbox(spec).await.unwrap();
        create.push(begin.elapsed());
        let begin = Instant::now();
        let script = ContainerSpec { rootfs, ..lab.script("sleep 1000") };
        let container = lab.start(&sandbox.spec.id, script).await;
        start.push(begin.elapsed());
        let pid = lab.runtime.container(&container).await.unwrap().pid;
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
        assert_eq!(map.split_whitespace().nth(1), Some(&*users.first_id.to_string()));
        let begin = Instant::now();
        let spec = ExecSpec { args: vec!["true".into()], ..ExecSpec::default() };
        let mut session = lab.runtime.exec(&container, spec).await.unwrap();
        assert_eq!(session.control.wait().await.unwrap(), 0);
        exec.push(begin.elapsed());
        pss.push((sandbox.pid, sandbox.spec.id));
    }
    let kilobytes: Vec<u64> = pss.iter().map(|(pid, _)| smaps(*pid, "Pss")).collect();
    println!(
        "pss kB {kilobytes:?}\nmedians of 20: make users {:?}, create sandbox {:?}, create+start container {:?}, exec true {:?}",
        median(make),
        median(create),
        median(start),
        median(exec)
    );
    for (number, (_, id)) in pss.iter().enumerate() {
        lab.runtime.remove_sandbox(id).await.unwrap();
        lab.runtime.remove_users(&format!("p{number}")).await.unwrap();
    }
    assert!(kilobytes.iter().all(|kilobytes| *kilobytes < 2048), "{kilobytes:?}");
}

/// Where the time of a start goes: run by hand with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "prints times only"]
async fn times_of_variants() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    for (name, seccomp) in [("default profile", Seccomp::RuntimeDefault), ("unconfined", Seccomp::Unconfined)] {
        let (mut start, mut exec) = (Vec::new(), Vec::new());
        for _ in 0..15 {
            let spec = ContainerSpec { seccomp: seccomp.clone(), ..lab.script("sleep 1000") };
            let begin = Instant::now();
            let container = lab.start(&sandbox, spec).await;
            start.push(begin.elapsed());
            let begin = Instant::now();
            let spec = ExecSpec { args: vec!["true".into()], ..ExecSpec::default() };
            let mut session = lab.runtime.exec(&container, spec).await.unwrap();
            session.control.wait().await.unwrap();
            exec.push(begin.elapsed());
        }
        println!("{name}: create+start {:?}, exec {:?}", median(start), median(exec));
    }
}

//! A container's life from the caller's side.

use std::time::Duration;

use amphipod::containers::runtime::ShimRuntime;
use amphipod::containers::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Lab, exit_of};

#[tokio::test]
async fn a_container_runs_logs_and_exits_with_its_code() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let started = std::time::Instant::now();
    let (code, log) = lab.run(&sandbox, lab.script("echo out; echo err >&2; hostname; exit 7")).await;
    println!("start to exit: {:?}", started.elapsed());
    assert_eq!(code, 7);
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "lab-pod", "out"]);
}

#[tokio::test]
async fn a_missing_command_is_told_in_plain_words_and_leaves_nothing() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let mut spec = lab.script("");
    spec.args = vec!["/no/such/thing".into()];
    let error = lab.runtime.start_container(&sandbox, spec).await.unwrap_err().to_string();
    assert!(error.contains("exec: \"/no/such/thing\": stat /no/such/thing: no such file or directory"), "{error}");
    let mut spec = lab.script("");
    spec.args = vec!["nothing".into()];
    let error = lab.runtime.start_container(&sandbox, spec).await.unwrap_err().to_string();
    assert!(error.contains("exec: \"nothing\": executable file not found in $PATH"), "{error}");
    assert!(lab.runtime.list().await[0].containers.is_empty());
}

#[tokio::test]
async fn a_shim_that_begins_while_its_sandbox_is_removed_ends() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let late = lab.config.sandbox_dir("late");
    std::fs::create_dir(&late).unwrap();
    std::fs::copy(lab.config.sandbox_dir(&sandbox).join("shim.json"), late.join("shim.json")).unwrap();
    std::fs::write(late.join("gone"), "").unwrap();
    let shim = std::process::Command::new(&lab.config.executable).arg("shim").arg(&late).output().unwrap();
    let said = String::from_utf8_lossy(&shim.stderr).into_owned();
    assert!(!shim.status.success() && said.contains("is being removed"), "{said}");
    assert!(!late.join("sock").exists());
}

#[tokio::test]
async fn running_containers_survive_the_agent_and_ended_ones_are_reported() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let stays = lab.start(&sandbox, lab.script("echo before; sleep 100")).await;
    let ends = lab
        .start(&sandbox, lab.script("cat /tmp/go 2>/dev/null; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 3"))
        .await;
    let before = lab.runtime.container(&stays).await.unwrap();
    // A second agent that never heard of the first knows only what is on disk and what the shims say. The first keeps
    // no state of its own, so its death is no different from its silence.
    std::fs::write(lab.rootfs.join("tmp/go"), "").unwrap();
    exit_of(&lab.runtime, &ends).await;
    let second = ShimRuntime::open(lab.new_runtime_config()).await.unwrap();
    assert_eq!(second.container(&stays).await.unwrap(), before);
    let ended = second.container(&ends).await.unwrap();
    assert_eq!(ended.exit_code(), Some(3));
    assert_eq!(ended, lab.runtime.container(&ends).await.unwrap());
    second.stop_container(&stays, Duration::ZERO).await.unwrap();
    assert_eq!(second.container(&stays).await.unwrap().exit_code(), Some(137));
}

#[tokio::test]
async fn stop_asks_first_and_kills_after_the_grace() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let script = "trap 'exit 5' TERM; echo >/tmp/listens; while true; do sleep 0.05; done";
    let polite = lab.start(&sandbox, lab.script(script)).await;
    // The first process of a namespace is not even sent a signal that it does not listen for.
    while !lab.rootfs.join("tmp/listens").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    lab.runtime.stop_container(&polite, Duration::from_secs(20)).await.unwrap();
    assert_eq!(lab.exit(&polite).await.exit_code(), Some(5));
    let stubborn = lab.start(&sandbox, lab.script("trap '' TERM; while true; do sleep 0.05; done")).await;
    lab.runtime.stop_container(&stubborn, Duration::from_millis(200)).await.unwrap();
    let ContainerState::Exited { code, signal, oom_killed, .. } = lab.exit(&stubborn).await.state else { panic!() };
    assert_eq!((code, signal, oom_killed), (137, Some(9), false));
    lab.runtime.remove_container(&stubborn).await.unwrap();
    assert!(lab.runtime.container(&stubborn).await.is_none());
    lab.runtime.remove_container(&stubborn).await.unwrap();
}

#[tokio::test]
async fn exec_has_streams_exit_code_user_and_tty() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let container = lab.start(&sandbox, lab.script("sleep 100")).await;
    let exec = |script: &str| ExecSpec { args: vec!["sh".into(), "-c".into(), script.into()], ..ExecSpec::default() };
    let mut session =
        lab.runtime.exec(&container, ExecSpec { stdin: true, ..exec("cat; echo e >&2; exit 4") }).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through").await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.read_to_string(&mut out).await.unwrap();
    session.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str(), session.control.wait().await.unwrap()), ("through", "e\n", 4));

    let user = Some(User { uid: 1000, gid: 1000, additional_gids: vec![7] });
    let mut session =
        lab.runtime.exec(&container, ExecSpec { user, ..exec("id; echo ok > /dev/stdout") }).await.unwrap();
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    assert!(out.contains("uid=1000(web) gid=1000(web) groups=7") && out.contains("ok"), "{out}");

    let tty = ExecSpec { tty: true, stdin: true, ..exec("tty; stty size; read line; echo got $line") };
    let mut session = lab.runtime.exec(&container, tty).await.unwrap();
    session.control.resize(101, 33).unwrap();
    session.stdin.as_mut().unwrap().write_all(b"hi\n").await.unwrap();
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    assert!(out.contains("/dev/pts/0") && out.contains("got hi"), "{out:?}");
    assert_eq!(session.control.wait().await.unwrap(), 0);

    let error = lab.runtime.exec(&container, ExecSpec { args: vec!["nope".into()], ..ExecSpec::default() }).await;
    assert!(error.unwrap_err().to_string().contains("executable file not found in $PATH"));
}

#[tokio::test]
async fn dropping_an_exec_session_ends_its_process() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let container = lab.start(&sandbox, lab.script("sleep 100")).await;
    let spec = ExecSpec { args: vec!["sleep".into(), "77".into()], ..ExecSpec::default() };
    let session = lab.runtime.exec(&container, spec).await.unwrap();
    assert_eq!(lab.runtime.stats(&container).await.unwrap().pids, Some(2));
    drop(session);
    let mut left = 2;
    for _ in 0..200 {
        left = lab.runtime.stats(&container).await.unwrap().pids.unwrap();
        if left == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(left, 1);
}

/// Not a test by itself: the agent that `a_killed_agent_leaves_its_containers_alone` kills.
#[tokio::test]
#[ignore = "is run as a process of its own by another test"]
async fn agent_to_be_killed() {
    let Ok(plan) = std::env::var("AMPHIPOD_TEST_AGENT") else { return };
    let (root, sandbox, containers): (Config2, SandboxSpec, Vec<ContainerSpec>) = serde_json::from_str(&plan).unwrap();
    let runtime = ShimRuntime::open(root.config()).await.unwrap();
    let id = runtime.create_sandbox(sandbox).await.unwrap().spec.id;
    for spec in containers {
        let (name, pid) = (spec.id.clone(), runtime.start_container(&id, spec).await.unwrap());
        println!("started {name} {pid}");
    }
    println!("ready");
    std::future::pending::<()>().await;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Config2 {
    data_dir: std::path::PathBuf,
    run_dir: std::path::PathBuf,
    cgroup_root: String,
}

impl Config2 {
    fn config(self) -> Config {
        let mut config = Config::new(self.data_dir, self.run_dir);
        (config.cgroup_root, config.executable) = (self.cgroup_root, env!("CARGO_BIN_EXE_amphipod").into());
        config
    }
}

#[tokio::test]
async fn a_killed_agent_leaves_its_containers_alone() {
    use std::io::BufRead;
    let lab = Lab::new().await;
    let root = Config2 {
        data_dir: lab.config.data_dir.clone(),
        run_dir: lab.config.run_dir.clone(),
        cgroup_root: lab.config.cgroup_root.clone(),
    };
    let stays = lab.script("i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done");
    let ends = lab.script("while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 42");
    let plan = serde_json::to_string(&(root, lab.sandbox_spec(), vec![&stays, &ends])).unwrap();
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "lifecycle::agent_to_be_killed"])
        .env("AMPHIPOD_TEST_AGENT", plan)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut pids = std::collections::BTreeMap::new();
    for line in std::io::BufReader::new(agent.stdout.take().unwrap()).lines().map(Result::unwrap) {
        if let ["started", id, pid] = line.split(' ').collect::<Vec<_>>()[..] {
            pids.insert(id.to_owned(), pid.parse::<u32>().unwrap());
        } else if line == "ready" {
            break;
        }
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    // It ends while no agent is there.
    std::fs::write(lab.rootfs.join("tmp/go"), "").unwrap();
    let gone = std::path::PathBuf::from(format!("/proc/{}", pids[&ends.id]));
    while gone.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = jiff::Timestamp::now();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = ShimRuntime::open(lab.new_runtime_config()).await.unwrap();
    let status = second.container(&stays.id).await.unwrap();
    assert!(status.is_running() && status.pid == pids[&stays.id] && status.labels == stays.labels);
    let ContainerState::Exited { code, finished_at, .. } = second.container(&ends.id).await.unwrap().state else {
        panic!()
    };
    assert_eq!(code, 42);
    assert!(finished_at <= before.checked_add(jiff::SignedDuration::from_millis(50)).unwrap());
    // Exits wake the new agent, and no line of output was lost.
    second.kill(&stays.id, 9).await.unwrap();
    exit_of(&second, &stays.id).await;
    let log = lab.log(&status);
    assert!(log.lines().enumerate().all(|(index, line)| line == index.to_string()) && log.lines().count() > 5);
    second.remove_sandbox(&second.list().await[0].spec.id).await.unwrap();
}

#[tokio::test]
async fn a_killed_shim_is_told_and_can_be_cleared_away() {
    let lab = Lab::new().await;
    let sandbox = lab.runtime.create_sandbox(lab.sandbox_spec()).await.unwrap();
    let container = lab.start(&sandbox.spec.id, lab.script("sleep 1000")).await;
    let pid = lab.runtime.container(&container).await.unwrap().pid;
    let mut events = lab.runtime.events();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sandbox.pid.cast_signed()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert_eq!(events.recv().await.unwrap(), Event::SandboxGone { sandbox: sandbox.spec.id.clone() });
    assert!(!lab.runtime.list().await[0].alive);
    lab.runtime.remove_sandbox(&sandbox.spec.id).await.unwrap();
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}/ns")).exists()
            || std::fs::read_link(format!("/proc/{pid}/exe")).is_err()
    );
}

#[tokio::test]
async fn a_sandbox_removed_while_a_container_starts_leaves_no_cgroup() {
    let lab = Lab::new().await;
    let mut parents = Vec::new();
    for n in 0..60 {
        let spec = lab.sandbox_spec();
        let sandbox = lab.runtime.create_sandbox(spec.clone()).await.unwrap().spec.id;
        let start = lab.runtime.start_container(&sandbox, lab.script("sleep 1000"));
        // Every step of a start is met: it takes some 15 ms, the test of 60 some seconds.
        let remove = async {
            tokio::time::sleep(Duration::from_micros(300 * n)).await;
            lab.runtime.remove_sandbox(&sandbox).await.unwrap();
        };
        let _ = tokio::join!(start, remove);
        parents.push(spec.cgroup_parent);
    }
    // A process that is late would make them anew.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let hierarchies: Vec<_> = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()).collect();
    let paths = hierarchies.iter().flat_map(|h| parents.iter().map(|p| h.join(&lab.config.cgroup_root).join(p)));
    let left: Vec<_> = paths.filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "{left:#?}");
}

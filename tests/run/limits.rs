//! What confines a container: memory, processes, capabilities, seccomp, masks, read-only roots, devices; and ttys.

use std::time::Duration;

use amphipod::containers::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::lab::Lab;

#[tokio::test]
async fn memory_beyond_the_limit_is_an_oom_kill() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let mut spec = lab.script("exec dd if=/dev/zero of=/dev/null bs=200M count=4");
    spec.resources.memory_limit_bytes = Some(32 << 20);
    let id = lab.start(&sandbox, spec).await;
    let ContainerState::Exited { code, oom_killed, .. } = lab.exit(&id).await.state else { panic!() };
    assert_eq!((code, oom_killed), (137, true));
}

#[tokio::test]
async fn limits_are_in_the_cgroups_and_can_be_changed() {
    let lab = Lab::new().await;
    let mut sandbox = lab.sandbox_spec();
    sandbox.resources.memory_limit_bytes = Some(256 << 20);
    let id = lab.runtime.create_sandbox(sandbox).await.unwrap().spec.id;
    let mut spec = lab.script("for i in 1 2 3 4 5 6 7 8 9; do sleep 50 & done; sleep 100");
    spec.resources =
        Resources { pids_limit: Some(5), cpu_quota: Some(20_000), cpu_shares: Some(100), ..spec.resources };
    let container = lab.start(&id, spec).await;
    let mut pids = 0;
    for _ in 0..300 {
        pids = lab.runtime.stats(&container).await.unwrap().pids.unwrap();
        if pids == 5 || lab.runtime.container(&container).await.unwrap().exit_code().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(pids <= 5, "{pids}");
    let more = Resources { memory_limit_bytes: Some(100 << 20), ..Resources::default() };
    lab.runtime.update_resources(&container, &more).await.unwrap();
    lab.runtime.update_resources(&container, &Resources { memory_limit_bytes: Some(200 << 20), ..more }).await.unwrap();
    // A pod's share can be made less than that of a container which has ended in it.
    let mut spec = lab.script("exit 0");
    spec.resources.cpu_quota = Some(50_000);
    lab.exit(&lab.start(&id, spec).await).await;
    for quota in [60_000, 30_000] {
        let limits = Resources { cpu_quota: Some(quota), cpu_period: Some(100_000), ..Resources::default() };
        lab.runtime.update_sandbox(&id, &limits).await.unwrap();
    }
    let stats = lab.runtime.sandbox_stats(&id).await.unwrap();
    let memory = stats.memory.usage.unwrap();
    assert!(memory > 0 && memory < 256 << 20, "{stats:?}");
}

#[tokio::test]
async fn the_defaults_confine() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let script = "grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; unshare -m true || echo no-unshare; \
        mount -t tmpfs x /tmp || echo no-mount; head -c1 /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/hostname 2>/dev/null || echo sys-ro; \
        ls /proc | grep -c '^[0-9]'";
    let (_, log) = lab.run(&sandbox, lab.script(script)).await;
    for expected in
        ["CapEff:\t00000000a80425fb", "Seccomp:\t2", "NoNewPrivs:\t0", "no-unshare", "no-mount", "0\n", "sys-ro"]
    {
        assert!(log.contains(expected), "{expected} in {log}");
    }
    let mut open = lab.script(script);
    open.privileged = true;
    let (_, log) = lab.run(&sandbox, open).await;
    assert!(log.contains("Seccomp:\t0") && !log.contains("no-mount") && !log.contains("sys-ro"), "{log}");

    let mut strict = lab.script(
        "touch /file 2>/dev/null || echo read-only; touch /tmp/file && echo tmp; id; grep NoNew /proc/self/status",
    );
    strict.readonly_rootfs = true;
    strict.no_new_privileges = true;
    strict.user = User { uid: 1000, gid: 1000, additional_gids: vec![5, 6] };
    strict.mounts = vec![Mount {
        container_path: "/tmp".into(),
        read_only: false,
        source: MountSource::Tmpfs { size_bytes: Some(1 << 20) },
    }];
    let (_, log) = lab.run(&sandbox, strict).await;
    for expected in ["read-only", "uid=1000(web) gid=1000(web) groups=5,6", "NoNewPrivs:\t1"] {
        assert!(log.contains(expected), "{expected} in {log}");
    }
}

#[tokio::test]
async fn an_exec_is_as_confined_as_its_container() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let mut spec = lab.script("sleep 100");
    spec.capabilities.drop = vec!["ALL".into()];
    spec.user = User { uid: 1000, gid: 1000, additional_gids: vec![] };
    spec.env = vec![("COLOUR".into(), "blue".into())];
    spec.cwd = "/made/for/it".into();
    let id = lab.start(&sandbox, spec).await;
    let script =
        "grep -E 'CapBnd|CapEff|Seccomp:' /proc/self/status; id; echo $COLOUR; pwd; unshare -m true || echo no-unshare";
    let exec = ExecSpec { args: vec!["sh".into(), "-c".into(), script.into()], ..ExecSpec::default() };
    let mut session = lab.runtime.exec(&id, exec).await.unwrap();
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    for expected in [
        "CapBnd:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "Seccomp:\t2",
        "uid=1000",
        "blue",
        "/made/for/it",
        "no-unshare",
    ] {
        assert!(out.contains(expected), "{expected} in {out}");
    }
}

#[tokio::test]
async fn attach_reaches_streams_and_a_tty() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let mut spec = lab.script("read line; echo got $line; cat; echo end");
    (spec.stdin, spec.stdin_once) = (true, true);
    let id = lab.start(&sandbox, spec).await;
    let mut session = lab.runtime.attach(&id, true).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    assert_eq!((out.as_str(), session.control.wait().await.unwrap()), ("got one\ntwo\nend\n", 0));
    assert_eq!(lab.log(&lab.exit(&id).await), "got one\ntwo\nend\n");

    let mut spec = lab.script("tty; stty size; read line; stty size; echo got $line; exit 6");
    (spec.tty, spec.stdin) = (true, true);
    let id = lab.start(&sandbox, spec).await;
    let mut session = lab.runtime.attach(&id, true).await.unwrap();
    session.control.resize(77, 22).unwrap();
    session.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
    let mut lines = BufReader::new(session.stdout).lines();
    let mut seen = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        seen.push_str(&line);
    }
    assert_eq!(session.control.wait().await.unwrap(), 6);
    let log = lab.log(&lab.exit(&id).await);
    assert!(log.contains("22 77") && log.contains("got hello") && log.contains("/dev/"), "{log} {seen}");
}

#[tokio::test]
async fn a_shared_process_namespace_has_the_sandboxs_own_first_process() {
    let lab = Lab::new().await;
    let spec = SandboxSpec { share_process_namespace: true, ..lab.sandbox_spec() };
    let sandbox = lab.runtime.create_sandbox(spec).await.unwrap().spec.id;
    lab.start(&sandbox, lab.script("sleep 77")).await;
    let (_, log) = lab.run(&sandbox, lab.script("sleep 0.2; ps; echo me $$")).await;
    assert!(log.contains("sleep 77") && log.contains("pause") && !log.contains("me 1\n"), "{log}");
}

#[tokio::test]
async fn volumes_show_what_they_should() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let volume = lab.config.data_dir.join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "content\n").unwrap();
    let bind = |host: std::path::PathBuf, path: &str, read_only| Mount {
        container_path: path.into(),
        read_only,
        source: MountSource::Bind { host_path: host, propagation: Propagation::Private },
    };
    let mut spec = lab.script("cat /vol/file /etc/one; touch /vol/x 2>/dev/null || echo ro; echo y > /rw/y");
    spec.mounts = vec![
        bind(volume.clone(), "/vol", true),
        bind(volume.join("file"), "/etc/one", true),
        bind(volume.clone(), "/rw", false),
    ];
    let (_, log) = lab.run(&sandbox, spec).await;
    assert_eq!(log, "content\ncontent\nro\n");
    assert_eq!(std::fs::read_to_string(volume.join("y")).unwrap(), "y\n");
}

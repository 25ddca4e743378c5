//! With `shareProcessNamespace` process 1 is the sandbox's, and there is nothing behind it.

use amphipod::containers::*;

use crate::exec;
use crate::lab::Lab;

/// A container of a sandbox with one process namespace, with the right to look into every process.
async fn looking(lab: &Lab) -> (Sandbox, String) {
    let spec = SandboxSpec { share_process_namespace: true, ..lab.sandbox_spec() };
    let sandbox = lab.runtime.create_sandbox(spec).await.unwrap();
    let mut spec = lab.script("sleep 1000");
    spec.capabilities.add = vec!["SYS_PTRACE".into()];
    spec.seccomp = Seccomp::Unconfined;
    let container = lab.start(&sandbox.spec.id, spec).await;
    (sandbox, container)
}

#[tokio::test]
async fn process_1_of_a_shared_namespace_has_nothing() {
    let lab = Lab::new().await;
    let (_, container) = looking(&lab).await;
    for (script, expected) in [
        ("ls -A /proc/1/root/", ""),
        ("ls -A /proc/1/cwd/", ""),
        ("ls /proc/1/fd", ""),
        ("cat /proc/1/environ", ""),
        ("cat /proc/1/cmdline", "pause\0"),
        ("cat /proc/1/mountinfo | wc -l", "1\n"),
        ("grep -c ' / / ro,' /proc/1/mountinfo", "1\n"),
        ("busybox stat -c '%u:%g' /proc/1/task/1", "65535:65535\n"),
    ] {
        let (code, out) = exec(&lab, &container, script).await;
        assert_eq!((code, out.as_str()), (0, expected), "{script}");
    }
    let (_, status) = exec(&lab, &container, "cat /proc/1/status").await;
    for expected in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Uid:\t65535\t65535\t65535\t65535",
        "Gid:\t65535\t65535\t65535\t65535",
        "Groups:\t \n",
    ] {
        assert!(status.contains(expected), "{expected:?} in {status}");
    }
    // Its memory: the program, a stack, and what the kernel adds; nothing of the shim, whose child it is.
    let (_, maps) = exec(&lab, &container, "cat /proc/1/maps").await;
    let foreign = |line: &&str| {
        let ours = ["[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[heap]", "/memfd:pause (deleted)"];
        !ours.iter().any(|name| line.ends_with(name))
    };
    assert_eq!(maps.lines().find(foreign), None, "{maps}");
    for attempt in ["touch /proc/1/root/x", "busybox nsenter -m -t 1 busybox true", "(: >> /proc/1/exe)"] {
        let (code, out) = exec(&lab, &container, attempt).await;
        assert_ne!(code, 0, "{attempt}: {out}");
    }
}

#[tokio::test]
async fn process_1_of_a_shared_namespace_reaps_and_ends_with_the_shim() {
    let lab = Lab::new().await;
    let (sandbox, container) = looking(&lab).await;
    let (_, out) = exec(
        &lab,
        &container,
        "for i in 1 2 3; do (sh -c 'sleep 0.1' &) ; done; kill -TERM 1; sleep 0.5; grep -l '^State:.Z' /proc/[0-9]*/status",
    )
    .await;
    assert_eq!(out, "", "orphans that nobody has reaped");
    let main = lab.runtime.container(&container).await.unwrap().pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sandbox.pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = || !std::path::Path::new(&format!("/proc/{main}")).exists();
    for _ in 0..500 {
        if ended() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(ended(), "the container lives on without its shim");
}

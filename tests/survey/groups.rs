//! Control groups are to be read, not written, and everybody's session keyring is their own.

use std::fs;
use std::path::PathBuf;

use amphipod::containers::*;

use crate::exec;
use crate::lab::Lab;

#[tokio::test]
async fn root_in_a_container_cannot_change_its_control_groups() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let mut spec = lab.script("sleep 1000");
    spec.resources.memory_limit_bytes = Some(64 << 20);
    let container = lab.start(&sandbox, spec).await;
    let (_, mounts) = exec(&lab, &container, "grep /sys/fs/cgroup /proc/self/mountinfo").await;
    assert!(!mounts.is_empty() && !mounts.contains("name=systemd"), "{mounts}");
    for line in mounts.lines() {
        let options = line.split(' ').nth(5).unwrap();
        assert!(options.split(',').any(|option| option == "ro"), "{line}");
    }
    let (code, written) = exec(
        &lab,
        &container,
        "busybox find /sys/fs/cgroup | while read f; do
             if [ -d $f ]; then mkdir $f/x 2>/dev/null && echo $f; else (: >> $f) 2>/dev/null && echo $f; fi; done; true",
    )
    .await;
    assert_eq!((code, written.as_str()), (0, ""), "what can be written");
    // What is there to be read is the container's own.
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    assert_eq!(exec(&lab, &container, limit).await.1, "67108864\n");
}

/// In namespaces that root of the container makes itself, by each of the calls that make some, it mounts the hierarchies.
const MOUNTS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static void write_in(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    if (file >= 0 && write(file, text, strlen(text)) < 0) perror(path);
    close(file);
}
static int try_mounts(const char *how) {
    char path[] = "/tmp/XXXX";
    mount(0, "/", 0, MS_REC | MS_PRIVATE, 0);
    mkdir(path, 0700);
    const char *options[] = {"memory", "cpu,cpuacct", "pids"};
    for (int n = 0; n < 3; n++)
        if (!mount("none", path, "cgroup", 0, options[n])) printf("%s mounts %s\n", how, options[n]);
    if (!mount("none", path, "cgroup2", 0, "")) printf("%s mounts cgroup2\n", how);
    fflush(stdout);
    return 0;
}
int main(void) {
    if (unshare(CLONE_NEWUSER)) return perror("user namespace"), 1;
    write_in("/proc/self/setgroups", "deny");
    write_in("/proc/self/uid_map", "0 0 1");
    write_in("/proc/self/gid_map", "0 0 1");
    if (unshare(CLONE_NEWNS)) return perror("mount namespace"), 1;
    puts("namespaces of its own");
    fflush(stdout);
    try_mounts("without another namespace");
    unsigned long flags = CLONE_NEWNS | CLONE_NEWCGROUP;
    long child = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(try_mounts("clone"));
    if (child > 0) { puts("clone"); waitpid(child, 0, 0); }
    struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
    child = syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) _exit(try_mounts("clone3"));
    if (child > 0) { puts("clone3"); waitpid(child, 0, 0); }
    if (!unshare(flags)) { puts("unshare"); try_mounts("unshare"); }
    puts("done");
}
"#;

#[tokio::test]
async fn root_in_a_container_mounts_no_control_groups_in_namespaces_of_its_own() {
    let lab = Lab::new().await;
    let program = lab.rootfs.join("mounts");
    fs::write(lab.rootfs.join("mounts.c"), MOUNTS).unwrap();
    let mut build = std::process::Command::new("cc");
    build.arg("-static").arg("-o").arg(&program).arg(lab.rootfs.join("mounts.c"));
    assert!(build.status().expect("gcc is installed").success());
    let sandbox = lab.sandbox().await;
    let attack = async |seccomp: Seccomp| {
        let container = lab.start(&sandbox, ContainerSpec { seccomp, ..lab.script("sleep 1000") }).await;
        exec(&lab, &container, "/mounts").await.1
    };
    assert_eq!(attack(Seccomp::Unsaid).await, "namespaces of its own\ndone\n");
    let open = attack(Seccomp::Unconfined).await;
    assert!(open.contains("unshare mounts"), "it is the filter that keeps it from it: {open}");
}

#[tokio::test]
async fn a_container_has_its_own_control_group_namespace() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let container = lab.start(&sandbox, lab.script("sleep 1000")).await;
    let ours = fs::read_link("/proc/self/ns/cgroup").unwrap().display().to_string();
    let look = "busybox readlink /proc/self/ns/cgroup; busybox cut -d: -f3 /proc/self/cgroup | busybox sort -u";
    let (_, out) = exec(&lab, &container, look).await;
    let (namespace, paths) = out.split_once('\n').unwrap();
    assert_ne!(namespace, ours);
    assert_eq!(paths, "/\n", "where it is on the host");
}

/// A mount that appears on one side of a volume, and what the other side sees of it.
#[tokio::test]
async fn mounts_cross_a_volume_as_its_propagation_says() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let none: Option<&str> = None;
    let tmpfs = |at: &std::path::Path| {
        nix::mount::mount(Some("t"), at, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    };
    for (propagation, sees_hosts, host_sees) in [
        (Propagation::Private, false, false),
        (Propagation::HostToContainer, true, false),
        (Propagation::Bidirectional, true, true),
    ] {
        let volume = lab.config.data_dir.join(format!("{propagation:?}"));
        fs::create_dir(&volume).unwrap();
        tmpfs(&volume);
        nix::mount::mount(none, &volume, none, nix::mount::MsFlags::MS_SHARED, none).unwrap();
        for name in ["host", "container"] {
            fs::create_dir(volume.join(name)).unwrap();
        }
        let mut spec = lab.script("sleep 1000");
        spec.privileged = true;
        let source = MountSource::Bind { host_path: volume.clone(), propagation };
        spec.mounts = vec![Mount { container_path: "/vol".into(), read_only: false, source }];
        let container = lab.start(&sandbox, spec).await;
        tmpfs(&volume.join("host"));
        let (code, out) =
            exec(&lab, &container, "mount -t tmpfs t /vol/container; grep -c /vol/host /proc/self/mountinfo").await;
        assert_eq!(out.trim() == "1", sees_hosts, "{propagation:?}: {code} {out}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = volume.join("container").display().to_string();
        assert_eq!(mounts.contains(&here), host_sees, "{propagation:?}");
        lab.runtime.remove_container(&container).await.unwrap();
        while nix::mount::umount2(&volume, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    }
}

const PROBE: &str = "SURVEY_PROBE";
const KEY: &str = "amphipod-survey";

fn session_keyring() -> i64 {
    // SAFETY: numbers only: KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING, which is not to be made.
    unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }
}

/// Runs in a container, see below: says its session keyring, and the key of the outside if it can be found from there.
#[test]
fn probe_of_a_container() {
    if std::env::var_os(PROBE).is_some() {
        let key = std::ffi::CString::new(KEY).unwrap();
        // SAFETY: KEYCTL_SEARCH in the session keyring for a user key of a constant name.
        let found = unsafe { libc::syscall(libc::SYS_keyctl, 10, -3, c"user".as_ptr(), key.as_ptr(), 0) };
        println!("\nkeyring {} {}", session_keyring(), if found > 0 { "reachable" } else { "out of reach" });
    }
}

#[tokio::test]
async fn every_container_and_every_exec_has_a_session_keyring_of_its_own() {
    // What an administrator's session would hold when the agent is started from it. A thread has its own credentials.
    let key = std::ffi::CString::new(KEY).unwrap();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING without a name; add_key of a constant to the session keyring.
    let ours = unsafe {
        assert!(libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<libc::c_char>()) > 0);
        assert!(libc::syscall(libc::SYS_add_key, c"user".as_ptr(), key.as_ptr(), c"x".as_ptr(), 1, -3) > 0);
        session_keyring()
    };
    let lab = Lab::new().await;
    let sandbox = lab.sandbox().await;
    let mut spec = lab.script("/probe --exact groups::probe_of_a_container --nocapture; sleep 1000");
    spec.env = vec![(PROBE.into(), "1".into())];
    spec.seccomp = Seccomp::Unconfined;
    let probe = std::env::current_exe().unwrap();
    let source = MountSource::Bind { host_path: probe, propagation: Propagation::Private };
    spec.mounts = vec![Mount { container_path: PathBuf::from("/probe"), read_only: true, source }];
    let container = lab.start(&sandbox, spec).await;
    let mut said = vec![ours.to_string()];
    let script = "/probe --exact groups::probe_of_a_container --nocapture";
    let (_, first) = exec(&lab, &container, script).await;
    let (_, second) = exec(&lab, &container, script).await;
    let main = loop {
        let log = lab.log(&lab.runtime.container(&container).await.unwrap());
        if log.contains("test result") {
            break log;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    for out in [main, first, second] {
        let line = out.lines().find_map(|line| line.strip_prefix("keyring ")).unwrap_or_else(|| panic!("{out}"));
        let (id, reach) = line.split_once(' ').unwrap();
        assert!(id.parse::<i64>().unwrap() > 0 && !said.iter().any(|other| other == id), "{id} again: {said:?}");
        assert_eq!(reach, "out of reach");
        said.push(id.to_owned());
    }
}

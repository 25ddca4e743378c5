//! The seccomp profile `RuntimeDefault`: an allow list equal in effect to what other container runtimes apply.
//!
//! Everything not listed fails with EPERM, except `clone3`, which fails with ENOSYS so that libraries fall back to
//! `clone`, whose flags can be filtered. Calls that only a capability makes useful are allowed with that capability.
//! Where a pod says nothing of a profile, a much smaller one holds ([`control_groups_profile`]).

use std::path::Path;

use serde_json::{Value, json};

use super::error::{Error, Result};

/// Allowed for everyone.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime \
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 \
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid \
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid \
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname \
    getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl \
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr \
    lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat \
    mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync \
    munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv \
    preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead \
    readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr \
    removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 \
    send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid \
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid \
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask \
    sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync \
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

#[cfg(target_arch = "x86_64")]
const MACHINE: &str = "arch_prctl modify_ldt";
#[cfg(target_arch = "aarch64")]
const MACHINE: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];

/// Allowed with a capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module query_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// The flags with which `clone` makes new namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
const NEW_CONTROL_GROUPS: u64 = 0x0200_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const AF_VSOCK: u64 = 40;

/// The profile for a container with these capabilities (`CAP_...`), as OCI JSON.
pub(crate) fn default_profile(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut syscalls = vec![allow(ALWAYS, json!([])), allow(MACHINE, json!([]))];
    for persona in [0x0u64, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        syscalls.push(allow("personality", json!([{ "index": 0, "value": persona, "op": "SCMP_CMP_EQ" }])));
    }
    syscalls.push(allow("socket", json!([{ "index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE" }])));
    for (capability, names) in WITH_CAPABILITY {
        if has(capability) {
            syscalls.push(allow(names, json!([])));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        let no_namespaces =
            json!([{ "index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }]);
        syscalls.push(allow("clone", no_namespaces));
        syscalls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ARCHITECTURES,
        "syscalls": syscalls,
    })
}

/// The profile for a container of which nobody has said anything: everything is allowed but a control group namespace of its
/// own. Root could mount the hierarchies in one that belongs to a user namespace that it made itself, needs no capability
/// for either, and owns their files.
pub(crate) fn control_groups_profile() -> Value {
    let with_flag = json!([{
        "index": 0, "value": NEW_CONTROL_GROUPS, "valueTwo": NEW_CONTROL_GROUPS, "op": "SCMP_CMP_MASKED_EQ",
    }]);
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ARCHITECTURES,
        "syscalls": [
            { "names": ["unshare", "clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": with_flag },
            // Its flags cannot be seen; libraries fall back to `clone`.
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS },
        ],
    })
}

fn allow(names: &str, args: Value) -> Value {
    let names: Vec<&str> = names.split_whitespace().collect();
    let mut rule = json!({ "names": names, "action": "SCMP_ACT_ALLOW" });
    if args.as_array().is_some_and(|args| !args.is_empty()) {
        rule["args"] = args;
    }
    rule
}

/// A profile from a file, in OCI's format or Docker's (whose `archMap`, `includes` and `excludes` are resolved here).
pub(crate) fn load_profile(path: &Path, capabilities: &[String]) -> Result<Value> {
    let invalid = |reason: String| Error::Spec(format!("seccomp profile {path:?}: {reason}"));
    let text = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
    let profile: Value = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    Ok(from_docker(profile, capabilities))
}

fn from_docker(mut profile: Value, capabilities: &[String]) -> Value {
    if profile.get("archMap").is_some() {
        profile["architectures"] = json!(ARCHITECTURES);
    }
    if let Some(fields) = profile.as_object_mut() {
        fields.remove("archMap");
    }
    if let Some(Value::Array(rules)) = profile.get_mut("syscalls") {
        rules.retain(|rule| applies(rule, capabilities));
        for rule in rules {
            if let Some(fields) = rule.as_object_mut() {
                if let Some(name) = fields.remove("name") {
                    fields.entry("names").or_insert_with(|| json!([name]));
                }
                fields.remove("includes");
                fields.remove("excludes");
                fields.remove("comment");
                fields.retain(|_, value| !value.is_null());
            }
        }
    }
    profile
}

/// Docker's conditions: capabilities and architectures that must (not) be there.
fn applies(rule: &Value, capabilities: &[String]) -> bool {
    let listed = |side: &str, field: &str| -> Vec<String> {
        let list = rule.get(side).and_then(|side| side.get(field)).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let has = |capability: &String| capabilities.contains(capability);
    let included = listed("includes", "caps").iter().all(has)
        && (listed("includes", "arches").is_empty() || listed("includes", "arches").iter().any(|arch| arch == machine));
    let excluded =
        listed("excludes", "caps").iter().any(has) || listed("excludes", "arches").iter().any(|arch| arch == machine);
    included && !excluded
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::LinuxSeccomp;

    fn names(profile: &Value) -> Vec<String> {
        let rules = profile["syscalls"].as_array().unwrap();
        rules.iter().flat_map(|rule| rule["names"].as_array().unwrap()).map(|n| n.as_str().unwrap().into()).collect()
    }

    #[test]
    fn the_profile_is_valid_oci_and_follows_capabilities() {
        let plain = default_profile(&[]);
        let parsed: LinuxSeccomp = serde_json::from_value(plain.clone()).unwrap();
        assert!(parsed.syscalls().as_ref().unwrap().len() > 8);
        for refused in ["mount", "reboot", "bpf", "setns", "unshare", "kexec_load", "io_uring_setup", "keyctl"] {
            assert!(!names(&plain).contains(&refused.to_owned()), "{refused}");
        }
        let admin = default_profile(&["CAP_SYS_ADMIN".into()]);
        assert!(names(&admin).contains(&"mount".to_owned()));
    }

    #[test]
    fn dockers_conditions_are_resolved() {
        let profile = json!({ "defaultAction": "SCMP_ACT_ERRNO", "archMap": [{}], "syscalls": [
            { "names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_X"] } },
            { "name": "b", "action": "SCMP_ACT_ALLOW", "args": null, "excludes": { "caps": ["CAP_X"] } },
        ]});
        assert_eq!(names(&from_docker(profile.clone(), &["CAP_X".into()])), ["a"]);
        let without = from_docker(profile, &[]);
        assert_eq!(names(&without), ["b"]);
        serde_json::from_value::<LinuxSeccomp>(without).unwrap();
    }
}

//! `amphipod shim DIR`: the one small process per sandbox.
//!
//! It holds the sandbox's network, ipc and uts namespaces by living in them, so no file pins them and containers simply
//! inherit them. It never starts a thread, so it may fork: all heavy work (libcontainer, entering a container) happens
//! in short-lived forked children whose memory goes with them. What stays resident is a poll loop.
//! Invariant: the shim ends only by `Shutdown` or by being killed; the agent's life does not matter to it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a process of its own")]

mod attached;
mod children;
mod connection;
mod container;
mod enter;
mod execute;
mod first;
mod launch;
mod log;
mod parameter;
mod paths;
mod process;
mod serve;
mod stage;
mod users;

use parameter::write_parameter;
pub(crate) use paths::{BUNDLES_DIR, CONFIG_FILE, GONE_FILE, PID_FILE, REAPER_FILE, SOCKET_FILE};
use process::{because, join_new_session_keyring, leave};

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, fork, pipe, setsid};

use super::wire::ShimConfig;

/// Entry of the sub-command; to be called before any thread is started. The parent half returns when the shim serves
/// (printing nothing) or has failed (printing why); the shim itself is its orphan.
pub fn shim_main(args: &[String]) -> ExitCode {
    crate::base::file::keep_new_files_private();
    let done = match args {
        [directory] => detach(Path::new(directory)),
        [word, first, count, directory] if word == "users" => users::make(first, count, Path::new(directory)),
        _ => {
            eprintln!("usage: shim DIRECTORY | shim users FIRST COUNT DIRECTORY (started by the agent only)");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Forks: the child becomes the shim; the parent waits until it serves.
fn detach(directory: &Path) -> io::Result<()> {
    let (ready, report) = pipe()?;
    // SAFETY: no other thread exists in this process.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(report);
            let message = io::read_to_string(fs::File::from(ready))?;
            match message.as_str() {
                "ok" => Ok(()),
                "" => Err(io::Error::other("the shim died while it was set up")),
                reason => Err(io::Error::other(reason.to_owned())),
            }
        }
        ForkResult::Child => {
            drop(ready);
            let mut report = fs::File::from(report);
            match set_up(directory) {
                Ok(shim) => {
                    let _ = report.write_all(b"ok");
                    drop(report);
                    shim.run()
                }
                Err(error) => {
                    let _ = report.write_all(error.to_string().as_bytes());
                    leave(1)
                }
            }
        }
    }
}

fn set_up(directory: &Path) -> io::Result<serve::Shim> {
    setsid()?;
    std::env::set_current_dir(directory)?;
    let config: ShimConfig = serde_json::from_slice(&fs::read(CONFIG_FILE)?)?;
    for procs in &config.cgroup_procs {
        fs::write(procs, "0").map_err(|error| because("joining the shims' cgroup", error))?;
    }
    // Fails without CAP_SYS_RESOURCE; then the shim is as likely a victim as any other process.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    join_new_session_keyring().map_err(|error| because("session keyring", error))?;
    enter_namespaces(&config)?;
    // SAFETY: plain prctl calls on this process.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        libc::prctl(libc::PR_SET_NAME, c"amphipod-shim".as_ptr());
    }
    silence_stdio()?;
    let first = config.share_process_namespace.then(|| first::start(config.users.as_ref())).transpose()?;
    if let Some(pid) = first {
        fs::write(REAPER_FILE, pid.to_string())?;
    }
    serve::Shim::new(config, first)
}

fn enter_namespaces(config: &ShimConfig) -> io::Result<()> {
    if let Some(path) = &config.netns {
        let namespace = fs::File::open(path).map_err(|error| because(&format!("network namespace {path:?}"), error))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|error| because("joining network namespace", error))?;
    }
    if let Some(users) = &config.users {
        return users::enter_namespaces(users, config);
    }
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWIPC, !config.host_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, !config.hostname.is_empty());
    unshare(flags).map_err(|error| because("making namespaces", error))?;
    if !config.hostname.is_empty() {
        nix::unistd::sethostname(&config.hostname).map_err(|error| because("setting hostname", error))?;
    }
    config.sysctls.iter().try_for_each(|(name, value)| write_parameter(name, value, config))
}

fn silence_stdio() -> io::Result<()> {
    let null: OwnedFd = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    for target in 0..3 {
        // SAFETY: replaces our own standard streams; both descriptors are open.
        if unsafe { libc::dup2(null.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parameter::own_sysctl;
    use super::*;

    #[test]
    fn parameters_of_the_machine_and_of_shared_namespaces_are_not_written() {
        let config = |netns: Option<&str>, host_ipc| ShimConfig {
            netns: netns.map(Into::into),
            host_ipc,
            ..serde_json::from_str(
                r#"{"hostname":"","netns":null,"host_ipc":false,"share_process_namespace":false,"sysctls":{},
                    "log_max_bytes":0,"log_max_files":0,"cgroup_procs":[]}"#,
            )
            .unwrap()
        };
        assert!(own_sysctl("net.core.somaxconn", &config(Some("/x"), true)).is_ok());
        assert!(own_sysctl("net.core.somaxconn", &config(None, false)).is_err());
        assert!(own_sysctl("kernel.shmmax", &config(None, false)).is_ok());
        assert!(own_sysctl("kernel.shmmax", &config(Some("/x"), true)).is_err());
        assert!(own_sysctl("fs.lease-break-time", &config(Some("/x"), false)).is_err());
    }
}

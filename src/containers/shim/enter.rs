//! Running one more process in a container (exec), in a forked child of the shim.
//!
//! libcontainer's own way in drops the container's seccomp profile, limits and user, so this does the whole path with
//! the same building blocks: cgroup, namespaces, tty, limits, user, capabilities, seccomp, exec.
//! Invariant: the new process is never more privileged than the `Process` it was asked for, at no instant reachable
//! by the container's processes (it is not dumpable until `exec`).

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::Process;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, pipe2, setsid};

use super::super::seccomp_filter;
use super::super::spec::Users;
use super::super::wire::ExecRequest;
use super::execute::{environment, execute, find_executable_in, value_of};
use super::{children, launch, users};

/// Runs in a forked child. `stdio` is stdin, stdout, stderr, or empty with a tty. Returns the new process's id.
pub(super) fn enter(
    request: &ExecRequest,
    users: Option<&Users>,
    init: Pid,
    stdio: &[OwnedFd],
    socket: &OwnedFd,
) -> Result<i32, String> {
    let process: Process = serde_json::from_str(&request.process).map_err(|error| error.to_string())?;
    let read = |path: &PathBuf| fs::read(path).map_err(|error| format!("seccomp program {path:?}: {error}"));
    let seccomp = request.seccomp.as_ref().map(read).transpose()?;
    launch::set_oom_score(request.oom_score_adj);
    // SAFETY: a flag of this process: nobody in the container may trace it or open its files through /proc.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    // Opened before anything is joined: a recycled process id cannot take this one's place.
    let target = pidfd(init).map_err(|_| "container is not running".to_owned())?;
    for procs in &request.cgroup_procs {
        fs::write(procs, "0").map_err(|error| format!("joining cgroup {procs:?}: {error}"))?;
    }
    // While this is still somebody who may.
    let uid = process.user().uid();
    let streams: Vec<&OwnedFd> = stdio.iter().collect();
    launch::own_streams(&streams, users.map_or(Some(uid), |users| users.on_the_machine(uid)).unwrap_or(uid));
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    namespaces.set(CloneFlags::CLONE_NEWUSER, users.is_some());
    setns(&target, namespaces).map_err(|error| format!("joining the container's namespaces: {error}"))?;
    drop(target);
    if users.is_some() {
        users::become_root().map_err(|error| error.to_string())?;
        // A change of user may have undone it.
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    }

    let (ready, report) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| error.to_string())?;
    // SAFETY: forked from the single-threaded shim, so still single-threaded. The second fork enters the process namespace.
    match unsafe { fork() }.map_err(|error| format!("fork: {error}"))? {
        ForkResult::Parent { child } => {
            drop(report);
            let mut message = String::new();
            // The other end closes at a successful exec.
            let _ = fs::File::from(ready).read_to_string(&mut message);
            if message.is_empty() {
                return Ok(child.as_raw());
            }
            let _ = nix::sys::wait::waitpid(child, None);
            Err(message)
        }
        ForkResult::Child => {
            drop(ready);
            let Err(message) = become_process(request, &process, seccomp.as_deref(), stdio, socket);
            let _ = fs::File::from(report).write_all(message.as_bytes());
            super::leave(127)
        }
    }
}

fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the system call takes two integers and returns a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors are small")) })
}

/// Never returns on success.
fn become_process(
    request: &ExecRequest,
    process: &Process,
    seccomp: Option<&[u8]>,
    stdio: &[OwnedFd],
    socket: &OwnedFd,
) -> Result<std::convert::Infallible, String> {
    let syscall = create_syscall();
    setsid().map_err(|error| format!("setsid: {error}"))?;
    match request.tty {
        true => open_tty(socket, process.user().uid()).map_err(|error| format!("opening a tty: {error}"))?,
        false => install_stdio(stdio).map_err(|error| format!("standard streams: {error}"))?,
    }
    for rlimit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(rlimit).map_err(|error| format!("rlimit: {error}"))?;
    }
    if let Some(profile) = process.apparmor_profile() {
        libcontainer::apparmor::apply_profile(profile).map_err(|error| format!("apparmor: {error}"))?;
    }
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        // SAFETY: a flag of this process.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    }
    let cwd = process.cwd();
    let entered_early = nix::unistd::chdir(cwd).is_ok();
    set_groups(process)?;
    let user = process.user();
    become_user(user.uid(), user.gid(), syscall.as_ref())?;
    // Everything but the standard streams closes at exec.
    syscall.close_range(0).map_err(|error| format!("close_range: {error}"))?;
    // Without no_new_privs only a privileged process may load a filter, with it this should be the last step.
    if let (Some(program), false) = (seccomp, no_new_privileges) {
        seccomp_filter::load(program).map_err(|error| format!("seccomp: {error}"))?;
    }
    drop_capabilities(process, syscall.as_ref())?;
    if !entered_early {
        nix::unistd::chdir(cwd).map_err(|error| format!("chdir to {cwd:?}: {error}"))?;
    }
    if nix::unistd::getcwd().is_err() {
        return Err(format!("current directory {cwd:?} is not inside the container"));
    }
    let args = process.args().as_ref().filter(|args| !args.is_empty()).ok_or("exec: no command specified")?;
    let env = environment(process, request.home_of_user);
    let path = find_executable_in(&args[0], value_of(&env, "PATH"))?;
    if let (Some(program), true) = (seccomp, no_new_privileges) {
        seccomp_filter::load(program).map_err(|error| format!("seccomp: {error}"))?;
    }
    Err(execute(&path, args, &env))
}

fn set_groups(process: &Process) -> Result<(), String> {
    let groups: Vec<Gid> = process.user().additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(|error| format!("setgroups: {error}"))
}

/// Changes the user and keeps the permitted capabilities, which the next steps need and then drop.
fn become_user(uid: u32, gid: u32, syscall: &dyn Syscall) -> Result<(), String> {
    let failed = |what: &str| format!("{what}: {}", io::Error::last_os_error());
    // SAFETY: plain system calls on this single-threaded process.
    unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0);
        if libc::setresgid(gid, gid, gid) != 0 {
            return Err(failed("setresgid"));
        }
        if libc::setresuid(uid, uid, uid) != 0 {
            return Err(failed("setresuid"));
        }
        libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0);
    }
    capabilities::reset_effective(syscall).map_err(|error| format!("capabilities: {error}"))
}

fn drop_capabilities(process: &Process, syscall: &dyn Syscall) -> Result<(), String> {
    let failed = |error| format!("capabilities: {error}");
    capabilities::reset_effective(syscall).map_err(failed)?;
    if let Some(wanted) = process.capabilities() {
        capabilities::drop_privileges(wanted, syscall).map_err(failed)?;
    }
    Ok(())
}

fn install_stdio(stdio: &[OwnedFd]) -> io::Result<()> {
    for (target, fd) in (0..3).zip(stdio) {
        // SAFETY: both numbers are open descriptors of ours; the originals close at exec.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Opens a pair from the container's own devpts, takes the slave as controlling terminal, sends the master out.
fn open_tty(socket: &OwnedFd, uid: u32) -> io::Result<()> {
    let master = fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx")?;
    let metadata = master.metadata()?;
    // The container may have replaced /dev/ptmx: only a real one will do.
    if metadata.rdev() != libc::makedev(5, 2) {
        return Err(io::Error::other("/dev/ptmx is not a terminal multiplexer"));
    }
    let unlock: libc::c_int = 0;
    // SAFETY: ioctls on a descriptor of ours; TIOCSPTLCK reads the integer, TIOCGPTPEER returns a new descriptor
    // without any path lookup in the container.
    let slave = unsafe {
        if libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: we are a session leader without a terminal; makes the slave ours.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = nix::unistd::fchown(&slave, Some(Uid::from_raw(uid)), None);
    for target in 0..3 {
        // SAFETY: as in `install_stdio`.
        if unsafe { libc::dup2(slave.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    children::send_fd(socket, master.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_a_shell_finds_them() {
        assert!(find_executable_in("sh", Some("/nowhere:/bin")).is_ok());
        let missing = find_executable_in("no-such", Some("/bin")).unwrap_err();
        assert_eq!(missing, "exec: \"no-such\": executable file not found in $PATH");
        let missing = find_executable_in("/no/such", None).unwrap_err();
        assert_eq!(missing, "exec: \"/no/such\": stat /no/such: no such file or directory");
        assert!(find_executable_in("/etc/passwd", None).unwrap_err().ends_with("permission denied"));
    }
}

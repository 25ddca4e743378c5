//! User namespaces of pods: making one, and working in one while the shim itself stays outside.
//!
//! Only a process with one thread may change its user namespace, and none comes back from one, so everything here is done in
//! forked children. Invariant: the ids of a namespace are written by its parent before anything is done in it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork};

use super::super::spec::Users;
use super::super::sysctl::{self, Namespace};
use super::super::users::{NET_PIN, USER_PIN};
use super::super::wire::ShimConfig;
use super::{because, leave, write_parameter};

/// A word of the conversation with a child; anything else is why it failed.
const DONE: &[u8] = b"ok";
/// Longer than any of its errors.
const ANSWER_BYTES_MAX: usize = 1024;

/// Pins a new user namespace, and a network namespace that belongs to it, in `directory`, where files for them are.
pub(super) fn make(first: &str, count: &str, directory: &Path) -> io::Result<()> {
    let work = |mut parent: UnixStream| {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| because("this machine makes no user namespaces", error))?;
        say(&mut parent, DONE)?;
        hear(&mut parent)?;
        become_root()?;
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| because("making its network namespace", error))
    };
    let (pid, mut child) = start(work)?;
    let ids = format!("0 {first} {count}");
    hear(&mut child)?;
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), &ids).map_err(|error| because(&format!("writing its {map}"), error))?;
    }
    say(&mut child, DONE)?;
    hear(&mut child)?;
    for (kind, pin) in [("user", USER_PIN), ("net", NET_PIN)] {
        let (source, none) = (format!("/proc/{pid}/ns/{kind}"), None::<&str>);
        mount(Some(source.as_str()), &directory.join(pin), none, MsFlags::MS_BIND, none)
            .map_err(|error| because(&format!("pinning its {kind} namespace"), error))?;
    }
    finish(pid, child);
    Ok(())
}

/// The ipc and uts namespaces of a sandbox, which belong to its user namespace; the network namespace is joined already.
pub(super) fn enter_namespaces(users: &Users, config: &ShimConfig) -> io::Result<()> {
    let work = |_| {
        join(users)?;
        unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
            .map_err(|error| because("making namespaces", error))?;
        nix::unistd::sethostname(&config.hostname).map_err(|error| because("setting hostname", error))?;
        // Some hold ids, which are the pod's.
        parameters(config, Namespace::Net).try_for_each(|(name, value)| write_parameter(name, value, config))
    };
    let (pid, mut child) = start(work)?;
    hear(&mut child)?;
    for (kind, flag) in [("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)] {
        let namespace = File::open(format!("/proc/{pid}/ns/{kind}"))?;
        setns(namespace, flag).map_err(|error| because("joining namespaces", error))?;
    }
    finish(pid, child);
    parameters(config, Namespace::Ipc).try_for_each(|(name, value)| {
        match write_parameter(name, value, config) {
            // They are the machine's root's in older kernels and the pod's in newer ones.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                nix::unistd::seteuid(Uid::from_raw(users.first_id))?;
                let written = write_parameter(name, value, config);
                nix::unistd::seteuid(Uid::from_raw(0))?;
                written
            }
            result => result,
        }
    })
}

fn parameters(config: &ShimConfig, kind: Namespace) -> impl Iterator<Item = (&String, &String)> {
    // What is of no namespace is refused where it is written.
    config.sysctls.iter().filter(move |(name, _)| sysctl::namespace_of(name).unwrap_or(Namespace::Net) == kind)
}

/// Moves this process for good into the user namespace, as its root.
pub(super) fn join(users: &Users) -> io::Result<()> {
    let failed = |error: io::Error| because("joining the user namespace", error);
    let namespace = File::open(&users.namespace).map_err(failed)?;
    setns(namespace, CloneFlags::CLONE_NEWUSER).map_err(|error| failed(error.into()))?;
    become_root()
}

/// After a user namespace was joined: its own root and nobody of the machine.
pub(super) fn become_root() -> io::Result<()> {
    nix::unistd::setgroups(&[]).map_err(|error| because("its groups", error))?;
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(group, group, group).map_err(|error| because("its group", error))?;
    nix::unistd::setresuid(user, user, user).map_err(|error| because("its user", error))
}

/// Forks a child that works, says how that went, and stays until it is let go or its parent has ended.
fn start(work: impl FnOnce(UnixStream) -> io::Result<()>) -> io::Result<(Pid, UnixStream)> {
    let (ours, mut theirs) = UnixStream::pair()?;
    // SAFETY: no other thread exists in this process.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok((child, ours)),
        ForkResult::Child => {
            drop(ours);
            let answer = match theirs.try_clone().and_then(work) {
                Ok(()) => DONE.to_vec(),
                Err(error) => error.to_string().into_bytes(),
            };
            let _ = say(&mut theirs, &answer).and_then(|()| hear(&mut theirs));
            leave(0)
        }
    }
}

fn finish(pid: Pid, child: UnixStream) {
    drop(child);
    let _ = nix::sys::wait::waitpid(pid, None);
}

fn say(stream: &mut UnixStream, word: &[u8]) -> io::Result<()> {
    stream.write_all(word)
}

/// Words take turns, so each comes whole and alone.
fn hear(stream: &mut UnixStream) -> io::Result<()> {
    let mut buffer = [0u8; ANSWER_BYTES_MAX];
    match stream.read(&mut buffer)? {
        count if &buffer[..count] == DONE => Ok(()),
        0 => Err(io::Error::other("the process that makes namespaces died")),
        count => Err(io::Error::other(String::from_utf8_lossy(&buffer[..count]).into_owned())),
    }
}

//! Forked children that do heavy work for the shim, and what they report.
//!
//! A job's child writes one JSON report (and perhaps a descriptor) into a socket pair and ends. The report is in the
//! socket before any process it started can be reaped by us, because those are reparented to us only at its end.
//! It leads a process group: libcontainer's processes between the job and the container are killed with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};
use serde::{Deserialize, Serialize};

use super::super::wire;

/// With which containers begin.
const CONTAINER_UMASK: nix::libc::mode_t = 0o022;

/// What a job's child says at its end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The process to look after.
    Started {
        pid: i32,
    },
    Failed {
        message: String,
    },
}

/// A forked child at work.
#[derive(Debug)]
pub(super) struct Job {
    pub pid: Pid,
    pub socket: OwnedFd,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// Forks; `work` runs in the child and its report is sent. `work` gets the socket to send descriptors early.
pub(super) fn fork_job(work: impl FnOnce(&OwnedFd) -> Result<i32, String>) -> io::Result<Job> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the shim never has a second thread, so the child may allocate and use any function.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            // Both do it, whoever is first: no moment without the group.
            let _ = setpgid(child, child);
            Ok(Job { pid: child, socket: ours, buffer: Vec::new(), fds: Vec::new() })
        }
        ForkResult::Child => {
            drop(ours);
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            super::process::reset_signals();
            // What containers find and make is as everywhere; what the shim makes is its own.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(CONTAINER_UMASK));
            let keyring = match super::join_new_session_keyring() {
                // Root of some container has used up what root may have: the sandbox's own keyring must do.
                Err(error) if error.raw_os_error() == Some(libc::EDQUOT) => Ok(()),
                joined => joined.map_err(|error| format!("session keyring: {error}")),
            };
            let report = match keyring.and_then(|()| work(&theirs)) {
                Ok(pid) => Report::Started { pid },
                Err(message) => Report::Failed { message },
            };
            let _ = wire::send(theirs.as_raw_fd(), &wire::encode(&report), &[]);
            super::leave(0)
        }
    }
}

impl Job {
    /// Kills the job and what it started, as far as that is not a container's own process yet: those are in its cgroup.
    pub(super) fn kill(&self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
    }

    /// After `kill`: waits until nothing of the job runs, which may still make the cgroup that is about to be removed.
    pub(super) fn wait_for_end(&self, deadline: Instant) {
        let group = Pid::from_raw(-self.pid.as_raw());
        loop {
            match waitpid(group, Some(WaitPidFlag::WNOHANG)) {
                // What the job started becomes ours at its end.
                Err(nix::errno::Errno::ECHILD) => return,
                Ok(WaitStatus::StillAlive) if Instant::now() > deadline => return,
                #[allow(clippy::disallowed_methods, reason = "the shim has one thread, and ends after this")]
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
                _ => {}
            }
        }
    }

    /// Reads what has come; `Some` at the end of the job.
    pub(super) fn progress(&mut self) -> Option<(Report, Vec<OwnedFd>)> {
        loop {
            match wire::receive(self.socket.as_raw_fd(), &mut self.buffer, &mut self.fds) {
                Ok(0) => return Some((self.last_word(), std::mem::take(&mut self.fds))),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Some((self.last_word(), std::mem::take(&mut self.fds))),
            }
        }
    }

    fn last_word(&mut self) -> Report {
        // A byte that carried each descriptor precedes the report.
        self.buffer.drain(..self.fds.len().min(self.buffer.len()));
        match wire::decode(&mut self.buffer) {
            Ok(Some(report)) => report,
            _ => Report::Failed { message: "the process that starts containers died".into() },
        }
    }
}

/// Sends a descriptor ahead of the report.
pub(super) fn send_fd(socket: &OwnedFd, fd: impl AsFd) -> io::Result<()> {
    wire::send(socket.as_raw_fd(), &[0], &[fd.as_fd().as_raw_fd()]).map(drop)
}

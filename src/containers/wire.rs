//! The protocol between agent and shim: length-prefixed JSON over a unix socket, with file descriptors beside it.
//!
//! Streams never pass through the protocol: the agent hands pipe ends over, so exec costs the shim no buffer and no copy.
//! Shims outlive upgrades of the agent, so messages only ever grow optional fields.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use super::spec::{ContainerStatus, Users};

/// The longest message that is accepted; arguments and environments are far below.
pub(crate) const MESSAGE_MAX: usize = 4 * 1024 * 1024;
/// More descriptors than any message carries.
const FDS_MAX: usize = 4;

/// What the shim reads from its directory when it starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    pub hostname: String,
    pub netns: Option<PathBuf>,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    /// `cgroup.procs` files of the cgroup in which shims live, so that stopping the agent's service spares them.
    pub cgroup_procs: Vec<PathBuf>,
    /// The user namespace in which everything but the shim lives.
    #[serde(default)]
    pub users: Option<Users>,
}

/// What is mounted in a container that has users of its own, at `/mounts/N` of the place that libcontainer works in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    pub source: PathBuf,
    /// With the ids of the user namespace.
    pub mapped: bool,
    /// For good: what is so before the namespace has it, no root of it can change.
    pub read_only: bool,
}

/// From the agent. Each connection carries one request, except that `Watch` goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Answered by [`Reply::Snapshot`] now and [`Reply::Exited`] for each later exit.
    Watch,
    Start(StartRequest),
    /// With the process's stdin, stdout, stderr (no descriptors for a tty).
    Exec(ExecRequest),
    /// With the write ends for stdout and (no tty) stderr.
    Attach {
        container: String,
        /// Standard input is to be fed.
        #[serde(default = "yes")]
        stdin: bool,
    },
    Kill {
        container: String,
        signal: i32,
    },
    /// Kills and forgets.
    Remove {
        container: String,
    },
    /// Kills everything and ends the shim.
    Shutdown,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StartRequest {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub labels: BTreeMap<String, String>,
    /// Directory with the OCI `config.json`.
    pub bundle: PathBuf,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log_path: Option<PathBuf>,
    pub oom_score_adj: i32,
    /// The program to load before `exec`.
    pub seccomp: Option<PathBuf>,
    /// OCI `LinuxCapabilities` as JSON, when libcontainer was told to keep more for loading the program.
    pub capabilities: Option<String>,
    /// `HOME` is to be what the container's own users say.
    #[serde(default)]
    pub home_of_user: bool,
    /// Owner of the streams, so that `/dev/stdout` can be opened by the container's user, as the machine calls it.
    pub uid: u32,
    /// The root file system, and what else the configuration names by number.
    #[serde(default)]
    pub staged: Vec<Staged>,
    /// The file whose `oom_kill` line counts kernel kills in the container.
    pub oom_file: Option<PathBuf>,
    /// The directory of the container's cgroup (version 2 only) that gets the device rules.
    pub device_cgroup: Option<PathBuf>,
    /// One of the container's `cgroup.procs`, to find stragglers.
    pub procs_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub container: String,
    /// OCI `Process` as JSON.
    pub process: String,
    /// The program to load before `exec`.
    pub seccomp: Option<PathBuf>,
    pub tty: bool,
    /// As of a start.
    #[serde(default)]
    pub home_of_user: bool,
    pub oom_score_adj: i32,
    /// `cgroup.procs` files of the container to join.
    pub cgroup_procs: Vec<PathBuf>,
}

/// From the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    Snapshot {
        pid: u32,
        containers: Vec<ContainerStatus>,
    },
    Exited(ContainerStatus),
    Started(ContainerStatus),
    /// With the tty's master, if there is one.
    ExecStarted {
        pid: u32,
    },
    ExecExited {
        code: i32,
    },
    /// With the tty's master, or the write end of standard input if it is open.
    Attached {
        tty: bool,
    },
    Done,
    NotFound,
    NotRunning,
    Failed {
        message: String,
    },
}

/// A message as it goes over the wire.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let body = serde_json::to_vec(message).expect("protocol messages have string keys only");
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Takes the first whole message out of `buffer`; `None` when more bytes are needed.
pub(crate) fn decode<T: for<'a> Deserialize<'a>>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("message of {length} bytes")));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + length]).map_err(io::Error::from)?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

/// One `sendmsg`; returns how many bytes the socket took. Descriptors go with the first byte.
pub(crate) fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(sent)
}

/// One `recvmsg`; appends what came to `buffer` and `fds` and returns the number of bytes, 0 at the end.
pub(crate) fn receive(socket: RawFd, buffer: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut chunk = [0u8; 4096];
    let mut space = cmsg_space!([RawFd; FDS_MAX]);
    let (count, received) = {
        let mut iov = [IoSliceMut::new(&mut chunk)];
        let message = recvmsg::<()>(socket, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut received = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                received.extend(rights);
            }
        }
        (message.bytes, received)
    };
    // SAFETY: the kernel has just installed these descriptors for us alone.
    fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    buffer.extend_from_slice(&chunk[..count]);
    Ok(count)
}

/// The raw numbers of owned descriptors, for [`send`].
pub(crate) fn raw(fds: &[OwnedFd]) -> Vec<RawFd> {
    fds.iter().map(AsRawFd::as_raw_fd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_being_cut_anywhere() {
        let frame = encode(&Reply::ExecStarted { pid: 7 });
        for cut in 0..frame.len() {
            let mut buffer = frame[..cut].to_vec();
            assert!(decode::<Reply>(&mut buffer).unwrap().is_none());
            buffer.extend_from_slice(&frame[cut..]);
            buffer.extend_from_slice(&frame);
            assert!(matches!(decode::<Reply>(&mut buffer).unwrap(), Some(Reply::ExecStarted { pid: 7 })));
            assert_eq!(buffer, frame);
        }
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let mut buffer = vec![0xff, 0xff, 0xff, 0xff, 0];
        assert!(decode::<Reply>(&mut buffer).is_err());
    }
}

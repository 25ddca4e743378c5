//! A container as its shim knows it: what is known of its state, and where its output goes.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use super::super::spec::{ContainerState, ContainerStatus};
use super::super::wire::{Reply, StartRequest};
use super::attached::Attached;
use super::launch;
use super::log::{Lines, LogFile};
use crate::base::file::set_nonblocking;

#[derive(Debug)]
pub(super) struct Container {
    pub status: ContainerStatus,
    pub oom_file: Option<PathBuf>,
    pub procs_file: Option<PathBuf>,
    pub log: Option<LogFile>,
    pub outputs: Vec<Output>,
    /// Write end of standard input; with a tty the master.
    pub input: Option<OwnedFd>,
    pub tty: bool,
    pub stdin_once: bool,
    pub attached: Vec<Attached>,
    /// Connections that asked for removal before it had exited.
    pub removers: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Output {
    pub source: OwnedFd,
    pub stream: &'static str,
    pub lines: Lines,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    pub code: i32,
    pub signal: Option<i32>,
}

/// Reads of one output before it is another one's turn.
const DRAIN_ROUNDS: usize = 16;
/// Reads of an output after the end: bounded, because a straggler in a shared process namespace could write on.
const LAST_DRAIN_ROUNDS: usize = 4096;

/// Marks an output that has come to its end until the turn is over.
const ENDED: &str = "";

// === impl Container ===

impl Container {
    /// One that is about to be started.
    pub(super) fn new(request: &StartRequest, log: Option<LogFile>) -> Self {
        Self {
            status: ContainerStatus {
                id: request.id.clone(),
                name: request.name.clone(),
                attempt: request.attempt,
                pid: 0,
                state: ContainerState::Created,
                log_path: request.log_path.clone(),
                labels: request.labels.clone(),
            },
            oom_file: request.oom_file.clone(),
            procs_file: request.procs_file.clone(),
            log,
            outputs: Vec::new(),
            input: None,
            tty: request.tty,
            stdin_once: request.stdin_once,
            attached: Vec::new(),
            removers: Vec::new(),
        }
    }

    /// Its standard streams: the container's ends.
    pub(super) fn make_pipes(&mut self, stdin: bool) -> io::Result<launch::Stdio> {
        let input = match stdin {
            true => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                self.input = Some(write);
                read
            }
            false => launch::null()?,
        };
        let (stdout, stdout_end) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_end) = pipe2(OFlag::O_CLOEXEC)?;
        self.outputs = vec![Output::new(stdout, "stdout")?, Output::new(stderr, "stderr")?];
        Ok(launch::Stdio { stdin: input, stdout: stdout_end, stderr: stderr_end })
    }

    /// Its terminal, in place of pipes.
    pub(super) fn take_tty(&mut self, master: OwnedFd) {
        if let Ok(input) = master.try_clone() {
            self.input = Some(input);
        }
        if let Ok(output) = Output::new(master, "stdout") {
            self.outputs.push(output);
        }
    }

    /// Whether an attached client has to read first.
    pub(super) fn is_held_back(&self) -> bool {
        self.attached.iter().any(Attached::is_full)
    }

    /// Moves output to the log and the attached clients, as long as they take it.
    pub(super) fn drain(&mut self, index: usize) {
        self.drain_while(index, DRAIN_ROUNDS, |container| !container.is_held_back());
    }

    fn drain_while(&mut self, index: usize, rounds: usize, mut goes_on: impl FnMut(&Self) -> bool) {
        let mut chunk = [0u8; 16 * 1024];
        for _ in 0..rounds {
            if !goes_on(self) {
                return;
            }
            let Some(output) = self.outputs.get_mut(index) else { return };
            let now = Timestamp::now();
            let mut records = Vec::new();
            let stream = output.stream;
            let ended = match nix::unistd::read(&output.source, &mut chunk) {
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // A tty whose last slave closed says EIO.
                Ok(0) | Err(_) => {
                    output.lines.finish(stream, now, &mut records);
                    output.stream = ENDED;
                    true
                }
                Ok(count) => {
                    output.lines.push(&chunk[..count], stream, now, &mut records);
                    for attached in &mut self.attached {
                        attached.give(stream, &chunk[..count]);
                    }
                    false
                }
            };
            if let Some(log) = &mut self.log {
                log.append(&records, now);
            }
            if ended {
                return;
            }
        }
    }

    /// The connection of a client is gone.
    pub(super) fn detach(&mut self, connection: u64) {
        self.attached.retain(|attached| attached.connection != connection);
    }

    /// Sends a signal to its first process.
    pub(super) fn signal(&self, signal: i32) -> Reply {
        if !self.status.is_running() {
            return Reply::NotRunning;
        }
        // SAFETY: sends a signal to a child that is not reaped yet, so the id is still its own.
        match unsafe { libc::kill(self.status.pid.cast_signed(), signal) } {
            0 => Reply::Done,
            _ => Reply::Failed { message: io::Error::last_os_error().to_string() },
        }
    }

    /// The first process and, where the process namespace does not end with it, everything else in the cgroup.
    pub(super) fn kill_all(&self) {
        if self.status.is_running() {
            let _ = kill(Pid::from_raw(self.status.pid.cast_signed()), Signal::SIGKILL);
        }
        self.kill_stragglers();
    }

    fn kill_stragglers(&self) {
        let Some(Ok(text)) = self.procs_file.as_ref().map(fs::read_to_string) else { return };
        for pid in text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Its first process has ended: the rest of its output, and its state.
    pub(super) fn finish(&mut self, exit: Exit) {
        let finished_at = Timestamp::now();
        let started_at = match self.status.state {
            ContainerState::Running { started_at } => started_at,
            ContainerState::Created | ContainerState::Exited { .. } => finished_at,
        };
        self.kill_stragglers();
        for index in 0..self.outputs.len() {
            self.drain_while(index, LAST_DRAIN_ROUNDS, |_| true);
        }
        let now = Timestamp::now();
        for output in &mut self.outputs {
            let mut records = Vec::new();
            output.lines.finish(output.stream, now, &mut records);
            if let Some(log) = &mut self.log {
                log.append(&records, now);
            }
        }
        self.outputs = Vec::new();
        self.input = None;
        self.log = None;
        let oom_killed = self.oom_file.as_deref().is_some_and(|file| oom_kills(file) > 0);
        self.status.state =
            ContainerState::Exited { code: exit.code, signal: exit.signal, oom_killed, started_at, finished_at };
    }
}

// === impl Output ===

impl Output {
    /// Whether nothing comes any more.
    pub(super) fn has_ended(&self) -> bool {
        self.stream == ENDED
    }

    fn new(source: OwnedFd, stream: &'static str) -> io::Result<Self> {
        set_nonblocking(&source)?;
        Ok(Self { source, stream, lines: Lines::default() })
    }
}

/// Kills a process of ours that leads a session, and everything else in a cgroup that is of this session: what an exec's command
/// has begun, unless that made itself independent. Processes that begin meanwhile are found in another look.
pub(super) fn kill_session(leader: i32, procs_file: Option<&Path>) {
    const LOOKS_MAX: usize = 8;
    let _ = kill(Pid::from_raw(leader), Signal::SIGKILL);
    // It is not reaped yet, so its number is still that of its session.
    let is_of_it = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state, parent, group, session.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let is_dead = matches!(fields.next(), None | Some("Z" | "X"));
        !is_dead && fields.nth(2).and_then(|session| session.parse().ok()) == Some(leader)
    };
    for _ in 0..LOOKS_MAX {
        let Some(Ok(text)) = procs_file.map(fs::read_to_string) else { return };
        let all = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0 && *pid != leader);
        let left: Vec<i32> = all.filter(is_of_it).collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The kernel's count of processes it killed in a cgroup for want of memory: `oom_kill N` in `memory.events`
/// (version 2) or `memory.oom_control` (version 1).
pub(super) fn oom_kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

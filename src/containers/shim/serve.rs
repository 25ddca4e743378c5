//! The shim's poll loop: connections from the agent, exits of children, output of containers.
//!
//! One thread, level-triggered `poll`, all descriptors non-blocking. Invariant: nothing here waits for a peer; a slow
//! agent or attached client loses its connection, never the container's output.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use super::super::spec::{ContainerState, ContainerStatus};
use super::super::wire::{self, ExecRequest, Reply, Request, ShimConfig, StartRequest};
use super::children::{Job, Report, fork_job};
use super::log::{Lines, LogFile};
use super::{GONE_FILE, PID_FILE, SOCKET_FILE, enter, launch};

/// An attached client may lag by this much before it is dropped.
const ATTACH_BACKLOG_MAX: usize = 256 * 1024;
/// A connection whose peer does not read its replies is dropped beyond this.
const REPLY_BACKLOG_MAX: usize = 1024 * 1024;
/// Killed jobs may need so long to end; the agent waits longer for the answer to `Shutdown`.
const JOB_END_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Shim {
    config: ShimConfig,
    /// Process 1 of the shared process namespace; it ends with us.
    first: Option<Pid>,
    listener: UnixListener,
    signals: SignalFd,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    containers: BTreeMap<String, Container>,
    jobs: Vec<(Job, Purpose)>,
    /// Exec processes and the connections that wait for them.
    execs: BTreeMap<i32, u64>,
    /// Exits reaped while a job that may claim them is still at work.
    unclaimed: Vec<(i32, Exit)>,
    done: bool,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    watches: bool,
    /// Killed when the connection goes away, with what it has begun.
    exec: Option<i32>,
    /// In this container.
    exec_in: Option<String>,
    close_after_output: bool,
}

/// What a job is for, and who waits for it.
#[derive(Debug)]
enum Purpose {
    Start { container: String, connection: u64, oom_file: Option<PathBuf> },
    Exec { connection: u64, container: String },
}

#[derive(Debug)]
struct Container {
    status: ContainerStatus,
    oom_file: Option<PathBuf>,
    procs_file: Option<PathBuf>,
    log: Option<LogFile>,
    outputs: Vec<Output>,
    /// Write end of standard input; with a tty the master.
    input: Option<OwnedFd>,
    tty: bool,
    stdin_once: bool,
    attached: Vec<Attached>,
    /// Connections that asked for removal before it had exited.
    removers: Vec<u64>,
}

#[derive(Debug)]
struct Output {
    source: OwnedFd,
    stream: &'static str,
    lines: Lines,
}

#[derive(Debug)]
struct Attached {
    connection: u64,
    stdout: Sink,
    stderr: Option<Sink>,
}

/// A client's pipe and what did not fit into it yet.
#[derive(Debug)]
struct Sink {
    pipe: OwnedFd,
    backlog: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Exit {
    code: i32,
    signal: Option<i32>,
}

enum Token {
    Listener,
    Signals,
    Connection(u64),
    Job(i32),
    Output(String, usize),
    Sink(String),
}

impl Shim {
    pub(super) fn new(config: ShimConfig, first: Option<Pid>) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // Whoever removes the sandbox says so before it reads the number: one of the two sees the other.
        fs::write(PID_FILE, std::process::id().to_string())?;
        if fs::symlink_metadata(GONE_FILE).is_ok() {
            return Err(io::Error::other("the sandbox is being removed"));
        }
        let _ = fs::remove_file(SOCKET_FILE);
        // Relative to the current directory, so the length of the run directory's path does not matter.
        let listener = UnixListener::bind(SOCKET_FILE)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            config,
            first,
            listener,
            signals,
            connections: BTreeMap::new(),
            next_connection: 0,
            containers: BTreeMap::new(),
            jobs: Vec::new(),
            execs: BTreeMap::new(),
            unclaimed: Vec::new(),
            done: false,
        })
    }

    pub(super) fn run(mut self) -> ! {
        while !(self.done && self.connections.values().all(|connection| connection.output.is_empty())) {
            if self.turn().is_err() {
                break;
            }
        }
        let _ = fs::remove_file(SOCKET_FILE);
        super::leave(0)
    }

    fn turn(&mut self) -> io::Result<()> {
        for token in self.wait()? {
            match token {
                Token::Listener => self.accept(),
                Token::Signals => self.reap(),
                Token::Connection(id) => self.converse(id),
                Token::Job(pid) => self.job_progress(pid),
                Token::Output(container, stream) => {
                    if let Some(container) = self.containers.get_mut(&container) {
                        container.drain(stream, 16);
                    }
                }
                Token::Sink(container) => {
                    if let Some(container) = self.containers.get_mut(&container) {
                        container.flush_sinks();
                    }
                }
            }
        }
        self.after_turn();
        Ok(())
    }

    /// Blocks until something is to be done.
    fn wait(&mut self) -> io::Result<Vec<Token>> {
        let mut tokens = vec![Token::Listener, Token::Signals];
        let mut fds = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        for (id, connection) in &self.connections {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, !connection.output.is_empty());
            tokens.push(Token::Connection(*id));
            fds.push(PollFd::new(connection.socket.as_fd(), flags));
        }
        for (job, _) in &self.jobs {
            tokens.push(Token::Job(job.pid.as_raw()));
            fds.push(PollFd::new(job.socket.as_fd(), PollFlags::POLLIN));
        }
        for (id, container) in &self.containers {
            for (index, output) in container.outputs.iter().enumerate() {
                tokens.push(Token::Output(id.clone(), index));
                fds.push(PollFd::new(output.source.as_fd(), PollFlags::POLLIN));
            }
            for sink in container.sinks().filter(|sink| !sink.backlog.is_empty()) {
                tokens.push(Token::Sink(id.clone()));
                fds.push(PollFd::new(sink.pipe.as_fd(), PollFlags::POLLOUT));
            }
        }
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
        drop(fds);
        Ok(tokens.into_iter().zip(ready).filter_map(|(token, ready)| ready.then_some(token)).collect())
    }

    /// Removes what this turn has finished: outputs at their end, connections that are through.
    fn after_turn(&mut self) {
        for container in self.containers.values_mut() {
            container.outputs.retain(|output| output.stream != ENDED);
        }
        let finished: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.close_after_output && connection.output.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in finished {
            self.disconnect(id);
        }
        if self.jobs.is_empty() && !self.unclaimed.is_empty() {
            self.unclaimed = Vec::new();
        }
    }

    // === connections ===

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.next_connection;
            self.next_connection += 1;
            let connection = Connection {
                socket: stream.into(),
                input: Vec::new(),
                fds: Vec::new(),
                output: Vec::new(),
                watches: false,
                exec: None,
                exec_in: None,
                close_after_output: false,
            };
            self.connections.insert(id, connection);
        }
    }

    fn converse(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.flush().is_err() {
            return self.disconnect(id);
        }
        match wire::receive(connection.socket.as_raw_fd(), &mut connection.input, &mut connection.fds) {
            Ok(0) => return self.disconnect(id),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => return self.disconnect(id),
        }
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            match wire::decode::<Request>(&mut connection.input) {
                Ok(Some(request)) => {
                    let fds = std::mem::take(&mut connection.fds);
                    connection.input.shrink_to_fit();
                    self.answer(id, request, fds);
                }
                Ok(None) => return,
                Err(_) => return self.disconnect(id),
            }
        }
    }

    fn disconnect(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id)
            && let Some(pid) = connection.exec
            && self.execs.get(&pid) == Some(&id)
        {
            let container = connection.exec_in.as_ref().and_then(|name| self.containers.get(name));
            kill_session(pid, container.and_then(|container| container.procs_file.as_deref()));
        }
        for container in self.containers.values_mut() {
            container.detach(id);
        }
    }

    fn reply(&mut self, id: u64, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.reply(reply, fds);
        }
    }

    fn tell_watchers(&mut self, reply: &Reply) {
        for connection in self.connections.values_mut().filter(|connection| connection.watches) {
            connection.reply(reply, &[]);
        }
    }

    fn answer(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Watch => {
                let containers = self.containers.values().map(|container| container.status.clone()).collect();
                self.reply(id, &Reply::Snapshot { pid: std::process::id(), containers }, &[]);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watches = true;
                }
            }
            Request::Start(start) => {
                if let Err(message) = self.start(id, start) {
                    self.reply(id, &Reply::Failed { message }, &[]);
                }
            }
            Request::Exec(exec) => self.exec(id, exec, fds),
            Request::Attach { container, stdin } => self.attach(id, &container, stdin, fds),
            Request::Kill { container, signal } => {
                let reply = match self.containers.get(&container) {
                    None => Reply::NotFound,
                    Some(container) => container.signal(signal),
                };
                self.reply(id, &reply, &[]);
            }
            Request::Remove { container } => self.remove(id, container),
            Request::Shutdown => self.shutdown(id),
        }
    }

    // === requests ===

    fn start(&mut self, connection: u64, request: StartRequest) -> Result<(), String> {
        if self.containers.contains_key(&request.id) {
            return Err("a container of this id exists".into());
        }
        let log = match &request.log_path {
            Some(path) => Some(
                LogFile::open(path, self.config.log_max_bytes, self.config.log_max_files)
                    .map_err(|error| format!("opening log file {path:?}: {error}"))?,
            ),
            None => None,
        };
        let mut container = Container {
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
        };
        let stdio =
            if request.tty { None } else { Some(container.make_pipes(request.stdin).map_err(|e| e.to_string())?) };
        let users = self.config.users.as_ref();
        let job = fork_job(|socket| launch::launch(&request, users, stdio, socket))
            .map_err(|error| format!("fork: {error}"))?;
        let purpose = Purpose::Start { container: request.id.clone(), connection, oom_file: request.oom_file };
        self.jobs.push((job, purpose));
        self.containers.insert(request.id, container);
        Ok(())
    }

    fn exec(&mut self, connection: u64, request: ExecRequest, fds: Vec<OwnedFd>) {
        let reply = match self.containers.get(&request.container) {
            None => Reply::NotFound,
            Some(container) if !container.status.is_running() => Reply::NotRunning,
            Some(_) if !request.tty && fds.len() != 3 => Reply::Failed { message: "three streams are needed".into() },
            Some(container) => {
                let init = Pid::from_raw(container.status.pid.cast_signed());
                let users = self.config.users.as_ref();
                match fork_job(|socket| enter::enter(&request, users, init, &fds, socket)) {
                    Ok(job) => {
                        self.jobs.push((job, Purpose::Exec { connection, container: request.container }));
                        return;
                    }
                    Err(error) => Reply::Failed { message: format!("fork: {error}") },
                }
            }
        };
        self.reply(connection, &reply, &[]);
    }

    fn attach(&mut self, id: u64, container: &str, stdin: bool, fds: Vec<OwnedFd>) {
        let Some(container) = self.containers.get_mut(container) else {
            return self.reply(id, &Reply::NotFound, &[]);
        };
        let mut fds = fds.into_iter();
        let (true, Some(stdout)) = (container.status.is_running(), fds.next()) else {
            return self.reply(id, &Reply::NotRunning, &[]);
        };
        let tty = container.tty;
        // With a tty it is also what its size is set on.
        let input = container.input.as_ref().filter(|_| stdin || tty).and_then(|fd| fd.try_clone().ok());
        let sink = |pipe: OwnedFd| {
            let _ = nonblocking(&pipe);
            Sink { pipe, backlog: Vec::new() }
        };
        container.attached.push(Attached { connection: id, stdout: sink(stdout), stderr: fds.next().map(sink) });
        if stdin && container.stdin_once && !tty {
            // The client holds the only write end now: its end is the container's.
            container.input = None;
        }
        let given: Vec<BorrowedFd<'_>> = input.iter().map(AsFd::as_fd).collect();
        self.reply(id, &Reply::Attached { tty }, &given);
    }

    fn remove(&mut self, id: u64, name: String) {
        let Some(container) = self.containers.get_mut(&name) else {
            return self.reply(id, &Reply::Done, &[]);
        };
        match container.status.state {
            ContainerState::Exited { .. } => {
                self.forget(&name);
                self.reply(id, &Reply::Done, &[]);
            }
            ContainerState::Created | ContainerState::Running { .. } => {
                container.removers.push(id);
                container.kill_all();
                for (job, purpose) in &self.jobs {
                    if matches!(purpose, Purpose::Start { container, .. } if *container == name) {
                        job.kill();
                    }
                }
            }
        }
    }

    /// Removes the traces that libcontainer and the agent left for a container.
    fn forget(&mut self, name: &str) {
        self.containers.remove(name);
        let _ = crate::base::tree::remove(&PathBuf::from("state").join(name));
        let _ = crate::base::tree::remove(&PathBuf::from("bundles").join(name));
    }

    fn shutdown(&mut self, id: u64) {
        for (job, _) in &self.jobs {
            job.kill();
        }
        for container in self.containers.values() {
            container.kill_all();
        }
        for pid in self.execs.keys() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if let Some(first) = self.first {
            let _ = kill(first, Signal::SIGKILL);
        }
        // A job's processes are in no cgroup of the pod yet. All else that was killed is reaped by whoever adopts it; the
        // agent waits for the cgroup to be empty.
        let deadline = Instant::now() + JOB_END_PATIENCE;
        for (job, _) in &self.jobs {
            job.wait_for_end(deadline);
        }
        self.reply(id, &Reply::Done, &[]);
        self.done = true;
    }

    // === children ===

    fn job_progress(&mut self, pid: i32) {
        let Some(index) = self.jobs.iter().position(|(job, _)| job.pid.as_raw() == pid) else { return };
        let Some((report, fds)) = self.jobs[index].0.progress() else { return };
        let (job, purpose) = self.jobs.remove(index);
        let _ = waitpid(job.pid, None);
        match purpose {
            Purpose::Start { container, connection, oom_file } => {
                self.started(&container, connection, report, fds, oom_file.as_deref());
            }
            Purpose::Exec { connection, container } => self.exec_started(connection, container, report, fds),
        }
        self.reap();
        // Give the pages of a busy moment back: idle sandboxes are what counts.
        // SAFETY: only returns free memory to the kernel.
        unsafe { libc::malloc_trim(0) };
    }

    fn started(
        &mut self,
        name: &str,
        connection: u64,
        report: Report,
        mut fds: Vec<OwnedFd>,
        oom_file: Option<&std::path::Path>,
    ) {
        let Some(container) = self.containers.get_mut(name) else { return };
        match report {
            Report::Failed { message } => {
                let killed = oom_file.is_some_and(|file| oom_kills(file) > 0);
                let message = if killed { format!("{message} (memory limit too low)") } else { message };
                let removers = std::mem::take(&mut container.removers);
                self.forget(name);
                self.reply(connection, &Reply::Failed { message }, &[]);
                for id in removers {
                    self.reply(id, &Reply::Done, &[]);
                }
            }
            Report::Started { pid } => {
                container.status.pid = pid.cast_unsigned();
                container.status.state = ContainerState::Running { started_at: Timestamp::now() };
                if let Some(master) = fds.pop() {
                    container.take_tty(master);
                }
                if !container.removers.is_empty() {
                    container.kill_all();
                }
                let reply = Reply::Started(container.status.clone());
                self.reply(connection, &reply, &[]);
                if let Some(exit) = self.claim(pid) {
                    self.exited(name.to_owned(), exit);
                }
            }
        }
    }

    fn exec_started(&mut self, connection: u64, container: String, report: Report, fds: Vec<OwnedFd>) {
        match report {
            Report::Failed { message } => self.reply(connection, &Reply::Failed { message }, &[]),
            Report::Started { pid } => {
                let given: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                self.reply(connection, &Reply::ExecStarted { pid: pid.cast_unsigned() }, &given);
                match self.claim(pid) {
                    Some(exit) => self.reply(connection, &Reply::ExecExited { code: exit.code }, &[]),
                    None => match self.connections.get_mut(&connection) {
                        Some(waiting) => {
                            waiting.exec = Some(pid);
                            waiting.exec_in = Some(container);
                            self.execs.insert(pid, connection);
                        }
                        None => {
                            let container = self.containers.get(&container);
                            kill_session(pid, container.and_then(|container| container.procs_file.as_deref()));
                        }
                    },
                }
            }
        }
    }

    fn claim(&mut self, pid: i32) -> Option<Exit> {
        let index = self.unclaimed.iter().position(|(other, _)| *other == pid)?;
        Some(self.unclaimed.remove(index).1)
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit { code, signal: None }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, Exit { code: 128 + signal as i32, signal: Some(signal as i32) })
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let pid = pid.as_raw();
            if let Some(connection) = self.execs.remove(&pid) {
                self.reply(connection, &Reply::ExecExited { code: exit.code }, &[]);
            } else if let Some(name) = self.running_as(pid) {
                self.exited(name, exit);
            } else if !self.jobs.is_empty() {
                self.unclaimed.push((pid, exit));
            }
        }
    }

    fn running_as(&self, pid: i32) -> Option<String> {
        let running =
            |container: &&Container| container.status.is_running() && container.status.pid.cast_signed() == pid;
        self.containers.values().find(running).map(|container| container.status.id.clone())
    }

    fn exited(&mut self, name: String, exit: Exit) {
        let Some(container) = self.containers.get_mut(&name) else { return };
        container.finish(exit);
        let removers = std::mem::take(&mut container.removers);
        let reply = Reply::Exited(container.status.clone());
        let clients: Vec<u64> = container.attached.drain(..).map(|attached| attached.connection).collect();
        for client in clients {
            self.reply(client, &Reply::ExecExited { code: exit.code }, &[]);
        }
        self.tell_watchers(&reply);
        if !removers.is_empty() {
            self.forget(&name);
        }
        for id in removers {
            self.reply(id, &Reply::Done, &[]);
        }
    }
}

impl Connection {
    fn reply(&mut self, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let frame = wire::encode(reply);
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sent = 0;
        if self.output.is_empty() {
            // Descriptors go only with an empty backlog: replies that carry them are the first on their connection.
            sent = wire::send(self.socket.as_raw_fd(), &frame, &raw).unwrap_or(0);
        }
        self.output.extend_from_slice(&frame[sent..]);
        if self.output.len() > REPLY_BACKLOG_MAX {
            self.output.clear();
            self.close_after_output = true;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match wire::send(self.socket.as_raw_fd(), &self.output, &[]) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        Ok(())
    }
}

/// Marks an output that has come to its end until the turn is over.
const ENDED: &str = "";

impl Container {
    fn make_pipes(&mut self, stdin: bool) -> io::Result<launch::Stdio> {
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

    fn take_tty(&mut self, master: OwnedFd) {
        if let Ok(input) = master.try_clone() {
            self.input = Some(input);
        }
        if let Ok(output) = Output::new(master, "stdout") {
            self.outputs.push(output);
        }
    }

    fn sinks(&self) -> impl Iterator<Item = &Sink> {
        self.attached.iter().flat_map(|attached| std::iter::once(&attached.stdout).chain(&attached.stderr))
    }

    /// Moves output to the log and the attached clients, `rounds` reads at most.
    fn drain(&mut self, index: usize, rounds: usize) {
        let mut chunk = [0u8; 16 * 1024];
        for _ in 0..rounds {
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

    fn flush_sinks(&mut self) {
        for attached in &mut self.attached {
            attached.stdout.push(&[]);
            if let Some(stderr) = &mut attached.stderr {
                stderr.push(&[]);
            }
        }
    }

    fn detach(&mut self, connection: u64) {
        self.attached.retain(|attached| attached.connection != connection);
    }

    fn signal(&self, signal: i32) -> Reply {
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
    fn kill_all(&self) {
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

    fn finish(&mut self, exit: Exit) {
        let finished_at = Timestamp::now();
        let started_at = match self.status.state {
            ContainerState::Running { started_at } => started_at,
            ContainerState::Created | ContainerState::Exited { .. } => finished_at,
        };
        self.kill_stragglers();
        for index in 0..self.outputs.len() {
            // Bounded: a straggler in a shared process namespace could write on.
            self.drain(index, 4096);
        }
        let now = Timestamp::now();
        for output in &mut self.outputs {
            let mut records = Vec::new();
            output.lines.finish(output.stream, now, &mut records);
            if let Some(log) = &mut self.log {
                log.append(&records, now);
            }
        }
        self.flush_sinks();
        self.outputs = Vec::new();
        self.input = None;
        self.log = None;
        let oom_killed = self.oom_file.as_deref().is_some_and(|file| oom_kills(file) > 0);
        self.status.state =
            ContainerState::Exited { code: exit.code, signal: exit.signal, oom_killed, started_at, finished_at };
    }
}

/// Kills a process of ours that leads a session, and everything else in a cgroup that is of this session: what an exec's command
/// has begun, unless that made itself independent. Processes that begin meanwhile are found in another look.
fn kill_session(leader: i32, procs_file: Option<&std::path::Path>) {
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
fn oom_kills(file: &std::path::Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

impl Output {
    fn new(source: OwnedFd, stream: &'static str) -> io::Result<Self> {
        nonblocking(&source)?;
        Ok(Self { source, stream, lines: Lines::default() })
    }
}

impl Attached {
    fn give(&mut self, stream: &str, bytes: &[u8]) {
        match (&mut self.stderr, stream) {
            (Some(stderr), "stderr") => stderr.push(bytes),
            _ => self.stdout.push(bytes),
        }
    }
}

impl Sink {
    fn push(&mut self, bytes: &[u8]) {
        if self.backlog.len() + bytes.len() > ATTACH_BACKLOG_MAX {
            // Too slow: what does not fit is lost for this client; the log has it.
            return;
        }
        self.backlog.extend_from_slice(bytes);
        while !self.backlog.is_empty() {
            match nix::unistd::write(&self.pipe, &self.backlog) {
                Ok(written) => drop(self.backlog.drain(..written)),
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.backlog.clear();
                    return;
                }
            }
        }
        self.backlog = Vec::new();
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

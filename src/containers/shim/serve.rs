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
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::spec::ContainerState;
use super::super::wire::{self, ExecRequest, Reply, Request, ShimConfig, StartRequest};
use super::attached::{Attached, Sink};
use super::children::{Job, Report, fork_job};
use super::connection::Connection;
use super::container::{Container, Exit, kill_session, oom_kills};
use super::log::LogFile;
use super::{GONE_FILE, PID_FILE, SOCKET_FILE, enter, launch};

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
    /// Clients of containers that have ended, which still read.
    leaving: Vec<Attached>,
    jobs: Vec<(Job, Purpose)>,
    /// Exec processes and the connections that wait for them.
    execs: BTreeMap<i32, u64>,
    /// Exits reaped while a job that may claim them is still at work.
    unclaimed: Vec<(i32, Exit)>,
    done: bool,
}

/// What a job is for, and who waits for it.
#[derive(Debug)]
enum Purpose {
    Start { container: String, connection: u64, oom_file: Option<PathBuf> },
    Exec { connection: u64, container: String },
}

/// What is ready.
enum Token {
    Listener,
    Signals,
    Connection(u64),
    Job(i32),
    Output(String, usize),
    Attached(u64),
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
            leaving: Vec::new(),
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
                        container.drain(stream);
                    }
                }
                Token::Attached(connection) => {
                    if let Some(attached) = self.attached_mut().find(|attached| attached.connection == connection) {
                        attached.flush();
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
            let outputs = container.outputs.iter().enumerate().filter(|_| !container.is_held_back());
            for (index, output) in outputs {
                tokens.push(Token::Output(id.clone(), index));
                fds.push(PollFd::new(output.source.as_fd(), PollFlags::POLLIN));
            }
        }
        let mut deadline = None;
        for attached in self.attached() {
            for sink in attached.sinks().filter(|sink| sink.waits()) {
                tokens.push(Token::Attached(attached.connection));
                fds.push(PollFd::new(sink.pipe.as_fd(), PollFlags::POLLOUT));
                deadline = deadline.into_iter().chain(sink.deadline()).min();
            }
        }
        loop {
            match poll(&mut fds, until(deadline)) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
        drop(fds);
        Ok(tokens.into_iter().zip(ready).filter_map(|(token, ready)| ready.then_some(token)).collect())
    }

    /// Clients that are attached, also to a container that has ended.
    fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.containers.values().flat_map(|container| &container.attached).chain(&self.leaving)
    }

    fn attached_mut(&mut self) -> impl Iterator<Item = &mut Attached> {
        self.containers.values_mut().flat_map(|container| &mut container.attached).chain(&mut self.leaving)
    }

    /// Removes what this turn has finished: outputs at their end, connections that are through, clients that do not read.
    fn after_turn(&mut self) {
        for container in self.containers.values_mut() {
            container.outputs.retain(|output| !output.has_ended());
        }
        let now = Instant::now();
        // Whoever asked may have closed the connection when it heard of the end, and still reads.
        self.leaving.retain(|attached| attached.sinks().any(Sink::waits) && !attached.is_lost(now));
        let lost: Vec<u64> = self.attached().filter(|attached| attached.is_lost(now)).map(|a| a.connection).collect();
        for id in lost {
            self.disconnect(id);
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
        if self.done {
            // It came together with `Shutdown`; what it began would outlive the sandbox.
            let message = "the sandbox is being removed".to_owned();
            return self.reply(id, &Reply::Failed { message }, &[]);
        }
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
        let mut container = Container::new(&request, log);
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
        let (Ok(stdout), Ok(stderr)) = (Sink::new(stdout), fds.next().map(Sink::new).transpose()) else {
            return self.reply(id, &Reply::Failed { message: "the client's pipes cannot be used".into() }, &[]);
        };
        container.attached.push(Attached { connection: id, stdout, stderr });
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
        let clients = std::mem::take(&mut container.attached);
        for client in &clients {
            self.reply(client.connection, &Reply::ExecExited { code: exit.code }, &[]);
        }
        // Their pipes end when they have read everything.
        self.leaving.extend(clients);
        self.tell_watchers(&reply);
        if !removers.is_empty() {
            self.forget(&name);
        }
        for id in removers {
            self.reply(id, &Reply::Done, &[]);
        }
    }
}

/// How long `poll` may wait.
fn until(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    // Not a moment too early.
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

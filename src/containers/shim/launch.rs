//! Creating and starting a container with libcontainer, in a forked child of the shim.
//!
//! The agent has already made the cgroup with its limits and written the OCI configuration; here only the device rules
//! of cgroup version 2 are added between create and start. The container's first process is reparented to the shim.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::capabilities;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::syscall::syscall::{SyscallType, create_syscall};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use super::super::device_program;
use super::super::seccomp_filter;
use super::super::spec::Users;
use super::super::wire::StartRequest;
use super::{children, stage};
use crate::base::error::chain;

/// The container's ends of its streams; none with a tty.
pub(super) struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Runs in a forked child. `socket` gets the tty's master, if there is one. Returns the first process's id.
pub(super) fn launch(
    request: &StartRequest,
    users: Option<&Users>,
    stdio: Option<Stdio>,
    socket: &OwnedFd,
) -> Result<i32, String> {
    set_oom_score(request.oom_score_adj);
    let mut root = std::env::current_dir().map_err(|error| error.to_string())?.join("state");
    fs::create_dir_all(&root).map_err(|error| error.to_string())?;
    let entry = Entry::new(request)?;
    let mut bundle = request.bundle.clone();
    if let Some(users) = users {
        stage::enter(request, users, &root)?;
        (root, bundle) = (stage::STATE.into(), stage::BUNDLE.into());
    }
    let console = request.tty.then(|| Console::listen(&bundle)).transpose().map_err(|e| e.to_string())?;

    let mut builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_executor(entry)
        .with_root_path(root)
        .map_err(|error| chain(&error))?
        .with_console_socket(console.as_ref().map(|console| &console.path));
    if let Some(stdio) = stdio {
        own_streams(&[&stdio.stdin, &stdio.stdout, &stdio.stderr], request.uid);
        builder = builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr);
    }
    let mut container = builder
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| plain_words(&chain(&error)))?;
    let pid = container.pid().ok_or("libcontainer did not tell the process id")?.as_raw();
    let started =
        finish(request, &bundle, console, socket).and_then(|()| container.start().map_err(|error| chain(&error)));
    if let Err(message) = started {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        return Err(message);
    }
    Ok(pid)
}

fn finish(request: &StartRequest, bundle: &Path, console: Option<Console>, socket: &OwnedFd) -> Result<(), String> {
    if let Some(console) = console {
        let master = console.receive().map_err(|error| format!("receiving the tty: {error}"))?;
        own_terminal(&master, request.uid);
        children::send_fd(socket, master.as_fd()).map_err(|error| format!("handing the tty over: {error}"))?;
    }
    if let Some(cgroup) = &request.device_cgroup {
        let spec = Spec::load(bundle.join("config.json")).map_err(|error| chain(&error))?;
        let rules = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let rules = rules.and_then(|resources| resources.devices().clone()).unwrap_or_default();
        device_program::attach(cgroup, &rules).map_err(|error| format!("device rules: {error}"))?;
    }
    Ok(())
}

/// Gives pipes to the user who will have them as standard streams: `/dev/stderr` opens them anew.
pub(super) fn own_streams(streams: &[&OwnedFd], uid: u32) {
    for stream in streams {
        let kind = nix::sys::stat::fstat(stream).map(|status| status.st_mode & libc::S_IFMT);
        if kind == Ok(libc::S_IFIFO) {
            let _ = nix::unistd::fchown(stream, Some(nix::unistd::Uid::from_raw(uid)), None);
        }
    }
}

/// The same for a terminal, by its master.
fn own_terminal(master: &OwnedFd, uid: u32) {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes flags and returns a new descriptor, without any path lookup.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave >= 0 {
        // SAFETY: just opened.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        let _ = nix::unistd::fchown(&slave, Some(nix::unistd::Uid::from_raw(uid)), None);
    }
}

/// Lowering needs CAP_SYS_RESOURCE; without it the container keeps what the shim has.
pub(super) fn set_oom_score(score: i32) {
    let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
}

/// libcontainer wraps what happened in the container's process in several layers that say nothing to users.
fn plain_words(text: &str) -> String {
    match text.find("exec: ") {
        Some(start) => text[start..].to_owned(),
        None => text.to_owned(),
    }
}

/// The socket over which libcontainer hands out the master of the tty it makes inside the container.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn listen(bundle: &Path) -> io::Result<Self> {
        let path = bundle.join("console.sock");
        // The path may be longer than a socket address; through /proc it is not.
        let directory = fs::File::open(bundle)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/console.sock", directory.as_raw_fd()))?;
        Ok(Self { path, listener })
    }

    fn receive(self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept()?;
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        super::super::wire::receive(connection.as_raw_fd(), &mut bytes, &mut fds)?;
        fds.pop().ok_or_else(|| io::Error::other("no descriptor came with the message"))
    }
}

/// Executes the entry point: looked up in the container's own PATH, with errors worded as users know them.
#[derive(Clone)]
struct Entry {
    seccomp: Option<Vec<u8>>,
    capabilities: Option<LinuxCapabilities>,
    home_of_user: bool,
}

impl Entry {
    fn new(request: &StartRequest) -> Result<Self, String> {
        let read = |path: &PathBuf| fs::read(path).map_err(|error| format!("seccomp program {path:?}: {error}"));
        let parse = |text: &String| serde_json::from_str(text).map_err(|error| format!("capabilities: {error}"));
        Ok(Self {
            seccomp: request.seccomp.as_ref().map(read).transpose()?,
            capabilities: request.capabilities.as_ref().map(parse).transpose()?,
            home_of_user: request.home_of_user,
        })
    }

    /// Becomes the entry point.
    fn run(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let process = spec.process().as_ref().ok_or("exec: no process specified")?;
        let args = arguments(spec).ok_or("exec: no command specified")?;
        let env = crate::containers::shim::execute::environment(process, self.home_of_user);
        let path = crate::containers::shim::execute::find_executable_in(
            &args[0],
            crate::containers::shim::execute::value_of(&env, "PATH"),
        )?;
        self.confine()?;
        Err(crate::containers::shim::execute::execute(&path, args, &env))
    }

    /// libcontainer has left the capabilities that this takes, or set no_new_privs.
    fn confine(&self) -> Result<(), String> {
        if let Some(program) = &self.seccomp {
            seccomp_filter::load(program).map_err(|error| format!("seccomp: {error}"))?;
        }
        if let Some(wanted) = &self.capabilities {
            let syscall = create_syscall();
            capabilities::drop_privileges(wanted, syscall.as_ref())
                .map_err(|error| format!("capabilities: {error}"))?;
        }
        Ok(())
    }
}

impl Executor for Entry {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        // From here on nobody hears of an error but those who read the container's log, as with other runtimes.
        Err(ExecutorError::Other(match self.run(spec) {
            Ok(never) => match never {},
            Err(message) => {
                let _ = nix::unistd::write(io::stderr(), format!("{message}\n").as_bytes());
                message
            }
        }))
    }

    /// The process's own comes with `exec`, in its order. What this one has is not looked at any more.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let invalid = ExecutorValidationError::ArgValidationError;
        let args = arguments(spec).ok_or_else(|| invalid("exec: no command specified".into()))?;
        let env = spec.process().as_ref().and_then(|process| process.env().as_ref()).map_or(&[][..], Vec::as_slice);
        crate::containers::shim::execute::find_executable_in(
            &args[0],
            crate::containers::shim::execute::value_of(env, "PATH"),
        )
        .map(drop)
        .map_err(invalid)
    }
}

fn arguments(spec: &Spec) -> Option<&Vec<String>> {
    spec.process().as_ref()?.args().as_ref().filter(|args| !args.is_empty())
}

/// A descriptor of /dev/null for a stream nobody wants.
pub(super) fn null() -> io::Result<OwnedFd> {
    // SAFETY: a constant path; the descriptor is ours alone.
    let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

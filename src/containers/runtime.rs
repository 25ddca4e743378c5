//! The real [`Runtime`]: the agent's side of the shims.
//!
//! What exists is known from the run directory and the live shims alone: at start every sandbox directory is read and
//! its shim connected to, so a killed agent finds the same containers again. One `Watch` connection per shim brings
//! exits and its end; nothing is polled. Invariant: a status in memory is never newer than what the shim said.

mod bundle;
mod connection;
mod host;
mod sandbox_files;
mod streams;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use self::bundle::Bundles;
use self::connection::Connection;
use self::host::container_cgroup;
use self::sandbox_files::{ANSWER_PATIENCE, KILL_PATIENCE, Saved, io};
use self::streams::Streams;
use super::blocking::blocking;
use super::cgroup::Tree;
use super::error::{Error, Result};
use super::executable::Executable;
use super::session::Session;
use super::spec::*;
use super::stats::Stats;
use super::wire::{ExecRequest, Reply, Request};
use super::{Config, Event, Runtime, oci, users};
use crate::base::metrics;

pub(crate) use self::sandbox_files::{SHIMS_CGROUP, discard, run_self, saved_sandboxes, unmount_below};

/// Exits that a receiver of events may lag behind before it has to list again.
const EVENT_BACKLOG: usize = 1024;
/// Creating a container may wait for slow disks and volumes.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// Containers through libcontainer and a shim per sandbox.
#[derive(Debug, Clone)]
pub struct ShimRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    executable: Executable,
    tree: Tree,
    users: users::Registry,
    lacks_for_users: tokio::sync::OnceCell<Option<String>>,
    sandboxes: Mutex<BTreeMap<String, SandboxEntry>>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct SandboxEntry {
    saved: Saved,
    pid: u32,
    alive: bool,
    containers: BTreeMap<String, ContainerStatus>,
    watcher: Option<JoinHandle<Option<()>>>,
    /// Whether it is being removed. Held for reading by what prepares a container, which goes on when nobody waits for it.
    removed: Arc<RwLock<bool>>,
}

impl ShimRuntime {
    /// Opens the run directory and re-adopts what lives there.
    pub async fn open(config: Config) -> Result<Self> {
        let sandboxes_dir = config.sandboxes_dir();
        crate::base::file::claim_private_dir(&sandboxes_dir).map_err(io("creating", &sandboxes_dir))?;
        let tree = Tree::new(&config.cgroup_root)?;
        tree.create("shims", &Resources::default())?;
        let frame = host::cgroup_frame(&config);
        tree.make_frame(&frame).map_err(io("making", &frame))?;
        let inner = Inner {
            executable: Executable::open(&config.executable)?,
            users: users::Registry::open(&config.run_dir)?,
            lacks_for_users: tokio::sync::OnceCell::new(),
            config,
            tree,
            sandboxes: Mutex::new(BTreeMap::new()),
            events: broadcast::Sender::new(EVENT_BACKLOG),
        };
        let runtime = Self { inner: Arc::new(inner) };
        for saved in saved_sandboxes(&sandboxes_dir) {
            runtime.adopt(saved).await;
        }
        Ok(runtime)
    }

    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, SandboxEntry>> {
        self.inner.sandboxes()
    }

    /// Connects to a shim whose sandbox is on disk. A dead one is listed as such, for the caller to remove.
    async fn adopt(&self, saved: Saved) -> bool {
        let id = saved.spec.id.clone();
        let directory = self.inner.config.sandbox_dir(&id);
        let known = SandboxEntry {
            saved,
            pid: 0,
            alive: false,
            containers: BTreeMap::new(),
            watcher: None,
            removed: Arc::default(),
        };
        self.sandboxes().insert(id.clone(), known);
        let Ok(mut connection) = Connection::open(&directory) else { return false };
        let asked = async {
            connection.send(&Request::Watch, &[]).await?;
            connection.receive().await
        };
        let Ok(Ok(Reply::Snapshot { pid, containers })) = tokio::time::timeout(ANSWER_PATIENCE, asked).await else {
            return false;
        };
        let watcher = crate::base::task::spawn("shim-watch", watch(self.inner.clone(), id.clone(), connection));
        if let Some(known) = self.sandboxes().get_mut(&id) {
            known.pid = pid;
            known.alive = true;
            known.containers = containers.into_iter().map(|status| (status.id.clone(), status)).collect();
            known.watcher = Some(watcher);
        }
        true
    }

    /// The sandbox of a container.
    fn locate(&self, container: &str) -> Result<(SandboxSpec, ContainerStatus)> {
        let sandboxes = self.sandboxes();
        let found = sandboxes
            .values()
            .find_map(|known| known.containers.get(container).map(|status| (known.saved.spec.clone(), status.clone())));
        found.ok_or_else(|| Error::NoContainer(container.to_owned()))
    }

    fn parent_cgroup(&self, sandbox: &str) -> Result<String> {
        let sandboxes = self.sandboxes();
        let known = sandboxes.get(sandbox).ok_or_else(|| Error::NoSandbox(sandbox.to_owned()))?;
        Ok(known.saved.spec.cgroup_parent.clone())
    }

    fn directory(&self, sandbox: &str) -> PathBuf {
        self.inner.config.sandbox_dir(sandbox)
    }

    /// One request and its first reply.
    async fn ask(
        &self,
        sandbox: &str,
        request: &Request,
        fds: &[OwnedFd],
        patience: Duration,
    ) -> Result<(Reply, Connection)> {
        let lost = |source| Error::Shim { sandbox: sandbox.to_owned(), source };
        let mut connection = Connection::open(&self.directory(sandbox)).map_err(lost)?;
        let asked = async {
            connection.send(request, fds).await?;
            connection.receive().await
        };
        let reply = match tokio::time::timeout(patience, asked).await {
            Ok(reply) => reply.map_err(lost)?,
            Err(_) => return Err(lost(std::io::ErrorKind::TimedOut.into())),
        };
        Ok((reply, connection))
    }

    async fn exited(&self, container: &str, patience: Duration) -> Result<bool> {
        let mut events = self.events();
        let wait = async {
            loop {
                let (_, status) = self.locate(container)?;
                if matches!(status.state, ContainerState::Exited { .. }) || !self.is_alive_of(container) {
                    return Ok(());
                }
                // Lagging is a reason to look, too.
                let _ = events.recv().await;
            }
        };
        match tokio::time::timeout(patience, wait).await {
            Ok(result) => result.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    fn is_alive_of(&self, container: &str) -> bool {
        self.sandboxes().values().any(|known| known.alive && known.containers.contains_key(container))
    }
}

impl Inner {
    fn bundles(&self) -> Bundles<'_> {
        Bundles { config: &self.config, tree: &self.tree }
    }

    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, SandboxEntry>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what a shim said. A container that is not known any more was removed meanwhile.
    fn record(&self, sandbox: &str, status: ContainerStatus) {
        let mut sandboxes = self.sandboxes();
        let known = sandboxes.get_mut(sandbox).and_then(|known| known.containers.get_mut(&status.id));
        if let Some(known) = known
            && !matches!(known.state, ContainerState::Exited { .. })
        {
            *known = status;
        }
    }
}

/// Follows one shim until it is gone.
async fn watch(inner: Arc<Inner>, sandbox: String, mut connection: Connection) {
    loop {
        match connection.receive().await {
            Ok(Reply::Exited(status)) => {
                let container = status.id.clone();
                inner.record(&sandbox, status);
                let _ = inner.events.send(Event::ContainerExited { sandbox: sandbox.clone(), container });
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let lost = inner.sandboxes().get_mut(&sandbox).is_some_and(|known| std::mem::replace(&mut known.alive, false));
    if lost {
        let _ = inner.events.send(Event::SandboxGone { sandbox });
    }
}

#[async_trait]
impl Runtime for ShimRuntime {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox> {
        metrics::runtime_operation("run_podsandbox", async move {
            let id = spec.id.clone();
            let saved = Saved { spec, created_at: Timestamp::now() };
            let runtime = self.clone();
            let made = saved.clone();
            let prepared =
                blocking(move || sandbox_files::prepare(&runtime.inner.config, &runtime.inner.tree, &made)).await;
            let started = match prepared {
                Ok(()) => sandbox_files::spawn_shim(&self.inner.config, &self.inner.executable, &id).await,
                Err(Error::Exists(id)) => return Err(Error::Exists(id)),
                Err(error) => Err(crate::base::error::chain(&error)),
            };
            let message = match started {
                Ok(()) if self.adopt(saved.clone()).await => None,
                Ok(()) => Some("the shim does not answer".to_owned()),
                Err(message) => Some(message),
            };
            if let Some(message) = message {
                self.sandboxes().remove(&id);
                let runtime = self.clone();
                blocking(move || discard(&runtime.inner.config, &runtime.inner.tree, &saved, true)).await?;
                return Err(Error::CreateSandbox { id, message });
            }
            let sandboxes = self.list().await;
            sandboxes.into_iter().find(|sandbox| sandbox.spec.id == id).ok_or(Error::NoSandbox(id))
        })
        .await
    }

    async fn start_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<u32> {
        metrics::runtime_operation("start_container", async move {
            let (owner, removed) = {
                let mut sandboxes = self.sandboxes();
                let taken = sandboxes.values().any(|known| known.containers.contains_key(&spec.id));
                let known = sandboxes.get_mut(sandbox).ok_or_else(|| Error::NoSandbox(sandbox.to_owned()))?;
                if taken {
                    return Err(Error::Exists(spec.id));
                }
                let status = ContainerStatus {
                    id: spec.id.clone(),
                    name: spec.name.clone(),
                    attempt: spec.attempt,
                    pid: 0,
                    state: ContainerState::Created,
                    log_path: spec.log_path.as_ref().map(|path| known.saved.spec.log_dir.join(path)),
                    labels: spec.labels.clone(),
                };
                known.containers.insert(spec.id.clone(), status);
                (known.saved.spec.clone(), known.removed.clone())
            };
            let (id, name) = (spec.id.clone(), spec.name.clone());
            let (runtime, made_for) = (self.clone(), owner.clone());
            let prepared = blocking(move || match *removed.read().unwrap_or_else(PoisonError::into_inner) {
                true => Err(Error::NoSandbox(made_for.id)),
                false => runtime.inner.bundles().prepare(&made_for, &spec),
            })
            .await;
            let result = match prepared {
                Ok(request) => self.ask(sandbox, &Request::Start(request), &[], START_PATIENCE).await,
                Err(error) => Err(error),
            };
            let error = match result {
                Ok((Reply::Started(status), _)) => {
                    let pid = status.pid;
                    self.inner.record(sandbox, status);
                    return Ok(pid);
                }
                Ok((Reply::Failed { message }, _)) => Error::Start { name, message },
                Ok(_) => Error::Start { name, message: "unexpected answer of the shim".into() },
                Err(error @ Error::Shim { .. }) => {
                    // It may still be starting: make sure it does not.
                    let remove = Request::Remove { container: id.clone() };
                    let _ = self.ask(sandbox, &remove, &[], ANSWER_PATIENCE).await;
                    error
                }
                Err(error) => error,
            };
            if let Some(known) = self.sandboxes().get_mut(sandbox) {
                known.containers.remove(&id);
            }
            let runtime = self.clone();
            blocking(move || runtime.inner.bundles().remove(&owner, &id)).await;
            Err(error)
        })
        .await
    }

    async fn kill(&self, container: &str, signal: i32) -> Result<()> {
        let (sandbox, _) = self.locate(container)?;
        let request = Request::Kill { container: container.to_owned(), signal };
        match self.ask(&sandbox.id, &request, &[], ANSWER_PATIENCE).await?.0 {
            Reply::Done => Ok(()),
            Reply::NotRunning => Err(Error::NotRunning(container.to_owned())),
            Reply::Failed { message } => Err(Error::Spec(format!("signal {signal}: {message}"))),
            _ => Err(Error::NoContainer(container.to_owned())),
        }
    }

    async fn stop_container(&self, container: &str, grace: Duration) -> Result<()> {
        metrics::runtime_operation("stop_container", async move {
            let (sandbox, status) = self.locate(container)?;
            if matches!(status.state, ContainerState::Exited { .. }) {
                return Ok(());
            }
            let wanted = self.inner.bundles().spec(&sandbox.id, container).ok().and_then(|spec| spec.stop_signal);
            let mut signal = wanted.unwrap_or(libc::SIGTERM);
            let mut patience = grace;
            if grace.is_zero() {
                (signal, patience) = (libc::SIGKILL, KILL_PATIENCE);
            }
            loop {
                match self.kill(container, signal).await {
                    Ok(()) | Err(Error::NotRunning(_)) => {}
                    Err(Error::NoContainer(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
                if self.exited(container, patience).await? {
                    return Ok(());
                }
                if signal == libc::SIGKILL {
                    let source = std::io::Error::other("the process does not end after SIGKILL");
                    return Err(Error::Shim { sandbox: sandbox.id, source });
                }
                (signal, patience) = (libc::SIGKILL, KILL_PATIENCE);
            }
        })
        .await
    }

    async fn remove_container(&self, container: &str) -> Result<()> {
        metrics::runtime_operation("remove_container", async move {
            let Ok((sandbox, _)) = self.locate(container) else { return Ok(()) };
            let request = Request::Remove { container: container.to_owned() };
            let alive = self.is_alive_of(container);
            if alive {
                self.ask(&sandbox.id, &request, &[], KILL_PATIENCE).await?;
            }
            let (runtime, id, owner) = (self.clone(), container.to_owned(), sandbox.clone());
            blocking(move || runtime.inner.bundles().remove(&owner, &id)).await;
            if let Some(known) = self.sandboxes().get_mut(&sandbox.id) {
                known.containers.remove(container);
            }
            Ok(())
        })
        .await
    }

    async fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        metrics::runtime_operation("remove_podsandbox", async move {
            let (saved, removed, shared) = {
                let mut sandboxes = self.sandboxes();
                let Some(known) = sandboxes.get_mut(sandbox) else { return Ok(()) };
                known.alive = false;
                if let Some(watcher) = known.watcher.take() {
                    watcher.abort();
                }
                let (saved, removed) = (known.saved.clone(), known.removed.clone());
                let parent = &saved.spec.cgroup_parent;
                let shared = sandboxes
                    .values()
                    .any(|other| other.saved.spec.id != sandbox && other.saved.spec.cgroup_parent == *parent);
                (saved, removed, shared)
            };
            blocking(move || *removed.write().unwrap_or_else(PoisonError::into_inner) = true).await;
            let _ = self.ask(sandbox, &Request::Shutdown, &[], ANSWER_PATIENCE).await;
            let runtime = self.clone();
            blocking(move || discard(&runtime.inner.config, &runtime.inner.tree, &saved, !shared)).await?;
            self.sandboxes().remove(sandbox);
            Ok(())
        })
        .await
    }

    async fn make_users(&self, pod: &str) -> Result<Users> {
        self.inner.users.make(&self.inner.executable, pod).await
    }

    async fn remove_users(&self, pod: &str) -> Result<()> {
        let (runtime, pod) = (self.clone(), pod.to_owned());
        blocking(move || runtime.inner.users.remove(&pod)).await
    }

    async fn users_list(&self) -> Vec<String> {
        self.inner.users.list()
    }

    async fn lacks_for_users(&self) -> Option<String> {
        let probe = || users::probe(&self.inner.config, &self.inner.executable);
        self.inner.lacks_for_users.get_or_init(probe).await.clone()
    }

    async fn list(&self) -> Vec<Sandbox> {
        let sandboxes = self.sandboxes();
        let list = sandboxes.values().map(|known| Sandbox {
            spec: known.saved.spec.clone(),
            pid: known.pid,
            alive: known.alive,
            created_at: known.saved.created_at,
            containers: known.containers.values().cloned().collect(),
        });
        list.collect()
    }

    async fn container(&self, container: &str) -> Option<ContainerStatus> {
        self.locate(container).ok().map(|(_, status)| status)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    async fn exec(&self, container: &str, spec: ExecSpec) -> Result<Session> {
        metrics::runtime_operation("exec", async move {
            let (sandbox, status) = self.locate(container)?;
            if !status.is_running() {
                return Err(Error::NotRunning(container.to_owned()));
            }
            let container_spec = self.inner.bundles().spec(&sandbox.id, container)?;
            let tree = &self.inner.tree;
            let host = host::describe(&self.inner.config, tree, &sandbox, &container_spec);
            let plan = oci::plan_exec(&sandbox, &container_spec, &spec, &host)?;
            let request = ExecRequest {
                container: container.to_owned(),
                process: plan.process.to_string(),
                home_of_user: plan.home_of_user,
                seccomp: plan.seccomp.map(|profile| self.inner.bundles().seccomp_file(&profile)).transpose()?,
                tty: spec.tty,
                oom_score_adj: container_spec.oom_score_adj.unwrap_or(0),
                cgroup_procs: tree.procs_files(&container_cgroup(&sandbox, container)),
            };
            let streams = Streams::new(spec.tty, spec.stdin).map_err(io("making pipes", Path::new("")))?;
            let (reply, connection) =
                self.ask(&sandbox.id, &Request::Exec(request), &streams.theirs, START_PATIENCE).await?;
            match reply {
                Reply::ExecStarted { .. } => {}
                Reply::NotFound => return Err(Error::NoContainer(container.to_owned())),
                Reply::NotRunning => return Err(Error::NotRunning(container.to_owned())),
                Reply::Failed { message } => return Err(Error::Exec(message)),
                _ => return Err(Error::Exec("unexpected answer of the shim".into())),
            }
            streams.session(sandbox.id, connection, spec.stdin).map_err(io("opening streams", Path::new("")))
        })
        .await
    }

    async fn attach(&self, container: &str, stdin: bool) -> Result<Session> {
        metrics::runtime_operation("attach", async move {
            let (sandbox, _) = self.locate(container)?;
            let tty = self.inner.bundles().spec(&sandbox.id, container)?.tty;
            let streams = Streams::for_attach(tty).map_err(io("making pipes", Path::new("")))?;
            let request = Request::Attach { container: container.to_owned(), stdin };
            let (reply, connection) = self.ask(&sandbox.id, &request, &streams.theirs, ANSWER_PATIENCE).await?;
            match reply {
                Reply::Attached { .. } => {}
                Reply::NotRunning => return Err(Error::NotRunning(container.to_owned())),
                _ => return Err(Error::NoContainer(container.to_owned())),
            }
            streams.attached(sandbox.id, connection, tty, stdin).map_err(io("opening streams", Path::new("")))
        })
        .await
    }

    async fn update_resources(&self, container: &str, resources: &Resources) -> Result<()> {
        let (sandbox, _) = self.locate(container)?;
        self.inner.tree.set(&container_cgroup(&sandbox, container), resources)
    }

    async fn update_sandbox(&self, sandbox: &str, resources: &Resources) -> Result<()> {
        let ended: Vec<String> = {
            let sandboxes = self.sandboxes();
            let known = sandboxes.get(sandbox).ok_or_else(|| Error::NoSandbox(sandbox.to_owned()))?;
            let ended = |c: &&ContainerStatus| matches!(c.state, ContainerState::Exited { .. });
            known.containers.values().filter(ended).map(|c| container_cgroup(&known.saved.spec, &c.id)).collect()
        };
        // Version 1 lets nobody have less than one below has, and the groups of ended containers stay until they are removed.
        let unlimited = Resources { cpu_quota: Some(-1), ..Resources::default() };
        for cgroup in ended {
            if let Err(error) = self.inner.tree.set(&cgroup, &unlimited) {
                tracing::debug!(
                    cgroup,
                    error = crate::base::error::chain(&error),
                    "an ended container keeps its limit"
                );
            }
        }
        self.inner.tree.set(&self.parent_cgroup(sandbox)?, resources)
    }

    async fn stats(&self, container: &str) -> Result<Stats> {
        let (sandbox, _) = self.locate(container)?;
        Ok(self.inner.tree.stats(&container_cgroup(&sandbox, container)))
    }

    async fn sandbox_stats(&self, sandbox: &str) -> Result<Stats> {
        Ok(self.inner.tree.stats(&self.parent_cgroup(sandbox)?))
    }

    async fn machine_stats(&self) -> Stats {
        self.inner.tree.machine_stats()
    }

    async fn all_stats(&self) -> Stats {
        self.inner.tree.stats("")
    }
}

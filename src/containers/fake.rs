//! [`Runtime`] and [`Images`] without kernel and network, for simulations: exact in what callers can see.
//!
//! A fake container runs until it is told how to end: by [`FakeRuntime::exit`], by a signal, or at once when its first
//! argument is `exit` (the second is the code). The same small suite as for the real ones holds it to their behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::sync::broadcast;

use super::error::{Error, Result};
use super::image::{Collected, HELLO, Policy, Reference};
use super::session::{Session, SessionControl};
use super::spec::*;
use super::stats::Stats;
use super::{Credentials, Event, Image, ImageError, Images, Runtime};
use crate::base::signal::{Receiver, Signal};

/// Where the fake takes the time from, so that a simulation can pause it.
pub type NowFn = Arc<dyn Fn() -> Timestamp + Send + Sync>;

#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
    now: NowFn,
}

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    specs: BTreeMap<String, ContainerSpec>,
    users: Vec<String>,
    lacks_for_users: Option<String>,
    next_pid: u32,
    fail_next_start: Option<String>,
}

impl std::fmt::Debug for FakeRuntime {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FakeRuntime").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new(Arc::new(Timestamp::now))
    }
}

impl FakeRuntime {
    /// A machine without containers.
    pub fn new(now: NowFn) -> Self {
        Self { state: Arc::default(), events: broadcast::Sender::new(1024), now }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ends a running container as if its process had.
    pub fn exit(&self, container: &str, code: i32, signal: Option<i32>, oom_killed: bool) {
        let finished_at = (self.now)();
        let ended = {
            let mut state = self.state();
            let found = state.sandboxes.iter_mut().find_map(|(id, sandbox)| {
                let status = sandbox.containers.iter_mut().find(|status| status.id == container)?;
                Some((id.clone(), status))
            });
            match found {
                Some((sandbox, status)) => match status.state {
                    ContainerState::Running { started_at } => {
                        status.state = ContainerState::Exited { code, signal, oom_killed, started_at, finished_at };
                        Some(sandbox)
                    }
                    ContainerState::Created | ContainerState::Exited { .. } => None,
                },
                None => None,
            }
        };
        if let Some(sandbox) = ended {
            let _ = self.events.send(Event::ContainerExited { sandbox, container: container.to_owned() });
        }
    }

    /// Makes the next start fail with this message.
    pub fn fail_next_start(&self, message: &str) {
        self.state().fail_next_start = Some(message.to_owned());
    }

    /// Makes a machine on which pods cannot have users of their own.
    pub fn lack_users(&self, why: &str) {
        self.state().lacks_for_users = Some(why.to_owned());
    }

    /// Loses a sandbox with everything in it, as when its shim is killed.
    pub fn lose_sandbox(&self, sandbox: &str) {
        let known = self.state().sandboxes.get_mut(sandbox).map(|sandbox| sandbox.alive = false).is_some();
        if known {
            let _ = self.events.send(Event::SandboxGone { sandbox: sandbox.to_owned() });
        }
    }

    fn status(&self, container: &str) -> Result<ContainerStatus> {
        let state = self.state();
        let found =
            state.sandboxes.values().flat_map(|sandbox| &sandbox.containers).find(|status| status.id == container);
        found.cloned().ok_or_else(|| Error::NoContainer(container.to_owned()))
    }

    fn running(&self, container: &str) -> Result<ContainerStatus> {
        let status = self.status(container)?;
        if status.is_running() { Ok(status) } else { Err(Error::NotRunning(container.to_owned())) }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox> {
        let mut state = self.state();
        if state.sandboxes.contains_key(&spec.id) {
            return Err(Error::Exists(spec.id));
        }
        state.next_pid += 1;
        let pid = state.next_pid;
        let sandbox = Sandbox { spec, pid, alive: true, created_at: (self.now)(), containers: Vec::new() };
        state.sandboxes.insert(sandbox.spec.id.clone(), sandbox.clone());
        Ok(sandbox)
    }

    async fn make_users(&self, pod: &str) -> Result<Users> {
        let mut state = self.state();
        if !state.users.iter().any(|known| known == pod) {
            state.users.push(pod.to_owned());
        }
        let place = state.users.iter().position(|known| known == pod).unwrap_or_default();
        let first_id = super::users::COUNT * (1 + u32::try_from(place).unwrap_or_default());
        let path = |name: &str| Path::new("/fake/users").join(pod).join(name);
        Ok(Users { namespace: path("user"), netns: path("net"), first_id, count: super::users::COUNT })
    }

    async fn remove_users(&self, pod: &str) -> Result<()> {
        self.state().users.iter_mut().filter(|known| *known == pod).for_each(String::clear);
        Ok(())
    }

    async fn users_list(&self) -> Vec<String> {
        self.state().users.iter().filter(|pod| !pod.is_empty()).cloned().collect()
    }

    async fn lacks_for_users(&self) -> Option<String> {
        self.state().lacks_for_users.clone()
    }

    async fn start_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<u32> {
        let (id, ends) = (spec.id.clone(), spec.args.first().is_some_and(|arg| arg == "exit"));
        let code = spec.args.get(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let pid = {
            let mut state = self.state();
            if !state.sandboxes.contains_key(sandbox) {
                return Err(Error::NoSandbox(sandbox.to_owned()));
            }
            if state.specs.contains_key(&id) {
                return Err(Error::Exists(id));
            }
            if let Some(message) = state.fail_next_start.take() {
                return Err(Error::Start { name: spec.name, message });
            }
            if spec.args.is_empty() {
                return Err(Error::Spec("no command specified".into()));
            }
            state.next_pid += 1;
            let pid = state.next_pid;
            let known = state.sandboxes.get_mut(sandbox).ok_or_else(|| Error::NoSandbox(sandbox.to_owned()))?;
            known.containers.push(ContainerStatus {
                id: id.clone(),
                name: spec.name.clone(),
                attempt: spec.attempt,
                pid,
                state: ContainerState::Running { started_at: (self.now)() },
                log_path: spec.log_path.as_ref().map(|path| known.spec.log_dir.join(path)),
                labels: spec.labels.clone(),
            });
            state.specs.insert(id.clone(), spec);
            pid
        };
        if ends {
            self.exit(&id, code, None, false);
        }
        Ok(pid)
    }

    async fn kill(&self, container: &str, signal: i32) -> Result<()> {
        self.running(container)?;
        if matches!(signal, libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGQUIT) {
            self.exit(container, 128 + signal, Some(signal), false);
        }
        Ok(())
    }

    async fn stop_container(&self, container: &str, _grace: Duration) -> Result<()> {
        match self.kill(container, libc::SIGTERM).await {
            Err(Error::NotRunning(_)) => Ok(()),
            result => result,
        }
    }

    async fn remove_container(&self, container: &str) -> Result<()> {
        let mut state = self.state();
        state.specs.remove(container);
        for sandbox in state.sandboxes.values_mut() {
            sandbox.containers.retain(|status| status.id != container);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        let mut state = self.state();
        if let Some(removed) = state.sandboxes.remove(sandbox) {
            for container in removed.containers {
                state.specs.remove(&container.id);
            }
        }
        Ok(())
    }

    async fn list(&self) -> Vec<Sandbox> {
        self.state().sandboxes.values().cloned().collect()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Prints its arguments; `exit N` ends with N.
    async fn exec(&self, container: &str, spec: ExecSpec) -> Result<Session> {
        self.running(container)?;
        let code = match spec.args.first().map(String::as_str) {
            None => return Err(Error::Spec("no command specified".into())),
            Some("exit") => spec.args.get(1).and_then(|code| code.parse().ok()).unwrap_or(0),
            Some(_) => 0,
        };
        Ok(session(format!("{}\n", spec.args.join(" ")).as_bytes(), code).await)
    }

    async fn attach(&self, container: &str, _stdin: bool) -> Result<Session> {
        self.running(container)?;
        Ok(session(b"", 0).await)
    }

    async fn update_resources(&self, container: &str, resources: &Resources) -> Result<()> {
        self.running(container)?;
        if let Some(spec) = self.state().specs.get_mut(container) {
            spec.resources = resources.clone();
        }
        Ok(())
    }

    async fn update_sandbox(&self, sandbox: &str, resources: &Resources) -> Result<()> {
        let mut state = self.state();
        let known = state.sandboxes.get_mut(sandbox).ok_or_else(|| Error::NoSandbox(sandbox.to_owned()))?;
        known.spec.resources = resources.clone();
        Ok(())
    }

    async fn stats(&self, container: &str) -> Result<Stats> {
        let running = self.status(container)?.is_running();
        Ok(Stats { pids: Some(u64::from(running)), ..Stats::default() })
    }

    async fn sandbox_stats(&self, sandbox: &str) -> Result<Stats> {
        let state = self.state();
        let sandbox = state.sandboxes.get(sandbox).ok_or_else(|| Error::NoSandbox(sandbox.to_owned()))?;
        let pids = sandbox.containers.iter().filter(|status| status.is_running()).count() as u64;
        Ok(Stats { pids: Some(pids), ..Stats::default() })
    }

    async fn machine_stats(&self) -> Stats {
        Stats::default()
    }

    async fn all_stats(&self) -> Stats {
        Stats::default()
    }
}

async fn session(output: &[u8], code: i32) -> Session {
    let (mut writer, reader) = tokio::io::duplex(output.len().max(1));
    // As much room as there is to write: this cannot wait.
    let _ = writer.write_all(output).await;
    Session {
        stdin: Some(Box::new(tokio::io::sink())),
        stdout: Box::new(reader),
        stderr: Some(Box::new(tokio::io::empty())),
        control: Box::new(FakeSession(code)),
    }
}

struct FakeSession(i32);

#[async_trait]
impl SessionControl for FakeSession {
    fn resize(&self, _columns: u16, _rows: u16) -> std::io::Result<()> {
        Ok(())
    }

    async fn wait(&mut self) -> Result<i32> {
        Ok(self.0)
    }
}

/// Every image exists, except those that were made to fail.
#[derive(Debug, Clone, Default)]
pub struct FakeImages {
    state: Arc<Mutex<ImageState>>,
    came: Arc<Signal>,
    released: Arc<Signal>,
}

#[derive(Debug, Default)]
struct ImageState {
    present: BTreeMap<String, Image>,
    failing: BTreeMap<String, ImageError>,
    mounted: BTreeSet<String>,
}

impl FakeImages {
    fn state(&self) -> MutexGuard<'_, ImageState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Pulls of this reference fail from now on, or with `None` succeed again.
    pub fn fail(&self, reference: &str, error: Option<ImageError>) {
        let mut state = self.state();
        match error {
            Some(error) => drop(state.failing.insert(reference.to_owned(), error)),
            None => drop(state.failing.remove(reference)),
        }
    }
}

fn fake_image(reference: &Reference) -> Image {
    let id = super::image::digest_of(reference.to_string().as_bytes());
    Image {
        digests: vec![format!("{}@{id}", reference.name())],
        id,
        tags: vec![reference.to_string()],
        size_bytes: 1,
        pinned: reference.to_string() == HELLO,
        last_used: Timestamp::UNIX_EPOCH,
        config: super::ImageConfig { cmd: vec!["run".into()], ..Default::default() },
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn pull(&self, reference: &str, _credentials: &[Credentials]) -> Result<Image, ImageError> {
        let parsed = Reference::parse(reference)?;
        let mut state = self.state();
        if let Some(error) = state.failing.get(reference) {
            return Err(error.clone());
        }
        let image = fake_image(&parsed);
        state.present.insert(image.id.clone(), image.clone());
        self.came.tell();
        Ok(image)
    }

    async fn status(&self, reference: &str) -> Option<Image> {
        let name = Reference::parse(reference).map(|reference| reference.to_string()).unwrap_or_default();
        let state = self.state();
        let named =
            |image: &&Image| image.id == reference || image.tags.contains(&name) || image.digests.contains(&name);
        let found = state.present.values().find(named).cloned();
        found
            .or_else(|| (name == HELLO).then(|| Reference::parse(HELLO).ok().map(|hello| fake_image(&hello))).flatten())
    }

    async fn list(&self) -> Vec<Image> {
        self.state().present.values().cloned().collect()
    }

    async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let image = self.status(reference).await.ok_or_else(|| ImageError::NoImage(reference.to_owned()))?;
        self.state().present.remove(&image.id);
        Ok(())
    }

    async fn import(&self, archive: &Path) -> Result<Vec<Image>, ImageError> {
        Err(ImageError::Invalid { what: "archive".into(), reason: format!("{archive:?}: the fake reads none") })
    }

    async fn prepare_rootfs(
        &self,
        image: &str,
        container: &str,
        _users: Option<&Users>,
    ) -> Result<PathBuf, ImageError> {
        self.status(image).await.ok_or_else(|| ImageError::NoImage(image.to_owned()))?;
        self.state().mounted.insert(container.to_owned());
        Ok(PathBuf::from("/fake").join(container))
    }

    async fn release_rootfs(&self, container: &str) -> Result<(), ImageError> {
        if self.state().mounted.remove(container) {
            self.released.tell();
        }
        Ok(())
    }

    async fn rootfs_list(&self) -> Vec<String> {
        self.state().mounted.iter().cloned().collect()
    }

    async fn collect_garbage(&self, _policy: &Policy) -> Result<Collected, ImageError> {
        Ok(Collected::default())
    }

    fn came(&self) -> Receiver {
        self.came.subscribe()
    }

    fn released(&self) -> Receiver {
        self.released.subscribe()
    }
}

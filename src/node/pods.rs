//! The pods of this node: one worker each, woken by the API and by the runtime.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{broadcast, mpsc, watch};

use super::worker::{self, Handle, Message, UID_LABEL};
use super::{Node, admit, fit, host_ports, volumes};
use crate::base::error::chain;
use crate::base::object::Object;
use crate::base::task;
use crate::containers::{Event, Sandbox};
use crate::kinds::core::{configmap, node, pod, secret};
use crate::net::{HostPort, Unpublished};
use crate::node::reported::reported;
use crate::reconcile::{Changed, EventType, Informer};

/// Ended workers that may wait to be noticed.
const ENDED: usize = 256;
/// How often, and how many times, a root file system that was in use is looked at again.
const ROOT_RETRY: std::time::Duration = std::time::Duration::from_secs(1);
const ROOT_ATTEMPTS: u32 = 30;

struct Pods {
    node: Arc<Node>,
    informer: Informer,
    workers: HashMap<String, Running>,
    /// Sandboxes that an earlier process left, by pod uid, until their pods are seen.
    left: HashMap<String, Vec<Sandbox>>,
    done: mpsc::Sender<String>,
    ready: watch::Sender<bool>,
    /// Host ports of which their pods were told that they have them not.
    unpublished: Vec<Unpublished>,
}

struct Running {
    handle: Handle,
    object: Arc<Object>,
    /// It has room that others cannot have: it was not refused, and the API has it still.
    counts: bool,
}

/// Runs the node's pods until aborted. `ready` turns true when everything that was left running is taken over.
pub async fn run(node: Arc<Node>, ready: watch::Sender<bool>) {
    let informer = node.client.informer(&pod::KIND);
    informer.synced().await;
    let mut changes = informer.subscribe();
    let mut exits = node.runtime.events();
    let (maps, secrets) = (node.client.informer(&configmap::KIND), node.client.informer(&secret::KIND));
    let (mut map_changes, mut secret_changes) = (maps.subscribe(), secrets.subscribe());
    let mut images = node.images.came();
    let (done, mut ended) = mpsc::channel(ENDED);
    let mut unpublished = node.unpublished.clone();
    let (workers, left) = (HashMap::new(), HashMap::new());
    let mut pods = Pods { node, informer, workers, left, done, ready, unpublished: Vec::new() };
    pods.begin().await;
    loop {
        tokio::select! {
            biased;
            Some(uid) = ended.recv() => pods.ended(&uid).await,
            exit = exits.recv() => pods.exit(exit).await,
            changed = changes.next() => match changed {
                Some(changed) => for c in changed { pods.changed(c).await },
                None => pods.look_again().await,
            },
            Ok(()) = images.changed() => pods.tell_all_of_images().await,
            Ok(()) = unpublished.changed() => pods.tell_unpublished(unpublished.borrow_and_update().clone()),
            changed = map_changes.next() => pods.content(changed, false).await,
            changed = secret_changes.next() => pods.content(changed, true).await,
        }
    }
}

// === impl Pods ===

impl Pods {
    /// Takes over what runs, and removes what nobody wants any more.
    async fn begin(&mut self) {
        for sandbox in self.node.runtime.list().await {
            let uid = sandbox.spec.labels.get(UID_LABEL).cloned().unwrap_or_else(|| sandbox.spec.pod_uid.clone());
            self.left.entry(uid).or_default().push(sandbox);
        }
        let mut mine: Vec<Arc<Object>> = self.informer.list("").into_iter().filter(|o| self.is_mine(o)).collect();
        let mut in_use: Vec<String> = mine.iter().map(|o| o.meta.uid.to_string()).collect();
        in_use.extend(self.left.keys().cloned());
        if let Err(error) = self.node.network.adopt(&in_use).await {
            tracing::warn!(error = chain(&error), "networks of earlier pods were not all removed");
        }
        for uid in self.node.runtime.users_list().await.iter().filter(|uid| !in_use.contains(uid)) {
            if let Err(error) = self.node.runtime.remove_users(uid).await {
                tracing::warn!(uid, error = chain(&error), "users of an earlier pod were not all removed");
            }
        }
        // Whoever was here before has the room; then whoever came first.
        mine.sort_by_key(|o| (!self.left.contains_key(&*o.meta.uid), o.meta.created));
        for object in mine {
            self.begin_worker(object);
        }
        for (uid, sandboxes) in std::mem::take(&mut self.left) {
            for sandbox in sandboxes {
                tracing::info!(uid, pod = sandbox.spec.pod_name, "removing a pod that is no longer wanted here");
                self.remove_orphan(&uid, &sandbox).await;
            }
        }
        self.sweep().await;
        let _ = self.ready.send(true);
    }

    /// Root file systems without a container: left by a crash or a reboot.
    async fn sweep(&self) {
        let all = self.node.runtime.list().await;
        let known: Vec<String> = all.into_iter().flat_map(|s| s.containers).map(|c| c.id).collect();
        let mut roots = self.node.images.rootfs_list().await;
        roots.retain(|id| !known.contains(id));
        release_roots(&self.node, roots).await;
        let wanted: Vec<&String> = self.workers.keys().collect();
        for base in [self.node.config.data_dir.join("pods"), self.node.config.run_dir.join("pods")] {
            if let Err(error) = crate::base::file::claim_private_dir(&base) {
                tracing::warn!(%error, path = %base.display(), "the directory of the pods cannot be made");
            }
            for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
                let uid = entry.file_name().to_string_lossy().into_owned();
                if wanted.contains(&&uid) {
                    continue;
                }
                if let Err(error) = remove_logs(&self.node.config.log_dir, &uid) {
                    tracing::warn!(uid, %error, "the logs of an earlier pod were not removed whole");
                }
                if let Err(why) = volumes::remove(&self.node, &uid).await {
                    tracing::warn!(uid, why = chain(&why), "the volumes of an earlier pod were not removed whole");
                }
            }
        }
    }

    async fn remove_orphan(&self, uid: &str, sandbox: &Sandbox) {
        for c in sandbox.containers.iter().filter(|c| c.is_running()) {
            let _ = self.node.runtime.stop_container(&c.id, std::time::Duration::from_secs(5)).await;
        }
        if let Err(error) = self.node.runtime.remove_sandbox(&sandbox.spec.id).await {
            tracing::warn!(uid, error = chain(&error), "a sandbox was not removed whole");
        }
        release_roots(&self.node, sandbox.containers.iter().map(|c| c.id.clone()).collect()).await;
        if let Err(why) = worker::tear_down(&self.node, &Pod::default(), uid, false).await {
            tracing::warn!(uid, why = chain(&why), "the pod was not removed whole");
        }
        if let Err(why) = volumes::remove(&self.node, uid).await {
            tracing::warn!(uid, why = chain(&why), "the pod's volumes were not removed whole");
        }
        if let Err(error) = crate::base::tree::remove(&sandbox.spec.log_dir) {
            tracing::warn!(uid, %error, "the pod's logs were not removed whole");
        }
    }

    fn is_mine(&self, object: &Object) -> bool {
        object
            .typed::<Pod>()
            .is_ok_and(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&self.node.config.name))
    }

    async fn changed(&mut self, change: Changed) {
        let uid = change.object.meta.uid.to_string();
        let mine = self.is_mine(&change.object);
        match self.workers.get_mut(&uid) {
            Some(running) => {
                let message = if change.deleted { Message::Vanished } else { Message::Pod(change.object.clone()) };
                let moved = host_ports::published(&running.object) != host_ports::published(&change.object);
                let less = takes_less(&running.object, &change.object);
                running.counts &= !change.deleted;
                running.object = change.object;
                let _ = running.handle.send(message).await;
                if less {
                    self.tell_all_of_room().await;
                }
                if moved {
                    self.publish_ports();
                }
            }
            None if !change.deleted && mine => self.begin_worker(change.object),
            None => {}
        }
    }

    /// The changes were lost: everything is compared anew.
    async fn look_again(&mut self) {
        let all: Vec<Arc<Object>> = self.informer.list("");
        let alive: Vec<&str> = all.iter().map(|o| &*o.meta.uid).collect();
        for (uid, running) in &mut self.workers {
            if !alive.contains(&uid.as_str()) {
                running.counts = false;
                let _ = running.handle.send(Message::Vanished).await;
            }
        }
        for object in all {
            self.changed(Changed { object, previous: None, deleted: false }).await;
        }
    }

    fn begin_worker(&mut self, object: Arc<Object>) {
        let uid = object.meta.uid.to_string();
        let left = self.left.remove(&uid).unwrap_or_default();
        let refusal = self.refuse(&object, left.is_empty());
        let counts = refusal.is_none() || !left.is_empty();
        if let Some(handle) = worker::spawn(self.node.clone(), object.clone(), left, refusal, self.done.clone()) {
            self.workers.insert(uid, Running { handle, object, counts });
            self.publish_ports();
        }
    }

    /// Why a pod is not begun. What other pods have is asked only for one of which there is nothing on the machine yet.
    fn refuse(&self, object: &Object, is_new: bool) -> Option<admit::Refusal> {
        let pod = object.typed::<Pod>().ok()?;
        let host = admit::Host::look(&self.node.config.unsafe_sysctls);
        admit::refuse(&pod, &host).or_else(|| {
            let here = self.node.client.informer(&node::KIND).get("", &self.node.config.name)?;
            let is_asked = is_new && !is_over(&pod) && object.meta.deleted.is_none();
            let before = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
            let running = self.workers.values().filter(|running| is_asked && running.counts);
            let others: Vec<Arc<Pod>> = running.filter_map(|r| r.object.typed::<Pod>().ok()).collect();
            let others: Vec<&Pod> = others.iter().map(|p| &**p).filter(|p| !is_over(p)).collect();
            fit::refuse(&pod, before, &here, self.node.capacity, &others).filter(|_| is_asked)
        })
    }

    async fn ended(&mut self, uid: &str) {
        self.workers.remove(uid);
        self.publish_ports();
        self.tell_all_of_room().await;
    }

    /// Pods that wanted more than there was look again.
    async fn tell_all_of_room(&self) {
        for running in self.workers.values().filter(|r| wants_room(&r.object)) {
            let _ = running.handle.send(Message::Room).await;
        }
    }

    async fn exit(&mut self, event: Result<Event, broadcast::error::RecvError>) {
        let (sandbox, message) = match event {
            Ok(Event::ContainerExited { sandbox, container }) => (sandbox, Message::Exited { container }),
            Ok(Event::SandboxGone { sandbox }) => (sandbox.clone(), Message::SandboxGone { sandbox }),
            Err(broadcast::error::RecvError::Lagged(_)) => return self.all_exits().await,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        };
        let all = self.node.runtime.list().await;
        let uid = all.iter().find(|s| s.spec.id == sandbox).map(|s| s.spec.pod_uid.clone());
        if let Some(running) = uid.and_then(|uid| self.workers.get(&uid)) {
            let _ = running.handle.send(message).await;
        }
    }

    async fn all_exits(&mut self) {
        for sandbox in self.node.runtime.list().await {
            let Some(running) = self.workers.get(&sandbox.spec.pod_uid) else { continue };
            if !sandbox.alive {
                let _ = running.handle.send(Message::SandboxGone { sandbox: sandbox.spec.id.clone() }).await;
            }
            for c in sandbox.containers.iter().filter(|c| !c.is_running()) {
                let _ = running.handle.send(Message::Exited { container: c.id.clone() }).await;
            }
        }
    }

    async fn tell_all_of_images(&self) {
        for running in self.workers.values() {
            let _ = running.handle.send(Message::Images).await;
        }
    }

    /// Workers whose volumes show a changed object.
    async fn content(&mut self, changed: Option<Vec<Changed>>, is_secret: bool) {
        for running in self.workers.values() {
            let Ok(pod) = running.object.typed::<Pod>() else { continue };
            let concerned = changed.as_ref().is_none_or(|all| {
                all.iter().any(|c| {
                    c.object.meta.namespace == running.object.meta.namespace
                        && volumes::mentions(&pod, is_secret, &c.object.meta.name)
                })
            });
            if concerned {
                let _ = running.handle.send(Message::Content).await;
            }
        }
    }

    /// Tells pods of host ports that somebody else has, once each.
    fn tell_unpublished(&mut self, all: Vec<Unpublished>) {
        for new in all.iter().filter(|new| !self.unpublished.contains(new)) {
            let has = |object: &Object| host_ports::published(object).contains(&new.port);
            for running in self.workers.values().filter(|running| has(&running.object)) {
                let message = host_ports::conflict(new);
                let recorder = &self.node.recorder;
                recorder.event(&pod::KIND, &running.object, EventType::Warning, "HostPortConflict", &message);
            }
        }
        self.unpublished = all;
    }

    /// The host ports of all pods with an address.
    fn publish_ports(&mut self) {
        let mut ports: Vec<HostPort> = Vec::new();
        for running in self.workers.values() {
            // From the API's form: the address is there once the worker has reported it.
            ports.extend(host_ports::published(&running.object));
        }
        ports.sort_by(|a, b| (a.host_port, &a.pod_address).cmp(&(b.host_port, &b.pod_address)));
        if self.node.host_ports.is_closed() {
            let why = "the service proxy of this node is disabled".to_owned();
            self.tell_unpublished(
                ports.iter().map(|port| Unpublished { port: port.clone(), why: why.clone() }).collect(),
            );
        }
        self.node.host_ports.send_if_modified(|old| {
            let new = *old != ports;
            if new {
                *old = ports;
            }
            new
        });
    }
}

/// Whether the API says that the pod has ended.
fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether the pod leaves room to others that it took before: it has ended, or has got less.
fn takes_less(old: &Object, new: &Object) -> bool {
    let (Ok(old), Ok(new)) = (old.typed::<Pod>(), new.typed::<Pod>()) else { return false };
    let granted = |p: &Pod| -> Vec<_> { reported(p).map(|s| s.allocated_resources.clone()).collect() };
    is_over(&old) != is_over(&new) || granted(&old) != granted(&new)
}

/// Whether the pod wants more than there was.
fn wants_room(object: &Object) -> bool {
    let Ok(pod) = object.typed::<Pod>() else { return false };
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "PodResizePending")
}

/// Removes the logs of a pod of which only the uid is known.
fn remove_logs(directory: &Path, uid: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().rsplit_once('_').is_some_and(|(_, of)| of == uid) {
            crate::base::tree::remove(&entry.path())?;
        }
    }
    Ok(())
}
/// Removes root file systems of containers that are gone. One that is still in use, as by a start that a killed agent has left
/// behind, is tried again until it is free or a container has it.
async fn release_roots(node: &Arc<Node>, mut ids: Vec<String>) {
    release_free(node, &mut ids).await;
    if ids.is_empty() {
        return;
    }
    let node = node.clone();
    drop(task::spawn("root file systems in use", async move {
        for _ in 0..ROOT_ATTEMPTS {
            tokio::time::sleep(ROOT_RETRY).await;
            let all = node.runtime.list().await;
            ids.retain(|id| !all.iter().flat_map(|s| &s.containers).any(|c| c.id == *id));
            release_free(&node, &mut ids).await;
            if ids.is_empty() {
                return;
            }
        }
        tracing::warn!(containers = ids.join(","), "root file systems of earlier containers were not removed");
    }));
}

/// Removes those that nobody uses, and leaves the others in the list.
async fn release_free(node: &Node, ids: &mut Vec<String>) {
    let mut in_use = Vec::new();
    for id in ids.drain(..) {
        if let Err(error) = node.images.release_rootfs(&id).await {
            tracing::debug!(container = id, %error, "a root file system is in use");
            in_use.push(id);
        }
    }
    *ids = in_use;
}

//! Starting and stopping one container: its specification, its hooks, and what it leaves as last words.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, VolumeMount};

use super::env::{self};
use super::error::{Failed, config_error};
use super::sandbox_context::SandboxContext;
use super::volumes::pin::Pins;
use super::volumes::{self, Paths};
use super::{Node, files, image_config, probes, spec};
use crate::base::error::chain;
use crate::containers::{self, ContainerSpec, ContainerState, ContainerStatus, Image};
use crate::node::machine::Ended;

/// The last words of all containers of a pod together are cut at this length.
const POD_LAST_WORDS_BYTES: usize = 12 << 10;
/// What is taken of a log for them.
const LOG_LINES: u64 = 80;
const LOG_BYTES: usize = 2048;
/// Where the images' own seccomp profiles are looked up.
const SECCOMP_DIR: &str = "seccomp";

/// Starts a container and answers its id and process id.
pub async fn start(
    node: &Node,
    pod: &Pod,
    c: &Container,
    image: &Image,
    attempt: u32,
    at: &SandboxContext,
) -> Result<(String, u32), Failed> {
    let id = containers::new_id();
    let rootfs = node
        .images
        .prepare_rootfs(&image.id, &id, at.users.as_ref())
        .await
        .map_err(|e| Failed { reason: "CreateContainerError", message: e.to_string() })?;
    // They hold what the container mounts until it has done so.
    let mut pins = volumes::pins(node, pod.metadata.uid.as_deref().unwrap_or(""), &id);
    let result = async {
        let volumes = with_images(node, pod, c, &id, at).await?;
        let mut spec = specification(node, pod, c, image, attempt, at, &volumes, &id, rootfs, &mut pins)?;
        if let Some(target) = spec::target(pod, &c.name) {
            spec.pid_namespace_of = Some(process_of(node, &at.sandbox, target).await?);
        }
        let started = node.runtime.start_container(&at.sandbox, spec).await;
        started.map_err(|e| Failed { reason: "RunContainerError", message: chain(&e) })
    }
    .await;
    match result {
        Ok(pid) => Ok((id, pid)),
        Err(failed) => {
            let _ = node.images.release_rootfs(&id).await;
            Err(failed)
        }
    }
}

/// The pod's volumes, with the images among them that the container mounts mounted for it.
async fn with_images(node: &Node, pod: &Pod, c: &Container, id: &str, at: &SandboxContext) -> Result<Paths, Failed> {
    let mut all = at.volumes.clone();
    for (name, reference, _) in volumes::images(pod, c) {
        let mounted = node.images.prepare_volume(reference, id, name, at.users.as_ref()).await;
        let failed = |e| Failed { reason: "CreateContainerError", message: format!("volume {name:?}: {e}") };
        all.insert(name.to_owned(), volumes::VolumeLocation::Image(mounted.map_err(failed)?));
    }
    Ok(all)
}

/// The first process of a running container of the sandbox.
async fn process_of(node: &Node, sandbox: &str, name: &str) -> Result<u32, Failed> {
    let all = node.runtime.list().await;
    let mut containers = all.into_iter().filter(|s| s.spec.id == sandbox).flat_map(|s| s.containers);
    let found = containers.find(|c| c.name == name && c.is_running()).map(|c| c.pid);
    let message = || format!("unable to find target container {name:?}");
    found.ok_or_else(|| Failed { reason: "RunContainerError", message: message() })
}

#[allow(clippy::too_many_arguments)]
fn specification(
    node: &Node,
    pod: &Pod,
    c: &Container,
    image: &Image,
    attempt: u32,
    at: &SandboxContext,
    volumes: &Paths,
    id: &str,
    rootfs: PathBuf,
    pins: &mut Pins,
) -> Result<ContainerSpec, Failed> {
    let pod_security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = c.security_context.as_ref();
    let own_env = env::of(&*node.client, pod, c, &at.facts).map_err(|e| config_error(chain(&e)))?;
    // References are to what the pod says; what the image says is only there.
    let known = own_env.iter().cloned().collect();
    let env = [image.config.env.clone(), own_env].concat();
    let args: Vec<String> = image_config::arguments(c, &image.config).iter().map(|a| env::expand(a, &known)).collect();
    if args.is_empty() {
        return Err(Failed { reason: "CreateContainerError", message: "no command specified".into() });
    }
    let privileged = own.and_then(|s| s.privileged) == Some(true);
    let words = at.files.make_last_words(&c.name, attempt);
    let words = words.map_err(|e| config_error(format!("the file for last words: {e}")))?;
    let mut mounts = vec![
        spec::bind(&at.files.hosts, "/etc/hosts", false, None),
        spec::bind(&at.files.resolv_conf, "/etc/resolv.conf", false, None),
        spec::bind(&at.files.hostname, "/etc/hostname", false, None),
        spec::bind(&words, c.termination_message_path.as_deref().unwrap_or("/dev/termination-log"), false, None),
    ];
    c.volume_mounts.iter().flatten().try_for_each(supported)?;
    let own_mounts = c.volume_mounts.iter().flatten().map(|m| Path::new(&m.mount_path));
    let mounted: Vec<&Path> = mounts.iter().map(|m| m.container_path.as_path()).chain(own_mounts).collect();
    let of_image = image_config::volumes(&image.config, &mounted);
    mounts.extend(
        volumes::mounts::of(c, volumes, &known, &mounts, &of_image, pins).map_err(|e| config_error(chain(&e)))?,
    );
    let is_inside = |path: &PathBuf| mounts.iter().any(|m| path.starts_with(&m.container_path));
    let (inside, volumes): (Vec<PathBuf>, Vec<PathBuf>) = of_image.into_iter().partition(is_inside);
    let first_id = at.users.as_ref().map(|users| users.first_id);
    for path in inside {
        let held = volumes::mounts::of_rootfs(&rootfs, &path, first_id, pins);
        mounts.extend(
            held.map_err(|why| config_error(format!("volume {} of the image: {}", path.display(), chain(&why))))?,
        );
    }
    let user = image_config::user(pod, c, &image.config, &rootfs)?;
    let resources = spec::resources(pod, c);
    Ok(ContainerSpec {
        id: id.into(),
        name: c.name.clone(),
        attempt,
        rootfs,
        args,
        env,
        cwd: image_config::directory(c, &image.config),
        user,
        capabilities: spec::capabilities(own),
        privileged,
        readonly_rootfs: own.and_then(|s| s.read_only_root_filesystem) == Some(true),
        no_new_privileges: own.and_then(|s| s.allow_privilege_escalation) == Some(false),
        seccomp: spec::seccomp(pod_security, own, &node.config.data_dir.join(SECCOMP_DIR)),
        app_armor: spec::app_armor(pod_security, own),
        unmasked_proc: own.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
        mounts,
        volumes,
        resources,
        oom_score_adj: Some(spec::oom_score(pod, c, node.capacity.memory_bytes)),
        tty: c.tty == Some(true),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        log_path: Some(format!("{}/{attempt}.log", c.name).into()),
        stop_signal: image_config::stop_signal(c, &image.config),
        ..ContainerSpec::default()
    })
}

/// Refuses what is asked of a mount and not done here.
fn supported(m: &VolumeMount) -> Result<(), Failed> {
    if m.recursive_read_only.as_deref() == Some("Enabled") {
        return Err(config_error(format!("volume mount {:?}: recursive read-only mounts are not supported", m.name)));
    }
    if m.bind_mount_options.iter().flatten().next().is_some() {
        return Err(config_error(format!("volume mount {:?}: bind mount options are not supported", m.name)));
    }
    Ok(())
}

/// Runs a lifecycle hook; the error says what went wrong.
pub async fn hook(
    node: &Node,
    pod: &Pod,
    c: &Container,
    handler: &LifecycleHandler,
    id: &str,
    addresses: &[IpAddr],
) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    let host = addresses.first().copied();
    if let Some(exec) = &handler.exec {
        return probes::exec(node, id, exec.command.clone().unwrap_or_default()).await.map(|_| ());
    }
    if let Some(get) = &handler.http_get {
        return probes::http(node, pod, c, get, host).await;
    }
    if let Some(tcp) = &handler.tcp_socket {
        return probes::tcp(c, tcp, host).await;
    }
    Ok(())
}

/// Asks a container to end: preStop, then its stop signal, then the kill; all within the grace.
pub async fn stop(node: &Node, pod: &Pod, c: &Container, id: &str, addresses: &[IpAddr], grace: Duration) {
    let begun = tokio::time::Instant::now();
    if let Some(handler) = c.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        match tokio::time::timeout(grace, hook(node, pod, c, handler, id, addresses)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::info!(container = c.name, why, "the preStop hook failed"),
            Err(_) => tracing::info!(container = c.name, "the preStop hook did not end within the grace period"),
        }
    }
    // Whoever used up the grace still gets two seconds, as with the kubelet.
    let left = grace.saturating_sub(begun.elapsed()).max(if grace.is_zero() {
        Duration::ZERO
    } else {
        Duration::from_secs(2)
    });
    if let Err(error) = node.runtime.stop_container(id, left).await {
        tracing::warn!(container = c.name, %error, "stopping failed");
    }
}

/// How a container ended, from the runtime's record; `None` while it runs.
pub fn ended(node: &Node, pod: &Pod, status: &ContainerStatus) -> Option<Ended> {
    let ContainerState::Exited { code, signal, oom_killed, started_at, finished_at } = status.state else {
        return None;
    };
    let message = spec::container(pod, &status.name).map(|c| words(node, pod, &c, status, code)).unwrap_or_default();
    let reason = Ended::reason(code, oom_killed).to_owned();
    Some(Ended { id: status.id.clone(), code, signal, reason, started_at: Some(started_at), finished_at, message })
}

fn words(node: &Node, pod: &Pod, c: &Container, status: &ContainerStatus, code: i32) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    let said = files::last_words(&node.pod_files_dir(uid), &c.name, status.attempt).unwrap_or_default();
    let mut said = String::from_utf8_lossy(&said).into_owned();
    if said.is_empty() && code != 0 && c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") {
        let (ns, name) = (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
        let log = node.pod_log_dir(ns, name, uid).join(format!("{}/{}.log", c.name, status.attempt));
        said = super::logs::last_lines(&log, LOG_LINES, LOG_BYTES);
    }
    let spec = pod.spec.as_ref();
    let containers = spec.map_or(1, |s| s.containers.len() + s.init_containers.as_ref().map_or(0, Vec::len));
    let bytes_max = POD_LAST_WORDS_BYTES / containers.max(1);
    if let Some((cut, _)) = said.char_indices().find(|(at, c)| at + c.len_utf8() > bytes_max) {
        said.truncate(cut);
    }
    said
}

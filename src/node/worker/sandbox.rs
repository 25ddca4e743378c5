//! A pod's network, volumes, files and sandbox: made, and removed.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::base::error::chain;
use crate::base::file::make_private_dir;
use crate::base::json::text;
use crate::containers::{Sandbox, SandboxSpec, Users};
use crate::kinds::node::runtimeclass;
use crate::net::PodAttachment;
use crate::node::env::DownwardValues;
use crate::node::error::{Error, Result};
use crate::node::sandbox_context::SandboxContext;
use crate::node::{Node, admit, files, spec, volumes};

/// The label on a sandbox that leads back to its pod's object.
pub const UID_LABEL: &str = "uid";

pub(super) fn facts(node: &Node, addresses: &[IpAddr]) -> DownwardValues {
    let text = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect();
    DownwardValues {
        pod_ips: text(addresses),
        host_ips: text(&node.config.addresses),
        node_name: node.config.name.clone(),
        node_cpu_milli: node.capacity.cpus as i64 * 1000,
        node_memory_bytes: node.capacity.memory_bytes as i64,
    }
}

/// Network, volumes, files and sandbox of a pod; an adopted sandbox is taken as it is.
pub(super) async fn prepare(
    node: &Node,
    pod: &Pod,
    attempt: u32,
    adopted: Option<&Sandbox>,
) -> Result<Box<SandboxContext>, (&'static str, String)> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let pod_spec = pod.spec.clone().unwrap_or_default();
    let sandbox_error = |why: String| ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {why}"));
    if adopted.is_none() {
        check_handler(node, pod_spec.runtime_class_name.as_deref()).await.map_err(sandbox_error)?;
    }
    let users = match admit::own_users(&pod_spec) {
        true => Some(own_users(node, &uid, adopted).await.map_err(|e| sandbox_error(chain(&e)))?),
        false => None,
    };
    let hostname = files::kernel_name(pod, &node.config).map_err(|e| sandbox_error(chain(&e)))?;
    // Where a later process finds that there is something of the pod, whatever else is gone.
    make_private_dir(&node.pod_dir(&uid)).map_err(|e| sandbox_error(e.to_string()))?;
    let host_network = pod_spec.host_network == Some(true);
    let (netns, addresses) = if host_network {
        (None, node.config.addresses.clone())
    } else {
        let netns = users.as_ref().map(|users| users.netns.clone());
        let pod = PodAttachment { id: uid.clone(), namespace: namespace.clone(), name: name.clone(), netns };
        let attached = node.network.attach(pod).await.map_err(|e| sandbox_error(chain(&e)))?;
        (Some(attached.netns), attached.addresses)
    };
    let facts = facts(node, &addresses);
    let (volumes, stale) =
        volumes::prepare(node, pod, &facts, adopted.is_some()).await.map_err(|e| ("FailedMount", chain(&e)))?;
    let files = files::write(&node.pod_files_dir(&uid), &node.config, pod, &addresses, adopted.is_some())
        .map_err(|e| sandbox_error(e.to_string()))?;
    let sandbox = match adopted {
        Some(sandbox) => sandbox.spec.id.clone(),
        None => {
            let security = pod_spec.security_context.clone().unwrap_or_default();
            let sysctls = security.sysctls.into_iter().flatten().map(|s| (s.name, s.value)).collect();
            let spec = SandboxSpec {
                id: crate::containers::new_id(),
                pod_namespace: namespace.clone(),
                pod_name: name.clone(),
                pod_uid: uid.clone(),
                attempt,
                hostname,
                netns,
                host_ipc: pod_spec.host_ipc == Some(true),
                host_pid: pod_spec.host_pid == Some(true),
                share_process_namespace: pod_spec.share_process_namespace == Some(true),
                sysctls,
                cgroup_parent: spec::cgroup_parent(pod, &uid),
                resources: spec::pod_resources(pod),
                log_dir: node.pod_log_dir(&namespace, &name, &uid),
                users: users.clone(),
                labels: [(UID_LABEL.to_owned(), uid.clone())].into(),
                ..SandboxSpec::default()
            };
            let id = spec.id.clone();
            node.runtime.create_sandbox(spec).await.map_err(|e| sandbox_error(chain(&e)))?;
            id
        }
    };
    Ok(Box::new(SandboxContext { sandbox, addresses, users, volumes, files, facts, stale }))
}

/// Whether this node has the handler of a pod's runtime class; why not.
async fn check_handler(node: &Node, class: Option<&str>) -> Result<(), String> {
    let Some(name) = class.filter(|name| !name.is_empty()) else { return Ok(()) };
    let lacks = |why: &dyn std::fmt::Display| format!("failed to get runtime handler of RuntimeClass {name:?}: {why}");
    let class = node.client.get(&runtimeclass::KIND, "", name).await.map_err(|status| lacks(&status.message))?;
    let class = class.value();
    let handler = text(&class, "handler");
    match runtimeclass::HANDLERS.contains(&handler) {
        true => Ok(()),
        false => Err(lacks(&format!("no runtime for {handler:?} is configured"))),
    }
}

/// The users of a pod that is to have its own, or why it cannot. What runs already is as it was made.
pub(super) async fn own_users(node: &Node, uid: &str, adopted: Option<&Sandbox>) -> Result<Users> {
    if let Some(users) = adopted.and_then(|sandbox| sandbox.spec.users.clone()) {
        return Ok(users);
    }
    if let Some(why) = node.runtime.lacks_for_users().await {
        return Err(Error::UserNamespaces(why));
    }
    Ok(node.runtime.make_users(uid).await?)
}

/// Removes a sandbox with everything in it; fine if it is gone.
pub(super) async fn remove_sandbox(node: &Node, id: &str) -> Result<()> {
    let all = node.runtime.list().await;
    let containers = all.into_iter().find(|s| s.spec.id == id).map(|s| s.containers).unwrap_or_default();
    node.runtime.remove_sandbox(id).await.map_err(|error| Error::part(format!("sandbox {id}"))(error.into()))?;
    for c in containers {
        if let Err(error) = node.images.release_rootfs(&c.id).await {
            tracing::warn!(container = c.id, %error, "a root file system was not removed");
        }
    }
    Ok(())
}

/// Removes what the sandbox does not hold: network, and with `everything` volumes and logs. One that cannot be removed does
/// not stop the others.
pub async fn tear_down(node: &Node, pod: &Pod, uid: &str, everything: bool) -> Result<()> {
    let mut errors = Vec::new();
    if let Err(error) = node.network.detach(uid).await {
        errors.push(Error::part("network")(error.into()));
    }
    if let Err(error) = node.runtime.remove_users(uid).await {
        errors.push(Error::part("user namespace")(error.into()));
    }
    if everything {
        let (namespace, name) =
            (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
        if let Err(error) = crate::base::tree::remove(&node.pod_log_dir(namespace, name, uid)) {
            errors.push(Error::part("logs")(error.into()));
        }
        // At last: by its directories a later process finds what is left of the pod.
        if let Err(why) = volumes::remove(node, uid).await {
            errors.push(Error::part("volumes")(why.into()));
        }
    }
    Error::gather(errors)
}

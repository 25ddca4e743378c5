//! What the API asks of this node: logs, exec, attach, connections to ports.

mod calls;

use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;

use super::{Node, http};
use crate::apimachinery::node_access::{self, Target};
use crate::apimachinery::status::{Result, Status};
use crate::base::error::chain;
use crate::containers::Session;
use crate::kinds::core::pod;
use crate::node::reported::reported;

/// This node's pods, for the API.
#[derive(Clone, Debug)]
pub struct Access {
    pub(super) node: Arc<Node>,
    pub(super) memory: http::Memory,
}

// === impl Access ===

impl Access {
    /// The way to a node's pods.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, memory: http::Memory::default() }
    }

    /// The node whose pods they are.
    pub fn node_name(&self) -> &str {
        &self.node.config.name
    }

    fn pod(&self, target: &Target) -> Result<Arc<Pod>> {
        let object = self.node.client.informer(&pod::KIND).get(&target.namespace, &target.pod);
        let object = object.ok_or_else(|| Status::not_found(&pod::KIND, &target.pod))?;
        object.typed::<Pod>().map_err(Status::internal)
    }

    fn status(&self, target: &Target) -> Result<ContainerStatus> {
        let pod = self.pod(target)?;
        let found = reported(&pod).find(|s| s.name == target.container).cloned();
        found.ok_or_else(|| self.not_begun(target, "ContainerCreating"))
    }

    fn not_begun(&self, target: &Target, why: &str) -> Status {
        let Target { pod, container, .. } = target;
        Status::bad_request(format!("container {container:?} in pod {pod:?} is waiting to start: {why}"))
    }

    /// The id of the running container.
    fn running(&self, target: &Target) -> Result<String> {
        let status = self.status(target)?;
        let id = status.container_id.as_deref().and_then(|id| id.strip_prefix("amphipod://"));
        match (id, status.state.as_ref().is_some_and(|s| s.running.is_some())) {
            (Some(id), true) => Ok(id.to_owned()),
            _ => Err(Status::internal(format!(
                "unable to upgrade connection: container not found ({:?})",
                target.container
            ))),
        }
    }

    fn carry(session: Session) -> node_access::Session {
        let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(4);
        let mut control = session.control;
        let exit = async move {
            loop {
                // A size that comes while the command runs is set at once; the end of the sizes is no end of the command.
                tokio::select! {
                    biased;
                    Some((columns, rows)) = sizes.recv() => { let _ = control.resize(columns, rows); }
                    code = control.wait() => return code.map_err(|e| chain(&e)),
                }
            }
        };
        node_access::Session {
            stdin: session.stdin,
            stdout: Some(session.stdout),
            stderr: session.stderr,
            resize,
            exit: exit.boxed(),
        }
    }
}

//! Which node and container a stream is for, and in what it may be spoken.

use serde_json::Value;

use super::context::RequestContext;
use crate::apimachinery::node_access::{NodeAccess, Target};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, text};

/// The container that a request means, which must be one of the pod's.
pub(super) fn target(context: &RequestContext, pod: &Value) -> Result<Target> {
    let groups = ["spec.containers", "spec.initContainers", "spec.ephemeralContainers"];
    let names: Vec<&str> = groups.iter().flat_map(|g| list(pod, g)).map(|c| text(c, "name")).collect();
    let (asked, name) = (context.query.get("container"), &context.request.name);
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str().unwrap_or("");
    let container = match asked {
        // Whatever was added to prepare or to debug it.
        "" if list(pod, groups[0]).len() == 1 => names[0],
        "" if names.contains(&default) => default,
        "" => {
            return Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                names.join(" ")
            )));
        }
        asked if names.contains(&asked) => asked,
        asked => return Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
    };
    Ok(Target {
        namespace: context.request.namespace.clone(),
        pod: name.clone(),
        uid: text(pod, "metadata.uid").into(),
        container: container.into(),
    })
}

/// The node on which the pod is.
pub(super) fn node(context: &RequestContext, pod: &Value) -> Result<std::sync::Arc<dyn NodeAccess>> {
    match text(pod, "spec.nodeName") {
        "" => Err(Status::bad_request(format!("pod {} does not have a host assigned", context.request.name))),
        node => context.api.nodes.get(node),
    }
}

pub(super) fn none_of(protocols: &[&str]) -> Status {
    Status::bad_request(format!("the client offers none of the sub-protocols {protocols:?}"))
}

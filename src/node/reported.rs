//! What the API knows of a pod's containers.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// What the API knows of all containers of a pod, init and ephemeral ones included.
pub fn reported(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|s| {
        let lists = [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses];
        lists.into_iter().flat_map(|list| list.iter().flatten())
    })
}

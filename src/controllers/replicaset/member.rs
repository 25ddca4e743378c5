//! A pod of a ReplicaSet.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::base::object::Object;

/// A pod as plans look at it.
#[derive(Clone, Debug)]
pub struct Member {
    pub object: Arc<Object>,
    pub pod: Arc<Pod>,
}

/// How long a pod must be ready to count.
pub fn min_ready(seconds: Option<i32>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(0).max(0) as u64)
}

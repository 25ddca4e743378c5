//! Fields that belong to features which Kubernetes does not enable by default: they are dropped, as if nobody had sent them.

use serde_json::Value;

use crate::base::json::{list_mut, object};

/// Drops them from a spec.
pub fn drop_disabled(spec: &mut Value) {
    for group in ["initContainers", "containers"] {
        for container in list_mut(spec, group).into_iter().flatten() {
            drop_stop_signal(container);
        }
    }
    for volume in list_mut(spec, "volumes").into_iter().flatten() {
        for source in list_mut(volume, "projected.sources").into_iter().flatten() {
            object(source).remove("clusterTrustBundle");
        }
    }
}

fn drop_stop_signal(container: &mut Value) {
    let container = object(container);
    let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) else { return };
    if lifecycle.remove("stopSignal").is_some() && lifecycle.is_empty() {
        container.remove("lifecycle");
    }
}

//! pods/binding: the one way for a scheduler to give a pod a node.

use serde_json::Value;

use crate::api::admission::Review;
use crate::api::write::Change;
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, list, map, map_mut, remove, set, text};
use crate::kinds::core::pod;
use crate::kinds::field;

impl Api {
    /// Binds the named pod to the binding's target node.
    pub async fn bind(&self, request: &Request, binding: &Value) -> Result<()> {
        let kind = &pod::KIND;
        let node = text(binding, "target.name").to_owned();
        let mut errors = Vec::new();
        if node.is_empty() {
            errors.push(field::required("target.name", ""));
        }
        let target_kind = text(binding, "target.kind");
        if !target_kind.is_empty() && target_kind != "Node" {
            errors.push(field::not_supported("target.kind", target_kind, &["Node", "<empty>"]));
        }
        if !errors.is_empty() {
            let mut status = Status::invalid(kind, &request.name, &errors);
            status.details.kind = "Binding".into();
            return Err(status);
        }
        let uid = text(binding, "metadata.uid").to_owned();
        let annotations = map(binding, "metadata.annotations").cloned();
        let topology = self.topology(binding, &node);
        let now = self.clock.now_text();
        let refuse = |why: String| {
            let mut status = Status::conflict(kind, &request.name, why);
            status.details.kind = "pods/binding".into();
            Err(status)
        };
        let named = text(binding, "metadata.name");
        if !named.is_empty() && named != request.name {
            return Err(Status::bad_request("name in URL does not match name in Binding object"));
        }
        let request =
            &Request { kind: kind.clone(), subresource: Some(crate::kinds::Subresource::Binding), ..request.clone() };
        let (review, mut admitted) = (Review::create(self, request), binding.clone());
        review.mutate(&mut admitted).await?;
        review.validate(&admitted).await?;
        let mut bind = |live: &Value| {
            if !uid.is_empty() && text(live, "metadata.uid") != uid {
                let actual = text(live, "metadata.uid");
                return Err(Status::conflict(
                    kind,
                    &request.name,
                    format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}"),
                ));
            }
            if at(live, "metadata.deletionTimestamp").is_some() {
                return refuse(format!("pod {} is being deleted, cannot be assigned to a host", request.name));
            }
            if !text(live, "spec.nodeName").is_empty() {
                return refuse(format!(
                    "pod {} is already assigned to node {:?}",
                    request.name,
                    text(live, "spec.nodeName")
                ));
            }
            if !list(live, "spec.schedulingGates").is_empty() {
                return refuse(format!("pod {} has non-empty .spec.schedulingGates", request.name));
            }
            let mut new = live.clone();
            set(&mut new, "spec.nodeName", node.as_str());
            for (k, v) in annotations.iter().flatten() {
                map_mut(&mut new, "metadata.annotations").insert(k.clone(), v.clone());
            }
            for (k, v) in &topology {
                map_mut(&mut new, "metadata.labels").entry(k.clone()).or_insert_with(|| v.clone());
            }
            scheduled(&mut new, &now);
            // What was nominated has been decided.
            remove(&mut new, "status.nominatedNodeName");
            Ok(new)
        };
        self.update(request, Change::Patch(&mut bind)).await?;
        Ok(())
    }
}

impl Api {
    /// The labels that tell a pod where its node is (PodTopologyLabels, on since Kubernetes 1.35).
    /// The node's own labels count before those that the binding brings.
    fn topology(&self, binding: &Value, node: &str) -> Vec<(String, Value)> {
        let kind = &crate::kinds::core::node::KIND;
        let node = self.cache.kind(kind).get(&kind.key("", node));
        let of_node = |label: &str| Some(Value::from(&**node.as_ref()?.meta.labels.get(label)?));
        let given = |label: &str| binding["metadata"]["labels"].get(label).cloned();
        let labels = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];
        labels.iter().filter_map(|l| Some(((*l).to_owned(), of_node(l).or_else(|| given(l))?))).collect()
    }
}

/// Sets the PodScheduled condition.
fn scheduled(pod: &mut Value, now: &str) {
    let conditions = map_mut(pod, "status").entry("conditions").or_insert_with(|| Value::Array(Vec::new()));
    let Some(conditions) = conditions.as_array_mut() else { return };
    conditions.retain(|c| text(c, "type") != "PodScheduled");
    let condition = serde_json::json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    conditions.push(condition);
}

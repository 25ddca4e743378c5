//! Nodes that have a pod's images already are better: the larger these are, and the more nodes have them, so that not all
//! pods of one image go to the first node that has it.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{ByNode, Cycle, Normal, Plugin, Rating, SCORE_MAX};
use crate::scheduler::snapshot::NodeView;

/// The plugin.
#[derive(Debug)]
pub struct ImageLocality;

const MB: i64 = 1 << 20;
/// What is pulled as fast as it is started, and, for each container, what is as good as pulled never.
const SIZE_MIN: i64 = 23 * MB;
const SIZE_MAX_PER_CONTAINER: i64 = 1000 * MB;

/// The images of all containers, as nodes name them.
fn images(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let name = |container: &Container| {
        let name = container.image.as_deref().unwrap_or("");
        let has_tag = name.rfind(':') > name.rfind('/') || name.contains('@');
        if has_tag { name.to_owned() } else { format!("{name}:latest") }
    };
    containers.map(name).collect()
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let all = i64::try_from(cycle.snapshot.nodes.len()).unwrap_or(i64::MAX).max(1);
        let images = images(&cycle.pod.pod);
        let most = SIZE_MAX_PER_CONTAINER * i64::try_from(images.len()).unwrap_or(1).max(1);
        let spread = |image: &String| cycle.snapshot.nodes_with(image) as f64 / all as f64;
        // An image that no node has says nothing.
        let known: Vec<(String, f64)> =
            images.into_iter().map(|i| (spread(&i), i)).filter(|(s, _)| *s > 0.0).map(|(s, i)| (i, s)).collect();
        if known.is_empty() {
            return None;
        }
        #[allow(clippy::cast_possible_truncation)] // As it is rounded in Kubernetes.
        let score = move |node: &NodeView| {
            let sum: i64 = known
                .iter()
                .filter_map(|(image, spread)| Some((*node.images.get(image.as_str())? as f64 * spread) as i64))
                .sum();
            SCORE_MAX * (sum.clamp(SIZE_MIN, most) - SIZE_MIN) / (most - SIZE_MIN)
        };
        Some(Box::new(ByNode { score, normal: Normal::Absolute }))
    }
}

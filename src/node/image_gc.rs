//! Keeps the disk from filling up with images: looks when something came or went, and every five minutes.
//!
//! What people are told is what the kubelet tells, and as rarely: only the look at the clock says that it did not help.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Node;
use crate::containers::image::{Collected, Policy};
use crate::kinds::core::node;
use crate::reconcile::EventType;

/// How often the disk is looked at although nothing was heard (`ImageGCPeriod`).
const PERIOD: Duration = Duration::from_secs(300);
/// Whatever comes and goes in this time is looked at once.
const GATHER: Duration = Duration::from_secs(1);

/// Removes images by the policy until aborted.
pub async fn run(node: Arc<Node>, policy: Policy) {
    if policy.high_percent >= 100 {
        return;
    }
    let (mut came, mut released) = (node.images.came(), node.images.released());
    let mut due = Instant::now() + PERIOD;
    let mut failed_before = false;
    loop {
        let heard = tokio::select! {
            biased;
            () = sleep_until(due) => false,
            Ok(()) = came.changed() => true,
            Ok(()) = released.changed() => true,
            else => return,
        };
        if heard {
            tokio::time::sleep(GATHER).await;
        } else {
            due = Instant::now() + PERIOD;
        }
        came.mark_unchanged();
        released.mark_unchanged();
        let outcome = node.images.collect_garbage(&policy).await.map_err(|e| e.to_string());
        if let Ok(collected) = &outcome
            && !collected.removed.is_empty()
        {
            let (freed_bytes, removed) = (collected.freed_bytes, collected.removed.join(", "));
            tracing::info!(freed_bytes, removed, "images that nobody uses were removed: the disk was nearly full");
        }
        let failure = match outcome {
            Ok(collected) => complaint(&collected).map(|why| ("FreeDiskSpaceFailed", why)),
            Err(why) => Some(("", why)),
        };
        if heard {
            continue;
        }
        if let Some((reason, why)) = &failure {
            tracing::warn!(why, "there is no room for images");
            // A failure once may pass by itself.
            let again = failed_before.then_some("ImageGCFailed");
            for reason in [Some(*reason).filter(|r| !r.is_empty()), again].into_iter().flatten() {
                say(&node, reason, why);
            }
        }
        failed_before = failure.is_some();
    }
}

/// What to say when too little could be freed, in Kubernetes' words.
fn complaint(collected: &Collected) -> Option<String> {
    let too_little = !collected.postponed && collected.freed_bytes < collected.wanted_bytes;
    too_little.then(|| {
        format!(
            "Insufficient free disk space on the node's image filesystem ({}% of {} used). Failed to free sufficient space \
             by deleting unused images (freed {} bytes). Investigate disk usage, as it could be used by active images, \
             logs, volumes, or other data.",
            collected.space.used_percent(),
            readable(collected.space.capacity_bytes),
            collected.freed_bytes
        )
    })
}

/// `26.4 GiB`
fn readable(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut amount = bytes as f64;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", units[unit]) }
}

fn say(of: &Node, reason: &str, why: &str) {
    if let Some(object) = of.client.informer(&node::KIND).get("", &of.config.name) {
        of.recorder.event(&node::KIND, &object, EventType::Warning, reason, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs_stats::FsStats;

    #[test]
    fn too_little_room_is_said_as_kubernetes_says_it() {
        let space = FsStats { capacity_bytes: 10 << 30, available_bytes: 1 << 30, ..FsStats::default() };
        let mut collected = Collected { space, wanted_bytes: 1 << 30, freed_bytes: 7, ..Collected::default() };
        let said = complaint(&collected).unwrap();
        assert!(said.contains("image filesystem (90% of 10.0 GiB used)") && said.contains("(freed 7 bytes)"), "{said}");
        collected.postponed = true;
        assert_eq!(complaint(&collected), None, "it is looked at again after the pull");
        assert_eq!(complaint(&Collected { freed_bytes: 1 << 30, postponed: false, ..collected }), None);
        assert_eq!([512, 2048, 28_345_769_984].map(readable), ["512 B", "2.0 KiB", "26.4 GiB"]);
    }
}

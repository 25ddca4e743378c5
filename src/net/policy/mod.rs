//! Layer 5: keeps the kernel's rules equal to the cluster's network policies, as far as they are about pods of this node.
//!
//! Policies, slices with the addresses of those whom rules name, and the node's own pods come from informers; a few milliseconds are
//! waited for more changes, everything is planned anew, and the difference is written in one batch. Where there are no policies,
//! nothing is planned and no rule is there.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

pub use self::plan::plan;
use super::nft::Policies;
use super::nft::policies::PolicyTable;
use crate::base::error::chain;
use crate::base::task;
use crate::kinds::core::pod;
use crate::kinds::discovery::endpointslice;
use crate::kinds::networking::networkpolicy;
use crate::reconcile::{Changes, Client, Informer};

/// How long changes are gathered.
const BATCH: Duration = Duration::from_millis(3);
/// Waits after failures: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How often the kernel is looked at although nothing changed, so that rules that others flushed come back.
const RESYNC: Duration = Duration::from_secs(60);

/// Keeps the rules for the pods of `node`. Aborting the handle stops it; the rules stay.
pub fn start(client: Arc<dyn Client>, rules: Policies, node: &str) -> JoinHandle<Option<()>> {
    let [policies, pods, slices] =
        [&networkpolicy::KIND, &pod::KIND, &endpointslice::KIND].map(|kind| client.informer(kind));
    let watches = Watches { changes: policies.subscribe(), policies, others: [pods, slices], other_changes: None };
    task::spawn("network policies", watches.run(rules, node.to_owned()))
}

struct Watches {
    policies: Informer,
    changes: Box<dyn Changes>,
    /// Pods and slices.
    others: [Informer; 2],
    /// Where there are policies.
    other_changes: Option<[Box<dyn Changes>; 2]>,
}

// === impl Watches ===

impl Watches {
    async fn run(mut self, rules: Policies, node: String) {
        // An older server has no policies: this waits for ever.
        self.policies.synced().await;
        for informer in &self.others {
            informer.synced().await;
        }
        let mut retry = RETRY.0;
        loop {
            let pause = match rules.apply(&self.table(&node)).await {
                Ok(_) => {
                    retry = RETRY.0;
                    RESYNC
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "network policies cannot be applied; it is tried again");
                    let wait = retry;
                    retry = (retry * 2).min(RETRY.1);
                    wait
                }
            };
            if self.changed(Instant::now() + pause).await {
                let end = Instant::now() + BATCH;
                while self.changed(end).await {}
            }
        }
    }

    fn table(&mut self, node: &str) -> PolicyTable {
        let policies = self.policies.list("");
        if policies.is_empty() {
            self.other_changes = None;
            return PolicyTable::default();
        }
        // Before they are listed, so that no change is missed.
        self.other_changes.get_or_insert_with(|| self.others.each_ref().map(|informer| informer.subscribe()));
        let [pods, slices] = self.others.each_ref().map(|informer| informer.list(""));
        plan(&policies, &pods, &slices, node)
    }

    /// Whether anything has changed before that.
    async fn changed(&mut self, end: Instant) -> bool {
        let others = async {
            match &mut self.other_changes {
                Some([pods, slices]) => drop(tokio::select! { c = pods.next() => c, c = slices.next() => c }),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // First, so that a stream of changes cannot put an apply off for ever.
            () = sleep_until(end) => false,
            _ = self.changes.next() => true,
            () = others => true,
        }
    }
}

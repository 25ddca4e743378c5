//! A pod network of its own for every node, cut from the cluster's.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use serde_json::json;

use super::{Context, absent_is_fine};
use crate::apimachinery::status::Result;
use crate::base::json::{list, text};
use crate::kinds::core::node;
use crate::reconcile::{Changed, Controller, Key, Outcome, Patch, Reconciler};

/// The prefix lengths of nodes' networks.
const NODE_V4: u8 = 24;
const NODE_V6: u8 = 64;

struct Cidrs(Arc<Context>);

/// The controller; all nodes have one key, so that no network is given twice.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let new = |c: &Changed| match !c.deleted && c.previous.is_none() {
        true => vec![Key::new("", "all")],
        false => Vec::new(),
    };
    Controller::new("node-cidr", Arc::new(Cidrs(cx.clone())), cx.clock.clone())
        .watches(&*cx.client, &node::KIND, Box::new(new))
        .workers(1)
}

#[async_trait]
impl Reconciler for Cidrs {
    async fn reconcile(&self, _key: &Key) -> Result<Outcome> {
        if self.0.options.cluster_cidrs.is_empty() {
            return Ok(Outcome::Done);
        }
        let (mut taken, mut without) = (BTreeSet::new(), Vec::new());
        for object in self.0.client.informer(&node::KIND).list("") {
            let value = object.value();
            let mut own: Vec<IpNet> =
                list(&value, "spec.podCIDRs").iter().filter_map(|c| c.as_str()?.parse().ok()).collect();
            own.extend(text(&value, "spec.podCIDR").parse::<IpNet>().ok());
            if own.is_empty() {
                without.push(object);
            }
            taken.extend(own);
        }
        for object in without {
            let Some(cidrs) = choose(&self.0.options.cluster_cidrs, &taken) else {
                tracing::error!(node = %object.meta.name, "no pod network is left: choose a larger --cluster-cidr");
                continue;
            };
            let texts: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
            taken.extend(cidrs);
            let metadata = json!({"uid": &*object.meta.uid});
            let patch = Patch::Merge(json!({"metadata": metadata, "spec": {"podCIDR": texts[0], "podCIDRs": texts}}));
            absent_is_fine(self.0.client.patch(&node::KIND, "", &object.meta.name, None, patch).await)?;
        }
        Ok(Outcome::Done)
    }
}

/// The first free network of each family; `None` when one has no more.
fn choose(clusters: &[IpNet], taken: &BTreeSet<IpNet>) -> Option<Vec<IpNet>> {
    let overlaps = |n: &IpNet| taken.contains(n) || taken.iter().any(|t| t.contains(n) || n.contains(t));
    let first = |cluster: &IpNet| {
        let length = if cluster.addr().is_ipv4() { NODE_V4 } else { NODE_V6 };
        cluster.subnets(length.max(cluster.prefix_len())).ok()?.find(|n| !overlaps(n))
    };
    clusters.iter().map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_given_once_and_end() {
        let clusters: Vec<IpNet> = vec!["10.1.0.0/23".parse().unwrap(), "fd00::/56".parse().unwrap()];
        let mut taken: BTreeSet<IpNet> = ["10.1.0.0/25".parse().unwrap()].into();
        let first = choose(&clusters, &taken).unwrap();
        assert_eq!(first.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.1.0/24", "fd00::/64"]);
        taken.extend(first);
        assert_eq!(choose(&clusters, &taken), None);
    }
}

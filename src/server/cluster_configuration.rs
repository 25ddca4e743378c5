//! What the first start of a server decides for its cluster (kubeadm's ClusterConfiguration): the ranges and DNS names that its
//! objects and pods carry since.
//!
//! Services have addresses of the Service range, nodes and pods those of the pod range, and what runs resolves by the DNS
//! address and domain that it was started with. With another value a cluster is half of one kind and half of the other, so such
//! a start is refused before it serves anything. Invariant: a start that failed before there was a database decides nothing.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::api::cache::Cache;
use crate::api::identity::join::Cluster;
use crate::base::file::{read, write_atomically};
use crate::base::json::{list, text};
use crate::kinds::core::{node, service};

/// The file's name in the server's directory; it is part of every snapshot.
pub(super) const FILE: &str = "cluster.json";
/// Far more than some ranges take.
const BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterConfiguration {
    cluster_cidrs: Vec<IpNet>,
    service_cidrs: Vec<IpNet>,
    cluster_dns: IpAddr,
    cluster_domain: String,
}

// === impl ClusterConfiguration ===

impl ClusterConfiguration {
    pub(super) fn of(cluster: &Cluster) -> Self {
        Self {
            cluster_cidrs: cluster.cluster_cidrs.clone(),
            service_cidrs: cluster.service_cidrs.clone(),
            cluster_dns: cluster.cluster_dns,
            cluster_domain: cluster.cluster_domain.clone(),
        }
    }

    /// Refuses flags that say something else than the first start of what is in `server`; keeps what they say where it is the
    /// first one. A directory of a version that kept nothing is judged by its objects.
    pub(super) fn agree(&self, server: &Path, cache: &Cache) -> Result<()> {
        let path = server.join(FILE);
        match read(&path, BYTES_MAX) {
            Ok(bytes) => {
                let kept: Self = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is damaged: restore it, or remove it", path.display()))?;
                return kept.must_be(self);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        }
        self.holds_objects(cache)?;
        let bytes = serde_json::to_vec_pretty(self)?;
        write_atomically(&path, &bytes, 0o600).with_context(|| format!("{} cannot be written", path.display()))
    }

    fn must_be(&self, now: &Self) -> Result<()> {
        let shown = |all: &[IpNet]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let flags = [
            ("service-cidr", shown(&self.service_cidrs), shown(&now.service_cidrs)),
            ("cluster-cidr", shown(&self.cluster_cidrs), shown(&now.cluster_cidrs)),
            ("cluster-dns", self.cluster_dns.to_string(), now.cluster_dns.to_string()),
            ("cluster-domain", self.cluster_domain.clone(), now.cluster_domain.clone()),
        ];
        match flags.into_iter().find(|(_, old, new)| old != new) {
            None => Ok(()),
            Some((flag, old, new)) => bail!(
                "--{flag}: the cluster in this data directory was made with {old}, which cannot become {new}: \
                 start it with --{flag} {old}, or make a new cluster with another --data-dir"
            ),
        }
    }

    /// Whether what is there already is inside of the ranges.
    fn holds_objects(&self, cache: &Cache) -> Result<()> {
        let refuse = |flag: &str, ranges: &[IpNet], what: String| {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            bail!(
                "--{flag}: {what} of the cluster in this data directory is not inside of {}: start it with the range that it \
                 was made with, or make a new cluster with another --data-dir",
                ranges.join(",")
            )
        };
        let api = cache.kind(&service::KIND).get(&service::KIND.key("default", "kubernetes"));
        if let Some(api) = api
            && let Ok(address) = text(&api.value(), "spec.clusterIP").parse::<IpAddr>()
            && !self.service_cidrs.iter().any(|range| range.contains(&address))
        {
            refuse("service-cidr", &self.service_cidrs, format!("the address {address} of the Service kubernetes"))?;
        }
        for object in cache.kind(&node::KIND).list(&node::KIND.prefix(), "") {
            let value = object.value();
            let ranges = list(&value, "spec.podCIDRs").iter().filter_map(|c| c.as_str()?.parse::<IpNet>().ok());
            if let Some(other) = ranges.into_iter().find(|r| !self.cluster_cidrs.iter().any(|range| range.contains(r)))
            {
                refuse(
                    "cluster-cidr",
                    &self.cluster_cidrs,
                    format!("the range {other} of the node {}", object.meta.name),
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::reconcile::Client as _;

    #[tokio::test]
    async fn what_the_first_start_said_holds_and_older_directories_are_judged_by_their_objects() {
        let directory = tempfile::tempdir().unwrap();
        let api = in_memory::api();
        let first = ClusterConfiguration::of(&Cluster::sample());
        first.agree(directory.path(), &api.cache).unwrap();
        first.agree(directory.path(), &api.cache).unwrap();
        let said =
            |other: &ClusterConfiguration| format!("{:#}", other.agree(directory.path(), &api.cache).unwrap_err());
        let dns = ClusterConfiguration { cluster_dns: "10.43.0.11".parse().unwrap(), ..first.clone() };
        let hint = "or make a new cluster with another --data-dir";
        assert_eq!(
            said(&dns),
            format!(
                "--cluster-dns: the cluster in this data directory was made with 10.43.0.10, which cannot become 10.43.0.11: \
                 start it with --cluster-dns 10.43.0.10, {hint}"
            )
        );
        let domain = ClusterConfiguration { cluster_domain: "b".into(), ..first.clone() };
        assert!(said(&domain).starts_with("--cluster-domain: ") && said(&domain).contains("cluster.local, which"));
        let pods = ClusterConfiguration { cluster_cidrs: vec!["10.50.0.0/16".parse().unwrap()], ..first.clone() };
        assert!(said(&pods).contains("made with 10.42.0.0/16, which cannot become 10.50.0.0/16"), "{}", said(&pods));
        // Both differ with a new Service range; the range is the cause.
        let services = ClusterConfiguration { service_cidrs: vec!["10.51.0.0/16".parse().unwrap()], ..dns };
        assert!(said(&services).starts_with("--service-cidr: "), "{}", said(&services));

        std::fs::remove_file(directory.path().join(FILE)).unwrap();
        let client = Local::new(api.clone(), "test");
        let object =
            json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.42.3.0/24", "podCIDRs": ["10.42.3.0/24"]}});
        client.create(&node::KIND, "", object).await.unwrap();
        assert!(said(&pods).contains("the range 10.42.3.0/24 of the node n"), "{}", said(&pods));
        assert!(!directory.path().join(FILE).exists(), "a refused start decides nothing");
        first.agree(directory.path(), &api.cache).unwrap();
    }
}

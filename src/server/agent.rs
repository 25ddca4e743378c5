//! The node half of a server: runtime, images, network, service proxy, DNS, and the pods on top of them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::identity::join::Cluster;
use crate::base::clock::Clock;
use crate::base::error::chain;
use crate::base::labels::{label_key_error, label_value_error};
use crate::base::task;
use crate::containers;
use crate::containers::Runtime as _;
use crate::containers::image::{ImageStore, Policy, Registries};
use crate::containers::runtime::ShimRuntime;
use crate::dns;
use crate::net::nft::policies::PolicyTable;
use crate::net::nft::{NftDataplane, Policies};
use crate::net::overlay::{self, Backend, Overlay, WireGuard};
use crate::net::pod::KernelPodNetwork;
use crate::net::{self, DnsRedirect, peers, policy, proxy};
use crate::node::capacity;
use crate::node::{self, Node, access::Access, heartbeat};
use crate::node_paths::{NodePaths, Ranges};
use crate::reconcile::{Client, Recorder};
use crate::wire::images::Peers;

/// Where the node's DNS listens on the gateway address; the data plane leads port 53 of the cluster DNS here.
const DNS_PORT: u16 = 1053;
/// How long a machine that cannot be a node tries to say so.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// What a node is told by its user, and by its cluster.
#[derive(Clone, Debug)]
pub struct Config {
    pub place: NodePaths,
    pub config_dir: PathBuf,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub external_addresses: Vec<IpAddr>,
    /// Labels of the node beside those that every node has.
    pub labels: Vec<(String, String)>,
    /// Taints that the node registers with.
    pub taints: Vec<Taint>,
    /// Where the node's own endpoints listen; 0 for nowhere.
    pub kubelet_port: u16,
    /// Kernel parameters beyond the safe ones that pods may set.
    pub unsafe_sysctls: Vec<String>,
    pub cluster: Cluster,
    /// Where the node reaches the API.
    pub api: Vec<SocketAddr>,
    /// The port of the API on this machine.
    pub api_port: Option<u16>,
    /// No registry may be asked.
    pub offline: bool,
    /// Stands in for docker.io.
    pub default_registry: Option<String>,
    /// When images go that nobody uses.
    pub image_gc: Policy,
}

/// A taint as `key=value:effect` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

/// What the node keeps running; dropping it stops the tasks, not the pods.
pub struct Agent {
    tasks: Vec<JoinHandle<Option<()>>>,
    _dns: Option<dns::Listening>,
}

impl Agent {
    /// Keeps one more task running as long as the node.
    pub fn keep(&mut self, task: JoinHandle<Option<()>>) {
        self.tasks.push(task);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Starts the node. Returns when what earlier processes left running is taken over, with the way to its pods.
pub async fn start(
    config: &Config,
    client: Arc<dyn Client>,
    clock: &Clock,
    ca: &[u8],
    peers: Arc<dyn Peers>,
) -> Result<(Agent, Arc<Access>)> {
    let place = &config.place;
    let cluster = &config.cluster;
    let dirs = place.containers();
    let images = Arc::new(ImageStore::open(&dirs, registries(config)?).context("the image store cannot be opened")?);
    images.set_peers(peers);
    let taking_in = images.take_in().context("image archives cannot be taken in")?;
    let watching = images.watch().context("the image store cannot be watched")?;
    let runtime = Arc::new(ShimRuntime::open(dirs.clone()).await.context("the container runtime cannot be started")?);
    let address = config.addresses.first().copied().context("the node has no address")?;
    let mtu = overlay::mtu(cluster.overlay, address).context("the network cannot be looked at")?;
    let wireguard = match wireguard(config, mtu, clock).await {
        Err(error) => return Err(without_network(&client, config, clock, error).await),
        opened => opened?,
    };
    let key = wireguard.as_ref().map(|w| (crate::kinds::core::node::OVERLAY_KEY.to_owned(), w.public().to_string()));
    let node_config = node_config(config, &dirs, key);
    let ranges = register(&*client, &node_config, cluster).await?;
    let is_first = place.recorded().is_ok_and(|record| record.is_none()) && runtime.list().await.is_empty();
    place.record(&ranges).context("the run directory cannot be written")?;
    let net = net_config(config, &ranges, mtu);
    let options =
        overlay::Options { backend: cluster.overlay, direct_routing: cluster.overlay_direct_routing, address };
    let opened = {
        let net = net.clone();
        task::blocking(move || open_network(net, options, wireguard)).await?
    };
    let (network, overlay) = match opened {
        Err(error) => {
            let error = without_network(&client, config, clock, error).await;
            if is_first {
                // No pod has used any of it.
                leave_nothing(place, net).await;
            }
            return Err(error);
        }
        Ok(opened) => opened,
    };
    let host_ports = watch::Sender::new(Vec::new());
    let (unpublished, told) = watch::channel(Vec::new());
    let mut agent = Agent { tasks: vec![taking_in, watching], _dns: None };
    agent.tasks.push(peers::start(client.clone(), Arc::new(overlay), &config.name, clock.clone()));
    let listening = if cluster.dns { Some(start_dns(cluster, &client, &net).await?) } else { None };
    if cluster.service_proxy {
        let dataplane = Arc::new(NftDataplane::open(net.clone()).context("nftables cannot be used")?);
        let dns = listening.as_ref().map(|l| redirect(cluster, l));
        let (node_name, host_ports) = (config.name.clone(), host_ports.subscribe());
        let options = proxy::Options { node_name, dns, host_ports, unpublished };
        agent.tasks.push(proxy::start(client.clone(), dataplane, options));
    }
    agent.tasks.extend(hold_policies(config, &client, &net).await?);
    agent._dns = listening;
    let recorder = Recorder::new(client.clone(), clock.clone(), "kubelet", &config.name);
    let node = Arc::new(Node {
        capacity: capacity::Capacity::read(&dirs.data_dir),
        config: node_config,
        client,
        runtime,
        images,
        network: Arc::new(network),
        clock: clock.clone(),
        recorder,
        host_ports,
        unpublished: told,
        probe_results: node::probe_results::Results::default(),
        ca: ca.to_vec(),
    });
    let (ready, mut adopted) = watch::channel(false);
    agent.tasks.push(task::spawn("pods", node::pods::run(node.clone(), ready)));
    let _ = adopted.wait_for(|r| *r).await;
    agent.tasks.push(task::spawn("image gc", node::image_gc::run(node.clone(), config.image_gc)));
    agent.tasks.push(task::spawn("heartbeat", heartbeat::run(node.clone())));
    Ok((agent, Arc::new(Access::new(node))))
}

/// Holds network policies, or removes what an earlier start has held of them.
async fn hold_policies(
    config: &Config,
    client: &Arc<dyn Client>,
    net: &net::Config,
) -> Result<Option<JoinHandle<Option<()>>>> {
    let rules = Policies::open(net.clone()).context("nftables cannot be used")?;
    if config.cluster.network_policy {
        return Ok(Some(policy::start(client.clone(), rules, &config.name)));
    }
    rules.apply(&PolicyTable::default()).await.context("rules of network policies cannot be removed")?;
    Ok(None)
}

/// Registers the node, and says where its pods, all pods and all Services are.
async fn register(client: &dyn Client, node: &node::Config, cluster: &Cluster) -> Result<Ranges> {
    let cidrs = heartbeat::register(client, node).await.context("the node cannot be registered")?;
    let pods = cidrs.iter().map(|c| c.parse()).collect::<Result<Vec<_>, _>>().context("the node's pod range")?;
    Ok(Ranges { pods, cluster: cluster.cluster_cidrs.clone(), services: cluster.service_cidrs.clone() })
}

/// What `registries.yaml` says, and the flags.
fn registries(config: &Config) -> Result<Registries> {
    Ok(Registries {
        offline: config.offline,
        default_registry: config.default_registry.clone(),
        ..Registries::load(&config.config_dir.join("registries.yaml")).context("registries.yaml")?
    })
}

/// What the node knows of itself; `key` is for the annotation of the encrypted tunnel.
fn node_config(config: &Config, dirs: &containers::Config, key: Option<(String, String)>) -> node::Config {
    let (place, cluster) = (&config.place, &config.cluster);
    node::Config {
        name: config.name.clone(),
        addresses: config.addresses.clone(),
        external_addresses: config.external_addresses.clone(),
        labels: config.labels.clone(),
        annotations: key.into_iter().collect(),
        taints: config.taints.iter().map(Taint::to_json).collect(),
        kubelet_port: config.kubelet_port,
        grace: cluster.node_grace(),
        data_dir: dirs.data_dir.clone(),
        run_dir: place.run_dir.clone(),
        log_dir: place.log_dir(),
        cgroup_root: dirs.cgroup_root.clone(),
        cluster_dns: if cluster.dns { vec![cluster.cluster_dns] } else { Vec::new() },
        cluster_domain: cluster.cluster_domain.clone(),
        default_registry: config.default_registry.clone(),
        unsafe_sysctls: config.unsafe_sysctls.clone(),
    }
}

/// What the node's network is made of.
fn net_config(config: &Config, ranges: &Ranges, mtu: u32) -> net::Config {
    let cluster = &config.cluster;
    net::Config {
        mtu,
        addresses: [&config.addresses[..], &config.external_addresses[..]].concat(),
        tunnel: cluster.overlay.has_vxlan(),
        routed_peers: matches!(cluster.overlay, Backend::HostGw | Backend::None) || cluster.overlay_direct_routing,
        dns_port: cluster.dns.then_some(DNS_PORT),
        block_metadata: cluster.block_metadata,
        api: config.api.clone(),
        api_port: config.api_port,
        kubelet_port: Some(config.kubelet_port).filter(|port| *port != 0),
        ..config.place.network(ranges)
    }
}

/// The network of pods, and the way to those of other nodes.
fn open_network(
    net: net::Config,
    options: overlay::Options,
    wireguard: Option<WireGuard>,
) -> Result<(KernelPodNetwork, Overlay)> {
    let network = KernelPodNetwork::open(net.clone()).context("the pod network cannot be set up")?;
    let overlay = Overlay::open(net, options, network.guard(), wireguard).context("the overlay cannot be set up")?;
    Ok((network, overlay))
}

/// Says in the API that the machine cannot be a node because of its network, and gives the reason back.
async fn without_network(
    client: &Arc<dyn Client>,
    config: &Config,
    clock: &Clock,
    error: anyhow::Error,
) -> anyhow::Error {
    let (why, now) = (format!("{error:#}"), clock.now_text());
    let recorder = Recorder::new(client.clone(), clock.clone(), "kubelet", &config.name);
    let said = heartbeat::report_no_network(&**client, &recorder, &config.name, &why, &now);
    match tokio::time::timeout(REPORT_PATIENCE, said).await {
        Ok(Ok(())) => {}
        // It has no Node yet, so nobody waits for it.
        Ok(Err(status)) if status.code == 404 => {}
        Ok(Err(status)) => tracing::warn!(%status, "the Node does not show why it has no network"),
        Err(_) => tracing::warn!("the Node does not show why it has no network: the server did not answer in time"),
    }
    error
}

/// Removes what a start has made on the machine that cannot be completed.
async fn leave_nothing(place: &NodePaths, net: net::Config) {
    let containers = place.containers();
    let removed = task::blocking(move || {
        let network = net::destroy(&net).map_err(|error| chain(&error));
        network.and(crate::containers::destroy_all(&containers).map_err(|error| chain(&error)))
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(error, "not everything of this node could be removed: see amphipod killall");
    }
    if let Err(error) = place.forget() {
        tracing::warn!(%error, "the record in the run directory could not be removed");
    }
}

/// The encrypted tunnel's link, where it may be used. Before the node is known, so that it comes with its key.
async fn wireguard(config: &Config, mtu: u32, clock: &Clock) -> Result<Option<WireGuard>> {
    let backend = config.cluster.overlay;
    if !backend.has_wireguard() {
        return Ok(None);
    }
    let net = net::Config { mtu, ..config.place.network(&Ranges::default()) };
    let (directory, now) = (config.place.data_dir.join("network"), clock.now());
    match task::blocking(move || WireGuard::open(&net, &directory, now)).await? {
        Ok(wireguard) => Ok(Some(wireguard)),
        Err(error) if backend == Backend::Auto => {
            tracing::info!(error = chain(&error), "WireGuard cannot be used here; the overlay is VXLAN");
            Ok(None)
        }
        Err(error) => Err(error).context("--overlay wireguard"),
    }
}

/// Leads what is asked of the cluster DNS' address to its listeners.
fn redirect(config: &Cluster, listening: &dns::Listening) -> DnsRedirect {
    DnsRedirect { cluster_ips: vec![config.cluster_dns], listeners: listening.addresses().to_vec() }
}

async fn start_dns(config: &Cluster, client: &Arc<dyn Client>, net: &net::Config) -> Result<dns::Listening> {
    let listeners: Vec<SocketAddr> = net.gateways().into_iter().map(|g| SocketAddr::new(g, DNS_PORT)).collect();
    let zone = dns::Zone::new(&config.cluster_domain, vec![config.cluster_dns])
        .map_err(|e| anyhow::anyhow!("--cluster-domain: {e}"))?;
    let mut own = listeners.clone();
    own.push(SocketAddr::new(config.cluster_dns, 53));
    let forwarder = dns::Forwarder::new(dns::Upstreams::resolv_conf("/etc/resolv.conf", own));
    let records = dns::Informed::new(&**client);
    dns::Server::new(zone, records, forwarder).listen(&listeners).await.context("the cluster DNS cannot listen")
}

// === impl Taint ===

impl std::str::FromStr for Taint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected key=value:Effect or key:Effect");
        let (pair, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() {
            return Err(wrong());
        }
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            return Err(format!("{text:?}: the effect must be NoSchedule, PreferNoSchedule or NoExecute"));
        }
        if let Some(why) = label_key_error(key).or_else(|| label_value_error(value)) {
            return Err(format!("{text:?}: {why}"));
        }
        Ok(Self { key: key.into(), value: value.into(), effect: effect.into() })
    }
}

impl Taint {
    fn to_json(&self) -> serde_json::Value {
        let mut taint = serde_json::json!({"key": self.key, "effect": self.effect});
        if !self.value.is_empty() {
            taint["value"] = self.value.as_str().into();
        }
        taint
    }
}

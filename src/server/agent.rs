//! The node half of a server: runtime, images, network, service proxy, DNS, and the pods on top of them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Config;
use crate::api::Api;
use crate::base::clock::Clock;
use crate::base::task;
use crate::containers::image::{ImageStore, Registries};
use crate::containers::runtime::ShimRuntime;
use crate::dns;
use crate::net::nft::NftDataplane;
use crate::net::pod::KernelPodNetwork;
use crate::net::{self, DnsRedirect, proxy};
use crate::node::{self, Node, access::Access, heartbeat};
use crate::place::{Place, Ranges};
use crate::reconcile::{Client, Local, Recorder};

/// Where the node's DNS listens on the gateway address; the data plane leads port 53 of the cluster DNS here.
const DNS_PORT: u16 = 1053;

/// What the node keeps running; dropping it stops the tasks, not the pods.
pub struct Agent {
    tasks: Vec<JoinHandle<Option<()>>>,
    _dns: Option<dns::Listening>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Starts the node. Returns when what earlier processes left running is taken over.
pub async fn start(config: &Config, api: &Api, clock: &Clock, authority: &[u8]) -> Result<Agent> {
    let client: Arc<dyn Client> = Arc::new(Local::new(api.clone(), "kubelet"));
    let place = Place::new(&config.data_dir, &config.run_dir);
    let dirs = place.containers();
    let registries = Registries::load(&config.config_dir.join("registries.yaml")).context("registries.yaml")?;
    std::fs::create_dir_all(&dirs.data_dir).with_context(|| format!("{} cannot be made", dirs.data_dir.display()))?;
    let images = Arc::new(ImageStore::open(&dirs, registries).context("the image store cannot be opened")?);
    let runtime = Arc::new(ShimRuntime::open(dirs.clone()).await.context("the container runtime cannot be started")?);
    let node_config = node::Config {
        name: config.node_name.clone(),
        addresses: config.node_addresses.clone(),
        data_dir: dirs.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        log_dir: place.log_dir(),
        cluster_dns: if config.dns { vec![config.cluster_dns] } else { Vec::new() },
        cluster_domain: config.cluster_domain.clone(),
    };
    let cidrs = heartbeat::register(&*client, &node_config).await.context("the node cannot be registered")?;
    let cidrs = cidrs.iter().map(|c| c.parse()).collect::<Result<Vec<_>, _>>().context("the node's pod range")?;
    let ranges = Ranges { pods: cidrs, cluster: config.cluster_cidrs.clone(), services: config.service_cidrs.clone() };
    place.record(&ranges).context("the run directory cannot be written")?;
    let net = place.network(&ranges);
    let network = {
        let net = net.clone();
        tokio::task::spawn_blocking(move || KernelPodNetwork::open(net))
            .await?
            .context("the pod network cannot be set up")?
    };
    let host_ports = watch::Sender::new(Vec::new());
    let mut agent = Agent { tasks: Vec::new(), _dns: None };
    let listening = if config.dns { Some(start_dns(config, &client, &net).await?) } else { None };
    if config.service_proxy {
        let dataplane = Arc::new(NftDataplane::open(net.clone()).context("nftables cannot be used")?);
        let redirect = listening
            .as_ref()
            .map(|l| DnsRedirect { cluster_ips: vec![config.cluster_dns], listeners: l.addresses().to_vec() });
        let options =
            proxy::Options { node_name: config.node_name.clone(), dns: redirect, host_ports: host_ports.subscribe() };
        agent.tasks.push(proxy::start(client.clone(), dataplane, options));
    }
    agent._dns = listening;
    let recorder = Recorder::new(client.clone(), clock.clone(), "kubelet", &config.node_name);
    let node = Arc::new(Node {
        capacity: heartbeat::Capacity::read(&dirs.data_dir),
        config: node_config,
        client,
        runtime,
        images,
        network: Arc::new(network),
        clock: clock.clone(),
        recorder,
        host_ports,
        authority: authority.to_vec(),
    });
    api.nodes.register(&config.node_name, Arc::new(Access(node.clone())));
    let (ready, mut adopted) = watch::channel(false);
    agent.tasks.push(task::spawn("pods", node::pods::run(node.clone(), ready)));
    let _ = adopted.wait_for(|r| *r).await;
    agent.tasks.push(task::spawn("heartbeat", heartbeat::run(node)));
    Ok(agent)
}

async fn start_dns(config: &Config, client: &Arc<dyn Client>, net: &net::Config) -> Result<dns::Listening> {
    let listeners: Vec<SocketAddr> = net.gateways().into_iter().map(|g| SocketAddr::new(g, DNS_PORT)).collect();
    let zone = dns::Zone::new(&config.cluster_domain, vec![config.cluster_dns])
        .map_err(|e| anyhow::anyhow!("--cluster-domain: {e}"))?;
    let mut own = listeners.clone();
    own.push(SocketAddr::new(config.cluster_dns, 53));
    let forwarder = dns::Forwarder::new(dns::Upstreams::resolv_conf("/etc/resolv.conf", own));
    let records = dns::Informed::new(&**client);
    dns::Server::new(zone, records, forwarder).listen(&listeners).await.context("the cluster DNS cannot listen")
}

//! `amphipod server`

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::node::{LogArgs, NodeArgs};
use super::{Directories, Usage, disable, value};
use crate::api::identity::join::Cluster;
use crate::net::overlay::Backend;
use crate::server::{self, Config, snapshot};

/// Flags of the server; each also as `AMPHIPOD_*` variable and as a key of config.yaml.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// A file with flags as keys [default: /etc/amphipod/config.yaml]
    #[arg(long, short = 'c', env = "AMPHIPOD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    directories: Directories,
    /// Address to listen on
    #[arg(long, env = "AMPHIPOD_BIND_ADDRESS", default_value = "0.0.0.0", value_parser = value::address)]
    bind_address: IpAddr,
    /// Port of the API
    #[arg(long, env = "AMPHIPOD_HTTPS_LISTEN_PORT", default_value_t = 6443, value_parser = clap::value_parser!(u16).range(1..))]
    https_listen_port: u16,
    /// Address at which pods and agents reach the API [default: the node's]
    #[arg(long, env = "AMPHIPOD_ADVERTISE_ADDRESS", value_parser = value::own_address)]
    advertise_address: Option<IpAddr>,
    /// Further names and addresses in the server's certificate
    #[arg(long, env = "AMPHIPOD_TLS_SAN", value_delimiter = ',', value_parser = value::certificate_name)]
    tls_san: Vec<String>,
    /// Range of pod addresses
    #[arg(long, env = "AMPHIPOD_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_parser = value::range)]
    cluster_cidr: IpNet,
    /// Range of Service addresses
    #[arg(long, env = "AMPHIPOD_SERVICE_CIDR", default_value = "10.43.0.0/16", value_parser = value::range)]
    service_cidr: IpNet,
    /// Address of the cluster's DNS, inside the Service range [default: its tenth address]
    #[arg(long, env = "AMPHIPOD_CLUSTER_DNS", value_parser = value::own_address)]
    cluster_dns: Option<IpAddr>,
    /// Domain of the cluster's DNS names
    #[arg(long, env = "AMPHIPOD_CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = value::domain)]
    cluster_domain: String,
    /// Ports for NodePort Services
    #[arg(long, env = "AMPHIPOD_SERVICE_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    /// Ranges that Services may name addresses of in externalIPs, such as 198.51.100.0/24; without it, none may [default: none]
    #[arg(long, env = "AMPHIPOD_ALLOW_EXTERNAL_IPS", value_delimiter = ',', value_parser = value::range)]
    allow_external_ips: Vec<IpNet>,
    /// Pods reach no link-local addresses (169.254.0.0/16) and nothing else where clouds tell machines their credentials
    #[arg(long, env = "AMPHIPOD_BLOCK_METADATA")]
    block_metadata: bool,
    /// How nodes reach each other's pods: auto is wireguard (encrypted) when all nodes have it, else vxlan; host-gw needs all of
    /// them on one segment
    #[arg(long, env = "AMPHIPOD_OVERLAY", alias = "flannel-backend", default_value = "auto")]
    overlay: Overlay,
    /// With vxlan, also where auto finds it: nodes on the same network segment reach each other's pods by plain routes, without the tunnel
    #[arg(long, env = "AMPHIPOD_OVERLAY_DIRECT_ROUTING")]
    overlay_direct_routing: bool,
    /// Where to write the administrator's kubeconfig [default: <config-dir>/kubeconfig.yaml]
    #[arg(long, short = 'o', env = "AMPHIPOD_WRITE_KUBECONFIG")]
    write_kubeconfig: Option<PathBuf>,
    /// Mode of the kubeconfig file
    #[arg(long, env = "AMPHIPOD_WRITE_KUBECONFIG_MODE", default_value = "600", value_parser = octal)]
    write_kubeconfig_mode: u32,
    /// The secret with which agents join [default: made at the first start]
    #[arg(long, short = 't', env = "AMPHIPOD_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with that secret
    #[arg(long, env = "AMPHIPOD_TOKEN_FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// How often a snapshot is taken, such as 12h or 1d; 0 for never
    #[arg(long, env = "AMPHIPOD_SNAPSHOT_INTERVAL", default_value = "1d", value_parser = super::token::duration)]
    snapshot_interval: std::time::Duration,
    /// How many of them are kept
    #[arg(long, env = "AMPHIPOD_SNAPSHOT_RETENTION", default_value_t = 5, value_parser = value::at_least_one)]
    snapshot_retention: usize,
    /// Where they are [default: <data-dir>/server/snapshots]
    #[arg(long, env = "AMPHIPOD_SNAPSHOT_DIR")]
    snapshot_dir: Option<PathBuf>,
    /// Parts to leave out, or to remove with their objects: dns, node-cidr (nodes get no pod range), scheduler, service-proxy.
    /// Several, separated by commas or by repeating the flag
    #[arg(long, env = "AMPHIPOD_DISABLE", value_delimiter = ',', value_parser = disable::part)]
    disable: Vec<disable::Component>,
    /// Run no node here
    #[arg(long, env = "AMPHIPOD_DISABLE_AGENT")]
    disable_agent: bool,
    /// How long a node may be silent before it counts as lost, in seconds
    #[arg(long, env = "AMPHIPOD_NODE_MONITOR_GRACE_PERIOD", default_value_t = 40, value_parser = clap::value_parser!(u64).range(2..=3600))]
    node_monitor_grace_period: u64,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Overlay {
    Auto,
    #[value(alias = "wireguard-native")]
    Wireguard,
    Vxlan,
    HostGw,
    None,
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let range = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match range {
        Some((first, last)) if first > 0 && first <= last => Ok((first, last)),
        _ => Err("expected FIRST-LAST, such as 30000-32767".into()),
    }
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o777);
    mode.ok_or_else(|| "expected an octal mode, such as 600".into())
}

/// Runs the server until it is told to stop.
pub fn run(args: ServerArgs) -> Result<()> {
    crate::base::file::keep_new_files_private();
    args.log.start()?;
    let config = resolve(args)?;
    server::run(config)
}

/// Refuses a range that is not one of IPv4 with a prefix of at most `longest` bits.
fn has_room(flag: &str, net: &IpNet, longest: u8) -> Result<(), Usage> {
    match net {
        IpNet::V4(n) if n.prefix_len() > longest => {
            Err(Usage(format!("--{flag}: {net} is too small: it must be at least a /{longest}")))
        }
        IpNet::V6(_) => Err(Usage(format!("--{flag}: {net}: only IPv4 ranges are served yet, such as 10.42.0.0/16"))),
        IpNet::V4(_) => Ok(()),
    }
}

/// What was said, checked against each other and completed.
fn resolve(a: ServerArgs) -> Result<Config> {
    has_room("cluster-cidr", &a.cluster_cidr, 24)?;
    has_room("service-cidr", &a.service_cidr, 28)?;
    let (pods, services) = (a.cluster_cidr.trunc(), a.service_cidr.trunc());
    if pods.contains(&services) || services.contains(&pods) {
        return Err(Usage(format!(
            "--service-cidr: {services} overlaps --cluster-cidr {pods}: choose separate ranges"
        ))
        .into());
    }
    let nth = |n: u32| match services.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) + n).into()),
        other => other,
    };
    let cluster_dns = a.cluster_dns.unwrap_or_else(|| nth(10));
    if !services.contains(&cluster_dns) {
        return Err(Usage(format!("--cluster-dns: {cluster_dns} is not inside --service-cidr {services}")).into());
    }
    if [services.network(), nth(1), services.broadcast()].contains(&cluster_dns) {
        let why = format!(
            "{cluster_dns} is the API's own or no address of a Service: expected another one, such as {}",
            nth(10)
        );
        return Err(Usage(format!("--cluster-dns: {why}")).into());
    }
    if a.overlay_direct_routing && !matches!(a.overlay, Overlay::Vxlan) {
        return Err(Usage("--overlay-direct-routing: it goes with --overlay vxlan only".into()).into());
    }
    let node = a.node.resolve()?;
    let disabled = disable::names(&a.disable);
    let off = |part: &str| disabled.iter().any(|d| d == part);
    let snapshots = snapshot::Schedule {
        directory: a.snapshot_dir.unwrap_or_else(|| a.directories.data_dir.join("server/snapshots")),
        every: a.snapshot_interval,
        keep: a.snapshot_retention,
    };
    let token = super::node::token(a.token, a.token_file.as_deref())?.map(|token| token.secret);
    let kubeconfig = a.write_kubeconfig.unwrap_or_else(|| a.directories.config_dir.join("kubeconfig.yaml"));
    Ok(Config {
        data_dir: a.directories.data_dir,
        run_dir: a.directories.run_dir,
        config_dir: a.directories.config_dir,
        bind: (a.bind_address, a.https_listen_port).into(),
        advertise: a.advertise_address.unwrap_or(node.addresses[0]),
        tls_sans: a.tls_san.into_iter().filter(|name| !name.is_empty()).collect(),
        node,
        api_cluster_ip: nth(1),
        cluster: Cluster {
            cluster_cidrs: vec![pods],
            service_cidrs: vec![services],
            cluster_dns,
            cluster_domain: a.cluster_domain,
            dns: !off("dns"),
            service_proxy: !off("service-proxy"),
            network_policy: !off("network-policy"),
            node_grace_seconds: a.node_monitor_grace_period,
            overlay: match a.overlay {
                Overlay::Auto => Backend::Auto,
                Overlay::Wireguard => Backend::Wireguard,
                Overlay::Vxlan => Backend::Vxlan,
                Overlay::HostGw => Backend::HostGw,
                Overlay::None => Backend::None,
            },
            overlay_direct_routing: a.overlay_direct_routing,
            block_metadata: a.block_metadata,
        },
        node_ports: a.service_node_port_range,
        external_ips: a.allow_external_ips.iter().map(IpNet::trunc).collect(),
        kubeconfig,
        kubeconfig_mode: a.write_kubeconfig_mode,
        token,
        snapshots,
        node_cidr: !off("node-cidr"),
        scheduler: !off("scheduler"),
        agent: !a.disable_agent,
        disabled,
    })
}

//! `amphipod server`

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::{Directories, Usage};
use crate::server::{self, Config};

/// Flags of the server; each also as `AMPHIPOD_*` variable and as a key of config.yaml.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// A file with flags as keys [default: /etc/amphipod/config.yaml]
    #[arg(long, short = 'c', env = "AMPHIPOD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    directories: Directories,
    /// Address to listen on
    #[arg(long, env = "AMPHIPOD_BIND_ADDRESS", default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port of the API
    #[arg(long, env = "AMPHIPOD_HTTPS_LISTEN_PORT", default_value_t = 6443)]
    https_listen_port: u16,
    /// Address at which pods and agents reach the API [default: the node's]
    #[arg(long, env = "AMPHIPOD_ADVERTISE_ADDRESS")]
    advertise_address: Option<IpAddr>,
    /// Further names and addresses in the server's certificate
    #[arg(long, env = "AMPHIPOD_TLS_SAN", value_delimiter = ',')]
    tls_san: Vec<String>,
    /// The node's name [default: the host name]
    #[arg(long, env = "AMPHIPOD_NODE_NAME")]
    node_name: Option<String>,
    /// The node's address [default: that of the default route]
    #[arg(long, short = 'i', env = "AMPHIPOD_NODE_IP", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// Range of pod addresses
    #[arg(long, env = "AMPHIPOD_CLUSTER_CIDR", default_value = "10.42.0.0/16")]
    cluster_cidr: IpNet,
    /// Range of Service addresses
    #[arg(long, env = "AMPHIPOD_SERVICE_CIDR", default_value = "10.43.0.0/16")]
    service_cidr: IpNet,
    /// Address of the cluster's DNS, inside the Service range [default: its tenth address]
    #[arg(long, env = "AMPHIPOD_CLUSTER_DNS")]
    cluster_dns: Option<IpAddr>,
    /// Domain of the cluster's DNS names
    #[arg(long, env = "AMPHIPOD_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Ports for NodePort Services
    #[arg(long, env = "AMPHIPOD_SERVICE_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    /// Where to write the administrator's kubeconfig [default: <config-dir>/kubeconfig.yaml]
    #[arg(long, short = 'o', env = "AMPHIPOD_WRITE_KUBECONFIG")]
    write_kubeconfig: Option<PathBuf>,
    /// Mode of the kubeconfig file
    #[arg(long, env = "AMPHIPOD_WRITE_KUBECONFIG_MODE", default_value = "600", value_parser = octal)]
    write_kubeconfig_mode: u32,
    /// The secret with which agents join [default: made at the first start]
    #[arg(long, short = 't', env = "AMPHIPOD_TOKEN")]
    token: Option<String>,
    /// Parts to leave out: dns, scheduler, service-proxy
    #[arg(long, env = "AMPHIPOD_DISABLE", value_delimiter = ',', value_parser = ["dns", "scheduler", "service-proxy"])]
    disable: Vec<String>,
    /// Run no node here
    #[arg(long, env = "AMPHIPOD_DISABLE_AGENT")]
    disable_agent: bool,
    /// How log lines look
    #[arg(long, env = "AMPHIPOD_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Say more; twice for everything
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
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
    log(&args);
    let config = resolve(args)?;
    server::run(config)
}

fn log(args: &ServerArgs) {
    let level = ["amphipod=info,warn", "amphipod=debug,info", "trace"][usize::from(args.verbose.min(2))];
    let filter = tracing_subscriber::EnvFilter::try_from_env("AMPHIPOD_LOG").unwrap_or_else(|_| level.into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// What was said, checked against each other and completed.
fn resolve(a: ServerArgs) -> Result<Config> {
    let hosts = |flag: &str, net: &IpNet, least: u8| match net {
        IpNet::V4(n) if n.prefix_len() > least => {
            Err(Usage(format!("--{flag}: {net} is too small: it must be at least a /{least}")))
        }
        IpNet::V6(_) => Err(Usage(format!("--{flag}: {net}: only IPv4 ranges are served yet, such as 10.42.0.0/16"))),
        IpNet::V4(_) => Ok(()),
    };
    hosts("cluster-cidr", &a.cluster_cidr, 24)?;
    hosts("service-cidr", &a.service_cidr, 28)?;
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
    let host_name =
        || nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "node".into());
    let node_name = a.node_name.unwrap_or_else(host_name).to_lowercase();
    if let Some(why) = crate::base::labels::dns_subdomain_error(&node_name) {
        return Err(Usage(format!("--node-name: {node_name:?}: {why}")).into());
    }
    let node_addresses = if a.node_ip.is_empty() { vec![server::default_address()] } else { a.node_ip };
    let kubeconfig = a.write_kubeconfig.unwrap_or_else(|| a.directories.config_dir.join("kubeconfig.yaml"));
    Ok(Config {
        data_dir: a.directories.data_dir,
        run_dir: a.directories.run_dir,
        config_dir: a.directories.config_dir,
        bind: (a.bind_address, a.https_listen_port).into(),
        advertise: a.advertise_address.unwrap_or(node_addresses[0]),
        tls_sans: a.tls_san,
        node_name,
        node_addresses,
        cluster_cidrs: vec![pods],
        service_cidrs: vec![services],
        api_cluster_ip: nth(1),
        cluster_dns,
        cluster_domain: a.cluster_domain.trim_end_matches('.').to_lowercase(),
        node_ports: a.service_node_port_range,
        kubeconfig,
        kubeconfig_mode: a.write_kubeconfig_mode,
        token: a.token,
        dns: !a.disable.iter().any(|d| d == "dns"),
        scheduler: !a.disable.iter().any(|d| d == "scheduler"),
        service_proxy: !a.disable.iter().any(|d| d == "service-proxy"),
        agent: !a.disable_agent,
    })
}

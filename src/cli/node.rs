//! Flags that servers and agents share.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::{Usage, value};
use crate::api::identity::join_token::JoinToken;
use crate::containers::image::{Policy, Registries};
use crate::net::own_address::is_local;
use crate::node::admit::unsafe_sysctl;
use crate::server::NodeOptions;
use crate::server::address::default_address;
use crate::server::agent::Taint;

/// What is logged, in the words of `tracing`.
pub const LOG_VARIABLE: &str = "AMPHIPOD_LOG";
/// Where kubelets listen.
const KUBELET_PORT: u16 = 10250;

/// What the node on this machine is like.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// The node's name [default: the host name]
    #[arg(long, env = "AMPHIPOD_NODE_NAME")]
    node_name: Option<String>,
    /// The node's address [default: that of the default route]
    #[arg(long, short = 'i', env = "AMPHIPOD_NODE_IP", value_delimiter = ',', value_parser = value::own_address)]
    node_ip: Vec<IpAddr>,
    /// Addresses at which the node is reached from outside
    #[arg(long, env = "AMPHIPOD_NODE_EXTERNAL_IP", value_delimiter = ',', value_parser = value::own_address)]
    node_external_ip: Vec<IpAddr>,
    /// Labels of the node, KEY=VALUE
    #[arg(long, env = "AMPHIPOD_NODE_LABEL", value_delimiter = ',', value_parser = value::node_label)]
    node_label: Vec<(String, String)>,
    /// Taints that the node registers with, KEY=VALUE:EFFECT
    #[arg(long, env = "AMPHIPOD_NODE_TAINT", value_delimiter = ',')]
    node_taint: Vec<Taint>,
    /// The port of the node's own endpoints (metrics, statistics, logs), as the kubelet's; 0 for none
    #[arg(long, env = "AMPHIPOD_KUBELET_PORT", default_value_t = KUBELET_PORT)]
    kubelet_port: u16,
    /// Kernel parameters beyond the safe ones that pods may set, such as net.core.somaxconn or net.ipv4.*
    #[arg(long, env = "AMPHIPOD_ALLOWED_UNSAFE_SYSCTLS", value_delimiter = ',', value_parser = unsafe_sysctl)]
    allowed_unsafe_sysctls: Vec<String>,
    /// Never ask a registry: images come from <data-dir>/agent/images, from `amphipod image import`, and from other nodes
    #[arg(long, env = "AMPHIPOD_OFFLINE")]
    offline: bool,
    /// Registry that stands in for docker.io, HOST[:PORT][/PATH]
    #[arg(long, env = "AMPHIPOD_SYSTEM_DEFAULT_REGISTRY", value_parser = registry)]
    system_default_registry: Option<String>,
    /// From this percentage of the disk on, images that nobody uses are removed; 100 for never
    #[arg(long, env = "AMPHIPOD_IMAGE_GC_HIGH_THRESHOLD", default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: u8,
    /// Until the disk is filled to this percentage
    #[arg(long, env = "AMPHIPOD_IMAGE_GC_LOW_THRESHOLD", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: u8,
}

/// How and how much is logged.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
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

fn registry(text: &str) -> Result<String, String> {
    match Registries::is_registry(text) {
        true => Ok(text.to_owned()),
        false => Err("expected HOST[:PORT][/PATH], such as registry.example.com:5000".into()),
    }
}

/// The token that was said, or what is in the file that was named.
pub fn token(said: Option<String>, file: Option<&Path>) -> Result<Option<JoinToken>> {
    let (from, token) = match (said, file) {
        (Some(token), _) => ("--token".to_owned(), token),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("--token-file: {} cannot be read", path.display()))?;
            (format!("--token-file: {}", path.display()), text)
        }
        (None, None) => return Ok(None),
    };
    let token = JoinToken::parse(&token).map_err(|why| Usage(format!("{from}: {why}")))?;
    if token.secret.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Usage(format!("{from}: expected one word without spaces")).into());
    }
    Ok(Some(token))
}

/// Addresses that this machine has: one, or one of each family.
fn node_addresses(said: &[IpAddr]) -> Result<()> {
    if let Some(other) = said.iter().find(|address| !is_local(**address)) {
        let own = default_address();
        let why =
            format!("{other}: no interface of this machine has this address: expected one that it has, such as {own}");
        return Err(Usage(format!("--node-ip: {why}")).into());
    }
    match said {
        [_] => Ok(()),
        [a, b] if a.is_ipv4() != b.is_ipv4() => Ok(()),
        _ => {
            let said: Vec<String> = said.iter().map(ToString::to_string).collect();
            let why = "expected one address, or one of IPv4 and one of IPv6";
            Err(Usage(format!("--node-ip: {}: {why}", said.join(","))).into())
        }
    }
}

impl NodeArgs {
    /// What was said, checked and completed.
    pub fn resolve(self) -> Result<NodeOptions> {
        let host_name =
            || nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "node".into());
        let name = self.node_name.unwrap_or_else(host_name).to_lowercase();
        if let Some(why) = crate::base::labels::dns_subdomain_error(&name) {
            return Err(Usage(format!("--node-name: {name:?}: {why}")).into());
        }
        let (high_percent, low_percent) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        if low_percent >= high_percent {
            let why = format!(
                "--image-gc-low-threshold: {low_percent} must be below --image-gc-high-threshold {high_percent}"
            );
            return Err(Usage(why).into());
        }
        let follows_address = self.node_ip.is_empty();
        if !follows_address {
            node_addresses(&self.node_ip)?;
        }
        let addresses = if follows_address { vec![default_address()] } else { self.node_ip };
        Ok(NodeOptions {
            name,
            addresses,
            follows_address,
            external_addresses: self.node_external_ip,
            labels: self.node_label,
            taints: self.node_taint,
            kubelet_port: self.kubelet_port,
            unsafe_sysctls: self.allowed_unsafe_sysctls,
            offline: self.offline,
            default_registry: self.system_default_registry,
            image_gc: Policy { high_percent, low_percent, ..Policy::default() },
        })
    }
}

impl LogArgs {
    /// Log lines go to standard error from here on.
    pub fn start(&self) -> Result<()> {
        let level = ["amphipod=info,warn", "amphipod=debug,info", "trace"][usize::from(self.verbose.min(2))];
        let filter = match std::env::var(LOG_VARIABLE) {
            Ok(said) if !said.is_empty() => EnvFilter::try_new(&said).map_err(|error| {
                let expected = "expected levels, also by part, such as info or amphipod=debug,warn";
                Usage(format!("{LOG_VARIABLE}: {said:?}: {error}: {expected}"))
            })?,
            _ => level.into(),
        };
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => builder.with_ansi(false).init(),
            LogFormat::Json => builder.json().init(),
        }
        Ok(())
    }
}

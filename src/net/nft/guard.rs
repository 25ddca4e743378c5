//! What no pod and no stranger on the segment may do, whatever Services there are: a pure plan, and its place in the kernel.
//!
//! The pod network itself installs these rules, so they hold with and without the service proxy. A packet costs a fixed number
//! of comparisons and set look-ups, however many pods and nodes there are.
//!
//! - A pod sends only from addresses that a route leads to through its own link (the routing table is the list of them, so
//!   attaching a pod writes no rule), no router advertisements, solicitations or redirects, and nothing to a tunnel's port.
//! - What comes in by a tunnel has a source in the pod ranges of the cluster that is not of this node's own range.
//! - What comes in by the machine's other links has no source inside of the cluster.
//! - The tunnel's port is open to the nodes that use it, the port of the cluster DNS to pods and to the machine itself.
//!
//! Invariant: the table is there before the first pod is, and a restart does not close the tunnel to known nodes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::encode;
use super::plan::{net, of_family};
use super::ruleset::{Chain, DataType, Family, Hook, Rule, Ruleset, Set, SetKind, Statement as S, Table, Value};
use super::table::Protocol;
use super::{Kernel, Written};
use crate::base::cloud;
use crate::net::overlay::{self, PORT};
use crate::net::pod::group;
use crate::net::{Config, Error};

const NODES: &str = "nodes";
const SENDERS: &str = "senders";
const ARRIVING: &str = "arriving";
const FROM_POD: &str = "from-pod";
const FROM_TUNNEL: &str = "from-tunnel";
const ICMP_FROM_POD: &str = "icmp-from-pod";
const TUNNEL_PORT: &str = "tunnel-port";
const DNS_PORT: &str = "dns-port";
/// Kinds of ICMP by which a router speaks to its neighbours, and they to it: redirect, advertisement, solicitation.
const ROUTER_ICMP: [u8; 3] = [5, 9, 10];
/// The same of ICMPv6: solicitation, advertisement, redirect.
const ROUTER_ICMP6: [u8; 3] = [133, 134, 137];

/// The nodes of the cluster as far as the guard has to know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSets {
    /// Addresses of all nodes: pods send nothing to their tunnel's port.
    pub nodes: BTreeSet<IpAddr>,
    /// Those of them whose frames the tunnel takes.
    pub senders: BTreeSet<IpAddr>,
}

/// The ruleset for these nodes. Also for a family that pods have no addresses of: they can send in it nevertheless.
pub fn plan(config: &Config, nodes: &NodeSets) -> Ruleset {
    let tables = [Family::Ip, Family::Ip6].map(|family| (family, table(config, nodes, family)));
    Ruleset { name: config.guard_table(), tables: tables.into() }
}

fn table(config: &Config, nodes: &NodeSets, family: Family) -> Table {
    let mut table = Table::default();
    let mut chain = |name: &str, hook: Option<Hook>, rules: Vec<Rule>| {
        table.chains.insert(name.into(), Chain { hook, rules });
    };
    let pods = S::FromGroup { group: group(config), not: false };
    chain("prerouting", Some(Hook::RawPrerouting), vec![vec![S::NotFromLoopback, S::Goto(ARRIVING.into())]]);
    chain(ARRIVING, None, arriving(config, family, &pods));
    chain(FROM_POD, None, from_pod(config, family));
    let kinds = if family == Family::Ip { ROUTER_ICMP } else { ROUTER_ICMP6 };
    chain(ICMP_FROM_POD, None, kinds.iter().map(|kind| vec![S::IcmpType(*kind), S::Drop]).collect());
    chain(FROM_TUNNEL, None, from_tunnel(config, family));
    let (mut input, mut forward) = (Vec::new(), Vec::new());
    if config.block_metadata {
        // Also what was translated to it, which left its pod for another address.
        forward.extend(metadata(family).into_iter().map(|rule| [vec![pods.clone()], rule].concat()));
    }
    if let Some(port) = config.dns_port {
        for gateway in config.gateways().into_iter().filter(|g| Family::of(g) == family) {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let listener = S::Destination { net: gateway.into(), not: false };
                input.push(vec![S::DestinationPort(protocol, port), listener, S::Goto(DNS_PORT.into())]);
            }
        }
        let elsewhere = S::FromGroup { group: group(config), not: true };
        chain(DNS_PORT, None, vec![vec![S::NotFromLoopback, elsewhere, S::Drop]]);
    }
    if config.tunnel {
        let to_tunnel = S::DestinationPort(Protocol::Udp, PORT);
        input.push(vec![to_tunnel.clone(), S::Goto(TUNNEL_PORT.into())]);
        let strangers = S::SourceAmong { set: SENDERS.into(), not: true };
        chain(TUNNEL_PORT, None, vec![vec![pods.clone(), S::Drop], vec![strangers, S::Drop]]);
        forward.push(vec![pods, to_tunnel, S::DestinationIn(NODES.into()), S::Drop]);
        for (name, addresses) in [(NODES, &nodes.nodes), (SENDERS, &nodes.senders)] {
            table.sets.insert(name.into(), set_of(addresses, family));
        }
    }
    if !forward.is_empty() {
        table.chains.insert("forward".into(), Chain { hook: Some(Hook::FilterForward), rules: forward });
    }
    table.chains.insert("input".into(), Chain { hook: Some(Hook::FilterInput), rules: input });
    table
}

fn set_of(addresses: &BTreeSet<IpAddr>, family: Family) -> Set {
    let own = addresses.iter().filter(|a| Family::of(a) == family);
    let elements = own.map(|a| (vec![Value::Address(*a)], String::new())).collect();
    Set { kind: SetKind::Set, key: vec![DataType::Address], elements }
}

fn arriving(config: &Config, family: Family, pods: &S) -> Vec<Rule> {
    let loopback = if family == Family::Ip { net("127.0.0.0/8") } else { net("::1/128") };
    let mut rules = vec![vec![S::Destination { net: loopback, not: false }, S::Drop]];
    for tunnel in overlay::names(config) {
        rules.push(vec![S::FromLink(tunnel), S::Goto(FROM_TUNNEL.into())]);
    }
    rules.push(vec![pods.clone(), S::Goto(FROM_POD.into())]);
    let inside = if config.routed_peers { &config.pod_cidrs } else { &config.cluster_cidrs };
    for net in of_family(inside, family).chain(of_family(&config.service_cidrs, family)) {
        rules.push(vec![S::Source { net, not: false }, S::Drop]);
    }
    rules
}

/// Pods and their node have fixed neighbour entries and static routes, so nothing that is not a pod's own is ever needed: no
/// link-local address, and no answer to the question whether one is in use.
fn from_pod(config: &Config, family: Family) -> Vec<Rule> {
    let never: &[&str] = if family == Family::Ip { &["0.0.0.0/8"] } else { &["::/128", "fe80::/10"] };
    let mut rules = vec![vec![S::NoReverseRoute, S::Drop]];
    rules.extend(never.iter().map(|text| vec![S::Source { net: net(text), not: false }, S::Drop]));
    if config.block_metadata {
        rules.extend(metadata(family));
    }
    rules.push(vec![S::Icmp, S::Goto(ICMP_FROM_POD.into())]);
    rules
}

/// Nothing goes where clouds tell machines their credentials.
fn metadata(family: Family) -> Vec<Rule> {
    let link_local = (family == Family::Ip).then(|| net("169.254.0.0/16"));
    let single =
        cloud::METADATA.iter().filter(|address| Family::of(address) == family).map(|address| (*address).into());
    let nets = link_local.into_iter().chain(single);
    let mut rules: Vec<Rule> = nets.map(|net| vec![S::Destination { net, not: false }, S::Drop]).collect();
    if family == Family::Ip {
        let (address, ports) = cloud::WIRE_SERVER;
        let net = IpAddr::from(address).into();
        let to = |port| vec![S::DestinationPort(Protocol::Tcp, port), S::Destination { net, not: false }, S::Drop];
        rules.extend(ports.map(to));
    }
    rules
}

/// Which node a frame came from is not told inside of the tunnel, so this is as much as can be told by VXLAN; WireGuard itself
/// holds each node to its own range.
fn from_tunnel(config: &Config, family: Family) -> Vec<Rule> {
    let mut rules: Vec<Rule> =
        of_family(&config.pod_cidrs, family).map(|net| vec![S::Source { net, not: false }, S::Drop]).collect();
    let mut foreign: Rule = of_family(&config.cluster_cidrs, family).map(|net| S::Source { net, not: true }).collect();
    foreign.push(S::Drop);
    rules.push(foreign);
    rules
}

/// The rules in the kernel.
pub struct Guard {
    config: Config,
    state: Mutex<(Kernel, NodeSets)>,
    /// Without IPv6 there is nothing to guard in it.
    families: Vec<Family>,
}

// === impl Guard ===

impl Guard {
    /// Writes the rules where they are not there yet, for the nodes that the kernel knows from before, or for this one alone.
    /// Works in the network namespace of the calling thread.
    pub fn open(config: Config) -> Result<Self, Error> {
        let mut kernel = Kernel::open()?;
        let mut families = vec![Family::Ip];
        families.extend(fs::metadata("/proc/sys/net/ipv6").is_ok().then_some(Family::Ip6));
        let mut nodes = NodeSets { nodes: config.addresses.iter().copied().collect(), ..NodeSets::default() };
        for family in &families {
            let mut known = |set| read_set(&mut kernel, &config.guard_table(), *family, set);
            let read = known(NODES).and_then(|nodes| Ok((nodes, known(SENDERS)?)));
            let (known_nodes, senders) = read.map_err(Error::kernel("cannot read the nftables rules"))?;
            nodes.nodes.extend(known_nodes);
            nodes.senders.extend(senders);
        }
        let guard = Self { config, state: Mutex::new((kernel, nodes.clone())), families };
        guard.apply(&nodes)?;
        Ok(guard)
    }

    /// Makes the kernel hold the rules for these nodes, in one atomic change.
    pub fn apply(&self, nodes: &NodeSets) -> Result<Written, Error> {
        let mut ruleset = plan(&self.config, nodes);
        ruleset.tables.retain(|family, _| self.families.contains(family));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let written = state.0.write(ruleset)?;
        state.1 = nodes.clone();
        Ok(written)
    }

    /// Writes the rules again, if somebody else has removed them.
    pub fn repair(&self) -> Result<Written, Error> {
        let nodes = self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        self.apply(&nodes)
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guard({})", self.config.guard_table())
    }
}

fn read_set(kernel: &mut Kernel, table: &str, family: Family, set: &str) -> io::Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    let question = encode::elements_query(table, family, set);
    match kernel.socket.dump(question, |elements| found.extend(encode::read_addresses(&elements))) {
        Ok(()) => Ok(found),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(BTreeSet::new()),
        Err(e) => Err(e),
    }
}

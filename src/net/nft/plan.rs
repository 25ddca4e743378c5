//! Services, host ports and masquerading as a ruleset: a pure function.
//!
//! A new connection costs one lookup in a verdict map keyed by address, protocol and port, whatever the number of
//! Services; a change of one Service touches its own chains and map elements only. No packet marks are used: what must
//! be masqueraded can be told from addresses after translation, so we cannot clash with other people's marks.
//!
//! Source addresses are kept wherever the reply comes back through this node anyway: between pods, and from outside to
//! pods on this node. Masqueraded are: pods talking to the world, a pod reached from itself through a Service,
//! 127.0.0.1, and outside traffic sent on to another node. The kernel sends nothing of 127.0.0.1 out by links that are not ours:
//! it gets the endpoints behind those that are, and is refused where there are none.
//!
//! Never taken, whoever asks: ports of the machine's own (the API's, the tunnels'), the API's addresses, and, by what is not a
//! cluster address itself, any address inside of the cluster, loopback and link-local ones (see `Planner::may_take`).
//!
//! Invariant: equal inputs plan to equal rulesets, in whatever order the Services come.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::ruleset::{
    Chain, DataType, Family, Hook, Rule, Ruleset, Set, SetKind, Statement as S, Table, Target, Value,
};
use super::table::{HostPort, Protocol, ServicePort, ServiceTable, Unpublished};
use crate::net::pod::group;
use crate::net::{Config, overlay};

const SERVICES: &str = "services";
const PORTS: &str = "ports";
const HOST_PORTS: &str = "host-ports";
const OWN_PORTS: &str = "own-ports";
const LOCAL: &str = "local";
const NO_ENDPOINTS: &str = "no-endpoints";
const NO_ENDPOINT_PORTS: &str = "no-endpoint-ports";
const HAIRPIN: &str = "hairpin";
const TRANSLATE: &str = "translate";
const REJECT: &str = "reject";

/// The ruleset this node must have. One table per family that has pod addresses.
pub fn plan(config: &Config, table: &ServiceTable) -> Ruleset {
    plan_with_skipped(config, table).0
}

/// What of a table is not in its ruleset, because it is not theirs to have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Skipped {
    /// Of Services, a sentence each.
    pub services: Vec<String>,
    pub host_ports: Vec<Unpublished>,
}

/// The same, with what of the table was left out.
pub(super) fn plan_with_skipped(config: &Config, table: &ServiceTable) -> (Ruleset, Skipped) {
    let mut ruleset = Ruleset { name: config.table(), ..Ruleset::default() };
    let taken = Taken::of(config, table);
    let mut skipped = Skipped::default();
    for family in [Family::Ip, Family::Ip6] {
        if config.pod_cidrs.iter().any(|net| Family::of(&net.addr()) == family) {
            let (out, node_ports) = (frame(config, table, family), node_ports(table));
            let mut planner = Planner {
                family,
                config,
                ranges: &table.ranges,
                taken: &taken,
                out,
                node_ports,
                skipped: Skipped::default(),
            };
            planner.fill(table);
            ruleset.tables.insert(family, planner.out);
            skipped.services.append(&mut planner.skipped.services);
            skipped.host_ports.append(&mut planner.skipped.host_ports);
        }
    }
    skipped.services.sort();
    skipped.services.dedup();
    (ruleset, skipped)
}

/// What belongs to somebody already, before the first Service from outside is looked at.
struct Taken {
    cluster_ips: BTreeSet<IpAddr>,
    api: BTreeSet<(IpAddr, u16)>,
    own_ports: Vec<(Protocol, u16)>,
}

impl Taken {
    fn of(config: &Config, table: &ServiceTable) -> Self {
        let dns = table.dns.iter().flat_map(|dns| &dns.cluster_ips);
        let cluster_ips = table.services.iter().flat_map(|s| &s.cluster_ips).chain(dns).copied().collect();
        let is_api =
            |s: &&ServicePort| s.namespace == "default" && s.name == "kubernetes" && s.protocol == Protocol::Tcp;
        let endpoints = table.services.iter().filter(is_api).flat_map(|s| &s.endpoints);
        let api = endpoints.map(|e| (e.address, e.port)).chain(config.api.iter().map(|a| (a.ip(), a.port()))).collect();
        Self { cluster_ips, api, own_ports: config.own_ports() }
    }
}

fn node_ports(table: &ServiceTable) -> Vec<(Protocol, u16, String)> {
    let port = |s: &ServicePort| Some((s.protocol, s.node_port?, format!("{}/{}", s.namespace, s.name)));
    // Who has no host port asks for none.
    if table.host_ports.is_empty() { Vec::new() } else { table.services.iter().filter_map(port).collect() }
}

/// An address that no machine may have for others.
fn is_special(address: &IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast() || a.octets()[0] == 0,
        IpAddr::V6(a) => a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    special || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

pub(super) fn of_family(nets: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> + '_ {
    nets.iter().map(IpNet::trunc).filter(move |net| Family::of(&net.addr()) == family)
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().expect("written here")
}

/// Everything that does not depend on Services.
fn frame(config: &Config, services: &ServiceTable, family: Family) -> Table {
    let mut table = Table::default();
    let key = vec![DataType::Address, DataType::Protocol, DataType::Port];
    for (name, kind, key) in [
        (SERVICES, SetKind::Verdicts, key.clone()),
        (NO_ENDPOINTS, SetKind::Verdicts, key.clone()),
        (HOST_PORTS, SetKind::Verdicts, key),
        (PORTS, SetKind::Verdicts, vec![DataType::Protocol, DataType::Port]),
        (OWN_PORTS, SetKind::Set, vec![DataType::Protocol, DataType::Port]),
        (NO_ENDPOINT_PORTS, SetKind::Verdicts, vec![DataType::Protocol, DataType::Port]),
        (HAIRPIN, SetKind::Set, vec![DataType::Address, DataType::Address]),
    ] {
        table.sets.insert(name.into(), Set { kind, key, elements: BTreeMap::new() });
    }
    let mut chain = |name: &str, hook: Option<Hook>, rules: Vec<Rule>| {
        table.chains.insert(name.into(), Chain { hook, rules });
    };
    let loopback = loopback(family);
    chain("prerouting", Some(Hook::NatPrerouting), vec![vec![S::Jump(TRANSLATE.into())]]);
    // What the kernel sends for the tunnels leaves by here.
    let mut output: Vec<Rule> =
        overlay::PORTS.iter().map(|port| vec![S::DestinationPort(Protocol::Udp, *port), S::Return]).collect();
    output.push(vec![S::Jump(TRANSLATE.into())]);
    chain("output", Some(Hook::NatOutput), output);
    let own = vec![S::PortIn(OWN_PORTS.into()), S::DestinationIsLocal, S::Return];
    chain(
        TRANSLATE,
        None,
        vec![own.clone(), vec![S::ServiceVmap(SERVICES.into())], vec![S::DestinationIsLocal, S::Goto(LOCAL.into())]],
    );
    chain(LOCAL, None, vec![vec![S::ServiceVmap(HOST_PORTS.into())], vec![S::PortVmap(PORTS.into())]]);
    chain("postrouting", Some(Hook::NatPostrouting), masquerade_rules(config, family, loopback));
    let mut refuse = vec![vec![S::CtNew, S::ServiceVmap(NO_ENDPOINTS.into())]];
    let is_known = |net: &IpNet| config.service_cidrs.iter().any(|own| own.contains(net));
    let further: BTreeSet<IpNet> = of_family(&services.ranges, family).filter(|net| !is_known(net)).collect();
    for net in of_family(&config.service_cidrs, family).chain(further.iter().copied()) {
        refuse.push(vec![S::Destination { net, not: false }, S::Goto(REJECT.into())]);
    }
    chain("refuse-forward", Some(Hook::FilterForward), refuse.clone());
    let local_ports = vec![S::CtNew, S::DestinationIsLocal, S::PortVmap(NO_ENDPOINT_PORTS.into())];
    refuse.push(local_ports.clone());
    chain("refuse-output", Some(Hook::FilterOutput), refuse);
    let input = vec![vec![S::CtNew, S::ServiceVmap(NO_ENDPOINTS.into())], local_ports];
    chain("refuse-input", Some(Hook::FilterInput), input);
    if !further.is_empty() {
        // Nobody elsewhere has these addresses, as with the ranges that the guard knows.
        let strangers = S::FromGroup { group: group(config), not: true };
        let rule = |net: IpNet| vec![S::NotFromLoopback, strangers.clone(), S::Source { net, not: false }, S::Drop];
        chain("arriving", Some(Hook::RawPrerouting), further.into_iter().map(rule).collect());
    }
    // Of its own ports none is refused because a Service says so.
    chain(REJECT, None, vec![own, vec![S::Protocol(Protocol::Tcp), S::RejectReset], vec![S::RejectUnreachable]]);
    let own_ports = table.sets.get_mut(OWN_PORTS).expect("made above");
    let elements =
        config.own_ports().into_iter().map(|(p, n)| (vec![Value::Protocol(p), Value::Port(n)], String::new()));
    own_ports.elements = elements.collect();
    table
}

fn masquerade_rules(config: &Config, family: Family, loopback: IpNet) -> Vec<Rule> {
    let outside =
        |nets: &[IpNet]| -> Vec<S> { of_family(nets, family).map(|net| S::Destination { net, not: true }).collect() };
    let mut rules = Vec::new();
    // Masquerading would take any address of the host; the one in the pod range is what pods know the node by.
    if let Some(gateway) = config.gateways().into_iter().find(|g| Family::of(g) == family) {
        rules.push(vec![S::CtDnat, S::PairIn(HAIRPIN.into()), S::Snat(gateway)]);
        for net in from_loopback(config, family) {
            let (from, to) = (S::Source { net: loopback, not: false }, S::Destination { net, not: false });
            rules.push(vec![S::NotToLoopback, S::CtDnat, from, to, S::Snat(gateway)]);
        }
    }
    let multicast = if family == Family::Ip { net("224.0.0.0/4") } else { net("ff00::/8") };
    for own in of_family(&config.pod_cidrs, family) {
        let mut rule = vec![S::NotToLoopback, S::Source { net: own, not: false }];
        rule.extend(outside(&config.cluster_cidrs));
        rule.push(S::Destination { net: multicast, not: true });
        rule.push(S::Masquerade);
        rules.push(rule);
    }
    // From outside the cluster to an endpoint on another node: the reply must come back through here.
    let mut transit = vec![S::NotToLoopback, S::CtDnat];
    transit.extend(of_family(&config.cluster_cidrs, family).map(|net| S::Source { net, not: true }));
    transit.extend(outside(&config.pod_cidrs));
    transit.push(S::Masquerade);
    rules.push(transit);
    rules
}

fn loopback(family: Family) -> IpNet {
    if family == Family::Ip { net("127.0.0.0/8") } else { net("::1/128") }
}

/// Where 127.0.0.1 reaches pods through translated ports: by links of our own. By others the kernel sends nothing from it.
fn from_loopback(config: &Config, family: Family) -> BTreeSet<IpNet> {
    let peers = if config.routed_peers { &[][..] } else { &config.cluster_cidrs };
    let own = of_family(&config.pod_cidrs, family).filter(|own| !peers.iter().any(|net| net.contains(own)));
    own.chain(of_family(peers, family)).collect()
}

struct Planner<'a> {
    family: Family,
    config: &'a Config,
    /// Further ranges of Service addresses.
    ranges: &'a [IpNet],
    taken: &'a Taken,
    out: Table,
    /// Of which Service each node port is.
    node_ports: Vec<(Protocol, u16, String)>,
    skipped: Skipped,
}

/// The addresses and ports a Service is reached at from one side (inside or outside).
struct Side {
    addresses: Vec<IpAddr>,
    node_port: Option<u16>,
}

impl Planner<'_> {
    fn fill(&mut self, table: &ServiceTable) {
        self.dns(table);
        let mut services: Vec<&ServicePort> = table.services.iter().collect();
        services.sort_by_key(|s| (&s.namespace, &s.name, s.protocol, s.port, &s.port_name));
        services.iter().for_each(|service| self.service(service));
        let mut host_ports: Vec<&HostPort> = table.host_ports.iter().collect();
        host_ports.sort_by_key(|p| (p.host_port, p.protocol, p.host_ip, p.pod_address, p.pod_port));
        host_ports.iter().for_each(|port| self.host_port(port));
    }

    /// Whether what comes from outside to this address may go to a Service. An address of the cluster never: whoever may write
    /// a Service would have the connections of others.
    fn may_take(&self, address: &IpAddr, protocol: Protocol, port: u16) -> bool {
        let nets = [&self.config.service_cidrs, &self.config.cluster_cidrs, &self.config.pod_cidrs];
        let inside = nets.into_iter().flatten().chain(self.ranges).any(|net| net.contains(address));
        let is_api = protocol == Protocol::Tcp && self.taken.api.contains(&(*address, port));
        !(is_special(address) || inside || is_api || self.taken.cluster_ips.contains(address))
    }

    /// Those of a Service's outer addresses that it can have.
    fn outer(&mut self, service: &ServicePort) -> Vec<IpAddr> {
        let all = service.external_ips.iter().chain(&service.load_balancer_ips).filter(|a| self.mine(a));
        let (given, refused): (Vec<IpAddr>, Vec<IpAddr>) =
            all.partition(|a| self.may_take(a, service.protocol, service.port));
        for address in refused {
            self.skipped.services.push(format!(
                "Service {}/{}: {address} {}/{} is not a Service's to have",
                service.namespace,
                service.name,
                service.port,
                service.protocol.name()
            ));
        }
        given
    }

    fn mine(&self, address: &IpAddr) -> bool {
        Family::of(address) == self.family
    }

    /// The first to claim a key keeps it.
    fn element(&mut self, set: &str, key: Vec<Value>, target: &str) {
        let set = self.out.sets.get_mut(set).expect("made by frame");
        set.elements.entry(key).or_insert_with(|| target.to_owned());
    }

    fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.out.chains.insert(name.to_owned(), Chain { hook: None, rules });
    }

    fn hairpin(&mut self, address: IpAddr) {
        self.element(HAIRPIN, vec![Value::Address(address), Value::Address(address)], "");
    }

    fn dns(&mut self, table: &ServiceTable) {
        let Some(dns) = &table.dns else { return };
        let Some(listener) = dns.listeners.iter().find(|l| self.mine(&l.ip())) else { return };
        self.chain("dns", vec![vec![S::Dnat(vec![(listener.ip(), listener.port())])]]);
        for address in dns.cluster_ips.iter().filter(|a| Family::of(a) == self.family).copied().collect::<Vec<_>>() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let key = vec![Value::Address(address), Value::Protocol(protocol), Value::Port(53)];
                self.element(SERVICES, key, "dns");
            }
        }
    }

    /// Who has the port of every address already. A node port is one also while its Service has no endpoints. What is asked of
    /// one address comes before the node ports.
    fn holder(&self, port: &HostPort) -> Option<String> {
        if self.taken.own_ports.contains(&(port.protocol, port.host_port)) {
            return Some("it is this node's own".into());
        }
        let has_port = |s: &&(Protocol, u16, String)| (s.0, s.1) == (port.protocol, port.host_port);
        let service = self.node_ports.iter().find(has_port).filter(|_| port.host_ip.is_unspecified())?;
        Some(format!("it is the node port of the Service {}", service.2))
    }

    fn host_port(&mut self, port: &HostPort) {
        if !self.mine(&port.pod_address) || !self.mine(&port.host_ip) {
            return;
        }
        if let Some(why) = self.holder(port) {
            self.skipped.host_ports.push(Unpublished { port: port.clone(), why });
            return;
        }
        let place =
            if port.host_ip.is_unspecified() { "any".into() } else { port.host_ip.to_string().replace(':', "-") };
        let name = format!("hostport/{}/{}/{place}", port.protocol.name(), port.host_port);
        if self.out.chains.contains_key(&name) {
            let why = "another pod of this node has it".to_owned();
            self.skipped.host_ports.push(Unpublished { port: port.clone(), why });
            return;
        }
        self.chain(&name, vec![vec![S::Dnat(vec![(port.pod_address, port.pod_port)])]]);
        self.hairpin(port.pod_address);
        let (protocol, number) = (Value::Protocol(port.protocol), Value::Port(port.host_port));
        if port.host_ip.is_unspecified() {
            self.element(PORTS, vec![protocol, number], &name);
        } else {
            self.element(HOST_PORTS, vec![Value::Address(port.host_ip), protocol, number], &name);
        }
    }

    fn service(&mut self, service: &ServicePort) {
        let mine = |addresses: &[IpAddr]| addresses.iter().filter(|a| self.mine(a)).copied().collect::<Vec<_>>();
        let inside = Side { addresses: mine(&service.cluster_ips), node_port: None };
        let outside = Side { addresses: self.outer(service), node_port: service.node_port };
        let pick = |local_only: bool| {
            let wanted = service.endpoints.iter().filter(|e| self.mine(&e.address) && (e.local || !local_only));
            let mut targets: Vec<Target> = wanted.map(|e| (e.address, e.port)).collect();
            targets.sort();
            targets.dedup();
            targets
        };
        let (all, local) = (pick(false), pick(true));
        if all.is_empty() {
            self.refuse(service, &inside);
            self.refuse(service, &outside);
            return;
        }
        local.iter().for_each(|(address, _)| self.hairpin(*address));
        let cluster = chain_name("service", service);
        let spread = self.spread(service, &all);
        self.chain(&cluster, spread);
        let inside_chain = if service.internal_local_only {
            let name = chain_name("local", service);
            let rules = self.spread(service, &local);
            self.chain(&name, rules);
            name
        } else {
            cluster.clone()
        };
        self.lead(service, &inside, &inside_chain);
        if outside.addresses.is_empty() && outside.node_port.is_none() {
            return;
        }
        let outside_chain =
            if service.external_local_only { self.external(service, &local, &cluster) } else { cluster };
        let port_chain = self.for_loopback(service, &all, &outside_chain);
        self.lead(service, &Side { node_port: None, ..outside }, &outside_chain);
        self.lead(service, &Side { addresses: Vec::new(), node_port: service.node_port }, &port_chain);
    }

    /// 127.0.0.1 gets those endpoints that it can reach. Where there are none its packets stay as they are: nobody listens, so they
    /// are refused at once.
    fn for_loopback(&mut self, service: &ServicePort, all: &[Target], chain: &str) -> String {
        let nets = from_loopback(self.config, self.family);
        let reaches =
            |address: &IpAddr| nets.iter().any(|net| net.contains(address)) || self.config.addresses.contains(address);
        let reached: Vec<Target> = all.iter().filter(|(address, _)| reaches(address)).copied().collect();
        if service.node_port.is_none() || reached.len() == all.len() {
            return chain.to_owned();
        }
        let (only, name) = (chain_name("loopback", service), chain_name("node-port", service));
        let rules = if reached.is_empty() { vec![vec![S::Return]] } else { self.spread(service, &reached) };
        self.chain(&only, rules);
        let own = S::Source { net: loopback(self.family), not: false };
        self.chain(&name, vec![vec![own, S::Goto(only)], vec![S::Goto(chain.to_owned())]]);
        name
    }

    /// `externalTrafficPolicy: Local` binds only traffic from outside: pods and the node itself still reach every
    /// endpoint (as kube-proxy does), outside traffic is dropped when none is here.
    fn external(&mut self, service: &ServicePort, local: &[Target], cluster: &str) -> String {
        let name = chain_name("external", service);
        let mut rules: Vec<Rule> = of_family(&self.config.cluster_cidrs, self.family)
            .map(|net| vec![S::Source { net, not: false }, S::Goto(cluster.to_owned())])
            .collect();
        rules.push(vec![S::SourceIsLocal, S::Goto(cluster.to_owned())]);
        rules.extend(self.spread(service, local));
        self.chain(&name, rules);
        name
    }

    /// The rules that choose among `targets`; dropping if there are none (only with a Local policy).
    ///
    /// With affinity each endpoint has a set of its clients, so that a first packet looks into as many sets as there
    /// are endpoints. One map from clients to endpoints would be one look-up, and the kernel takes it, but nft 1.0
    /// crashes when it lists a rule that uses the result of one map in another.
    fn spread(&mut self, service: &ServicePort, targets: &[Target]) -> Vec<Rule> {
        if targets.is_empty() {
            return vec![vec![S::Drop]];
        }
        let Some(timeout) = service.affinity else { return vec![vec![S::Dnat(targets.to_vec())]] };
        let kind = SetKind::Clients(timeout);
        let (mut recall, mut chains) = (Vec::new(), Vec::new());
        for target in targets {
            let place = format!("{}/{}", target.0.to_string().replace(':', "-"), target.1);
            let set = format!("{}/{place}", chain_name("clients", service));
            let chain = format!("{}/{place}", chain_name("endpoint", service));
            let clients = Set { kind: kind.clone(), key: vec![DataType::Address], elements: BTreeMap::new() };
            self.out.sets.insert(set.clone(), clients);
            let dnat = S::Dnat(vec![*target]);
            // The second rule is reached when the set is full.
            self.chain(&chain, vec![vec![S::UpdateSet(set.clone()), dnat.clone()], vec![dnat]]);
            recall.push(vec![S::SourceIn(set), S::Goto(chain.clone())]);
            chains.push(chain);
        }
        recall.push(vec![S::RandomChain(chains)]);
        recall
    }

    fn lead(&mut self, service: &ServicePort, side: &Side, chain: &str) {
        self.entries(service, side, SERVICES, PORTS, chain);
    }

    fn refuse(&mut self, service: &ServicePort, side: &Side) {
        self.entries(service, side, NO_ENDPOINTS, NO_ENDPOINT_PORTS, REJECT);
    }

    fn entries(&mut self, service: &ServicePort, side: &Side, by_address: &str, by_port: &str, chain: &str) {
        let protocol = Value::Protocol(service.protocol);
        for address in &side.addresses {
            let key = vec![Value::Address(*address), protocol, Value::Port(service.port)];
            self.element(by_address, key, chain);
        }
        if let Some(port) = side.node_port {
            self.element(by_port, vec![protocol, Value::Port(port)], chain);
        }
    }
}

fn chain_name(kind: &str, service: &ServicePort) -> String {
    format!("{kind}/{}/{}/{}/{}", service.namespace, service.name, service.protocol.name(), service.port)
}

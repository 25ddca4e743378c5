//! What network policies allow, as a ruleset of its own: a pure plan, and its place in the kernel.
//!
//! A connection is looked at once, when it begins: by where it comes from, if that is a pod here that may not speak to everybody,
//! and by where it goes, if that is a pod here that not everybody may speak to. Each costs one look-up, whatever the number of
//! pods, and then the rules of that pod. What the machine itself sends to its pods is never refused: it probes them. Of what pods
//! send to the machine only questions to the cluster DNS are never refused.
//!
//! Pods with equal rules share a chain. Invariant: equal inputs plan to equal rulesets; without isolated pods there is no table.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use super::ruleset::{Chain, DataType, Family, Hook, Rule, Ruleset, Set, SetKind, Statement as S, Table, Value};
use super::table::Protocol;
use super::{Kernel, Written, remove_table};
use crate::base::task;
use crate::net::{Config, Error};

const FROM: &str = "from";
const TO: &str = "to";
const TO_POD: &str = "to-pod";
const INPUT: &str = "input";
const SELF: &str = "self";

/// Everything that policies say of this node's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyTable {
    pub pods: Vec<IsolatedPod>,
    /// Addresses of pods that rules name.
    pub sets: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// A pod that policies are about. A direction without rules (`None`) is open, one with none in it is closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IsolatedPod {
    pub addresses: Vec<IpAddr>,
    pub ingress: Option<BTreeSet<Allowed>>,
    pub egress: Option<BTreeSet<Allowed>>,
}

/// Some others, at some ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allowed {
    pub peers: Peers,
    /// `None`: all of every protocol.
    pub ports: Option<Ports>,
}

/// Who may be spoken to, or may speak.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    Everybody,
    /// All of a range but for parts of it.
    Range(IpNet, Vec<IpNet>),
    /// Those of a set.
    Among(String),
}

/// Ports of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    pub protocol: Protocol,
    /// Both ends included; `None`: all.
    pub range: Option<(u16, u16)>,
}

/// Which way a rule looks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    Ingress,
    Egress,
}

/// The ruleset for these pods.
pub fn plan(config: &Config, policies: &PolicyTable) -> Ruleset {
    let families = [Family::Ip, Family::Ip6].into_iter();
    let has_pods = |family: &Family| policies.pods.iter().flat_map(|p| &p.addresses).any(|a| Family::of(a) == *family);
    let tables = families.filter(has_pods).map(|family| (family, table(config, policies, family))).collect();
    Ruleset { name: config.policy_table(), tables }
}

fn table(config: &Config, policies: &PolicyTable, family: Family) -> Table {
    let mut table = Table::default();
    let mut maps = [Direction::Egress, Direction::Ingress].map(|direction| (direction, BTreeMap::new()));
    for pod in &policies.pods {
        let own: Vec<IpAddr> = pod.addresses.iter().copied().filter(|a| Family::of(a) == family).collect();
        for (direction, map) in &mut maps {
            let rules = match direction {
                Direction::Ingress => pod.ingress.as_ref(),
                Direction::Egress => pod.egress.as_ref(),
            };
            let Some(rules) = rules else { continue };
            let (name, chain) = chain(*direction, rules, family);
            table.chains.insert(name.clone(), chain);
            map.extend(own.iter().map(|address| (vec![Value::Address(*address)], name.clone())));
        }
    }
    for (direction, elements) in maps {
        let name = if direction == Direction::Egress { FROM } else { TO };
        table.sets.insert(name.into(), Set { kind: SetKind::Verdicts, key: vec![DataType::Address], elements });
    }
    for (name, addresses) in &policies.sets {
        let own = addresses.iter().filter(|a| Family::of(a) == family);
        let elements = own.map(|a| (vec![Value::Address(*a)], String::new())).collect();
        table.sets.insert(name.clone(), Set { kind: SetKind::Set, key: vec![DataType::Address], elements });
    }
    table.sets.insert(SELF.into(), pairs(policies, family));
    let mut chain = |name: &str, hook: Option<Hook>, rules: Vec<Rule>| {
        table.chains.insert(name.into(), Chain { hook, rules });
    };
    let (known, by_source) = (vec![S::CtKnown, S::Return], vec![S::SourceVmap(FROM.into())]);
    let itself = vec![S::PairIn(SELF.into()), S::Return];
    chain(
        "forward",
        Some(Hook::FilterForward),
        vec![known.clone(), itself, by_source.clone(), vec![S::Goto(TO_POD.into())]],
    );
    chain(TO_POD, None, vec![vec![S::DestinationVmap(TO.into())]]);
    let input = [dns(config, family), vec![known, by_source]].concat();
    chain(INPUT, Some(Hook::FilterInput), input);
    table
}

/// Each pod with itself, which it reaches through a Service.
fn pairs(policies: &PolicyTable, family: Family) -> Set {
    let own = policies.pods.iter().flat_map(|pod| &pod.addresses).filter(|a| Family::of(a) == family);
    let elements = own.map(|a| (vec![Value::Address(*a), Value::Address(*a)], String::new())).collect();
    Set { kind: SetKind::Set, key: vec![DataType::Address, DataType::Address], elements }
}

/// Questions to the cluster DNS that this node answers: there are no pods of it that a policy could name.
fn dns(config: &Config, family: Family) -> Vec<Rule> {
    let Some(port) = config.dns_port else { return Vec::new() };
    let gateways: Vec<IpAddr> = config.gateways().into_iter().filter(|g| Family::of(g) == family).collect();
    let to = |gateway: &IpAddr, protocol| {
        let listener = S::Destination { net: (*gateway).into(), not: false };
        vec![S::DestinationPort(protocol, port), listener, S::Return]
    };
    gateways.iter().flat_map(|g| [Protocol::Udp, Protocol::Tcp].map(|protocol| to(g, protocol))).collect()
}

/// The chain of pods with such rules, by a name that follows from them.
fn chain(direction: Direction, rules: &BTreeSet<Allowed>, family: Family) -> (String, Chain) {
    let mut all: Vec<Rule> = rules.iter().filter_map(|allowed| rule(direction, allowed, family)).collect();
    all.push(vec![S::Drop]);
    let mut hasher = DefaultHasher::new();
    (direction, &all).hash(&mut hasher);
    let word = if direction == Direction::Ingress { TO } else { FROM };
    (format!("{word}-{:016x}", hasher.finish()), Chain { hook: None, rules: all })
}

/// What lets through; `None` where it can be about no packet of the family.
fn rule(direction: Direction, allowed: &Allowed, family: Family) -> Option<Rule> {
    let is_source = direction == Direction::Ingress;
    let net = |net: IpNet, not| match is_source {
        true => S::Source { net, not },
        false => S::Destination { net, not },
    };
    let mut rule = match &allowed.peers {
        Peers::Everybody => Vec::new(),
        Peers::Range(range, _) if Family::of(&range.addr()) != family => return None,
        Peers::Range(range, except) => {
            let within = (range.prefix_len() > 0).then(|| net(*range, false));
            within.into_iter().chain(except.iter().map(|part| net(*part, true))).collect()
        }
        Peers::Among(set) if is_source => vec![S::SourceAmong { set: set.clone(), not: false }],
        Peers::Among(set) => vec![S::DestinationIn(set.clone())],
    };
    rule.extend(allowed.ports.map(|Ports { protocol, range }| match range {
        None => S::Protocol(protocol),
        Some((first, last)) if first == last => S::DestinationPort(protocol, first),
        Some((first, last)) => S::DestinationPorts(protocol, first, last),
    }));
    rule.push(if is_source { S::Return } else { S::Goto(TO_POD.into()) });
    Some(rule)
}

/// The rules in the kernel.
pub struct Policies {
    config: Config,
    state: Arc<Mutex<State>>,
}

struct State {
    kernel: Kernel,
    /// Families in which it is known that there is no table of ours.
    absent: Vec<Family>,
}

// === impl Policies ===

impl Policies {
    /// Works in the network namespace of the calling thread, also when applied from another thread later.
    pub fn open(config: Config) -> Result<Self, Error> {
        Ok(Self { config, state: Arc::new(Mutex::new(State { kernel: Kernel::open()?, absent: Vec::new() })) })
    }

    /// Makes the kernel hold exactly this, in one atomic change of each family.
    pub async fn apply(&self, policies: &PolicyTable) -> Result<Written, Error> {
        let (state, ruleset) = (self.state.clone(), plan(&self.config, policies));
        let work = move || state.lock().unwrap_or_else(PoisonError::into_inner).apply(ruleset);
        task::blocking(work).await.map_err(|e| Error::kernel("applying network policies")(e.into()))?
    }
}

impl State {
    fn apply(&mut self, ruleset: Ruleset) -> Result<Written, Error> {
        for family in [Family::Ip, Family::Ip6] {
            let is_absent = self.absent.contains(&family);
            if ruleset.tables.contains_key(&family) {
                self.absent.retain(|absent| *absent != family);
            } else if !is_absent {
                remove_table(&mut self.kernel.socket, &ruleset.name, family)?;
                self.kernel.known = None;
                self.absent.push(family);
            }
        }
        if ruleset.tables.is_empty() { Ok(Written::Nothing) } else { self.kernel.write(ruleset) }
    }
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Policies({})", self.config.policy_table())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new("/nowhere", vec!["10.42.0.0/24".parse().unwrap()]);
        config.dns_port = Some(5353);
        config
    }

    fn pod(last: u8, ingress: Option<&[Allowed]>, egress: Option<&[Allowed]>) -> IsolatedPod {
        let set = |rules: Option<&[Allowed]>| rules.map(|r| r.iter().cloned().collect());
        IsolatedPod { addresses: vec![[10, 42, 0, last].into()], ingress: set(ingress), egress: set(egress) }
    }

    fn tcp(first: u16, last: u16) -> Option<Ports> {
        Some(Ports { protocol: Protocol::Tcp, range: Some((first, last)) })
    }

    #[test]
    fn rules_look_at_the_other_end_and_at_ports() {
        let range = Peers::Range("10.0.0.0/8".parse().unwrap(), vec!["10.1.0.0/16".parse().unwrap()]);
        let six = Peers::Range("fd00::/8".parse().unwrap(), Vec::new());
        let among = || Peers::Among("peers-a".into());
        let ingress = [
            Allowed { peers: among(), ports: tcp(80, 80) },
            Allowed { peers: range, ports: None },
            Allowed { peers: six, ports: None },
        ];
        let egress = [Allowed { peers: among(), ports: tcp(1000, 2000) }];
        let sets = BTreeMap::from([("peers-a".to_owned(), BTreeSet::from([IpAddr::from([10, 42, 1, 9])]))]);
        let table = PolicyTable { pods: vec![pod(2, Some(&ingress), Some(&egress)), pod(3, Some(&[]), None)], sets };
        let text = plan(&config(), &table).to_string();
        for line in [
            "table ip amphipod-policy {",
            "    ct state established,related return",
            "    ip saddr vmap @from",
            "    goto to-pod",
            "    ip daddr vmap @to",
            "    ip saddr @peers-a tcp dport 80 return",
            "    ip saddr 10.0.0.0/8 ip saddr != 10.1.0.0/16 return",
            "    ip daddr @peers-a tcp dport 1000-2000 goto to-pod",
            "    udp dport 5353 ip daddr 10.42.0.1/32 return",
            "    10.42.1.9",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
        assert!(!text.contains("fd00"), "{text}");
        assert!(!text.contains("table ip6"), "no pod has an address of it: {text}");
        assert_eq!(text.matches("    10.42.0.3 : goto to-").count(), 1, "{text}");
        assert_eq!(text.matches("    10.42.0.3 : goto from-").count(), 0, "an open direction: {text}");
    }

    #[test]
    fn pods_with_equal_rules_share_a_chain_and_none_means_no_table() {
        let rules = [Allowed { peers: Peers::Everybody, ports: tcp(80, 80) }];
        let table =
            PolicyTable { pods: vec![pod(2, Some(&rules), None), pod(3, Some(&rules), None)], ..<_>::default() };
        let ruleset = plan(&config(), &table);
        let chains = ruleset.tables[&Family::Ip].chains.keys().filter(|name| name.starts_with("to-")).count();
        assert_eq!(chains, 2, "theirs and to-pod: {ruleset}");
        assert!(plan(&config(), &PolicyTable::default()).tables.is_empty());
    }
}

//! A typed nftables ruleset: exactly the constructs we use, printable in nft's own syntax.
//!
//! Printing is for people, golden tests and comparison with `nft list`; the kernel gets it through `encode`.
//! Invariant: everything is ordered, so equal content prints and hashes equally.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::table::Protocol;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ip,
    Ip6,
}

impl Family {
    /// The family an address belongs to.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::Ip } else { Self::Ip6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// All our tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ruleset {
    pub name: String,
    pub tables: BTreeMap<Family, Table>,
}

/// One table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Table {
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
}

/// Type of one part of a key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    Address,
    Protocol,
    Port,
}

/// One part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
}

/// What a set is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// Membership; the elements' verdicts are unused.
    Set,
    /// Key to chain.
    Verdicts,
    /// Client addresses, filled by the rules themselves, each living this long after its last connection.
    Clients(Duration),
}

/// A named set or map. `elements` maps a key to the chain to go to (empty for plain sets).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Set {
    pub kind: SetKind,
    pub key: Vec<DataType>,
    pub elements: BTreeMap<Vec<Value>, String>,
}

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    RawPrerouting,
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    FilterInput,
    FilterForward,
    FilterOutput,
}

/// A chain, with a hook or reached by a verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// One rule: its statements run in order until one does not match.
pub type Rule = Vec<Statement>;

/// Where a rule sends a connection.
pub type Target = (IpAddr, u16);

/// A match or an action.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    NotFromLoopback,
    NotToLoopback,
    /// Came in by the link of this name.
    FromLink(String),
    /// Came in by a link of this group.
    FromGroup {
        group: u32,
        not: bool,
    },
    /// No route leads back to the source by the link that the packet came in by.
    NoReverseRoute,
    Source {
        net: IpNet,
        not: bool,
    },
    Destination {
        net: IpNet,
        not: bool,
    },
    SourceIsLocal,
    DestinationIsLocal,
    CtNew,
    /// Of a connection that was let through, or about one.
    CtKnown,
    CtDnat,
    Protocol(Protocol),
    /// ICMP of the table's family.
    Icmp,
    IcmpType(u8),
    DestinationPort(Protocol, u16),
    /// A port of these, both ends included.
    DestinationPorts(Protocol, u16, u16),
    /// Source address in a set, or not.
    SourceAmong {
        set: String,
        not: bool,
    },
    /// Destination address in a set.
    DestinationIn(String),
    /// Source address looked up in a verdict map.
    SourceVmap(String),
    /// Destination address looked up in a verdict map.
    DestinationVmap(String),
    /// Destination address, protocol and port looked up in a verdict map.
    ServiceVmap(String),
    /// Protocol and destination port in a set.
    PortIn(String),
    /// Protocol and destination port looked up in a verdict map.
    PortVmap(String),
    /// Source and destination address as a pair in a set.
    PairIn(String),
    Goto(String),
    Jump(String),
    Drop,
    /// Back to where the chain was reached from; out of a base chain.
    Return,
    RejectReset,
    RejectUnreachable,
    Masquerade,
    Snat(IpAddr),
    /// To one of these, at random, evenly.
    Dnat(Vec<Target>),
    /// Source address in a set of clients.
    SourceIn(String),
    /// To one of these chains, at random, evenly.
    RandomChain(Vec<String>),
    /// Adds the source address to a set of clients, or begins its time anew; does not match if the set is full.
    UpdateSet(String),
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, table) in &self.tables {
            writeln!(f, "table {} {} {{", family.name(), self.name)?;
            for (name, set) in &table.sets {
                print_set(f, *family, name, set)?;
            }
            for (name, chain) in &table.chains {
                print_chain(f, *family, name, chain)?;
            }
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}

fn print_set(f: &mut fmt::Formatter<'_>, family: Family, name: &str, set: &Set) -> fmt::Result {
    let key: Vec<&str> = set.key.iter().map(|part| part_name(*part, family)).collect();
    let key = key.join(" . ");
    match &set.kind {
        SetKind::Set => writeln!(f, "  set {name} {{\n    type {key}")?,
        SetKind::Verdicts => writeln!(f, "  map {name} {{\n    type {key} : verdict")?,
        SetKind::Clients(timeout) => {
            writeln!(f, "  set {name} {{\n    type {key}\n    size {CLIENTS_MAX}\n    flags dynamic,timeout")?;
            writeln!(f, "    timeout {}s", timeout.as_secs())?;
        }
    }
    for (key, target) in &set.elements {
        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
        let target = if target.is_empty() { String::new() } else { format!(" : goto {target}") };
        writeln!(f, "    {}{target}", key.join(" . "))?;
    }
    writeln!(f, "  }}")
}

fn print_chain(f: &mut fmt::Formatter<'_>, family: Family, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(f, "  chain {name} {{")?;
    if let Some(hook) = chain.hook {
        let (kind, hook, priority) = hook.parts();
        writeln!(f, "    type {kind} hook {} priority {priority}; policy accept;", HOOKS[hook as usize])?;
    }
    for rule in &chain.rules {
        let words: Vec<String> = rule.iter().map(|s| s.print(family)).collect();
        writeln!(f, "    {}", words.join(" "))?;
    }
    writeln!(f, "  }}")
}

const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// The most clients an endpoint remembers; more are still served, but not remembered.
pub(crate) const CLIENTS_MAX: u32 = 65536;

fn part_name(part: DataType, family: Family) -> &'static str {
    match (part, family) {
        (DataType::Address, Family::Ip) => "ipv4_addr",
        (DataType::Address, Family::Ip6) => "ipv6_addr",
        (DataType::Protocol, _) => "inet_proto",
        (DataType::Port, _) => "inet_service",
    }
}

impl Hook {
    /// Chain type, hook number, priority.
    pub(crate) fn parts(self) -> (&'static str, u32, i32) {
        match self {
            Self::RawPrerouting => ("filter", 0, -300),
            Self::NatPrerouting => ("nat", 0, -100),
            Self::NatOutput => ("nat", 3, -100),
            Self::NatPostrouting => ("nat", 4, 100),
            Self::FilterInput => ("filter", 1, 0),
            Self::FilterForward => ("filter", 2, 0),
            Self::FilterOutput => ("filter", 3, 0),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Protocol(protocol) => f.write_str(protocol.name()),
            Self::Port(port) => port.fmt(f),
        }
    }
}

fn targets(among: &[Target]) -> String {
    match among {
        [(address, port)] => format!("{address} . {port}"),
        _ => {
            let list: Vec<String> = among.iter().enumerate().map(|(i, (a, p))| format!("{i} : {a} . {p}")).collect();
            format!("numgen random mod {} map {{ {} }}", among.len(), list.join(", "))
        }
    }
}

impl Statement {
    /// The named set the statement uses.
    pub(crate) fn set(&self) -> Option<&String> {
        match self {
            Self::ServiceVmap(set) | Self::PortVmap(set) | Self::PairIn(set) => Some(set),
            Self::SourceVmap(set) | Self::DestinationVmap(set) => Some(set),
            Self::SourceIn(set) | Self::UpdateSet(set) => Some(set),
            Self::PortIn(set) | Self::SourceAmong { set, .. } | Self::DestinationIn(set) => Some(set),
            _ => None,
        }
    }

    fn print(&self, family: Family) -> String {
        let ip = family.name();
        let op = |not: &bool| if *not { "!= " } else { "" };
        match self {
            Self::NotFromLoopback => "iif != lo".into(),
            Self::NotToLoopback => "oif != lo".into(),
            Self::FromLink(name) => format!("iifname \"{name}\""),
            Self::FromGroup { group, not } => format!("iifgroup {}{group}", op(not)),
            Self::NoReverseRoute => "fib saddr . iif oif missing".into(),
            Self::Source { net, not } => format!("{ip} saddr {}{net}", op(not)),
            Self::Destination { net, not } => format!("{ip} daddr {}{net}", op(not)),
            Self::SourceIsLocal => "fib saddr type local".into(),
            Self::DestinationIsLocal => "fib daddr type local".into(),
            Self::CtNew => "ct state new".into(),
            Self::CtKnown => "ct state established,related".into(),
            Self::CtDnat => "ct status dnat".into(),
            Self::Protocol(protocol) => format!("meta l4proto {}", protocol.name()),
            Self::Icmp => format!("meta l4proto {}", if family == Family::Ip { "icmp" } else { "ipv6-icmp" }),
            Self::IcmpType(kind) => format!("{} type {kind}", if family == Family::Ip { "icmp" } else { "icmpv6" }),
            Self::DestinationPort(protocol, port) => format!("{} dport {port}", protocol.name()),
            Self::DestinationPorts(protocol, first, last) => format!("{} dport {first}-{last}", protocol.name()),
            Self::SourceVmap(map) => format!("{ip} saddr vmap @{map}"),
            Self::DestinationVmap(map) => format!("{ip} daddr vmap @{map}"),
            Self::SourceAmong { set, not } => format!("{ip} saddr {}@{set}", op(not)),
            Self::DestinationIn(set) => format!("{ip} daddr @{set}"),
            Self::ServiceVmap(map) => format!("{ip} daddr . meta l4proto . th dport vmap @{map}"),
            Self::PortIn(set) => format!("meta l4proto . th dport @{set}"),
            Self::PortVmap(map) => format!("meta l4proto . th dport vmap @{map}"),
            Self::PairIn(set) => format!("{ip} saddr . {ip} daddr @{set}"),
            Self::Goto(chain) => format!("goto {chain}"),
            Self::Jump(chain) => format!("jump {chain}"),
            Self::Drop => "drop".into(),
            Self::Return => "return".into(),
            Self::RejectReset => "reject with tcp reset".into(),
            Self::RejectUnreachable => "reject".into(),
            Self::Masquerade => "masquerade fully-random".into(),
            Self::Snat(address) => format!("snat to {address} fully-random"),
            Self::Dnat(among) => format!("dnat to {}", targets(among)),
            Self::SourceIn(set) => format!("{ip} saddr @{set}"),
            Self::RandomChain(chains) => {
                let list: Vec<String> = chains.iter().enumerate().map(|(i, c)| format!("{i} : goto {c}")).collect();
                format!("numgen random mod {} vmap {{ {} }}", chains.len(), list.join(", "))
            }
            Self::UpdateSet(set) => format!("update @{set} {{ {ip} saddr }}"),
        }
    }
}

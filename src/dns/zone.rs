//! The cluster zone: a pure function from a question and the records to an answer.
//!
//! Follows the Kubernetes DNS-based service discovery specification 1.1.0; where that leaves a choice, CoreDNS' answer
//! is matched (TTL 5, an `NXDOMAIN` for headless Services without endpoints, SRV at the Service's own name, pod names
//! answered for every address of an existing namespace).
//!
//! Invariant: a name that exists with another type, or has names below it, is answered empty (`NODATA`), never
//! `NXDOMAIN`: resolvers ask A and AAAA at once and would give up on the first `NXDOMAIN`.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::{EndpointRecord, Pointer, PortRecord, Records, ServiceRecord};

/// Seconds an answer may be kept, also a negative one.
pub const TTL: u32 = 5;
const VERSION: &str = "1.1.0";
const SRV_PRIORITY: u16 = 0;
/// Answers that name more targets come without their addresses: with them they would not fit into a datagram.
const TARGETS_MAX: usize = 64;

/// The zone's own facts.
#[derive(Debug, Clone)]
pub struct Zone {
    domain: Name,
    /// `domain` as lower-case labels.
    labels: Vec<String>,
    /// Addresses of the DNS server itself (`ns.dns.<domain>`).
    servers: Vec<IpAddr>,
}

/// The answer to a question about the zone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    /// The SOA of negative answers.
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// The last answer is a CNAME to this name, which has to be resolved too.
    pub chase: Option<Name>,
}

impl Zone {
    /// The zone `domain` (`cluster.local`), served at `servers`.
    pub fn new(domain: &str, servers: Vec<IpAddr>) -> Result<Self, String> {
        let mut name =
            Name::from_ascii(domain).map_err(|e| format!("`{domain}` is no domain name: {e}"))?.to_lowercase();
        name.set_fqdn(true);
        let labels = labels(&name);
        Ok(Self { domain: name, labels, servers })
    }

    fn name(&self, parts: &[&str]) -> Option<Name> {
        let relative = Name::from_labels(parts.iter().map(|p| p.as_bytes())).ok()?;
        relative.append_domain(&self.domain).ok()
    }

    fn soa(&self) -> Record {
        let contact = self.name(&["hostmaster"]).unwrap_or_else(|| self.domain.clone());
        let server = self.server().unwrap_or_else(|| self.domain.clone());
        let soa = SOA::new(server, contact, 1, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    fn server(&self) -> Option<Name> {
        self.name(&["ns", "dns"])
    }
}

fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_lowercase()).collect()
}

/// What exists at a name.
enum Found {
    /// Records of any type; those of the asked type are picked from them.
    Records(Vec<Record>),
    /// The name exists for the names below it.
    Empty,
    Nothing,
}

/// Answers a question, or `None` if it is not about the cluster.
pub fn answer(zone: &Zone, query: &Query, records: &dyn Records) -> Option<Answer> {
    let labels = labels(&query.name);
    if query.query_class != DNSClass::IN {
        return None;
    }
    if let Some(relative) = labels.strip_suffix(zone.labels.as_slice()) {
        let relative: Vec<&str> = relative.iter().map(String::as_str).collect();
        let asker = Asker { zone, name: &query.name, records };
        let found = asker.find(&relative);
        return Some(select(zone, query, found, records));
    }
    let address = reverse_address(&labels)?;
    let pointers = records.pointers(address);
    if pointers.is_empty() {
        return None; // not ours: the network around the cluster may know it
    }
    let names = pointers.iter().filter_map(|pointer| pointer_name(zone, pointer));
    let list = names.map(|name| Record::from_rdata(query.name.clone(), TTL, RData::PTR(PTR(name)))).collect();
    Some(select(zone, query, Found::Records(list), records))
}

/// Picks what was asked for out of what is there.
fn select(zone: &Zone, query: &Query, found: Found, records: &dyn Records) -> Answer {
    let list = match found {
        Found::Records(list) => list,
        Found::Empty => Vec::new(),
        Found::Nothing => {
            let authorities = vec![zone.soa()];
            return Answer { code: ResponseCode::NXDomain, authorities, ..Answer::default() };
        }
    };
    let alias = list.iter().find_map(|r| match &r.data {
        RData::CNAME(CNAME(target)) => Some(target.clone()),
        _ => None,
    });
    if let Some(target) = alias {
        let chase = (query.query_type != RecordType::CNAME).then_some(target);
        return Answer { answers: list, chase, ..Answer::default() };
    }
    let wanted = |r: &Record| query.query_type == RecordType::ANY || r.record_type() == query.query_type;
    let answers: Vec<Record> = list.into_iter().filter(wanted).collect();
    if answers.is_empty() {
        return Answer { authorities: vec![zone.soa()], ..Answer::default() };
    }
    let additionals = additionals(zone, &answers, records);
    Answer { answers, additionals, ..Answer::default() }
}

/// The addresses of the targets of SRV answers.
fn additionals(zone: &Zone, answers: &[Record], records: &dyn Records) -> Vec<Record> {
    let (mut targets, mut seen) = (Vec::new(), HashSet::new());
    for record in answers {
        if let RData::SRV(srv) = &record.data
            && seen.insert(&srv.target)
        {
            targets.push(&srv.target);
        }
    }
    // Each of them is looked for among all endpoints.
    if targets.len() > TARGETS_MAX {
        return Vec::new();
    }
    let mut list = Vec::new();
    for target in targets {
        let parts = labels(target);
        let Some(relative) = parts.strip_suffix(zone.labels.as_slice()) else { continue };
        let relative: Vec<&str> = relative.iter().map(String::as_str).collect();
        if let Found::Records(found) = (Asker { zone, name: target, records }).find(&relative) {
            list.extend(found.into_iter().filter(|r| matches!(r.record_type(), RecordType::A | RecordType::AAAA)));
        }
    }
    list
}

fn pointer_name(zone: &Zone, pointer: &Pointer) -> Option<Name> {
    let service = [pointer.service.as_str(), &pointer.namespace, "svc"];
    match &pointer.endpoint {
        Some(endpoint) => zone.name(&[&[endpoint.as_str()], service.as_slice()].concat()),
        None => zone.name(&service),
    }
}

/// The address that a full name under `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let parts: Vec<&str> = labels.iter().rev().map(String::as_str).collect();
    match parts.as_slice() {
        ["arpa", "in-addr", a, b, c, d] => [a, b, c, d].map(|p| *p).join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        ["arpa", "ip6", nibbles @ ..] if nibbles.len() == 32 && nibbles.iter().all(|n| n.len() == 1) => {
            u128::from_str_radix(&nibbles.concat(), 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from(bits)))
        }
        _ => None,
    }
}

struct Asker<'a> {
    zone: &'a Zone,
    /// The owner of the records, spelled as it was asked for.
    name: &'a Name,
    records: &'a dyn Records,
}

impl Asker<'_> {
    fn find(&self, relative: &[&str]) -> Found {
        match relative {
            [] => self.apex(),
            ["dns-version"] => self.one(RData::TXT(TXT::new(vec![VERSION.to_owned()]))),
            ["dns"] | ["svc"] | ["pod"] => Found::Empty,
            ["ns", "dns"] => self.addresses(self.zone.servers.iter().copied()),
            [namespace, "svc" | "pod"] => self.known(self.records.namespace(namespace)),
            [address, namespace, "pod"] => self.pod(address, namespace),
            [below @ .., service, namespace, "svc"] => match self.records.service(namespace, service) {
                Some(record) => self.service(&record, below),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    fn known(&self, exists: bool) -> Found {
        if exists { Found::Empty } else { Found::Nothing }
    }

    fn one(&self, data: RData) -> Found {
        Found::Records(vec![self.record(data)])
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.name.clone(), TTL, data)
    }

    fn addresses(&self, addresses: impl Iterator<Item = IpAddr>) -> Found {
        let list: Vec<Record> = addresses.map(|a| self.record(address_data(a))).collect();
        if list.is_empty() { Found::Nothing } else { Found::Records(list) }
    }

    fn apex(&self) -> Found {
        let mut list = vec![self.zone.soa()];
        list.extend(self.zone.server().map(|server| self.record(RData::NS(NS(server)))));
        Found::Records(list)
    }

    fn pod(&self, text: &str, namespace: &str) -> Found {
        let address = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
        let address = address.or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6));
        match address {
            Ok(address) if self.records.namespace(namespace) => self.one(address_data(address)),
            _ => Found::Nothing,
        }
    }

    fn service(&self, service: &ServiceRecord, below: &[&str]) -> Found {
        match (service, below) {
            (ServiceRecord::External { name }, []) => match Name::from_ascii(name) {
                Ok(mut target) => {
                    target.set_fqdn(true);
                    self.one(RData::CNAME(CNAME(target)))
                }
                Err(_) => Found::Empty,
            },
            (ServiceRecord::External { .. }, _) => Found::Nothing,
            (ServiceRecord::Cluster { addresses, ports }, []) => {
                let mut list: Vec<Record> = addresses.iter().map(|a| self.record(address_data(*a))).collect();
                list.extend(ports.iter().map(|port| self.srv(port, self.name, 1)));
                Found::Records(list)
            }
            (ServiceRecord::Cluster { ports, .. }, [proto]) => self.known(ports.iter().any(|p| is_protocol(p, proto))),
            (ServiceRecord::Cluster { ports, .. }, [port, proto]) => {
                let target = self.above(2);
                let list = ports.iter().filter(|p| is_port(p, port, proto)).map(|p| self.srv(p, &target, 1));
                found(list.collect())
            }
            (ServiceRecord::Headless { endpoints }, below) => self.headless(endpoints, below),
            (ServiceRecord::Cluster { .. }, _) => Found::Nothing,
        }
    }

    fn headless(&self, endpoints: &[EndpointRecord], below: &[&str]) -> Found {
        match below {
            [] => {
                let mut seen = HashSet::new();
                let addresses = endpoints.iter().map(|e| e.address).filter(|address| seen.insert(*address));
                let mut list: Vec<Record> = addresses.map(|a| self.record(address_data(a))).collect();
                list.extend(self.endpoint_srvs(endpoints, self.name, |_| true));
                found(list)
            }
            [label] if label.starts_with('_') => {
                self.known(endpoints.iter().flat_map(|e| &e.ports).any(|p| is_protocol(p, label)))
            }
            [label] => {
                let named = endpoints.iter().filter(|e| e.label().eq_ignore_ascii_case(label));
                self.addresses(named.map(|e| e.address))
            }
            [port, proto] => found(self.endpoint_srvs(endpoints, &self.above(2), |p| is_port(p, port, proto))),
            _ => Found::Nothing,
        }
    }

    fn endpoint_srvs(
        &self,
        endpoints: &[EndpointRecord],
        service: &Name,
        wanted: impl Fn(&PortRecord) -> bool,
    ) -> Vec<Record> {
        let (mut list, mut seen) = (Vec::new(), HashSet::new());
        for endpoint in endpoints {
            let Ok(target) = service.prepend_label(endpoint.label().as_bytes()) else { continue };
            for port in endpoint.ports.iter().filter(|p| wanted(p)) {
                if seen.insert((target.clone(), port.port)) {
                    list.push(self.srv(port, &target, 1));
                }
            }
        }
        list
    }

    fn srv(&self, port: &PortRecord, target: &Name, weight: u16) -> Record {
        self.record(RData::SRV(SRV::new(SRV_PRIORITY, weight, port.port, target.clone())))
    }

    /// The asked name without its first labels.
    fn above(&self, labels: usize) -> Name {
        self.name.trim_to(usize::from(self.name.num_labels()) - labels)
    }
}

fn found(list: Vec<Record>) -> Found {
    if list.is_empty() { Found::Nothing } else { Found::Records(list) }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(a) => RData::A(a.into()),
        IpAddr::V6(a) => RData::AAAA(a.into()),
    }
}

fn is_protocol(port: &PortRecord, label: &str) -> bool {
    !port.name.is_empty() && label.strip_prefix('_') == Some(port.protocol.name())
}

fn is_port(port: &PortRecord, name: &str, protocol: &str) -> bool {
    is_protocol(port, protocol) && name.strip_prefix('_').is_some_and(|n| n.eq_ignore_ascii_case(&port.name))
}

#[cfg(test)]
pub(super) mod tests;

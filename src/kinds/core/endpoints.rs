//! Endpoints.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::base::json::{list, list_mut, map_mut, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{Column, Kind};

/// The kind.
pub static KIND: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    create_on_update: true,
    columns: COLUMNS,
    row,
    default,
    prepare_create: repack,
    prepare_update: |new, _| repack(new),
    validate,
    deprecation: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    sample: r#"{"metadata":{"name":"sample"},"subsets":[{"addresses":[{"ip":"10.1.2.3"}],"ports":[{"port":80}]}]}"#,
    ..Kind::BASE
};

const COLUMNS: &[Column] = &[table::NAME, string("Endpoints", "Addresses and ports that are ready."), table::AGE];
/// More than this many are only counted.
const SHOWN: usize = 3;

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![table::name(object), shown(list(object, "subsets")).into(), table::age(object, now)]
}

fn shown(subsets: &[Value]) -> String {
    if subsets.is_empty() {
        return "<none>".into();
    }
    let (mut out, mut count) = (Vec::new(), 0);
    for subset in subsets {
        let (addresses, ports) = (list(subset, "addresses"), list(subset, "ports"));
        if ports.is_empty() {
            count += addresses.len();
            out.extend(addresses.iter().map(|a| text(a, "ip").to_owned()));
        }
        for port in ports {
            for address in addresses {
                count += 1;
                if out.len() < SHOWN {
                    let (ip, port) = (text(address, "ip"), port["port"].as_i64().unwrap_or(0));
                    out.push(if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") });
                }
            }
        }
    }
    out.truncate(SHOWN);
    let text = out.join(",");
    if count > SHOWN { format!("{text} + {} more...", count - SHOWN) } else { text }
}

fn default(object: &mut Value) {
    for subset in list_mut(object, "subsets").into_iter().flatten() {
        for port in list_mut(subset, "ports").into_iter().flatten() {
            set_default(port, "protocol", "TCP");
        }
    }
}

/// One address with its readiness, as a key that sorts by address.
type Address = (String, String);

/// Brings subsets into one form: each address stands once with all of its ports, ordered.
fn repack(object: &mut Value) {
    let subsets = list(object, "subsets").to_vec();
    if subsets.is_empty() {
        return;
    }
    let mut by_port: Vec<(Value, BTreeMap<Address, (Value, bool)>)> = Vec::new();
    for subset in &subsets {
        let ports = list(subset, "ports");
        let none = [Value::Null];
        for port in if ports.is_empty() { &none[..] } else { ports } {
            let slot = match by_port.iter().position(|(p, _)| p == port) {
                Some(i) => i,
                None => {
                    by_port.push((port.clone(), BTreeMap::new()));
                    by_port.len() - 1
                }
            };
            for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
                for address in list(subset, key) {
                    let uid = address.get("targetRef").map_or("", |t| text(t, "uid"));
                    let entry = by_port[slot].1.entry((text(address, "ip").to_owned(), uid.to_owned()));
                    let entry = entry.or_insert_with(|| (address.clone(), ready));
                    // An address that is said to be both is not ready.
                    entry.1 &= ready;
                }
            }
        }
    }
    if by_port.iter().all(|(_, addresses)| addresses.is_empty()) {
        return;
    }
    let mut groups: Vec<(BTreeMap<Address, (Value, bool)>, Vec<Value>)> = Vec::new();
    for (port, addresses) in by_port {
        match groups.iter_mut().find(|(a, _)| *a == addresses) {
            Some((_, ports)) => ports.push(port),
            None => groups.push((addresses, vec![port])),
        }
    }
    let packed: Vec<Value> = groups.into_iter().map(|(addresses, ports)| subset_of(&addresses, ports)).collect();
    map_mut(object, "").insert("subsets".into(), packed.into());
}

fn subset_of(addresses: &BTreeMap<Address, (Value, bool)>, mut ports: Vec<Value>) -> Value {
    let mut subset = Map::new();
    for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
        let list: Vec<Value> = addresses.values().filter(|(_, r)| *r == ready).map(|(a, _)| a.clone()).collect();
        if !list.is_empty() {
            subset.insert(key.into(), list.into());
        }
    }
    ports.retain(|p| !p.is_null());
    ports.sort_by_key(|p| (text(p, "protocol").to_owned(), p["port"].as_i64(), text(p, "name").to_owned()));
    if !ports.is_empty() {
        subset.insert("ports".into(), ports.into());
    }
    Value::Object(subset)
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let base = Path::root("subsets");
    for (i, subset) in list(object, "subsets").iter().enumerate() {
        let path = base.index(i);
        let (ready, unready) = (list(subset, "addresses"), list(subset, "notReadyAddresses"));
        if ready.is_empty() && unready.is_empty() {
            errors.push(field::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for (key, all) in [("addresses", ready), ("notReadyAddresses", unready)] {
            let path = path.field(key);
            for (k, address) in all.iter().enumerate() {
                validate_address(&mut errors, &path.index(k), address);
            }
        }
        let ports = list(subset, "ports");
        let path = path.field("ports");
        for (k, port) in ports.iter().enumerate() {
            validate_port(&mut errors, &path.index(k), port, ports.len() > 1);
        }
    }
    errors
}

fn validate_address(errors: &mut Errors, path: &Path<'_>, address: &Value) {
    check::reachable_ip(errors, &path.field("ip"), text(address, "ip"));
    let (hostname, node) = (text(address, "hostname"), text(address, "nodeName"));
    if !hostname.is_empty() {
        check::dns_label(errors, &path.field("hostname"), hostname);
    }
    if !node.is_empty() {
        check::dns_subdomain(errors, &path.field("nodeName"), node);
    }
}

fn validate_port(errors: &mut Errors, path: &Path<'_>, port: &Value, named: bool) {
    let name = text(port, "name");
    if name.is_empty() && named {
        errors.push(field::required(&path.field("name"), ""));
    } else if !name.is_empty() {
        check::dns_label(errors, &path.field("name"), name);
    }
    check::port(errors, &path.field("port"), port["port"].as_i64().unwrap_or(0));
    check::required_one_of(errors, &path.field("protocol"), text(port, "protocol"), &["SCTP", "TCP", "UDP"]);
    if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
        check::qualified(errors, &path.field("appProtocol"), protocol);
    }
}

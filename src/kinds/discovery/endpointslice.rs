//! EndpointSlice.

use jiff::Timestamp;
use linkme::distributed_slice;
use std::collections::HashSet;

use serde_json::Value;

use crate::base::json::{list, list_mut, map_mut, set_default, text};
use crate::kinds::check::{self, IMMUTABLE, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    generation: Generation::SpecAndLabels,
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default,
        prepare_create: drop_topology,
        prepare_update,
        validate,
        validate_create: endpoints,
        validate_update,
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"addressType":"IPv4","endpoints":[{"addresses":["10.1.2.3"]}],"ports":[{"port":80}]}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("AddressType", "What kind of addresses it has."),
    string("Ports", "The ports of each endpoint."),
    string("Endpoints", "Addresses of the endpoints."),
    table::AGE,
];
const ENDPOINTS: usize = 1000;
const ADDRESSES: usize = 100;
const PORTS: usize = 100;
const ZONES: usize = 8;
/// More are only counted in the table.
const SHOWN: usize = 3;

fn row(slice: &Value, now: Timestamp) -> Vec<Value> {
    let ports = list(slice, "ports").iter().map(|p| match p.get("port").and_then(Value::as_i64) {
        Some(number) => number.to_string(),
        None => "*".into(),
    });
    let addresses = list(slice, "endpoints").iter().flat_map(|e| list(e, "addresses"));
    let addresses = addresses.filter_map(|a| a.as_str().map(str::to_owned));
    vec![
        table::name(slice),
        text(slice, "addressType").into(),
        some(ports.collect()).into(),
        some(addresses.collect()).into(),
        table::age(slice, now),
    ]
}

fn some(mut all: Vec<String>) -> String {
    let count = all.len();
    all.truncate(SHOWN);
    match count {
        0 => "<unset>".into(),
        n if n > SHOWN => format!("{} + {} more...", all.join(","), n - SHOWN),
        _ => all.join(","),
    }
}

fn default(slice: &mut Value) {
    for port in list_mut(slice, "ports").into_iter().flatten() {
        set_default(port, "name", "");
        set_default(port, "protocol", "TCP");
    }
}

/// Topology by label was replaced by fields of its own.
fn drop_topology(slice: &mut Value) {
    for endpoint in list_mut(slice, "endpoints").into_iter().flatten() {
        map_mut(endpoint, "").remove("deprecatedTopology");
    }
}

fn prepare_update(new: &mut Value, old: &Value) {
    if new["endpoints"] != old["endpoints"] {
        drop_topology(new);
    }
}

fn validate(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    let kind = text(slice, "addressType");
    check::required_one_of(&mut errors, &Path::root("addressType"), kind, &["FQDN", "IPv4", "IPv6"]);
    validate_ports(&mut errors, &Path::root("ports"), list(slice, "ports"));
    errors
}

/// Errors in the endpoints; what has not changed is not looked at again.
fn endpoints(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    let kind = text(slice, "addressType");
    let base = Path::root("endpoints");
    let endpoints = list(slice, "endpoints");
    if endpoints.len() > ENDPOINTS {
        errors.push(field::too_many(&base, endpoints.len(), ENDPOINTS));
        return errors;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        validate_endpoint(&mut errors, &base.index(i), endpoint, kind);
    }
    errors
}

fn validate_endpoint(errors: &mut Errors, path: &Path<'_>, endpoint: &Value, kind: &str) {
    let addresses = list(endpoint, "addresses");
    let base = path.field("addresses");
    if addresses.is_empty() {
        errors.push(field::required(&base, "must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES {
        errors.push(field::too_many(&base, addresses.len(), ADDRESSES));
    }
    for (k, address) in addresses.iter().enumerate().take(ADDRESSES) {
        let address = address.as_str().unwrap_or("");
        let path = base.index(k);
        match kind {
            "IPv4" | "IPv6" => {
                if check::parse_ip_sloppy(address).is_some_and(|ip| ip.is_ipv4() != (kind == "IPv4")) {
                    errors.push(field::invalid(&base, address, format!("must be an {kind} address")));
                } else {
                    check::reachable_ip(errors, &path, address);
                }
            }
            "FQDN" => check::dns_subdomain(errors, &path, address.strip_suffix('.').unwrap_or(address)),
            _ => {}
        }
    }
    if let Some(name) = endpoint.get("nodeName").and_then(Value::as_str) {
        check::dns_subdomain(errors, &path.field("nodeName"), name);
    }
    if let Some(name) = endpoint.get("hostname").and_then(Value::as_str).filter(|n| !n.is_empty()) {
        check::dns_label(errors, &path.field("hostname"), name);
    }
    check::labels(errors, &path.field("deprecatedTopology"), endpoint.get("deprecatedTopology"));
    hints(errors, &path.field("hints"), endpoint.get("hints"));
}

fn hints(errors: &mut Errors, path: &Path<'_>, hints: Option<&Value>) {
    let Some(hints) = hints else { return };
    for key in ["forZones", "forNodes"] {
        let base = path.field(key);
        let all = list(hints, key);
        if all.len() > ZONES {
            errors.push(field::too_many(&base, all.len(), ZONES));
            continue;
        }
        let mut seen = HashSet::new();
        for (i, hint) in all.iter().enumerate() {
            let name = text(hint, "name");
            let path = base.index(i);
            if !seen.insert(name) {
                errors.push(field::duplicate(&path.field("name"), name));
            }
            if key == "forNodes" {
                check::dns_subdomain(errors, &path.field("name"), name);
            } else {
                check::label_value(errors, &path.field("name"), name);
            }
        }
    }
}

fn validate_ports(errors: &mut Errors, base: &Path<'_>, ports: &[Value]) {
    if ports.len() > PORTS {
        errors.push(field::too_many(base, ports.len(), PORTS));
        return;
    }
    let mut seen = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = base.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            check::dns_label(errors, &path.field("name"), name);
        }
        if !seen.insert(name) {
            errors.push(field::duplicate(&path.field("name"), name));
        }
        check::required_one_of(errors, &path.field("protocol"), text(port, "protocol"), &["SCTP", "TCP", "UDP"]);
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            check::qualified(errors, &path.field("appProtocol"), protocol);
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = if new["endpoints"] == old["endpoints"] { Errors::new() } else { endpoints(new) };
    if new["addressType"] != old["addressType"] {
        errors.push(field::invalid("addressType", text(new, "addressType"), IMMUTABLE));
    }
    errors
}

fn warnings(slice: &Value, _old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    let base = Path::root("endpoints");
    match text(slice, "addressType") {
        "FQDN" => out.push("addressType: FQDN endpoints are deprecated".into()),
        _ => {
            for (i, endpoint) in list(slice, "endpoints").iter().enumerate() {
                let path = base.index(i);
                let path = path.field("addresses");
                for (k, address) in list(endpoint, "addresses").iter().enumerate() {
                    out.extend(check::ip_warning(&path.index(k), address.as_str().unwrap_or("")));
                }
            }
        }
    }
    out
}

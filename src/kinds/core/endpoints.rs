//! Endpoints.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{list, list_mut, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    create_on_update: true,
    columns: COLUMNS,
    row,
    deprecation: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    strategy: Strategy { default, validate, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"subsets":[{"addresses":[{"ip":"10.1.2.3"}],"ports":[{"port":80}]}]}"#,
    ..Kind::BASE
});

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

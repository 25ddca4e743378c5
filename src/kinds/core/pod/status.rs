//! Changes of a pod's status.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::base::json::{list, map_mut, set, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// What a client that writes the status cannot change.
pub(super) fn prepare(new: &mut Value, old: &Value) {
    let meta = map_mut(new, "metadata");
    for key in ["ownerReferences", "deletionTimestamp"] {
        match old["metadata"].get(key) {
            Some(value) => {
                meta.insert(key.into(), value.clone());
            }
            None => {
                meta.remove(key);
            }
        }
    }
    // The class follows from the spec and stays.
    let class = text(old, "status.qosClass").to_owned();
    if !class.is_empty() && text(new, "status.qosClass").is_empty() {
        set(new, "status.qosClass", class);
    }
}

/// Both spellings of addresses, before it is noted who wrote what.
pub(super) fn default(pod: &mut Value) {
    if pod.get("status").is_some_and(Value::is_object) {
        addresses(pod, "podIP", "podIPs");
        addresses(pod, "hostIP", "hostIPs");
    }
}

/// The single address is the first of the list; the one that is given makes the other.
fn addresses(pod: &mut Value, one: &str, many: &str) {
    let status = map_mut(pod, "status");
    let single = status.get(one).and_then(Value::as_str).unwrap_or("").to_owned();
    let first = status.get(many).and_then(|m| m.get(0)).map(|m| text(m, "ip").to_owned());
    match (single.is_empty(), first) {
        (false, None) => {
            status.insert(many.into(), serde_json::json!([{"ip": single}]));
        }
        (true, Some(ip)) if !ip.is_empty() => {
            status.insert(one.into(), ip.into());
        }
        (false, Some(ip)) if ip != single => {
            // A client that knows only the single address wins.
            status.insert(many.into(), serde_json::json!([{"ip": single}]));
        }
        _ => {}
    }
}

pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("status");
    let status = &new["status"];
    conditions(&mut errors, &path.field("conditions"), list(status, "conditions"));
    let nominated = text(status, "nominatedNodeName");
    if !nominated.is_empty() {
        check::dns_subdomain(&mut errors, &path.field("nominatedNodeName"), nominated);
    }
    if new["spec"]["nodeName"] != old["spec"]["nodeName"] {
        errors.push(field::forbidden("spec.nodeName", "may not be changed directly"));
    }
    addresses_errors(&mut errors, &path, status, "podIPs");
    addresses_errors(&mut errors, &path, status, "hostIPs");
    let restart = text(new, "spec.restartPolicy");
    for (key, never) in [("containerStatuses", true), ("initContainerStatuses", false)] {
        restarts(&mut errors, &path.field(key), status, &old["status"], key, restart, never);
    }
    errors
}

fn conditions(errors: &mut Errors, path: &Path<'_>, conditions: &[Value]) {
    const SYSTEM: &[&str] = &["PodScheduled", "Ready", "Initialized"];
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let kind = text(condition, "type");
        if !SYSTEM.contains(&kind) {
            check::qualified(errors, &path.field("Type"), kind);
        }
    }
}

fn addresses_errors(errors: &mut Errors, path: &Path<'_>, status: &Value, key: &str) {
    let path = path.field(key);
    let all = list(status, key);
    let parsed: Vec<_> = all.iter().map(|a| check::parse_ip_sloppy(text(a, "ip"))).collect();
    let mut seen = HashSet::new();
    for (i, address) in all.iter().enumerate() {
        if parsed[i].is_none() {
            errors.push(field::invalid(&path.index(i), text(address, "ip"), check::NOT_AN_IP));
        } else if !seen.insert(parsed[i]) {
            errors.push(field::duplicate(&path.index(i), text(address, "ip")));
        }
    }
    let families: Vec<bool> = parsed.iter().flatten().map(std::net::IpAddr::is_ipv4).collect();
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        let why = "may specify no more than one IP for each IP family";
        errors.push(field::invalid(&path, all.to_vec(), why));
    }
}

/// A container that ended for good does not run again.
fn restarts(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value, key: &str, restart: &str, main: bool) {
    if restart == "Always" {
        return;
    }
    let mut by_name = HashMap::new();
    for (i, status) in list(new, key).iter().enumerate() {
        by_name.entry(text(status, "name")).or_insert((i, status));
    }
    for was in list(old, key) {
        let Some(ended) = was.get("state").and_then(|s| s.get("terminated")) else { continue };
        if !main && ended["exitCode"] != 0 && restart == "OnFailure" {
            continue;
        }
        if main && restart == "OnFailure" && ended["exitCode"] != 0 {
            continue;
        }
        if let Some((i, now)) = by_name.get(text(was, "name"))
            && now.get("state").and_then(|s| s.get("terminated")).is_none()
        {
            errors.push(field::forbidden(
                &path.index(*i).field("state"),
                "may not be transitioned to non-terminated state",
            ));
        }
    }
}

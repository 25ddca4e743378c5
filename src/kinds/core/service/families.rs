//! Which address families a Service has, and whether its addresses fit them.

use std::net::IpAddr;

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::base::json::{list, remove, set, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Errors in the addresses and families as they were given.
pub fn check(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    let path = spec.field("clusterIPs");
    let ips: Vec<&str> = list(service, "spec.clusterIPs").iter().filter_map(Value::as_str).collect();
    let families: Vec<&str> = list(service, "spec.ipFamilies").iter().filter_map(Value::as_str).collect();
    let policy = text(service, "spec.ipFamilyPolicy");
    let (one, kind) = (text(service, "spec.clusterIP"), text(service, "spec.type"));
    if kind == "ExternalName" {
        for (key, given) in [
            ("clusterIP", !one.is_empty()),
            ("clusterIPs", !ips.is_empty()),
            ("ipFamilies", !families.is_empty()),
            ("ipFamilyPolicy", !policy.is_empty()),
        ] {
            if given {
                errors.push(field::forbidden(&spec.field(key), "may not be set for ExternalName services"));
            }
        }
        return errors;
    }
    let families_path = spec.field("ipFamilies");
    let mut seen = HashSet::new();
    for (i, f) in families.iter().enumerate() {
        if !["IPv4", "IPv6"].contains(f) {
            errors.push(field::not_supported(&families_path.index(i), *f, &["IPv4", "IPv6"]));
        } else if !seen.insert(*f) {
            errors.push(field::duplicate(&families_path.index(i), *f));
        }
    }
    check::one_of(&mut errors, &spec.field("ipFamilyPolicy"), policy, &POLICIES);
    if ips.is_empty() {
        return errors;
    }
    if one != ips[0] {
        let why = if one.is_empty() {
            "must be empty when `clusterIP` is not specified"
        } else {
            "first value must match `clusterIP`"
        };
        errors.push(field::invalid(&path, json!(ips), why));
        return errors;
    }
    let mut parsed = Vec::new();
    for (i, ip) in ips.iter().enumerate() {
        match (*ip, check::parse_ip(ip)) {
            ("None", _) if ips.len() > 1 => {
                errors.push(field::invalid(&path, json!(ips), "'None' must be the first and only value"));
                return errors;
            }
            ("None", _) => {}
            (_, Some(address)) => parsed.push((i, address)),
            (_, None) => errors.push(field::invalid(&path.index(i), *ip, check::NOT_AN_IP)),
        }
    }
    if ips.len() > 2 || (parsed.len() == 2 && family(parsed[0].1) == family(parsed[1].1)) {
        let why = "may specify no more than one IP for each IP family";
        errors.push(field::invalid(&path, json!(ips), why));
    }
    for (i, address) in &parsed {
        if families.get(*i).is_some_and(|f| *f != family(*address)) {
            let why = format!("expected an {} value as indicated by `ipFamilies[{i}]`", families[*i]);
            errors.push(field::invalid(&path.index(*i), address.to_string(), why));
        }
    }
    errors
}

/// Completes families and policy from what the cluster has, the first family first.
pub fn choose(service: &mut Value, cluster: &[&'static str]) -> Errors {
    if text(service, "spec.type") == "ExternalName" {
        remove(service, "spec.ipFamilies");
        remove(service, "spec.ipFamilyPolicy");
        return Errors::new();
    }
    let errors = check(service);
    if !errors.is_empty() || cluster.is_empty() {
        return errors;
    }
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    let ips: Vec<String> =
        list(service, "spec.clusterIPs").iter().filter_map(|i| i.as_str().map(str::to_owned)).collect();
    let mut families: Vec<String> =
        list(service, "spec.ipFamilies").iter().filter_map(|f| f.as_str().map(str::to_owned)).collect();
    let policy = text(service, "spec.ipFamilyPolicy").to_owned();
    let headless = ips.first().is_some_and(|i| i == "None");
    let policy_path = spec.field("ipFamilyPolicy");
    if policy == "SingleStack" && (ips.len() == 2 || families.len() == 2) {
        let why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
        errors.push(field::invalid(&policy_path, policy, why));
        return errors;
    }
    let open = headless && text_is_empty(service, "spec.selector");
    for (i, ip) in ips.iter().enumerate().filter(|_| !headless) {
        let Some(address) = check::parse_ip(ip) else { continue };
        let own = family(address);
        if !cluster.contains(&own) {
            let path = spec.field("clusterIPs");
            errors.push(field::invalid(
                &path.index(i),
                ip.as_str(),
                format!("may not use {own} on a cluster which is not configured for it"),
            ));
        } else if families.len() <= i {
            families.push(own.to_owned());
        }
    }
    let families_path = spec.field("ipFamilies");
    for (i, f) in families.iter().enumerate().filter(|_| !open) {
        if !cluster.contains(&f.as_str()) {
            errors.push(field::invalid(&families_path.index(i), f.as_str(), "not configured on this cluster"));
        }
    }
    if policy == "RequireDualStack" && cluster.len() < 2 && !open {
        errors.push(field::invalid(
            &policy_path,
            policy.as_str(),
            "this cluster is not configured for dual-stack services",
        ));
    }
    if !errors.is_empty() {
        return errors;
    }
    // A headless Service without selector may have endpoints of any family.
    let dual = if open { vec!["IPv4", "IPv6"] } else { cluster.to_vec() };
    let mut policy = policy;
    if policy.is_empty() {
        policy = if open && families.is_empty() {
            "RequireDualStack"
        } else if families.len() == 2 {
            "RequireDualStack"
        } else {
            "SingleStack"
        }
        .into();
    }
    if families.is_empty() {
        families.push(cluster[0].to_owned());
    }
    if policy != "SingleStack" && families.len() == 1 {
        families.extend(dual.iter().find(|f| **f != families[0]).map(|f| (*f).to_owned()));
    }
    set(service, "spec.ipFamilyPolicy", policy);
    set(service, "spec.ipFamilies", json!(families));
    errors
}

fn text_is_empty(service: &Value, path: &str) -> bool {
    crate::base::json::map(service, path).is_none_or(serde_json::Map::is_empty)
}

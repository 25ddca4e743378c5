//! DNS settings, host aliases and host names of a pod.

use serde_json::Value;

use crate::base::json::{flag, list, text};
use crate::base::labels::dns_subdomain_error;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCHES_BYTES: usize = 2048;

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    config(errors, &path.field("dnsConfig"), spec);
    aliases(errors, &path.field("hostAliases"), list(spec, "hostAliases"));
    for key in ["hostname", "subdomain"] {
        let name = text(spec, key);
        if !name.is_empty() {
            check::dns_label(errors, &path.field(key), name);
        }
    }
    hostname_override(errors, path, spec);
}

fn hostname_override(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let Some(name) = spec.get("hostnameOverride").and_then(Value::as_str) else { return };
    let at = path.field("hostnameOverride");
    check::dns_subdomain(errors, &at, name);
    if name.len() > 64 {
        errors.push(field::too_long(&at, 64));
    }
    if flag(spec, "setHostnameAsFQDN") {
        let why = "may not be specified when `setHostnameAsFQDN` is true";
        errors.push(field::forbidden(&at, why));
    }
    if flag(spec, "hostNetwork") {
        errors.push(field::forbidden(&at, "may not be specified when `hostNetwork` is true"));
    }
}

fn config(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let config = spec.get("dnsConfig").filter(|c| c.is_object());
    let servers_path = path.field("nameservers");
    if text(spec, "dnsPolicy") == "None" {
        let Some(config) = config else {
            errors.push(field::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        };
        if list(config, "nameservers").is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(field::required(&servers_path, why));
            return;
        }
    }
    let Some(config) = config else { return };
    let servers = list(config, "nameservers");
    if servers.len() > NAMESERVERS {
        let why = format!("must not have more than {NAMESERVERS} nameservers");
        errors.push(field::invalid(&servers_path, servers.to_vec(), why));
    }
    for (i, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or("");
        if check::parse_ip_sloppy(server).is_none() {
            errors.push(field::invalid(&servers_path.index(i), server, check::NOT_AN_IP));
        }
    }
    searches(errors, &path.field("searches"), list(config, "searches"));
    let options = path.field("options");
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(field::required(&options.index(i), "must not be empty"));
        }
    }
}

fn searches(errors: &mut Errors, path: &Path<'_>, searches: &[Value]) {
    if searches.len() > SEARCHES {
        let why = format!("must not have more than {SEARCHES} search paths");
        errors.push(field::invalid(path, searches.to_vec(), why));
    }
    let joined: usize =
        searches.iter().map(|s| s.as_str().map_or(0, str::len)).sum::<usize>() + searches.len().saturating_sub(1);
    if joined > SEARCHES_BYTES {
        let why = format!("must not have more than {SEARCHES_BYTES} characters (including spaces) in the search list");
        errors.push(field::invalid(path, searches.to_vec(), why));
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or("");
        // A lone dot, a trailing dot and underscores are fine here (`RelaxedDNSSearchValidation`).
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
        let why = if search == "." { None } else { dns_subdomain_error(&name) };
        if let Some(why) = why {
            errors.push(field::invalid(&path.index(i), search, why));
        }
    }
}

fn aliases(errors: &mut Errors, path: &Path<'_>, aliases: &[Value]) {
    for (i, alias) in aliases.iter().enumerate() {
        let path = path.index(i);
        check::ip(errors, &path.field("ip"), text(alias, "ip"));
        let names = path.field("hostnames");
        for name in list(alias, "hostnames") {
            check::dns_subdomain(errors, &names, name.as_str().unwrap_or(""));
        }
    }
}

//! Ingress.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::json::{at, int, list, map_mut, text};
use crate::base::labels::{dns_label_error, dns_subdomain_error};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "networking.k8s.io",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.networking.v1.Ingress",
    columns: COLUMNS,
    row,
    strategy: Strategy {
        prepare_create: |ingress| drop(map_mut(ingress, "").insert("status".into(), json!({"loadBalancer": {}}))),
        validate,
        validate_create,
        validate_status,
        warnings: |new, old| {
            let annotated = old.is_none() && !class_annotation(new).is_empty();
            let text =
                format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead");
            annotated.then_some(text).into_iter().collect()
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"defaultBackend":{"service":{"name":"s","port":{"number":80}}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Class", "The class of controllers that serve it."),
    string("Hosts", "Host names of its rules."),
    string("Address", "Where its controller serves it."),
    string("Ports", "Ports on which it is served."),
    table::AGE,
];
/// How many hosts a row names.
const HOSTS_SHOWN: usize = 3;
/// How the class was named before there was a field.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// What a path may not contain or end with.
const BAD_PARTS: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
const BAD_ENDS: &[&str] = &["/..", "/."];

/// The class by annotation, or `""`.
pub fn class_annotation(ingress: &Value) -> &str {
    ingress["metadata"]["annotations"][CLASS_ANNOTATION].as_str().unwrap_or("")
}

fn row(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let class = match text(ingress, "spec.ingressClassName") {
        "" => "<none>",
        class => class,
    };
    let balancers = list(ingress, "status.loadBalancer.ingress").iter();
    let mut addresses: Vec<&str> = balancers
        .map(|b| match text(b, "ip") {
            "" => text(b, "hostname"),
            ip => ip,
        })
        .filter(|a| !a.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ports = if list(ingress, "spec.tls").is_empty() { "80" } else { "80, 443" };
    vec![
        table::name(ingress),
        class.into(),
        hosts(list(ingress, "spec.rules")).into(),
        addresses.join(",").into(),
        ports.into(),
        table::age(ingress, now),
    ]
}

fn hosts(rules: &[Value]) -> String {
    let (mut shown, mut more) = (Vec::new(), false);
    for rule in rules {
        more |= shown.len() == HOSTS_SHOWN;
        let host = text(rule, "host");
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".into(),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - HOSTS_SHOWN),
        (false, false) => shown.join(","),
    }
}

fn validate(ingress: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let backend = at(ingress, "spec.defaultBackend").filter(|b| b.is_object());
    let (rules, tls) = (list(ingress, "spec.rules"), list(ingress, "spec.tls"));
    if backend.is_none() && rules.is_empty() {
        let spec = ingress.get("spec").cloned().unwrap_or_default();
        errors.push(field::invalid(&path, spec, "either `defaultBackend` or `rules` must be specified"));
    }
    if let Some(backend) = backend {
        validate_backend(&mut errors, &path.field("defaultBackend"), backend);
    }
    let rules_path = path.field("rules");
    for (i, rule) in rules.iter().enumerate() {
        validate_rule(&mut errors, &rules_path.index(i), rule);
    }
    let tls_path = path.field("tls");
    for (i, tls) in tls.iter().enumerate() {
        let path = tls_path.index(i);
        let hosts_path = path.field("hosts");
        for (j, host) in list(tls, "hosts").iter().enumerate() {
            validate_host(&mut errors, &hosts_path.index(j), host.as_str().unwrap_or(""));
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            check::dns_subdomain(&mut errors, &path.field("secretName"), secret);
        }
    }
    if let Some(class) = at(ingress, "spec.ingressClassName").and_then(Value::as_str) {
        check::dns_subdomain(&mut errors, &path.field("ingressClassName"), class);
    }
    errors
}

fn validate_create(ingress: &Value) -> Errors {
    let annotation = class_annotation(ingress);
    if annotation.is_empty() || text(ingress, "spec.ingressClassName").is_empty() {
        return Errors::new();
    }
    let (path, why) = ("annotations.kubernetes.io/ingress.class", "can not be set when the class field is also set");
    [field::invalid(path, annotation, why)].into()
}

/// A host name whose first label may be `*`.
fn validate_host(errors: &mut Errors, path: &Path<'_>, host: &str) {
    let error = match host.strip_prefix("*.") {
        Some(rest) => dns_subdomain_error(rest),
        None if host.contains('*') => Some("a wildcard DNS name must start with '*.'".into()),
        None => dns_subdomain_error(host),
    };
    if let Some(why) = error {
        errors.push(field::invalid(path, host, why));
    }
}

fn validate_rule(errors: &mut Errors, path: &Path<'_>, rule: &Value) {
    let host = text(rule, "host");
    if check::parse_ip(host).is_some() {
        errors.push(field::invalid(&path.field("host"), host, "must be a DNS name, not an IP address"));
    } else if !host.is_empty() {
        validate_host(errors, &path.field("host"), host);
    }
    let Some(http) = rule.get("http").filter(|h| h.is_object()) else { return };
    let http_path = path.field("http");
    let paths = http_path.field("paths");
    if list(http, "paths").is_empty() {
        errors.push(field::required(&paths, ""));
    }
    for (i, one) in list(http, "paths").iter().enumerate() {
        let path = paths.index(i);
        validate_path(errors, &path, one);
        validate_backend(errors, &path.field("backend"), one.get("backend").unwrap_or(&Value::Null));
    }
}

fn validate_path(errors: &mut Errors, at: &Path<'_>, one: &Value) {
    let (kind, path) = (text(one, "pathType"), text(one, "path"));
    let here = at.field("path");
    match kind {
        "" => errors.push(field::required(&at.field("pathType"), "pathType must be specified")),
        "Exact" | "Prefix" => {
            if !path.starts_with('/') {
                errors.push(field::invalid(&here, path, "must be an absolute path"));
            }
            if let Some(part) = BAD_PARTS.iter().find(|part| path.contains(**part)) {
                errors.push(field::invalid(&here, path, format!("must not contain '{part}'")));
            }
            if let Some(end) = BAD_ENDS.iter().find(|end| path.ends_with(**end)) {
                errors.push(field::invalid(&here, path, format!("cannot end with '{end}'")));
            }
        }
        "ImplementationSpecific" if path.is_empty() || path.starts_with('/') => {}
        "ImplementationSpecific" => errors.push(field::invalid(&here, path, "must be an absolute path")),
        other => {
            let supported = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(field::not_supported(&at.field("pathType"), other, &supported));
        }
    }
}

fn validate_backend(errors: &mut Errors, path: &Path<'_>, backend: &Value) {
    let part = |key: &str| backend.get(key).filter(|v| v.is_object());
    match (part("resource"), part("service")) {
        (Some(_), Some(_)) => errors.push(field::invalid(path, "", "cannot set both resource and service backends")),
        (None, None) => errors.push(field::invalid(path, "", "resource or service backend is required")),
        (Some(resource), None) => {
            let path = path.field("resource");
            for key in ["kind", "name"] {
                check::given(errors, &path.field(key), text(resource, key));
            }
        }
        (None, Some(service)) => validate_service(errors, path, service),
    }
}

fn validate_service(errors: &mut Errors, path: &Path<'_>, service: &Value) {
    let service_path = path.field("service");
    let name = text(service, "name");
    if check::given(errors, &service_path.field("name"), name)
        && let Some(why) = dns_label_error(name)
    {
        errors.push(field::invalid(&service_path.field("name"), name, why));
    }
    let port_path = service_path.field("port");
    let (name, number) = (text(service, "port.name"), int(service, "port.number").unwrap_or(0));
    match (name.is_empty(), number == 0) {
        (false, false) => errors.push(field::invalid(path, "", "cannot set both port name & port number")),
        (true, true) => errors.push(field::required(path, "port name or number is required")),
        (true, false) => check::port(errors, &port_path.field("number"), number),
        (false, true) => {
            if let Some(why) = check::port_name_error(name) {
                errors.push(field::invalid(&port_path.field("name"), name, why));
            }
        }
    }
}

fn validate_status(new: &Value, _old: &Value) -> Errors {
    let mut errors = Errors::new();
    let base = Path::root("status.loadBalancer.ingress");
    for (i, one) in list(new, "status.loadBalancer.ingress").iter().enumerate() {
        let path = base.index(i);
        let (ip, name) = (text(one, "ip"), text(one, "hostname"));
        if !ip.is_empty() && check::parse_ip_sloppy(ip).is_none() {
            errors.push(field::invalid(&path.field("ip"), ip, check::NOT_AN_IP));
        }
        if !name.is_empty() {
            check::dns_subdomain(&mut errors, &path.field("hostname"), name);
            if check::parse_ip(name).is_some() {
                errors.push(field::invalid(&path.field("hostname"), name, "must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

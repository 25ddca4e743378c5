//! The environment of a container: literal values, references, Services, and `$(NAME)` expansion.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::error::{Error, Result};
use crate::base::quantity::Quantity;
use crate::kinds::core::{configmap, secret, service};
use crate::reconcile::Client;

/// What is known of the running pod when an environment is made.
#[derive(Clone, Debug, Default)]
pub struct DownwardValues {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    pub node_name: String,
    /// What a missing limit stands for: the node's own CPU (milli) and memory (bytes).
    pub node_cpu_milli: i64,
    pub node_memory_bytes: i64,
}

/// The environment that a pod gives, in order; a later value of the same name wins. The error says what is missing.
pub fn of(
    client: &dyn Client,
    pod: &Pod,
    container: &Container,
    facts: &DownwardValues,
) -> Result<Vec<(String, String)>> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut out = services(client, pod, namespace);
    let mut known: BTreeMap<String, String> = out.iter().cloned().collect();
    let mut add = |name: String, value: String, out: &mut Vec<(String, String)>| {
        known.insert(name.clone(), value.clone());
        out.push((name, value));
        known.clone()
    };
    let mut now = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        let values = if let Some(r) = &source.config_map_ref {
            config_map(client, namespace, &r.name, r.optional)?.map(|m| m.data.unwrap_or_default())
        } else if let Some(r) = &source.secret_ref {
            secret_of(client, namespace, &r.name, r.optional)?.map(|s| strings(&s))
        } else {
            None
        };
        for (key, value) in values.into_iter().flatten() {
            now = add(format!("{prefix}{key}"), value, &mut out);
        }
    }
    for e in container.env.iter().flatten() {
        let value = match (&e.value, &e.value_from) {
            (Some(value), _) => Some(expand(value, &lookup(&now, &out))),
            (None, Some(from)) => referenced(client, pod, container, facts, namespace, from)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            now = add(e.name.clone(), value, &mut out);
        }
    }
    Ok(out)
}

fn lookup(now: &BTreeMap<String, String>, all: &[(String, String)]) -> BTreeMap<String, String> {
    if now.is_empty() { all.iter().cloned().collect() } else { now.clone() }
}

fn referenced(
    client: &dyn Client,
    pod: &Pod,
    container: &Container,
    facts: &DownwardValues,
    namespace: &str,
    from: &k8s_openapi::api::core::v1::EnvVarSource,
) -> Result<Option<String>> {
    if let Some(f) = &from.field_ref {
        return field(pod, facts, &f.field_path).map(Some);
    }
    if let Some(r) = &from.resource_field_ref {
        let name = r.container_name.as_deref().unwrap_or(&container.name);
        let of = super::spec::container(pod, name).ok_or_else(|| Error::FindContainer(name.to_owned()))?;
        return resource(&of, facts, &r.resource, r.divisor.as_ref().map(|d| d.0.as_str())).map(Some);
    }
    if let Some(r) = &from.config_map_key_ref {
        let map = config_map(client, namespace, &r.name, r.optional)?;
        let value = map.and_then(|m| m.data?.remove(&r.key));
        return found(value, r.optional, || no_key(&r.key, "ConfigMap", namespace, &r.name));
    }
    if let Some(r) = &from.secret_key_ref {
        let secret = secret_of(client, namespace, &r.name, r.optional)?;
        let value = secret.and_then(|s| strings(&s).remove(&r.key));
        return found(value, r.optional, || no_key(&r.key, "Secret", namespace, &r.name));
    }
    if from.file_key_ref.is_some() {
        return Err(Error::FileKeyRef);
    }
    Ok(None)
}

fn found(value: Option<String>, optional: Option<bool>, why: impl FnOnce() -> Error) -> Result<Option<String>> {
    match value {
        None if optional != Some(true) => Err(why()),
        value => Ok(value),
    }
}

fn no_key(key: &str, kind: &'static str, namespace: &str, name: &str) -> Error {
    Error::FindKey { key: key.to_owned(), kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// A ConfigMap, or none where it is optional.
pub fn config_map(
    client: &dyn Client,
    namespace: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<ConfigMap>> {
    match client.informer(&configmap::KIND).get(namespace, name) {
        Some(object) => object.typed::<ConfigMap>().map(|m| Some((*m).clone())).map_err(Error::from),
        None if optional == Some(true) => Ok(None),
        None => Err(Error::FindObject { kind: "configmap", name: name.to_owned() }),
    }
}

/// A Secret, or none where it is optional.
pub fn secret_of(client: &dyn Client, namespace: &str, name: &str, optional: Option<bool>) -> Result<Option<Secret>> {
    match client.informer(&secret::KIND).get(namespace, name) {
        // Not the shared typed form: a secret is decoded for its use and dropped.
        Some(object) => Ok(serde_json::from_slice(object.body()).map(Some)?),
        None if optional == Some(true) => Ok(None),
        None => Err(Error::FindObject { kind: "secret", name: name.to_owned() }),
    }
}

fn strings(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.iter().flatten();
    data.map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned())).collect()
}

/// The value of a downward API field.
pub fn field(pod: &Pod, facts: &DownwardValues, path: &str) -> Result<String> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let first = |v: &[String]| v.first().cloned().unwrap_or_default();
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => match path.split_once("['").and_then(|(map, key)| Some((map, key.strip_suffix("']")?))) {
            Some(("metadata.labels", key)) => {
                meta.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default()
            }
            Some(("metadata.annotations", key)) => {
                meta.annotations.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default()
            }
            _ => return Err(Error::FieldPath(path.to_owned())),
        },
    })
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", serde_json::Value::from(v.as_str()))).collect();
    lines.join("\n")
}

/// The value of a resource, in units of the divisor, rounded up.
pub fn resource(container: &Container, facts: &DownwardValues, name: &str, divisor: Option<&str>) -> Result<String> {
    let (list, what) = name.split_once('.').ok_or_else(|| Error::ContainerResource(name.to_owned()))?;
    let all = container.resources.as_ref();
    let limit = |what: &str| all.and_then(|r| r.limits.as_ref()?.get(what)).map(|q| q.0.clone());
    let given = match list {
        "limits" => limit(what),
        "requests" => all.and_then(|r| r.requests.as_ref()?.get(what)).map(|q| q.0.clone()).or_else(|| limit(what)),
        _ => return Err(Error::ContainerResource(name.to_owned())),
    };
    let value: Quantity = match (given, what, list) {
        (Some(text), ..) => text.parse().map_err(|_| Error::ParseQuantity { name: name.to_owned(), text })?,
        (None, "cpu", "limits") => Quantity::from_milli(facts.node_cpu_milli),
        (None, "memory", "limits") => Quantity::from_units(facts.node_memory_bytes),
        _ => Quantity::from_units(0),
    };
    let divisor: Quantity =
        divisor.filter(|d| !d.is_empty() && *d != "0").unwrap_or("1").parse().map_err(|_| Error::ParseDivisor)?;
    let (value, divisor) =
        if what == "cpu" { (value.milli(), divisor.milli()) } else { (value.units(), divisor.units()) };
    Ok(((value + divisor.max(1) - 1) / divisor.max(1)).to_string())
}

/// `$(NAME)` becomes the value, `$$` a dollar; what is not known stays as it is.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(i) = rest.find('$') {
        out.push_str(&rest[..i]);
        rest = &rest[i + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Docker-style variables of the namespace's Services and of the API's.
fn services(client: &dyn Client, pod: &Pod, namespace: &str) -> Vec<(String, String)> {
    let all = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let informer = client.informer(&service::KIND);
    let mut found = informer.get("default", "kubernetes").into_iter().collect::<Vec<_>>();
    if all {
        found.extend(
            informer.list(namespace).into_iter().filter(|s| !(namespace == "default" && *s.meta.name == *"kubernetes")),
        );
    }
    let mut out = Vec::new();
    for object in found {
        if let Ok(service) = object.typed::<Service>() {
            service_variables(&object.meta.name, &service, &mut out);
        }
    }
    out
}

fn service_variables(name: &str, service: &Service, out: &mut Vec<(String, String)>) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let prefix = name.to_uppercase().replace('-', "_");
    let ports: Vec<_> = spec.ports.iter().flatten().collect();
    let Some(first) = ports.first() else { return };
    out.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
    out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    for p in ports.iter().filter(|p| p.name.is_some()) {
        let port = p.name.as_deref().unwrap_or("").to_uppercase().replace('-', "_");
        out.push((format!("{prefix}_SERVICE_PORT_{port}"), p.port.to_string()));
    }
    for (i, p) in ports.iter().enumerate() {
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        if i == 0 {
            out.push((format!("{prefix}_PORT"), format!("{lower}://{host}:{}", p.port)));
        }
        let base = format!("{prefix}_PORT_{}_{protocol}", p.port);
        out.push((base.clone(), format!("{lower}://{host}:{}", p.port)));
        out.push((format!("{base}_PROTO"), lower));
        out.push((format!("{base}_PORT"), p.port.to_string()));
        out.push((format!("{base}_ADDR"), ip.to_owned()));
    }
}

/// The number that a port reference of a container stands for.
pub fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name.as_str()));
            named.map(|p| p.container_port as u16).or_else(|| name.parse().ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_and_dollars_escape() {
        let known: BTreeMap<String, String> = [("A".to_owned(), "1".to_owned())].into();
        for (text, want) in [("$(A)-$(B)", "1-$(B)"), ("$$(A)", "$(A)"), ("a$b$", "a$b$"), ("$(A", "$(A"), ("", "")] {
            assert_eq!(expand(text, &known), want);
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let c: Container = serde_json::from_value(serde_json::json!({
            "name": "x", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}
        }))
        .unwrap();
        let facts = DownwardValues { node_cpu_milli: 4000, ..DownwardValues::default() };
        assert_eq!(resource(&c, &facts, "limits.cpu", None).unwrap(), "2");
        assert_eq!(resource(&c, &facts, "limits.cpu", Some("1m")).unwrap(), "1500");
        assert_eq!(resource(&c, &facts, "requests.memory", Some("1Mi")).unwrap(), "64");
    }
}

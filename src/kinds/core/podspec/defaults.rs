//! What a pod spec means where it says nothing (`SetDefaults_*` of core/v1).

use serde_json::{Map, Value, json};

use super::resources;
use crate::base::json::{flag, list, list_mut, map_mut, object, set_default, text};
use crate::base::quantity::Quantity;

/// Defaults of a pod spec, in a pod or a template.
pub fn default(spec: &mut Value) {
    for (key, value) in [
        ("dnsPolicy", json!("ClusterFirst")),
        ("restartPolicy", json!("Always")),
        ("securityContext", json!({})),
        ("terminationGracePeriodSeconds", json!(30)),
        ("schedulerName", json!("default-scheduler")),
    ] {
        set_default(spec, key, value);
    }
    // The old name of the field always follows the new one.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    for key in ["serviceAccountName", "serviceAccount"] {
        if account.is_empty() {
            object(spec).remove(key);
        } else if text(spec, key) != account {
            object(spec).insert(key.into(), account.as_str().into());
        }
    }
    each(spec, "volumes", volume);
    for group in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, group, container);
    }
    if let Some(overhead) = spec.get_mut("overhead") {
        default_resource_list(overhead);
    }
    if let Some(resources) = spec.get_mut("resources") {
        requirements(resources);
    }
}

/// What only a pod gets, and no template.
pub fn default_pod(spec: &mut Value) {
    for group in ["initContainers", "containers"] {
        each(spec, group, requests_from_limits);
    }
    resources::default_pod_level(spec);
    set_default(spec, "enableServiceLinks", true);
    if flag(spec, "hostNetwork") {
        for group in ["initContainers", "containers"] {
            each(spec, group, |c| each(c, "ports", host_port));
        }
    }
}

fn each(value: &mut Value, key: &str, mut run: impl FnMut(&mut Value)) {
    for item in list_mut(value, key).into_iter().flatten() {
        run(item);
    }
}

fn host_port(port: &mut Value) {
    if port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0
        && let Some(number) = port.get("containerPort").cloned()
    {
        object(port).insert("hostPort".into(), number);
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits = container.get("resources").and_then(|r| r.get("limits")).and_then(Value::as_object).cloned();
    let Some(limits) = limits.filter(|l| !l.is_empty()) else { return };
    let requests = map_mut(container, "resources.requests");
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

fn container(container: &mut Value) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = pull_policy(text(container, "image"));
        object(container).insert("imagePullPolicy".into(), policy.into());
    }
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    if let Some(resources) = container.get_mut("resources") {
        requirements(resources);
    }
    each(container, "ports", |p| set_default(p, "protocol", "TCP"));
    each(container, "env", env);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = container.get_mut(name) {
            probe(p);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(http) =
            container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)).and_then(|h| h.get_mut("httpGet"))
        {
            http_get(http);
        }
    }
}

fn env(env: &mut Value) {
    let Some(from) = env.get_mut("valueFrom") else { return };
    if let Some(reference) = from.get_mut("fieldRef") {
        set_default(reference, "apiVersion", "v1");
    }
    if let Some(reference) = from.get_mut("fileKeyRef") {
        set_default(reference, "optional", false);
    }
}

fn probe(probe: &mut Value) {
    for (key, number) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
            object(probe).insert(key.into(), number.into());
        }
    }
    if let Some(http) = probe.get_mut("httpGet") {
        http_get(http);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        set_default(grpc, "service", "");
    }
}

fn http_get(http: &mut Value) {
    set_default(http, "path", "/");
    set_default(http, "scheme", "HTTP");
}

/// `Always` for `latest`, which is also what no tag and no digest means.
fn pull_policy(image: &str) -> &'static str {
    if tag(image) == Some("latest") { "Always" } else { "IfNotPresent" }
}

/// The tag of an image reference; `None` where it has only a digest, or is no reference.
fn tag(image: &str) -> Option<&str> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let (repository, last) = name.rsplit_once('/').map_or(("", name), |(r, l)| (r, l));
    let (last, tag) = last.split_once(':').map_or((last, None), |(l, t)| (l, Some(t)));
    // The first step is a host, and may have capitals, if it looks like one.
    let host = |s: &str| s.contains(['.', ':']) || s == "localhost" || s.chars().any(|c| c.is_ascii_uppercase());
    let mut steps: Vec<&str> = if repository.is_empty() { vec![] } else { repository.split('/').collect() };
    if steps.first().is_some_and(|s| host(s)) {
        steps.remove(0);
    }
    let fine = steps.iter().chain([&last]).all(|s| is_repository_step(s));
    match (fine, tag, digest) {
        (false, _, _) => None,
        (true, None, None) => Some("latest"),
        (true, tag, _) => tag,
    }
}

fn is_repository_step(step: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(step.bytes().next())
        && edge(step.bytes().last())
        && step.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

fn requirements(resources: &mut Value) {
    for key in ["limits", "requests"] {
        if let Some(amounts) = resources.get_mut(key) {
            default_resource_list(amounts);
        }
    }
}

/// Amounts of resources have nothing finer than thousandths.
pub fn default_resource_list(amounts: &mut Value) {
    for (_, amount) in amounts.as_object_mut().into_iter().flatten() {
        let Some(text) = amount.as_str() else { continue };
        // Whole numbers of units are the normal case and need no rounding.
        if !text.contains(['.', 'u', 'n']) && !text.contains("e-") && !text.contains("E-") {
            continue;
        }
        if let Ok(quantity) = text.parse::<Quantity>() {
            let rounded = quantity.round_up(-3).to_string();
            if rounded != text {
                *amount = rounded.into();
            }
        }
    }
}

/// Volume types that get defaults of their own, with those.
const VOLUME_DEFAULTS: &[(&str, &[(&str, &str)])] = &[
    ("hostPath", &[("type", "")]),
    ("iscsi", &[("iscsiInterface", "default")]),
    ("rbd", &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")]),
    ("azureDisk", &[("cachingMode", "ReadWrite"), ("fsType", "ext4"), ("kind", "Shared")]),
    ("scaleIO", &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")]),
];
/// Volume types whose files have a mode.
const WITH_MODE: &[&str] = &["secret", "configMap", "downwardAPI", "projected"];
/// `rw-r--r--`
const FILE_MODE: i64 = 0o644;

fn volume(volume: &mut Value) {
    let sources = object(volume);
    if sources.keys().all(|k| k == "name") {
        sources.insert("emptyDir".into(), Value::Object(Map::new()));
        return;
    }
    volume_sources(volume);
    for name in WITH_MODE {
        if let Some(source) = volume.get_mut(*name) {
            set_default(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        each(downward, "items", downward_item);
    }
    each_projection(volume);
    if let Some(claim) = volume.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate")) {
        set_default(claim, "spec.volumeMode", "Filesystem");
        if let Some(resources) = claim["spec"].get_mut("resources") {
            requirements(resources);
        }
    }
    if let Some(image) = volume.get_mut("image")
        && text(image, "pullPolicy").is_empty()
    {
        let policy = pull_policy(text(image, "reference"));
        object(image).insert("pullPolicy".into(), policy.into());
    }
}

/// Defaults of what volumes are made of.
pub fn volume_sources(of: &mut Value) {
    for (name, defaults) in VOLUME_DEFAULTS {
        if let Some(source) = of.get_mut(*name).filter(|s| s.is_object()) {
            for (key, value) in *defaults {
                set_default(source, key, *value);
            }
            if *name == "azureDisk" {
                set_default(source, "readOnly", false);
            }
        }
    }
}

fn each_projection(volume: &mut Value) {
    let Some(projected) = volume.get_mut("projected") else { return };
    if list(projected, "sources").is_empty() {
        return;
    }
    each(projected, "sources", |source| {
        if let Some(downward) = source.get_mut("downwardAPI") {
            each(downward, "items", downward_item);
        }
        if let Some(token) = source.get_mut("serviceAccountToken") {
            set_default(token, "expirationSeconds", 3600);
        }
    });
}

fn downward_item(item: &mut Value) {
    if let Some(reference) = item.get_mut("fieldRef") {
        set_default(reference, "apiVersion", "v1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("host:5000/a/b", "Always"),
            ("a@sha256:00", "IfNotPresent"),
            ("a:latest@sha256:00", "Always"),
            ("Nginx", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}

//! What a pod spec may say but should not: warnings for the client.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::fields;

use crate::base::json::{at, list, map, text};
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};

/// Node labels that were renamed.
const OLD_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];
/// Volume types whose time is over, and since when.
const OLD_VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warnings about a new pod.
pub fn for_pod(pod: &Value) -> Vec<String> {
    of_spec(&Path::root("spec"), pod.get("spec").unwrap_or(&Value::Null), pod.get("metadata"))
}

/// Warnings about what is new in a pod: ephemeral containers, and resources of containers.
pub fn for_pod_update(pod: &Value, old: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let path = Path::root("spec");
    let before = list(old, "spec.ephemeralContainers");
    let all = list(pod, "spec.ephemeralContainers").iter().enumerate();
    // They can only be added.
    fields::ephemeral_warnings(&mut out, &path.field("ephemeralContainers"), all.skip(before.len()));
    out
}

/// Warnings about a pod template at `path`.
pub fn for_template(path: &Path<'_>, template: &Value) -> Vec<String> {
    let path = path.field("spec");
    of_spec(&path, template.get("spec").unwrap_or(&Value::Null), template.get("metadata"))
}

fn of_spec(path: &Path<'_>, spec: &Value, metadata: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    let selector = path.field("nodeSelector");
    for key in map(spec, "nodeSelector").into_iter().flatten().map(|(k, _)| k) {
        out.extend(old_label(&selector.key(key), key));
    }
    affinity(&mut out, path, spec);
    spread(&mut out, path, spec);
    aliases(&mut out, path, spec);
    volumes(&mut out, path, spec);
    secrets(&mut out, path, spec);
    annotations(&mut out, metadata);
    names(&mut out, path, spec, metadata);
    for (key, group) in [("initContainers", list(spec, "initContainers")), ("containers", list(spec, "containers"))] {
        let base = path.field(key);
        for (i, c) in group.iter().enumerate() {
            container(&mut out, &base.index(i), c);
        }
    }
    port_conflicts(&mut out, path, spec);
    fields::warnings(&mut out, path, spec);
    out
}

fn old_label(path: &Path<'_>, key: &str) -> Option<String> {
    let (_, new) = OLD_LABELS.iter().find(|(old, _)| *old == key)?;
    Some(format!("{path}: deprecated since v1.14; use {new:?} instead"))
}

fn affinity(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let path = path.field("affinity");
    let node = path.field("nodeAffinity");
    if let Some(affinity) = at(spec, "affinity.nodeAffinity") {
        let required = affinity.get(REQUIRED).map(|r| list(r, "nodeSelectorTerms")).unwrap_or(&[]);
        let preferred: Vec<&Value> = list(affinity, PREFERRED).iter().filter_map(|p| p.get("preference")).collect();
        for term in required.iter().chain(preferred) {
            for e in list(term, "matchExpressions") {
                out.extend(old_label(&node.key(text(e, "key")), text(e, "key")));
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = at(spec, "affinity").and_then(|a| a.get(kind)) else { continue };
        let path = path.field(kind);
        let nested: Vec<&Value> = list(affinity, PREFERRED).iter().filter_map(|p| p.get("podAffinityTerm")).collect();
        for term in list(affinity, REQUIRED).iter().chain(nested) {
            if term.get("labelSelector").is_none() {
                out.push(format!("{path}: a null labelSelector results in matching no pod"));
            }
        }
    }
}

fn spread(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let path = path.field("topologySpreadConstraints");
    for (i, c) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = path.index(i);
        out.extend(old_label(&path.field("topologyKey"), text(c, "topologyKey")));
        if c.get("labelSelector").is_none() {
            out.push(format!("{}: a null labelSelector results in matching no pod", path.field("labelSelector")));
        }
    }
}

fn aliases(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let base = path.field("hostAliases");
    let all = list(spec, "hostAliases");
    let mut seen = HashSet::new();
    for (i, alias) in all.iter().enumerate() {
        let path = base.index(i);
        if !seen.insert(text(alias, "ip")) {
            out.push(format!("{}: duplicate ip {}", path.field("ip"), text(alias, "ip")));
        }
        out.extend(check::ip_warning(&path.field("ip"), text(alias, "ip")));
    }
}

fn secrets(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let base = path.field("imagePullSecrets");
    let all = list(spec, "imagePullSecrets");
    let mut seen = HashSet::new();
    for (i, secret) in all.iter().enumerate() {
        let path = base.index(i);
        let name = text(secret, "name");
        if name.is_empty() {
            out.push(format!("{path}: invalid empty name {name:?}"));
        } else if !seen.insert(name) {
            out.push(format!("{path}: duplicate name {name:?}"));
        }
    }
}

fn names(out: &mut Vec<String>, path: &Path<'_>, spec: &Value, metadata: Option<&Value>) {
    let name = metadata.map_or("", |m| text(m, "name"));
    if let Some(why) = crate::base::labels::dns_label_error(name).filter(|_| !name.is_empty()) {
        out.push(format!("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{why}]"));
    }
    if spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|s| s < 0) {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.field("terminationGracePeriodSeconds")
        ));
    }
}

fn annotations(out: &mut Vec<String>, metadata: Option<&Value>) {
    let annotations = metadata.and_then(|m| m.get("annotations")).and_then(Value::as_object);
    let path = Path::root("metadata.annotations");
    for key in annotations.into_iter().flatten().map(|(k, _)| k) {
        let path = path.key(key);
        if key == "seccomp.security.alpha.kubernetes.io/pod" {
            out.push(format!("{path}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
        } else if key.starts_with("container.seccomp.security.alpha.kubernetes.io/") {
            out.push(format!("{path}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
        } else if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            out.push(format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        } else if key == "security.alpha.kubernetes.io/sysctls" || key == "security.alpha.kubernetes.io/unsafe-sysctls"
        {
            out.push(format!("{path}: non-functional in v1.11+; use the \"sysctls\" field instead"));
        }
    }
}

fn volumes(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let base = path.field("volumes");
    let all = list(spec, "volumes");
    for (i, volume) in all.iter().enumerate() {
        let path = base.index(i);
        for (kind, _) in OLD_VOLUMES.iter().filter(|(kind, _)| volume.get(*kind).is_some()) {
            out.extend(old_volume(&path.field(kind), kind));
        }
        projected(out, &path, volume);
    }
}

/// The warning about a type of volume whose time is over.
pub fn old_volume(path: &Path<'_>, of_type: &str) -> Option<String> {
    let (_, why) = OLD_VOLUMES.iter().find(|(name, _)| *name == of_type)?;
    Some(format!("{path}: {why}"))
}

/// Warnings about a selector of nodes by labels that were renamed.
pub fn selector_warnings(path: &Path<'_>, selector: &Value) -> Vec<String> {
    let terms = path.field("nodeSelectorTerms");
    let mut out = Vec::new();
    for (i, term) in list(selector, "nodeSelectorTerms").iter().enumerate() {
        let term_path = terms.index(i);
        let expressions = term_path.field("matchExpressions");
        for (k, e) in list(term, "matchExpressions").iter().enumerate() {
            out.extend(old_label(&expressions.index(k).field("key"), text(e, "key")));
        }
    }
    out
}

fn projected(out: &mut Vec<String>, path: &Path<'_>, volume: &Value) {
    let path = path.field("projected");
    let base = path.field("sources");
    let sources = list(volume, "projected.sources");
    let mut files: BTreeSet<&str> = BTreeSet::new();
    for (i, source) in sources.iter().enumerate() {
        let path = base.index(i);
        if source.as_object().is_some_and(serde_json::Map::is_empty) {
            // Without the index, so that a client is told once.
            out.push(format!("{base}: no sources provided"));
        }
        let items =
            ["secret", "configMap", "downwardAPI"].iter().filter_map(|k| source.get(*k)).flat_map(|s| list(s, "items"));
        let single = ["serviceAccountToken", "clusterTrustBundle"].iter().filter_map(|k| source.get(*k));
        for file in items.chain(single).map(|i| text(i, "path")).filter(|f| !f.is_empty()) {
            if overlaps(&files, file) {
                out.push(format!("{path}: conflicting overlapping paths, {file:?}"));
            }
            files.insert(file);
        }
    }
}

/// Longer paths cannot be made.
const PATH_BYTES_MAX: usize = 4096;

/// Whether a path lies below one of the others, or one of them below it.
fn overlaps(files: &BTreeSet<&str>, file: &str) -> bool {
    let parents = file.match_indices('/').take_while(|(end, _)| *end < PATH_BYTES_MAX);
    let above = parents.into_iter().any(|(end, _)| files.contains(&file[..end]));
    let below = format!("{file}/");
    above || files.range(below.as_str()..).next().is_some_and(|f| f.starts_with(&below))
}

fn container(out: &mut Vec<String>, path: &Path<'_>, container: &Value) {
    for which in ["limits", "requests"] {
        let amounts = at(container, "resources").and_then(|r| r.get(which)).and_then(Value::as_object);
        for (name, amount) in amounts.into_iter().flatten() {
            let amount = amount.as_str().and_then(|a| a.parse::<Quantity>().ok());
            if matches!(name.as_str(), "memory" | "ephemeral-storage") && amount.is_some_and(|a| a.milli() % 1000 != 0)
            {
                let path = path.field("resources").field(which).key(name).to_string();
                out.push(format!(
                    "{path}: fractional byte value {:?} is invalid, must be an integer",
                    amount.map(|a| a.to_string()).unwrap_or_default()
                ));
            }
        }
    }
    let env_path = path.field("env");
    let env = list(container, "env");
    let mut seen = HashSet::new();
    for (i, var) in env.iter().enumerate() {
        let name = text(var, "name");
        if seen.insert(name) {
            continue;
        }
        // A later value that builds on the earlier one is how one appends.
        if text(&env[i], "value").contains(&format!("$({name})")) {
            continue;
        }
        out.push(format!(
            "{}: hides previous definition of {name:?}, which may be dropped when using apply",
            env_path.index(i)
        ));
    }
    let ports_path = path.field("ports");
    for (i, port) in list(container, "ports").iter().enumerate() {
        let ip = text(port, "hostIP");
        if !ip.is_empty() {
            out.extend(check::ip_warning(&ports_path.index(i).field("hostIP"), ip));
        }
    }
}

/// Ports that two containers, or two lines of one, both take.
fn port_conflicts(out: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let base = path.field("containers");
    // By number and protocol: all of them, those for any host port, and with the very place on the host.
    let (mut all, mut unbound, mut exact) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, c) in list(spec, "containers").iter().enumerate() {
        let path = base.index(i);
        let path = path.field("ports");
        for (k, port) in list(c, "ports").iter().enumerate() {
            let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
            let host = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
            let this = (number, text(port, "protocol"), host, text(port, "hostIP"));
            let inside = (this.0, this.1);
            let anywhere = !all.insert(inside);
            let clashes = (host == 0 && anywhere) || unbound.contains(&inside) || !exact.insert(this);
            if host == 0 {
                unbound.insert(inside);
            }
            if clashes {
                out.push(format!("{}: duplicate port definition with an earlier one", path.index(k)));
            }
        }
    }
}

//! The files that every pod finds in /etc: hosts, hostname, resolv.conf.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use super::Config;

/// Search lists longer than this are cut, as Kubernetes does.
const SEARCH_MAX: usize = 32;

/// Where the files of a pod are.
#[derive(Clone, Debug)]
pub struct Files {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv_conf: PathBuf,
}

/// The name that the pod has of itself: `spec.hostname`, or its own cut to 63 bytes.
pub fn host_name(pod: &Pod, node: &str) -> String {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.host_network) == Some(true) {
        return node.to_owned();
    }
    let given = spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let name = given.unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Writes the files of a pod into `directory`.
pub fn write(directory: &Path, config: &Config, pod: &Pod, addresses: &[IpAddr]) -> std::io::Result<Files> {
    std::fs::create_dir_all(directory)?;
    let files = Files {
        hosts: directory.join("hosts"),
        hostname: directory.join("hostname"),
        resolv_conf: directory.join("resolv.conf"),
    };
    let host_resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write_if_new(&files.hosts, &hosts(config, pod, addresses))?;
    write_if_new(&files.hostname, &format!("{}\n", host_name(pod, &config.name)))?;
    write_if_new(&files.resolv_conf, &resolv_conf(config, pod, &host_resolv))?;
    Ok(files)
}

/// Bind-mounted files are written in place: a rename would leave the container with the old one.
fn write_if_new(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(path, text)
}

fn hosts(config: &Config, pod: &Pod, addresses: &[IpAddr]) -> String {
    let spec = pod.spec.as_ref();
    let mut out = if spec.and_then(|s| s.host_network) == Some(true) {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned()
    };
    if spec.and_then(|s| s.host_network) != Some(true) {
        let name = host_name(pod, &config.name);
        let domain = spec.and_then(|s| s.subdomain.as_deref()).filter(|d| !d.is_empty());
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        for address in addresses {
            let _ = match domain {
                Some(sub) => writeln!(out, "{address}\t{name}.{sub}.{namespace}.svc.{}\t{name}", config.cluster_domain),
                None => writeln!(out, "{address}\t{name}"),
            };
        }
    }
    let aliases: Vec<_> = spec.and_then(|s| s.host_aliases.as_ref()).into_iter().flatten().collect();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let _ =
            writeln!(out, "{}\t{}", alias.ip, alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t"));
    }
    out
}

/// The resolver configuration by the pod's DNS policy.
fn resolv_conf(config: &Config, pod: &Pod, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let lines = |key: &str| -> Vec<String> {
        let all = host.lines().filter_map(|l| l.trim().strip_prefix(key)).filter(|r| r.starts_with([' ', '\t']));
        all.flat_map(|r| r.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    let cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let (mut servers, mut search, mut options) = match policy {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        _ if cluster && !config.cluster_dns.is_empty() => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let domain = &config.cluster_domain;
            let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            search.extend(lines("search"));
            (config.cluster_dns.iter().map(ToString::to_string).collect(), search, vec!["ndots:5".to_owned()])
        }
        _ => (lines("nameserver"), lines("search"), lines("options")),
    };
    if let Some(more) = spec.and_then(|s| s.dns_config.as_ref()) {
        servers.extend(more.nameservers.iter().flatten().cloned());
        search.extend(more.searches.iter().flatten().cloned());
        for option in more.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|o| o.split(':').next() != Some(&name));
            options.push(option.value.as_ref().map_or_else(|| name.clone(), |v| format!("{name}:{v}")));
        }
    }
    let mut seen = std::collections::HashSet::new();
    search.retain(|s| s != "." && seen.insert(s.clone()));
    search.truncate(SEARCH_MAX);
    servers.truncate(3);
    let mut out = String::new();
    if !search.is_empty() {
        let _ = writeln!(out, "search {}", search.join(" "));
    }
    for server in servers {
        let _ = writeln!(out, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(out, "options {}", options.join(" "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> Config {
        Config {
            annotations: Vec::new(),
            name: "node".into(),
            addresses: vec![],
            external_addresses: vec![],
            labels: vec![],
            taints: vec![],
            grace: std::time::Duration::from_secs(40),
            data_dir: "/d".into(),
            run_dir: "/r".into(),
            log_dir: "/l".into(),
            cgroup_root: "amphipod".into(),
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            default_registry: None,
        }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn pods_ask_the_cluster_first() {
        let text = resolv_conf(&config(), &pod(json!({"containers": []})), "search example.com\nnameserver 9.9.9.9\n");
        let want = "search n.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.43.0.10\noptions ndots:5\n";
        assert_eq!(text, want);
        let text = resolv_conf(&config(), &pod(json!({"containers": [], "hostNetwork": true})), "nameserver 9.9.9.9\n");
        assert_eq!(text, "nameserver 9.9.9.9\n");
    }

    #[test]
    fn a_pod_finds_itself_in_hosts() {
        let ip: IpAddr = "10.42.0.9".parse().unwrap();
        let text = hosts(&config(), &pod(json!({"containers": [], "hostname": "h", "subdomain": "s"})), &[ip]);
        assert!(text.contains("10.42.0.9\th.s.n.svc.cluster.local\th\n"), "{text}");
    }
}

//! The small files that every pod has: hosts, hostname and resolv.conf in /etc, and what containers say last.
//!
//! Containers write into some of them, the run directory is memory of the machine, and the host reads them again. So they
//! are in a file system of their own for each pod, in memory and small: it costs one mount and no disk, what is in it is
//! charged to the container that wrote it, and a full one harms its own pod only. Invariant: the host opens them below a
//! descriptor, follows no link, waits for nothing and reads to a limit.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use nix::mount::MsFlags;

use super::error::{Error, Result};
use super::{Config, volumes};
use crate::base::beneath::Root;
use crate::base::file::make_private_dir;

/// Search lists longer than this are cut, as Kubernetes does.
const SEARCH_MAX: usize = 32;
/// What the files of a pod may take beside what they are when they are made.
const ROOM_BYTES: u64 = 1 << 20;
/// The kernel's limit.
const KERNEL_NAME_BYTES_MAX: usize = 64;
/// The machine's own files are not longer.
const HOST_FILE_BYTES_MAX: u64 = 4 << 20;
/// What is read of a container's last words, from their end.
const LAST_WORDS_BYTES: u64 = 4096;
const LAST_WORDS: &str = "last-words";
/// Everybody's in the container; the way to it is root's alone.
const ETC_MODE: u32 = 0o644;
const LAST_WORDS_MODE: u32 = 0o666;

/// Where the files of a pod are.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
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

/// The domain behind [`host_name`], where the pod has one: that of the Service that it names.
fn domain(pod: &Pod, config: &Config) -> Option<String> {
    let spec = pod.spec.as_ref().filter(|s| s.host_network != Some(true))?;
    let sub = spec.subdomain.as_deref().filter(|d| !d.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    Some(format!("{sub}.{namespace}.svc.{}", config.cluster_domain))
}

/// The name that the kernel gives the pod's processes: with `setHostnameAsFQDN` the one with the domain.
pub fn kernel_name(pod: &Pod, config: &Config) -> Result<String> {
    let name = host_name(pod, &config.name);
    let whole = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    let Some(domain) = domain(pod, config).filter(|_| whole) else { return Ok(name) };
    let fqdn = format!("{name}.{domain}");
    if fqdn.len() > KERNEL_NAME_BYTES_MAX {
        return Err(Error::BuildHostname { fqdn, max: KERNEL_NAME_BYTES_MAX });
    }
    Ok(fqdn)
}

/// Writes the files of a pod into `directory`. Where containers use them already, one that cannot be written is left as it is.
pub fn write(directory: &Path, config: &Config, pod: &Pod, addresses: &[IpAddr], adopted: bool) -> io::Result<Files> {
    let host_resolv = host_file("/etc/resolv.conf");
    let texts = [
        ("hosts", hosts(config, pod, addresses)),
        ("hostname", format!("{}\n", kernel_name(pod, config).map_err(io::Error::other)?)),
        ("resolv.conf", resolv_conf(config, pod, &host_resolv)),
    ];
    make_private_dir(directory)?;
    if !volumes::is_mounted(directory)? {
        let size = ROOM_BYTES + 2 * texts.iter().map(|(_, text)| text.len() as u64).sum::<u64>();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        volumes::mount_tmpfs(directory, flags, &format!("mode=0700,size={size}"))?;
    }
    let root = Root::open(directory)?;
    for (name, text) in &texts {
        // In place: a rename would leave the containers with the old one.
        match root.write_in_place(name, text.as_bytes(), ETC_MODE) {
            Err(error) if adopted => tracing::warn!(%error, file = name, "a file of a running pod was not renewed"),
            result => result?,
        }
    }
    Ok(Files {
        directory: directory.to_owned(),
        hosts: directory.join("hosts"),
        hostname: directory.join("hostname"),
        resolv_conf: directory.join("resolv.conf"),
    })
}

fn host_file(path: &str) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(HOST_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

// === impl Files ===

impl Files {
    /// Makes the file for a container's last words; those of its earlier attempts were read when they ended.
    pub fn make_last_words(&self, container: &str, attempt: u32) -> io::Result<PathBuf> {
        let root = Root::open(&self.directory)?.make_directory(Path::new(LAST_WORDS), 0o700)?;
        let of_it = |name: &str| name.strip_prefix(container)?.strip_prefix('-')?.parse::<u32>().ok();
        for (name, _) in root.entries()? {
            if of_it(&name).is_some() {
                root.remove(&name)?;
            }
        }
        let name = format!("{container}-{attempt}");
        root.write_new(&name, b"", LAST_WORDS_MODE, None)?;
        Ok(self.directory.join(LAST_WORDS).join(name))
    }
}

/// A container's last words, cut at their beginning as the kubelet does.
pub fn last_words(directory: &Path, container: &str, attempt: u32) -> io::Result<Vec<u8>> {
    tail(Root::open(directory)?.directory(LAST_WORDS)?.file(format!("{container}-{attempt}"))?, LAST_WORDS_BYTES)
}

/// The end of a file.
fn tail(mut file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn hosts(config: &Config, pod: &Pod, addresses: &[IpAddr]) -> String {
    let spec = pod.spec.as_ref();
    let mut out = if spec.and_then(|s| s.host_network) == Some(true) {
        host_file("/etc/hosts")
    } else {
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned()
    };
    if spec.and_then(|s| s.host_network) != Some(true) {
        let name = host_name(pod, &config.name);
        let domain = domain(pod, config);
        for address in addresses {
            let _ = match &domain {
                Some(domain) => writeln!(out, "{address}\t{name}.{domain}\t{name}"),
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
            kubelet_port: 0,
            grace: std::time::Duration::from_secs(40),
            data_dir: "/d".into(),
            run_dir: "/r".into(),
            log_dir: "/l".into(),
            cgroup_root: "amphipod".into(),
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            default_registry: None,
            unsafe_sysctls: vec![],
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
    fn what_containers_write_is_bounded_and_read_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files");
        let make = || write(&path, &config(), &pod(json!({"containers": []})), &[], true).expect("run as root");
        let files = make();
        let words = files.make_last_words("c", 0).unwrap();
        // As a container would: until there is no room.
        let mut grown = std::fs::File::options().write(true).open(&words).unwrap();
        let written = std::iter::repeat_with(|| io::Write::write(&mut grown, &[b'x'; 65536]));
        let written: usize = written.map_while(Result::ok).take(1000).sum();
        assert!(written < 2 << 20, "{written} bytes of the machine's memory");
        std::fs::OpenOptions::new().append(true).open(&files.hosts).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(last_words(&path, "c", 0).unwrap().len(), 4096);
        drop(grown);
        make();
        files.make_last_words("c", 1).unwrap();
        make();
        assert!(std::fs::read_to_string(&files.hosts).unwrap().starts_with("# Kubernetes-managed"));
        std::fs::write(files.make_last_words("c-1", 0).unwrap(), "of another").unwrap();
        std::fs::write(files.make_last_words("c", 2).unwrap(), "the end").unwrap();
        assert_eq!(last_words(&path, "c", 2).unwrap(), b"the end");
        assert_eq!(last_words(&path, "c-1", 0).unwrap(), b"of another");
        // What is no file is not waited for.
        let words = path.join("last-words/c-2");
        std::fs::remove_file(&words).unwrap();
        nix::unistd::mkfifo(&words, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(last_words(&path, "c", 2).is_err());
        std::fs::remove_file(&words).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &words).unwrap();
        assert!(last_words(&path, "c", 2).is_err());
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }

    #[test]
    fn a_pod_finds_itself_in_hosts() {
        let ip: IpAddr = "10.42.0.9".parse().unwrap();
        let text = hosts(&config(), &pod(json!({"containers": [], "hostname": "h", "subdomain": "s"})), &[ip]);
        assert!(text.contains("10.42.0.9\th.s.n.svc.cluster.local\th\n"), "{text}");
    }

    #[test]
    fn the_kernel_knows_the_whole_name_where_the_pod_wants_that_and_it_fits() {
        let name = |spec| kernel_name(&pod(spec), &config());
        let named =
            |whole, sub: &str| json!({"containers": [], "hostname": "h", "subdomain": sub, "setHostnameAsFQDN": whole});
        let ns = pod(json!({})).metadata.namespace.unwrap();
        assert_eq!(name(named(true, "s")).unwrap(), format!("h.s.{ns}.svc.cluster.local"));
        assert_eq!(name(named(false, "s")).unwrap(), "h");
        assert_eq!(name(named(true, "")).unwrap(), "h", "there is no domain");
        let why = name(named(true, &"s".repeat(60))).unwrap_err().to_string();
        assert!(why.contains("is too long (64 characters is the max, "), "{why}");
    }
}

//! `registries.yaml`, in k3s' format: mirrors with rewrites, credentials and TLS per registry, `*` for all others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

use super::error::io;
use super::{Credentials, ImageError, Reference, Result};

/// The whole file; empty when there is none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Registries {
    pub mirrors: BTreeMap<String, Mirror>,
    pub configs: BTreeMap<String, RegistryConfig>,
    /// Stands in for docker.io: a host, with a path below which its repositories are.
    #[serde(skip)]
    pub default_registry: Option<String>,
    /// No registry may be asked at all.
    #[serde(skip)]
    pub offline: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Mirror {
    /// URLs to try in order before the registry itself.
    #[serde(rename = "endpoint")]
    pub endpoints: Vec<String>,
    /// Regular expression to replacement, applied to the repository for mirrors.
    pub rewrite: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RegistryConfig {
    pub auth: Option<Auth>,
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// Base64 of `username:password`.
    pub auth: String,
    pub identity_token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// One place to try for a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub https: bool,
    /// Host with optional port.
    pub host: String,
    /// Path before `/<repository>/manifests/...`, e.g. `/v2`.
    pub base: String,
    pub repository: String,
    /// Tells a mirror of several registries which one is meant.
    pub namespace: Option<String>,
    /// Whether this is the host that the image's name speaks of, and no mirror of it.
    pub is_named_registry: bool,
}

impl Registries {
    /// Reads the file; no file is an empty configuration, a wrong one is an error.
    pub fn load(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|reason| ImageError::invalid(path.display().to_string(), reason)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(io("reading", path)(error)),
        }
    }

    pub(super) fn parse(text: &str) -> std::result::Result<Self, String> {
        let parsed: Option<Self> = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        let parsed = parsed.unwrap_or_default();
        for mirror in parsed.mirrors.values() {
            for endpoint in &mirror.endpoints {
                split_url(endpoint).ok_or_else(|| format!("invalid endpoint {endpoint:?}"))?;
            }
            for pattern in mirror.rewrite.keys() {
                regex::Regex::new(pattern).map_err(|error| error.to_string())?;
            }
        }
        Ok(parsed)
    }

    /// Whether a text may stand in for docker.io: a host, also with a port or a path.
    pub fn is_registry(text: &str) -> bool {
        let host = text.split('/').next().unwrap_or_default();
        (host.contains(['.', ':']) || host == "localhost") && Reference::parse(&format!("{text}/a")).is_ok()
    }

    /// Where to look for a repository, in order: the mirrors, then the registry itself.
    pub(crate) fn endpoints(&self, registry: &str, repository: &str) -> Vec<Endpoint> {
        let (own_host, folder) = match (registry, self.default_registry.as_deref()) {
            ("docker.io", None) => ("registry-1.docker.io", ""),
            ("docker.io", Some(default)) => default.split_once('/').unwrap_or((default, "")),
            _ => (registry, ""),
        };
        let mut list = Vec::new();
        if let Some(mirror) = self.mirrors.get(registry).or_else(|| self.mirrors.get("*")) {
            for url in &mirror.endpoints {
                let Some((https, host, path)) = split_url(url) else { continue };
                let base = if path.trim_matches('/').is_empty() { "/v2" } else { path.trim_end_matches('/') };
                list.push(Endpoint {
                    https,
                    host: host.into(),
                    base: base.into(),
                    repository: rewritten(mirror, repository),
                    namespace: (host != registry).then(|| registry.to_owned()),
                    is_named_registry: host == own_host,
                });
            }
        }
        let own = Endpoint {
            https: !is_local(own_host) || self.tls(own_host).is_some(),
            host: own_host.into(),
            base: "/v2".into(),
            repository: format!("{folder}/{repository}").trim_start_matches('/').to_owned(),
            namespace: None,
            is_named_registry: true,
        };
        if !list.iter().any(|endpoint| endpoint.host == own.host && endpoint.repository == own.repository) {
            list.push(own);
        }
        list
    }

    /// Whether an administrator has named this very host, as a mirror or by what belongs to it.
    pub(super) fn names(&self, host: &str) -> bool {
        let mut mirrors = self.mirrors.values().flat_map(|mirror| &mirror.endpoints);
        (host != "*" && self.configs.contains_key(host))
            || mirrors.any(|url| split_url(url).is_some_and(|(_, named, _)| named == host))
            || self.default_registry.as_deref().is_some_and(|default| default.split('/').next() == Some(host))
    }

    fn config(&self, host: &str) -> Option<&RegistryConfig> {
        let docker = (host == "registry-1.docker.io").then(|| self.configs.get("docker.io")).flatten();
        self.configs.get(host).or(docker).or_else(|| self.configs.get("*"))
    }

    pub(crate) fn tls(&self, host: &str) -> Option<&Tls> {
        self.config(host)?.tls.as_ref()
    }

    pub(crate) fn credentials(&self, host: &str) -> Option<Credentials> {
        let auth = self.config(host)?.auth.as_ref()?;
        let mut credentials = Credentials {
            username: auth.username.clone(),
            password: auth.password.clone(),
            identity_token: auth.identity_token.clone(),
            registry_token: String::new(),
            secret: None,
        };
        if let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim())
            && let Ok(text) = String::from_utf8(decoded)
            && let Some((username, password)) = text.split_once(':')
        {
            (credentials.username, credentials.password) = (username.into(), password.into());
        }
        Some(credentials)
    }
}

fn rewritten(mirror: &Mirror, repository: &str) -> String {
    for (pattern, replacement) in &mirror.rewrite {
        if let Ok(pattern) = regex::Regex::new(pattern)
            && pattern.is_match(repository)
        {
            return pattern.replace(repository, replacement.as_str()).into_owned();
        }
    }
    repository.to_owned()
}

fn split_url(url: &str) -> Option<(bool, &str, &str)> {
    let (https, rest) = match url.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        Some(_) => return None,
        None => (true, url),
    };
    let (host, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    (!host.is_empty()).then_some((https, host, path))
}

/// Registries on this machine speak plain HTTP unless configured otherwise, as in Docker and containerd.
fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name == "[::1]" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://127.0.0.1:5001/v2/proxy"]
    rewrite:
      "^library/(.*)": "base/$1"
  "*":
    endpoint: ["https://all.example"]
configs:
  "mirror.example:5000":
    auth: { username: me, password: secret }
    tls: { ca_file: /ca.crt, insecure_skip_verify: true }
  registry.example:
    auth: { auth: "bWU6c2VjcmV0" }
"#;

    #[test]
    fn mirrors_come_first_and_are_rewritten() {
        let registries = Registries::parse(FILE).unwrap();
        let list = registries.endpoints("docker.io", "library/nginx");
        let shown: Vec<_> = list.iter().map(|e| format!("{} {}{} {}", e.https, e.host, e.base, e.repository)).collect();
        let expected = [
            "true mirror.example:5000/v2 base/nginx",
            "false 127.0.0.1:5001/v2/proxy base/nginx",
            "true registry-1.docker.io/v2 library/nginx",
        ];
        assert_eq!(shown, expected);
        assert_eq!(registries.endpoints("quay.io", "a/b")[0].host, "all.example");
    }

    #[test]
    fn another_registry_stands_in_for_docker_hub_alone() {
        let shown = |default: &str, registry: &str| {
            let registries = Registries { default_registry: Some(default.into()), ..Registries::default() };
            let list = registries.endpoints(registry, "library/nginx");
            list.iter().map(|e| format!("{} {}", e.host, e.repository)).collect::<Vec<_>>()
        };
        assert_eq!(shown("r.example:5000", "docker.io"), ["r.example:5000 library/nginx"]);
        assert_eq!(shown("r.example/hub/all", "docker.io"), ["r.example hub/all/library/nginx"]);
        assert_eq!(shown("r.example", "quay.io"), ["quay.io library/nginx"]);
        for (text, fits) in [("r.example", true), ("localhost:5000/a", true), ("https://r.example", false), ("", false)]
        {
            assert_eq!(Registries::is_registry(text), fits, "{text}");
        }
    }

    #[test]
    fn credentials_and_tls_belong_to_the_host() {
        let registries = Registries::parse(FILE).unwrap();
        for host in ["mirror.example:5000", "registry.example"] {
            let credentials = registries.credentials(host).unwrap();
            assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("me", "secret"));
        }
        assert!(registries.tls("mirror.example:5000").unwrap().insecure_skip_verify);
        for (host, named) in [
            ("mirror.example:5000", true),
            ("registry.example", true),
            ("127.0.0.1:5001", true),
            ("127.0.0.1:5002", false),
            ("docker.io", false),
            ("*", false),
        ] {
            assert_eq!(registries.names(host), named, "{host}");
        }
        assert!(registries.credentials("other").is_none());
    }

    #[test]
    fn local_registries_speak_http_and_mistakes_are_told() {
        let none = Registries::parse("").unwrap();
        assert!(!none.endpoints("127.0.0.1:5000", "a")[0].https && !none.endpoints("localhost", "a")[0].https);
        assert!(none.endpoints("quay.io", "a")[0].https);
        assert!(Registries::parse("mirrors: {a: {endpoint: ['ftp://x']}}").is_err());
        assert!(Registries::parse("mirrors: {a: {rewrite: {'(': 'x'}}}").is_err());
    }
}

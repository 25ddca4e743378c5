//! Image references: parsing, Docker's short names, printing.

use super::{ImageError, Result};
use crate::wire::images::is_digest;

/// A parsed and normalised reference: `nginx` is `docker.io/library/nginx:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host with optional port, e.g. `docker.io` or `localhost:5000`.
    pub registry: String,
    /// Path in the registry, e.g. `library/nginx`.
    pub repository: String,
    /// Absent when only a digest is given.
    pub tag: Option<String>,
    /// `sha256:...`; wins over the tag.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses as `kubectl` and `docker` users write names.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: &str| ImageError::InvalidName { reference: text.into(), reason: reason.into() };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        if digest.as_deref().is_some_and(|digest| !is_digest(digest)) {
            return Err(invalid("invalid digest, expected sha256:<64 hexadecimal digits>"));
        }
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (name, None),
        };
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("invalid tag"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let repository = if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        if name.len() > 255 {
            return Err(invalid("name must not be longer than 255 characters"));
        }
        if repository.chars().any(|letter| letter.is_ascii_uppercase()) {
            return Err(invalid("repository name must be lowercase"));
        }
        if !repository.split('/').all(is_component) || !is_host(registry) {
            return Err(invalid("invalid reference format"));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".into()) } else { tag };
        Ok(Self { registry: registry.into(), repository, tag, digest })
    }

    /// Without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What to ask the registry for.
    pub(crate) fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.name())?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(formatter, "@{digest}"),
            (None, Some(tag)) => write!(formatter, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    text.len() <= 128 && bytes.next().is_some_and(word) && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Lower-case words joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_well = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    let separators = bytes.split(|byte| alphanumeric(byte)).filter(|separator| !separator.is_empty());
    ends_well
        && separators
            .into_iter()
            .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let plain = |host: &str| {
        !host.is_empty()
            && host.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
    };
    port_fits && bracketed.map_or_else(|| plain(host), |address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_full_ones() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("quay.io/x/y", "quay.io/x/y:latest".to_owned()),
            ("index.docker.io/library/a", "docker.io/library/a:latest".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
        ];
        for (given, expected) in cases {
            assert_eq!(Reference::parse(given).unwrap().to_string(), expected);
        }
        let both = Reference::parse(&format!("a:b@{digest}")).unwrap();
        assert_eq!((both.to_string(), both.version()), (format!("docker.io/library/a@{digest}"), digest.as_str()));
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in
            ["", "Nginx", "a b", "a:", "a@sha256:12", "a/../b", "a//b", "-a", "a:b:c/", "http://a/b", "a/b:x/y:z!"]
        {
            assert!(matches!(Reference::parse(bad), Err(ImageError::InvalidName { .. })), "{bad:?}");
        }
    }
}

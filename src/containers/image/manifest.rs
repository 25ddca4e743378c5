//! Manifests and configurations, as registries and archives have them, read within bounds.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::document::{List, Map};
use super::error::shortened;
use super::{ImageConfig, ImageError, Result};
use crate::wire::images::is_digest;

pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// The kernel stacks no more directories in one overlay.
pub(super) const LAYERS_MAX: usize = 500;

/// Platforms of an image, or images of an archive.
pub(super) const MANIFESTS_MAX: usize = 4096;

/// Words, variables, labels, ports and volumes, each.
pub(super) const CONFIG_ENTRIES_MAX: usize = 16_384;

/// What a configuration may tell a container, in all: it stays in memory and in the index as long as the image is here.
pub(super) const CONFIG_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Manifest {
    pub media_type: String,
    pub manifests: List<Descriptor, MANIFESTS_MAX>,
    pub config: Option<Descriptor>,
    pub layers: List<Descriptor, LAYERS_MAX>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    pub annotations: Option<Names>,
}

/// What archives call an image: the annotations that matter, of many.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Names {
    /// A whole name.
    #[serde(rename = "io.containerd.image.name")]
    pub containerd: Option<String>,
    /// Often only a tag.
    #[serde(rename = "org.opencontainers.image.ref.name")]
    pub standard: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

/// The image configuration as registries keep it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigFile {
    pub os: String,
    pub architecture: String,
    pub config: Option<ConfigSection>,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    pub diff_ids: List<String, LAYERS_MAX>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ConfigSection {
    entrypoint: List<String, CONFIG_ENTRIES_MAX>,
    cmd: List<String, CONFIG_ENTRIES_MAX>,
    env: List<String, CONFIG_ENTRIES_MAX>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Map<IgnoredAny, CONFIG_ENTRIES_MAX>,
    stop_signal: Option<String>,
    volumes: Map<IgnoredAny, CONFIG_ENTRIES_MAX>,
    labels: Map<String, CONFIG_ENTRIES_MAX>,
}

/// This machine.
pub(super) fn own_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        other => (other, ""),
    };
    Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
}

/// The manifest of an index that fits this machine best.
pub(super) fn choose<'a>(list: &'a [Descriptor], own: &Platform, reference: &str) -> Result<&'a Descriptor> {
    let platform = |descriptor: &&Descriptor| descriptor.platform.clone().unwrap_or_default();
    let fits = |descriptor: &&Descriptor| {
        let platform = platform(descriptor);
        platform.os == own.os && platform.architecture == own.architecture
    };
    let exact = |descriptor: &&Descriptor| platform(descriptor).variant == own.variant;
    let candidates: Vec<&Descriptor> = list.iter().filter(fits).collect();
    let best = candidates.iter().find(|descriptor| exact(descriptor)).or_else(|| candidates.first());
    best.copied().ok_or_else(|| {
        let available: Vec<String> = list.iter().filter_map(|d| d.platform.as_ref().map(Platform::to_string)).collect();
        ImageError::NoPlatform {
            reference: reference.into(),
            platform: own.to_string(),
            available: available.join(", "),
        }
    })
}

pub(super) fn parse_manifest(bytes: &[u8]) -> Result<Manifest> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::invalid("manifest", error))
}

// === impl Platform ===

impl std::fmt::Display for Platform {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(formatter, "/{}", self.variant) }
    }
}

// === impl ConfigFile ===

impl ConfigFile {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let invalid = |reason: String| ImageError::invalid("image configuration", reason);
        let file: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if let Some(wrong) = file.rootfs.diff_ids.iter().find(|digest| !is_digest(digest)) {
            return Err(invalid(format!("diff_ids: {:?} is no sha256 digest", shortened(wrong))));
        }
        let size_bytes = file.config.as_ref().map_or(0, ConfigSection::size_bytes);
        if size_bytes > CONFIG_BYTES_MAX {
            return Err(invalid(format!(
                "what it tells containers is {size_bytes} bytes, more than {CONFIG_BYTES_MAX}"
            )));
        }
        Ok(file)
    }

    /// An image without a list says only in its configuration what it is for.
    pub(super) fn check_platform(&self, reference: &str) -> Result<()> {
        let own = own_platform();
        let fits = |given: &str, own: &str| given.is_empty() || given == own;
        if fits(&self.os, &own.os) && fits(&self.architecture, &own.architecture) {
            return Ok(());
        }
        Err(ImageError::NoPlatform {
            reference: reference.into(),
            platform: own.to_string(),
            available: format!("{}/{}", self.os, self.architecture),
        })
    }

    pub(super) fn image_config(&self) -> ImageConfig {
        let section = self.config.clone().unwrap_or_default();
        // A name alone says that there is no such variable.
        let pair = |entry: String| {
            entry
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        ImageConfig {
            entrypoint: section.entrypoint.0,
            cmd: section.cmd.0,
            env: section.env.0.into_iter().filter_map(pair).collect(),
            user: section.user.unwrap_or_default(),
            working_dir: section.working_dir.unwrap_or_default(),
            exposed_ports: section.exposed_ports.0.into_keys().collect(),
            stop_signal: section.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: section.volumes.0.into_keys().collect(),
            labels: section.labels.0,
        }
    }
}

// === impl ConfigSection ===

impl ConfigSection {
    /// All that is kept of it.
    fn size_bytes(&self) -> usize {
        let lists = [&self.entrypoint, &self.cmd, &self.env].into_iter().flat_map(|list| list.iter());
        let names = self.exposed_ports.0.keys().chain(self.volumes.0.keys());
        let labels = self.labels.0.iter().flat_map(|(name, value)| [name, value]);
        let single = [&self.user, &self.working_dir, &self.stop_signal].into_iter().flatten();
        lists.chain(names).chain(labels).chain(single).map(String::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(os: &str, architecture: &str, variant: &str) -> Descriptor {
        let platform = Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() };
        Descriptor { digest: format!("{platform}"), platform: Some(platform), ..Descriptor::default() }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let list =
            [descriptor("windows", "arm64", ""), descriptor("linux", "arm64", ""), descriptor("linux", "arm64", "v8")];
        let own = Platform { os: "linux".into(), architecture: "arm64".into(), variant: "v8".into() };
        assert_eq!(choose(&list, &own, "x").unwrap().digest, "linux/arm64/v8");
        assert_eq!(choose(&list[..2], &own, "x").unwrap().digest, "linux/arm64");
        let none = choose(&list[..1], &own, "x").unwrap_err().to_string();
        assert_eq!(none, "no image for platform linux/arm64/v8 in \"x\" (it has windows/arm64)");
    }

    #[test]
    fn configurations_are_read_with_nulls_in_them() {
        let file = ConfigFile::parse(
            br#"{"os":"linux","architecture":"none","config":{"Env":["A=b=c","ALONE","=x"],"Cmd":null,"ExposedPorts":{"80/tcp":{}}},
                "rootfs":{"type":"layers","diff_ids":["sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"]}}"#,
        )
        .unwrap();
        let config = file.image_config();
        assert_eq!(config.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert!(matches!(file.check_platform("x"), Err(ImageError::NoPlatform { .. })));
    }
}

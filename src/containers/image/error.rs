//! Why an image is not there. The node turns these into `ErrImagePull`, `InvalidImageName` and so on with their text.

use std::path::Path;

/// Cloneable, because everyone who waited for one download gets its failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not a reference at all: `InvalidImageName`.
    #[error("couldn't parse image name {reference:?}: {reason}")]
    InvalidName { reference: String, reason: String },
    /// The registry does not have it.
    #[error("failed to pull image {reference:?}: not found in {registry}")]
    NotFound { reference: String, registry: String },
    /// The registry wants (other) credentials.
    #[error("failed to pull image {reference:?}: {registry} refused access: {reason}")]
    Unauthorized { reference: String, registry: String, reason: String },
    /// No connection: name, network, TLS.
    #[error("failed to reach registry {registry}: {reason}")]
    Unreachable { registry: String, reason: String },
    /// The registry answered something unexpected.
    #[error("registry {registry} answered {status}: {reason}")]
    Registry { registry: String, status: u16, reason: String },
    /// What was received is not what the digest promises.
    #[error("wrong digest: expected {expected}, got {actual}")]
    WrongDigest { expected: String, actual: String },
    /// Less was received than promised.
    #[error("truncated: {what} ended after {got_bytes} of {expected_bytes} bytes")]
    Truncated { what: String, got_bytes: u64, expected_bytes: u64 },
    /// The image is not made for this machine.
    #[error("no image for platform {platform} in {reference:?} (it has {available})")]
    NoPlatform { reference: String, platform: String, available: String },
    /// A layer tries what no honest layer does.
    #[error("malicious layer {layer}: {path:?} {reason}")]
    Malicious { layer: String, path: String, reason: String },
    /// A manifest, configuration, archive or layer that cannot be understood.
    #[error("invalid {what}: {reason}")]
    Invalid { what: String, reason: String },
    /// It would have to be downloaded, which the user forbids.
    #[error(
        "image {reference:?} is on no node that can be asked, and --offline forbids to download it: put an archive that \
         holds it into {directory} of this machine or of the server"
    )]
    Offline { reference: String, directory: String },
    /// Not in the store.
    #[error("no such image: {0}")]
    NoImage(String),
    /// A container uses it.
    #[error("image {image} is used by container {container}")]
    InUse { image: String, container: String },
    /// Disk trouble; `reason` says e.g. that no space is left.
    #[error("{what} {path}: {reason}")]
    Io { what: String, path: String, reason: String },
}

impl ImageError {
    pub(crate) fn invalid(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }

    /// Worth the next mirror or another try: the fault is not in the request.
    pub(crate) fn is_elsewhere_better(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Unauthorized { .. }
                | Self::Unreachable { .. }
                | Self::Registry { .. }
                | Self::WrongDigest { .. }
                | Self::Truncated { .. }
        )
    }
}

/// What somebody else said, fit for a message: short, and without control characters.
pub(super) fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 256;
    let mut characters = text.chars();
    let mut short: String = characters
        .by_ref()
        .take(CHARACTERS_MAX)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

/// For `map_err` on file operations.
pub(crate) fn io<E: std::fmt::Display>(what: &'static str, path: &Path) -> impl FnOnce(E) -> ImageError {
    let path = path.display().to_string();
    move |error| ImageError::Io { what: what.into(), path, reason: error.to_string() }
}

/// Results of image operations.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

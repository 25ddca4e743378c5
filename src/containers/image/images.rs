//! What a node asks of images.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::gc::{Collected, Policy};
use super::{Credentials, Image, ImageError, Result};
use crate::base::signal::Receiver;
use crate::containers::Users;
use crate::wire::images::{BlobRequest, BlobResponse};

/// Where images come from and root file systems are made.
#[async_trait]
pub trait Images: Send + Sync {
    /// Downloads what is missing of an image. Credentials are tried in order, those of the configuration and anonymous
    /// access last. Simultaneous pulls of one reference share one download.
    async fn pull(&self, reference: &str, credentials: &[Credentials]) -> Result<Image>;
    /// The same, but another node's copy will do; the registry is asked only where no node has one.
    async fn obtain(&self, reference: &str, credentials: &[Credentials]) -> Result<Image> {
        self.pull(reference, credentials).await
    }
    /// What another node may have of the images here.
    async fn offer(&self, _ask: &BlobRequest) -> Option<BlobResponse> {
        None
    }
    /// An image by name, name with digest, or id (also without `sha256:` and shortened to 12 digits or more).
    async fn status(&self, reference: &str) -> Option<Image>;
    /// Whether whoever has these credentials may use an image that is here, by the name it was asked for: an image that came for
    /// somebody's credentials is not everyone's.
    async fn allows(&self, image: &Image, reference: &str, credentials: &[Credentials]) -> bool {
        let _ = (image, reference, credentials);
        true
    }
    /// All images.
    async fn list(&self) -> Vec<Image>;
    /// Removes a name; with its last name, or given by id, the image and the layers no other image needs.
    async fn remove(&self, reference: &str) -> Result<()>;
    /// Takes in a docker-archive or OCI-layout tar, plain or compressed.
    async fn import(&self, archive: &Path) -> Result<Vec<Image>>;
    /// Mounts a fresh writable root file system for a container; the same one again if it is there already. It shows the ids
    /// of the users that are given, and what is written is theirs.
    async fn prepare_rootfs(&self, image: &str, container: &str, users: Option<&Users>) -> Result<PathBuf>;
    /// Mounts an image for reading, as a volume of a container by this name; it goes with the container's root file system. It shows
    /// the ids of the users that are given.
    async fn prepare_volume(&self, image: &str, container: &str, name: &str, users: Option<&Users>) -> Result<PathBuf> {
        let _ = (image, container, name, users);
        Err(ImageError::invalid("volume", "images cannot be mounted as volumes here"))
    }
    /// Unmounts and deletes it with the volumes; fine if there is none.
    async fn release_rootfs(&self, container: &str) -> Result<()>;
    /// Containers that have a root file system, also left over from before a reboot.
    async fn rootfs_list(&self) -> Vec<String>;
    /// Removes images that nobody needs where the disk is nearly full.
    async fn collect_garbage(&self, policy: &Policy) -> Result<Collected>;
    /// Tells when there may be images that were not there before, also through another process.
    fn came(&self) -> Receiver;
    /// Tells when a container's root file system is gone.
    fn released(&self) -> Receiver;
}

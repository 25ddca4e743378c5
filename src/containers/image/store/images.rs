//! The store as a node asks it: pulls, archives, root file systems, garbage.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::FutureExt;

use super::super::super::Users;
use super::super::gc::{Collected, Policy};
use super::super::{Credentials, Image, ImageError, Images, Reference, Result, archive, builtin, pull};
use super::ImageStore;
use crate::base::signal::Receiver;
use crate::wire::images::{BlobRequest, BlobResponse};

impl ImageStore {
    /// [`Images::import`] that gives images without a name in the archive this one.
    pub async fn import_as(&self, archive: &Path, name: &str) -> Result<Vec<Image>> {
        let name = Reference::parse(name)?;
        if name.digest.is_some() {
            let reason = "a digest is no name to give: expected NAME or NAME:TAG".to_owned();
            return Err(ImageError::InvalidName { reference: name.to_string(), reason });
        }
        archive::import(self, archive, Some(&name)).await
    }

    /// Joins a pull of the same that is under way, or begins one.
    async fn shared_pull(&self, reference: &str, credentials: &[Credentials], fresh: bool) -> Result<Image> {
        if builtin::is_hello(reference) {
            return Ok(builtin::image());
        }
        let parsed = Reference::parse(reference)?;
        let key = (parsed.to_string(), credentials.to_vec(), fresh);
        let shared = {
            let mut pulls = self.inner.pulls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let start = || {
                let (store, key, credentials) = (self.clone(), key.clone(), credentials.to_vec());
                // In a task of its own: the caller that began it may give up while others still wait.
                let task = crate::base::task::spawn("image-pull", async move {
                    let result = match store.pulling().await {
                        Ok(_pulling) => pull::pull(&store, &parsed, &credentials, fresh).await,
                        Err(error) => Err(error),
                    };
                    store.inner.pulls.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&key);
                    result
                });
                let outcome = task.map(|joined| match joined {
                    Ok(Some(result)) => result,
                    _ => Err(ImageError::invalid("pull", "it was interrupted")),
                });
                outcome.boxed().shared()
            };
            pulls.entry(key.clone()).or_insert_with(start).clone()
        };
        crate::base::metrics::runtime_operation("pull_image", shared).await
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn pull(&self, reference: &str, credentials: &[Credentials]) -> Result<Image> {
        self.shared_pull(reference, credentials, true).await
    }

    async fn obtain(&self, reference: &str, credentials: &[Credentials]) -> Result<Image> {
        self.shared_pull(reference, credentials, false).await
    }

    async fn offer(&self, ask: &BlobRequest) -> Option<BlobResponse> {
        self.found(ask).await
    }

    async fn status(&self, reference: &str) -> Option<Image> {
        if builtin::is_hello(reference) {
            return Some(builtin::image());
        }
        let image = self.inner.image(reference)?;
        self.inner.interest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ask(&image.id);
        Some(image)
    }

    async fn allows(&self, image: &Image, reference: &str, credentials: &[Credentials]) -> bool {
        if builtin::is_hello(reference) {
            return true;
        }
        let (id, reference, credentials) = (image.id.clone(), reference.to_owned(), credentials.to_vec());
        let allowed = self.blocking(move |inner| inner.allows(&id, &reference, &credentials)).await;
        allowed.unwrap_or_else(|error| {
            tracing::warn!(%error, image = image.id, "the image's credentials cannot be compared");
            false
        })
    }

    async fn list(&self) -> Vec<Image> {
        let mut list = vec![builtin::image()];
        list.extend(self.inner.index().images.values().map(|entry| entry.image.clone()));
        list
    }

    async fn remove(&self, reference: &str) -> Result<()> {
        let reference = reference.to_owned();
        self.blocking(move |inner| inner.remove(&reference)).await
    }

    async fn import(&self, archive: &Path) -> Result<Vec<Image>> {
        archive::import(self, archive, None).await
    }

    async fn prepare_rootfs(&self, image: &str, container: &str, users: Option<&Users>) -> Result<PathBuf> {
        let (image, container, users) = (image.to_owned(), container.to_owned(), users.cloned());
        self.blocking(move |inner| {
            let result = inner.prepare(&image, &container, users.as_ref());
            if result.is_err() {
                let _ = inner.release(&container);
            }
            result
        })
        .await
    }

    async fn prepare_volume(&self, image: &str, container: &str, name: &str, users: Option<&Users>) -> Result<PathBuf> {
        let (image, container, name, users) = (image.to_owned(), container.to_owned(), name.to_owned(), users.cloned());
        self.blocking(move |inner| inner.prepare_volume(&image, &container, &name, users.as_ref())).await
    }

    async fn release_rootfs(&self, container: &str) -> Result<()> {
        let container = container.to_owned();
        self.blocking(move |inner| inner.release(&container)).await
    }

    async fn rootfs_list(&self) -> Vec<String> {
        self.blocking(|inner| {
            let mut all: Vec<String> = inner.users().into_iter().map(|(container, _)| container).collect();
            all.dedup();
            all
        })
        .await
    }

    async fn collect_garbage(&self, policy: &Policy) -> Result<Collected> {
        let policy = *policy;
        self.blocking(move |inner| inner.collect(&policy)).await
    }

    fn came(&self) -> Receiver {
        self.inner.came.subscribe()
    }

    fn released(&self) -> Receiver {
        self.inner.released.subscribe()
    }
}

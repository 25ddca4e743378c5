//! One pull from beginning to end: manifest, platform, configuration, layers.
//!
//! Endpoints are tried in order until one has the image; the failure reported is the registry's own when mirrors only
//! lack it. Up to three layers are downloaded at once, and unpacked in order while others still come.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::access::Access;
use super::client::Repository;
use super::content::Documents;
use super::digest::{blob_name, chain_ids};
use super::error::io;
use super::manifest::{ConfigFile, Descriptor, choose, own_platform, parse_manifest};
use super::source::{PeerNodes, Source};
use super::store::ImageStore;
use super::unpack::usable_space;
use super::{Credentials, Image, ImageError, Images, Reference, Result};
use crate::base::progress;

const DOWNLOADS_AT_ONCE: usize = 3;

/// With `fresh` the registry says what a tag means today, and only then nodes that have just that.
pub(super) async fn pull(
    store: &ImageStore,
    reference: &Reference,
    credentials: &[Credentials],
    fresh: bool,
) -> Result<Image> {
    let result = download(store, reference, credentials, fresh).await;
    if result.is_err() {
        // What is taken in right now may be what is wanted.
        let _ended = store.inner.taking_in.read().await;
        let shown = reference.to_string();
        if let Some(image) = store.status(&shown).await.filter(|_| !fresh || store.is_offline())
            && store.allows(&image, &shown, credentials).await
        {
            return Ok(image);
        }
    }
    result
}

async fn download(
    store: &ImageStore,
    reference: &Reference,
    credentials: &[Credentials],
    fresh: bool,
) -> Result<Image> {
    let inner = &store.inner;
    // What an archive brought here is newer than what any agent has, but not than what the server has.
    let server_only = fresh && inner.image(&reference.to_string()).is_some();
    let neighbours = inner.peers.get().map(|peers| PeerNodes::new(&**peers, reference, server_only));
    if let Some(neighbours) = neighbours.as_ref().filter(|_| !fresh || inner.registries.offline) {
        match pull_from(store, reference, &Source::PeerNodes(neighbours)).await {
            Ok(image) => return Ok(image),
            Err(error) => tracing::debug!(image = %reference, %error, "no other node"),
        }
    }
    if inner.registries.offline {
        let directory = inner.config.archives_dir().display().to_string();
        return Err(ImageError::Offline { reference: reference.to_string(), directory });
    }
    let mut failure: Option<ImageError> = None;
    for endpoint in inner.registries.endpoints(&reference.registry, &reference.repository) {
        // A pod's secrets speak of the registry that its image names; a mirror of it has credentials of its own.
        let mut all = if endpoint.is_named_registry { credentials.to_vec() } else { Vec::new() };
        all.extend(inner.registries.credentials(&endpoint.host));
        let repository = Repository {
            client: &inner.client,
            registries: &inner.registries,
            endpoint,
            credentials: all,
            opened: Mutex::default(),
            reference: reference.to_string(),
        };
        let nearer = neighbours.as_ref().filter(|_| fresh);
        let source = Source::Registry { repository: &repository, nearer };
        match pull_from(store, reference, &source).await {
            Err(error) if error.is_elsewhere_better() => {
                tracing::debug!(image = %reference, registry = repository.endpoint.host, %error, "pull");
                // A mirror that is there and has it wrong says more than a registry that cannot be reached.
                failure = Some(match (failure, error) {
                    (Some(first), ImageError::Unreachable { .. }) => first,
                    (_, error) => error,
                });
            }
            result => return result,
        }
    }
    Err(failure.unwrap_or_else(|| ImageError::NoImage(reference.to_string())))
}

async fn pull_from(store: &ImageStore, reference: &Reference, source: &Source<'_>) -> Result<Image> {
    let shown = reference.to_string();
    let target = source.manifest(reference.version()).await?;
    // Other nodes give only what is everyone's.
    let access = source.opened_by().map_or(Access::Everyone, |credentials| Access::by(&credentials));
    let private = access != Access::Everyone;
    let digest = super::digest_of(&target);
    if let Some(expected) = reference.digest.as_ref().filter(|expected| **expected != digest) {
        return Err(ImageError::WrongDigest { expected: expected.clone(), actual: digest });
    }
    let mut bytes = target.clone();
    let mut manifest = parse_manifest(&bytes)?;
    if manifest.config.is_none() && !manifest.manifests.is_empty() {
        let chosen = choose(&manifest.manifests, &own_platform(), &shown)?.digest.clone();
        blob_name(&chosen)?;
        bytes = source.manifest(&chosen).await?;
        let actual = super::digest_of(&bytes);
        if actual != chosen {
            return Err(ImageError::WrongDigest { expected: chosen, actual });
        }
        manifest = parse_manifest(&bytes)?;
    }
    let config = manifest.config.as_ref().ok_or_else(|| ImageError::invalid("manifest", "it has no configuration"))?;
    blob_name(&config.digest)?;
    let config_bytes = source.small_blob(&config.digest).await?;
    let file = ConfigFile::parse(&config_bytes)?;
    file.check_platform(&shown)?;
    if file.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::invalid("manifest", "configuration and manifest differ in their layers"));
    }
    let chain = chain_ids(&file.rootfs.diff_ids);
    let known = store.status(&config.digest).await.is_some();
    let source = if known { *source } else { source.nearest(&super::digest_of(&bytes)).await };
    fetch_layers(store, &source, &manifest.layers, &file.rootfs.diff_ids, &chain, known).await?;
    let documents = Documents { target, manifest: bytes, config: config_bytes };
    let layers = manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
    let content = store.blocking(move |inner| inner.keep(&documents, layers, private)).await?;
    let tags = if reference.digest.is_none() { vec![shown] } else { Vec::new() };
    let image = Image {
        id: config.digest.clone(),
        tags,
        digests: vec![format!("{}@{digest}", reference.name())],
        size_bytes: 0,
        pinned: false,
        last_used: Timestamp::now(),
        config: file.image_config(),
    };
    store.add_image(image, chain, content, Some((reference.name(), access)))
}

/// An image that is `known` is complete, even if what it came as was not kept.
async fn fetch_layers(
    store: &ImageStore,
    source: &Source<'_>,
    layers: &[Descriptor],
    diff_ids: &[String],
    chain: &[String],
    known: bool,
) -> Result<()> {
    let permits = Arc::new(Semaphore::new(DOWNLOADS_AT_ONCE));
    let download = |descriptor: &Descriptor| {
        let (permits, descriptor) = (permits.clone(), descriptor.clone());
        async move {
            let _permit = permits.acquire_owned().await.map_err(|error| ImageError::invalid("download", error))?;
            download_layer(store, source, &descriptor).await
        }
    };
    let there =
        |index: &usize| store.has_layer(&chain[*index]) && (known || store.inner.has_content(&layers[*index].digest));
    let missing: Vec<usize> = (0..layers.len()).filter(|index| !there(index)).collect();
    let wanted_bytes = missing.iter().fold(0, |sum: u64, index| sum.saturating_add(layers[*index].size));
    let free_bytes = usable_space(&store.inner.directory)?.0;
    if wanted_bytes > free_bytes {
        let reason = format!("layers of {wanted_bytes} bytes, and {free_bytes} bytes may still be used on the disk");
        return Err(ImageError::invalid("manifest", reason));
    }
    progress::expect(wanted_bytes);
    // All are polled together; unpacking waits for its turn in order, on a channel of its own.
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(usize, BlobFile)>(layers.len().max(1));
    let downloads = async {
        let all = missing.iter().map(|index| {
            let (download, sender) = (download(&layers[*index]), sender.clone());
            async move {
                let blob = download.await?;
                // The receiver ends early only after a failure, which is reported in its own way.
                let _ = sender.send((*index, blob)).await;
                Ok::<(), ImageError>(())
            }
        });
        let result = futures::future::try_join_all(all).await;
        drop(sender);
        result.map(drop)
    };
    let unpacking = async {
        let mut ready = std::collections::BTreeMap::new();
        let mut turn = missing.iter();
        let mut next = turn.next();
        while let Some(index) = next {
            let Some(blob) = ready.remove(index) else {
                let Some((index, blob)) = receiver.recv().await else { return Ok(()) };
                ready.insert(index, blob);
                continue;
            };
            let blob: BlobFile = blob;
            store.add_layer(&chain[..*index], &chain[*index], &diff_ids[*index], blob.0.clone()).await?;
            store.inner.keep_file(&blob.0, &layers[*index].digest)?;
            next = turn.next();
        }
        Ok(())
    };
    futures::future::try_join(downloads, unpacking).await.map(drop)
}

/// A verified blob; its file goes when nobody needs it any more, whatever became of the pull.
struct BlobFile(PathBuf);

impl Drop for BlobFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Downloads one layer unless its blob is there already; returns the verified file.
async fn download_layer(store: &ImageStore, source: &Source<'_>, descriptor: &Descriptor) -> Result<BlobFile> {
    let name = blob_name(&descriptor.digest)?;
    if descriptor.media_type.contains("nondistributable") || descriptor.media_type.contains("foreign") {
        return Err(ImageError::invalid("layer", "foreign layers are not supported"));
    }
    // Two images may share a layer: each pull has its own file, and unpacking notices that the layer is there.
    let unique = &super::super::new_id()[..8];
    let partial = store.inner.directory.join("partial").join(name);
    let own = store.inner.directory.join("blobs").join(format!("{name}.{unique}"));
    if std::fs::rename(&partial, &own).is_err() && own.exists() {
        return Err(ImageError::invalid("layer", "its file exists already"));
    }
    match source.blob(&descriptor.digest, descriptor.size, &own).await {
        Ok(()) => Ok(BlobFile(own)),
        Err(error) => {
            // What has come stays for the next pull to go on from.
            if own.exists() {
                std::fs::rename(&own, &partial).map_err(io("renaming", &own))?;
            }
            Err(error)
        }
    }
}
